"""IREE: iree-import-onnx, the compiler for the CPU, and its runtime."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from exchange import serve
from iree import compiler, runtime


def open_model(path):
    mlir = Path(path).with_suffix(".mlir")
    command = [Path(sys.executable).with_name("iree-import-onnx"), path, "-o", mlir]
    subprocess.run(command, check=True, stdout=sys.stderr)
    compiled = compiler.compile_file(str(mlir), target_backends=["llvm-cpu"], input_type="onnx")
    config = runtime.Config("local-sync")
    module = runtime.load_vm_module(runtime.VmModule.copy_buffer(config.vm_instance, compiled), config)

    (name,) = (name for name in module.vm_module.function_names if not name.startswith("__") and "$" not in name)

    # Its types of integers have no sign: uint8 comes back as int8.
    types = [onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in onnx.load(path).graph.output]

    def run(feeds):
        result = module[name](*feeds)
        results = result if isinstance(result, (list, tuple)) else [result]
        # Copied: the memory of a result goes with it.
        return [np.array(value).view(dtype) for value, dtype in zip(results, types, strict=True)]

    return run


serve(open_model)
