"""Time and memory of exporting a network of 50 convolutions, beside torch's own export of the float network.

    python benchmarks/bench_export.py

Each export runs in a process of its own. Reported: processor seconds of the export call, and by how much the process's
peak memory grew in it, as a multiple of the size of the parameters.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
import warnings

import torch
from torch import nn

LAYERS = 50
TARGETS = ("qdq", "qop", "qonnx", "finn", "dpuv1")


def network(channels: int, quantized: bool, fixed_point: bool = False) -> nn.Module:
    from brevitas import quant
    from brevitas.nn import QuantConv2d, QuantIdentity, QuantReLU

    if not quantized:
        layers = [[nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()] for _ in range(LAYERS)]
        return nn.Sequential(*(layer for pair in layers for layer in pair))
    act = quant.Uint8ActPerTensorFixedPoint if fixed_point else quant.Uint8ActPerTensorFloat
    weight = quant.Int8WeightPerTensorFixedPoint if fixed_point else quant.Int8WeightPerTensorFloat
    bias = quant.Int8BiasPerTensorFixedPointInternalScaling if fixed_point else quant.Int32Bias
    found: list[nn.Module] = [QuantIdentity(act, return_quant_tensor=True)]
    for _ in range(LAYERS):
        found.append(QuantConv2d(channels, channels, 3, padding=1, weight_quant=weight, bias_quant=bias))
        found.append(QuantReLU(act, return_quant_tensor=True))
    return nn.Sequential(*found)


def measure(what: str, channels: int) -> str:
    """Export once in this process."""
    from brevitas.export.manager import DPUv1Manager, FINNManager, QONNXManager, StdONNXManager, StdQOpONNXManager

    managers = {
        "qdq": StdONNXManager,
        "qop": StdQOpONNXManager,
        "qonnx": QONNXManager,
        "finn": FINNManager,
        "dpuv1": DPUv1Manager,
    }
    model = network(channels, what != "float", what == "dpuv1")
    x = torch.randn(1, channels, 16, 16)
    with torch.no_grad():
        model.train()(x)
    model.eval()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    before, start = _peak(), time.process_time()
    if what == "float":
        torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    else:
        managers[what].export(model, input_t=x)
    seconds, grown = time.process_time() - start, _peak() - before
    return f"{what:6} {seconds:5.1f} s {grown / size:5.1f} times the parameters ({size / 2**20:.0f} MiB)"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Each export in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=256, help="channels of every layer (default: 256)")
    parser.add_argument("--only", choices=("float", *TARGETS), help="measure one export in this process")
    arguments = parser.parse_args()
    if arguments.only:
        warnings.simplefilter("ignore")
        print(measure(arguments.only, arguments.channels))
        return
    for what in ("float", *TARGETS):
        command = [sys.executable, __file__, "--only", what, "--channels", str(arguments.channels)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(out.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
