"""Layers with quantized weights as they stand in the canonical graph: a product, its weight, its bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from brevitas.export import graph as g
from brevitas.export.lowering.codes import Grid
from brevitas.export.lowering.pattern import added_bias, operand_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Product", "product_at"]


@dataclass(frozen=True)
class Product:
    """``Conv``, ``Gemm`` or ``MatMul`` of data and a quantized weight, with the bias that is added to it.

    ``last`` is the node that gives the result: the product, or the ``Add`` of a ``MatMul``. ``perm`` takes the weight
    as it is stored to the layout in which it is multiplied, (in, out) for linear layers; ``codes`` have that
    layout.
    """

    node: ir.Node
    last: ir.Node
    weight: g.Quantizer
    perm: tuple[int, ...]
    codes: np.ndarray
    bias: ir.Value | None

    @property
    def is_conv(self) -> bool:
        """Whether the weight is (out, in, ...) rather than (in, out)."""
        return self.node.op_type == "Conv"

    @property
    def data(self) -> ir.Value:
        """The operand that is no weight."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def bias_position(self) -> int | None:
        """Which input of :attr:`last` the bias is."""
        return None if self.bias is None else list(self.last.inputs).index(self.bias)

    @property
    def bias_quantizer(self) -> g.Quantizer | None:
        """The quantizer of the bias, ``None`` where the bias is a float constant, or absent."""
        operand = operand_of(self.bias)
        return None if operand is None else operand.quantizer

    @property
    def out_axis(self) -> int:
        """Dimension of the output channels in :attr:`codes`."""
        return 0 if self.is_conv else 1

    @property
    def group(self) -> int:
        """Number of groups of a convolution, else 1."""
        a = self.node.attributes
        return a["group"].as_int() if "group" in a else 1

    @property
    def is_depthwise(self) -> bool:
        """Whether each input channel is multiplied by weights of its own alone."""
        return self.is_conv and self.group > 1 and self.codes.shape[1] == 1

    def weight_scale(self) -> np.ndarray | None:
        """Scale of the weight, 0-d or one number an output channel; ``None`` where it varies otherwise."""
        scale = self.weight.scale
        if scale.size == 1:
            return scale.reshape(())
        scale = np.transpose(scale.reshape((1,) * (len(self.perm) - scale.ndim) + scale.shape), self.perm)
        varying = [axis for axis, n in enumerate(scale.shape) if n != 1]
        return scale.reshape(-1) if varying == [self.out_axis] else None

    def per_channel(self, numbers: np.ndarray) -> np.ndarray:
        """One number, or one an output channel, shaped as it broadcasts against the result."""
        if numbers.size == 1:
            return numbers.reshape(())
        trailing = len(self.perm) - 2 if self.is_conv else 0
        return numbers.reshape((1, -1, *(1,) * trailing))

    def product_scale(self, grid: Grid) -> np.ndarray | None:
        """Scale of the integer products, input scale times weight scale in float32; ``None`` where it is not one."""
        weight = self.weight_scale()
        if weight is None or not (grid.is_scalar or self.is_depthwise):
            return None
        data = grid.scale.reshape(-1)
        if data.size > 1:
            data = np.repeat(data, self.codes.shape[0] // data.size)
        made: np.ndarray = (data.astype(np.float32) * weight.reshape(-1)).astype(np.float32)
        return made

    def reach(self, grid: Grid, bias: np.ndarray) -> tuple[int, int]:
        """Least and greatest integer that products of any data on ``grid``, plus ``bias``, can add up to."""
        axes = tuple(i for i in range(self.codes.ndim) if i != self.out_axis)
        codes = self.codes.astype(np.int64)
        ends = [codes * end for end in (min(grid.low, 0), max(grid.high, 0))]
        low = np.minimum(*ends).sum(axis=axes) + bias
        high = np.maximum(*ends).sum(axis=axes) + bias
        return int(low.min()), int(high.max())


def _flag(node: ir.Node, name: str, default: float) -> float:
    return float(node.attributes[name].value) if name in node.attributes else default


def product_at(node: ir.Node) -> Product | None:
    """The product that a node is, or ``None``: no such operator, no quantized weight, or a form of another kind."""
    if node.domain != "" or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    operand = operand_of(node.inputs[1])
    if operand is None:
        return None
    codes = g.compact(operand.quantizer.codes())
    rank = codes.ndim
    perm = operand.perm or tuple(range(rank))
    if (node.op_type != "Conv" and rank != 2) or (node.op_type == "Conv" and rank not in (3, 4)):
        return None
    if node.op_type == "Gemm":
        if _flag(node, "alpha", 1.0) != 1.0 or _flag(node, "beta", 1.0) != 1.0 or _flag(node, "transA", 0.0):
            return None
        if _flag(node, "transB", 0.0):
            perm = perm[::-1]
    add, bias = added_bias(node) if node.op_type == "MatMul" else (None, None)
    if node.op_type != "MatMul" and len(node.inputs) > 2:
        bias = node.inputs[2]
    return Product(node, node if add is None else add, operand.quantizer, perm, codes.transpose(perm), bias)
