"""Products of quantized operands with the quantizers around them: what integer operators compute in one step.

    data quantizer -> Conv, Gemm or MatMul [-> Add bias] [-> Relu] -> output quantizer

Layers play no part: whether the output quantizer is the layer's own or stands behind it makes no difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from brevitas.export import graph as g
from brevitas.export.lowering.pattern import grid_of, on_accumulator_grid

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Fused", "Operand", "find_fused", "operand_of"]


@dataclass(frozen=True)
class Operand:
    """A quantized parameter as an operand: its quantizer, and the permutation in which it is read."""

    quantizer: g.Quantizer
    perm: tuple[int, ...] | None = None

    @property
    def codes(self) -> np.ndarray:
        """Integer codes as the operator reads them."""
        codes = self.quantizer.codes()
        return codes if self.perm is None else np.ascontiguousarray(codes.transpose(self.perm))

    def read(self, metadata: np.ndarray) -> np.ndarray:
        """Scale or zero point, with as many dims as the parameter, as the operator reads it."""
        rank = self.quantizer.codes().ndim
        aligned = metadata.reshape((1,) * (rank - metadata.ndim) + metadata.shape)
        return aligned if self.perm is None else aligned.transpose(self.perm)


def operand_of(value: ir.Value | None) -> Operand | None:
    """The parameter that an operator reads, past transposes; ``None`` where it reads something else."""
    perm: tuple[int, ...] | None = None
    while value is not None:
        node = value.producer()
        if node is None:
            return None
        if node.domain == g.DOMAIN and node.op_type in g.KINDS:
            q = g.Quantizer.read(node)
            return Operand(q, perm) if q.is_parameter else None
        if node.op_type != "Transpose" or node.domain != "":
            return None
        own = tuple(node.attributes["perm"].as_ints())
        perm = own if perm is None else tuple(own[i] for i in perm)
        value = node.inputs[0]
    return None


@dataclass(frozen=True)
class Fused:
    """One product. ``output`` is ``None`` where no quantizer follows directly; ``obstacle`` then says what does."""

    node: ir.Node
    data: ir.Value
    input: g.Quantizer | None
    weight: Operand
    bias: Operand | None = None
    float_bias: bool = False
    bias_on_grid: bool = False
    relu: bool = False
    output: g.Quantizer | None = None
    obstacle: str = ""
    between: tuple[ir.Node, ...] = field(default=())

    @property
    def is_linear(self) -> bool:
        """Whether the product is one of matrices."""
        return self.node.op_type != "Conv"

    @property
    def has_operator(self) -> bool:
        """Whether one operator computes codes from codes: QLinearConv, or QLinearMatMul.

        QLinearMatMul takes no bias, and onnxruntime's takes a scale per column for matrices alone.
        """
        rank = len(self.data.shape or ())
        return not self.is_linear or (self.bias is None and (rank == 2 or self.weight.quantizer.scale.size == 1))

    @property
    def channel_dim(self) -> int:
        """Dim of the weight, as the operator reads it, that runs over the output channels."""
        if self.node.op_type == "Conv" or (self.node.op_type == "Gemm" and _flag(self.node, "transB")):
            return 0
        return self.weight.codes.ndim - 1


def _flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and bool(node.attributes[name].value)


def find_fused(model: ir.Model) -> Iterator[Fused]:
    """Every Conv, Gemm and MatMul by a quantized weight."""
    for node in model.graph:
        if node.domain != "" or node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        weight, data = operand_of(node.inputs[1]), node.inputs[0]
        if weight is not None and data is not None:
            yield _fused(model, node, data, weight)


def _fused(model: ir.Model, node: ir.Node, data: ir.Value, weight: Operand) -> Fused:
    source = g.source_quantizer(data)
    given = None if source is None or source.op_type not in g.KINDS else g.Quantizer.read(source)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    value = node.outputs[0]
    between: list[ir.Node] = []
    if node.op_type == "MatMul":
        add = _only_reader(value)
        if add is not None and add.op_type == "Add":
            others = [v for v in add.inputs if v is not value]
            if len(others) == 1 and _is_parameter(others[0]):
                bias, value = others[0], add.outputs[0]
                between.append(add)
    reader = _only_reader(value)
    relu = reader is not None and reader.op_type == "Relu" and reader.domain == ""
    if reader is not None and relu:
        between.append(reader)
        value = reader.outputs[0]
        reader = _only_reader(value)
    quantized = reader is not None and reader.domain == g.DOMAIN and reader.op_type == "Quant"
    bias_operand = operand_of(bias)
    return Fused(
        node,
        data,
        given if given is not None and not given.is_parameter else None,
        weight,
        bias_operand,
        float_bias=bias is not None and bias_operand is None,
        bias_on_grid=bias_operand is not None and _on_grid(model, data, bias_operand),
        relu=relu,
        output=g.Quantizer.read(reader) if reader is not None and quantized else None,
        obstacle="" if quantized else _what_follows(value, reader),
        between=tuple(between),
    )


def _on_grid(model: ir.Model, data: ir.Value, bias: Operand) -> bool:
    return grid_of(model, data) is not None and on_accumulator_grid(model, bias.quantizer)


def _is_parameter(value: ir.Value | None) -> bool:
    return value is not None and (g.constant(value) is not None or operand_of(value) is not None)


def _only_reader(value: ir.Value) -> ir.Node | None:
    readers = {id(node): node for node, _ in value.uses()}
    return next(iter(readers.values())) if len(readers) == 1 and not value.is_graph_output() else None


def _what_follows(value: ir.Value, reader: ir.Node | None) -> str:
    if value.is_graph_output():
        return "the product is an output of the model"
    if reader is None:
        return f"{len({id(n) for n, _ in value.uses()})} operators read the product"
    layer = g.meta(reader, g.LAYER)
    return f"{reader.op_type}{f' of {layer!r}' if layer else ''} reads the product"
