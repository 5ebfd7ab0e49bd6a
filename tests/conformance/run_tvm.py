"""Apache TVM: the ONNX reader of relax, compiled for the CPU."""

import onnx
import tvm
from exchange import serve
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx


def open_model(path):
    module = from_onnx(onnx.load(path), keep_params_in_input=False)
    machine = relax.VirtualMachine(tvm.compile(module, "llvm"), tvm.cpu())

    def run(feeds):
        result = machine["main"](*map(tvm.runtime.tensor, feeds))
        return [value.numpy() for value in ([result] if isinstance(result, tvm.runtime.Tensor) else result)]

    return run


serve(open_model)
