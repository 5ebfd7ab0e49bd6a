"""Products of quantized operands with the quantizers around them: what integer operators compute in one step.

    data quantizer -> Conv, Gemm or MatMul [-> Add bias] [-> Relu] -> output quantizer

Layers play no part: whether the output quantizer is the layer's own or stands behind it makes no difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from brevitas.export import graph as g
from brevitas.export.lowering.pattern import Operand, added_bias, grid_of, on_accumulator_grid, operand_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Fused", "find_fused"]


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
        add, bias = added_bias(node)
        if add is not None:
            value = add.outputs[0]
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
