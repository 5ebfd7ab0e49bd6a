"""Small canonical graphs with integer weights, and what they must compute, written out in torch."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from canonical_graphs import Builder

from brevitas.export.integer import IntegerNetwork
from brevitas.function.rounding import dpu_round

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
ROUND = {"ROUND": torch.round, "FLOOR": torch.floor, "CEIL": torch.ceil, "DOWN": torch.trunc, "DPU": dpu_round}


def quantized(x: torch.Tensor, scale: Any, zero: Any, low: int, high: int, rounding: str = "ROUND") -> torch.Tensor:
    """Codes by the formula of the library, in float32."""
    scale, zero = (torch.as_tensor(np.asarray(a), dtype=torch.float32) for a in (scale, zero))
    return ROUND[rounding](x / scale + zero).clamp(low, high).long()


def sum_of_products(x: Any, weight: Any, transposed: bool = False, **geometry: Any) -> np.ndarray:
    """An exact convolution of integers, by torch in float64."""
    x, weight = (torch.as_tensor(np.asarray(a), dtype=torch.float64) for a in (x, weight))
    function = (TRANSPOSED if transposed else CONV)[x.ndim - 2]
    return function(x, weight, **geometry).numpy().astype(np.int64)


class ConvNet:
    """input -> Quant -> Conv -> [Add bias] -> Quant -> output, with everything that describes it at hand."""

    def __init__(self, rng: np.random.Generator, spatial: int = 2, transposed: bool = False, **options: Any) -> None:
        self.transposed = transposed
        self.group = int(options.get("group", 1))
        self.channels = self.group * int(rng.integers(1, 3))
        self.outputs = self.group * int(rng.integers(1, 3))
        pick = lambda low, high: tuple(int(v) for v in rng.integers(low, high, spatial))  # noqa: E731
        self.kernel, self.strides, self.dilations = pick(1, 4), pick(1, 3), pick(1, 3)
        self.pads = pick(0, 2)
        self.size = pick(6, 8)
        self.bits, self.signed = int(options.get("bits", 4)), bool(options.get("signed", True))
        self.rounding = str(options.get("rounding", "ROUND"))
        self.zero = int(options.get("zero", 0))
        self.out_zero = int(options.get("out_zero", 0))
        first = (
            (self.channels, self.outputs // self.group) if transposed else (self.outputs, self.channels // self.group)
        )
        self.weight = rng.integers(-7, 8, (*first, *self.kernel))
        self.weight_zero = int(options.get("weight_zero", 0))
        self.in_scale = np.float32(rng.uniform(0.01, 0.2))
        per_channel = bool(options.get("per_channel", True)) and not transposed
        self.weight_scale = rng.uniform(0.01, 0.1, (self.outputs,) if per_channel else ()).astype(np.float32)
        self.out_scale = np.float32(rng.uniform(0.01, 0.4))
        self.bias = rng.normal(0, 1, self.outputs).astype(np.float32) if options.get("bias", True) else None

    @property
    def range(self) -> tuple[int, int]:
        """Codes of both activations."""
        return (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1) if self.signed else (0, 2**self.bits - 1)

    def graph(self) -> ir.Model:
        b = Builder()
        shape = (1, self.channels, *self.size)
        q = b.quant("input", "first", shape, self.in_scale, self.bits, self.signed, zero_point=self.zero)
        scale = self.weight_scale
        if scale.ndim:
            scale = scale.reshape(-1, *(1,) * (self.weight.ndim - 1))
        w = b.weight("conv.weight", self.weight, scale, 8, zero_point=self.weight_zero)
        inputs = [q, w]
        if self.bias is not None:
            inputs.append(b.constant("conv.bias", self.bias))
        out = self.accumulators(np.zeros((1, self.channels, *self.size), np.int64)).shape
        attributes = {
            "kernel_shape": self.kernel,
            "strides": self.strides,
            "dilations": self.dilations,
            "pads": [*self.pads, *self.pads],
            "group": self.group,
        }
        y = b.node("ConvTranspose" if self.transposed else "Conv", inputs, "conv.out", out, **attributes)
        grid = (self.out_scale, self.bits, self.signed)
        result = b.quant(y, "second", out, *grid, zero_point=self.out_zero, rounding=self.rounding)
        return b.model({"input": shape}, [result])

    def accumulators(self, codes: np.ndarray) -> np.ndarray:
        geometry = {"stride": self.strides, "padding": self.pads, "dilation": self.dilations, "groups": self.group}
        weight = self.weight - self.weight_zero
        return sum_of_products(codes - self.zero, weight, self.transposed, **geometry)

    def codes(self, codes: np.ndarray) -> np.ndarray:
        """What the graph must give: the exact sum, scaled once, then torch's float32 arithmetic."""
        sums = torch.from_numpy(self.accumulators(codes)).double()
        trailing = (-1, *(1,) * len(self.size))
        scale = torch.from_numpy(np.atleast_1d(self.in_scale * self.weight_scale)).double().reshape(trailing)
        x = (sums * scale).float()
        if self.bias is not None:
            x = x + torch.from_numpy(self.bias).reshape(trailing)
        return quantized(x, self.out_scale, self.out_zero, *self.range, self.rounding).numpy()


def compiled(net: IntegerNetwork, folder: Path, codes: list[np.ndarray]) -> list[np.ndarray]:
    """Outputs of the network as C, for samples of codes: one array an output, (samples, elements)."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc is not installed")
    header, program = folder / "net.h", folder / "net"
    net.write_c(header, main=True)
    # -Wconversion is left out: integer promotion in products of int8_t constants is what is wanted.
    flags = [
        "-O1",
        "-std=c99",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsanitize=undefined",
        "-fno-sanitize-recover",
        "-DNET_MAIN",
    ]
    subprocess.run([gcc, *flags, "-x", "c", str(header), "-o", str(program)], check=True)
    samples = np.concatenate([c.reshape(len(c), -1) for c in codes], axis=1)
    text = "\n".join(" ".join(map(str, row)) for row in samples.tolist())
    printed = subprocess.run([str(program)], input=text, capture_output=True, text=True, check=True).stdout
    table = np.asarray([[int(v) for v in line.split()] for line in printed.splitlines()], np.int64)
    sizes = [int(np.prod(net.tensors[o.tensor].shape)) for o in net.outputs]
    return np.split(table, np.cumsum(sizes)[:-1], axis=1)
