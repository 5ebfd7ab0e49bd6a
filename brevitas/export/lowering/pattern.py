"""Questions about the canonical graph that more than one target asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from brevitas.export import graph as g

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["COMPUTE", "Operand", "added_bias", "grid_of", "on_accumulator_grid", "operand_of", "weight_of"]

# Operators that multiply data by weights, with the positions of data, weight and bias.
COMPUTE = {"Conv": (0, 1, 2), "ConvTranspose": (0, 1, 2), "Gemm": (0, 1, 2), "MatMul": (0, 1, None)}


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


def added_bias(node: ir.Node) -> tuple[ir.Node | None, ir.Value | None]:
    """The Add of a bias that alone reads a MatMul, and the bias: a quantized one, or a constant of one dimension."""
    out = node.outputs[0]
    uses = list(out.uses())
    if len(uses) != 1 or out.is_graph_output():
        return None, None
    add, position = uses[0]
    if add.op_type != "Add" or add.domain != "" or g.meta(add, g.LAYER) != g.meta(node, g.LAYER):
        return None, None
    other = add.inputs[1 - position]
    operand, held = operand_of(other), g.constant(other)
    if (operand is not None and operand.quantizer.role == "bias") or (held is not None and held.ndim <= 1):
        return add, other
    return None, None


def weight_of(value: ir.Value | None) -> g.Quantizer | None:
    """The weight quantizer behind a weight operand, past transposes."""
    node = g.source_quantizer(value)
    if node is None or node.op_type not in g.KINDS:
        return None
    q = g.Quantizer.read(node)
    return q if q.is_parameter else None


def grid_of(model: ir.Model, value: ir.Value | None) -> np.ndarray | None:
    """Scale of the grid on which an operand lies, also where it comes from a QuantTensor given to the model."""
    node = g.source_quantizer(value)
    if node is not None:
        return g.Quantizer.read(node).scale if node.op_type in g.KINDS else None
    while value is not None and value.producer() is not None:
        producer = value.producer()
        if producer is None or producer.op_type not in g.GRID_PRESERVING:
            return None
        value = producer.inputs[0]
    for graph_input, fields in zip(model.graph.inputs, g.quant_tensor_records(model, g.INPUTS), strict=True):
        if graph_input is value and fields is not None:
            return np.asarray(fields["scale"], np.float32)
    return None


def on_accumulator_grid(model: ir.Model, bias: g.Quantizer) -> bool:
    """True where every consumer of the bias adds it to products whose scale, input scale times weight scale, it has."""
    consumers = [node for node, _ in bias.node.outputs[0].uses()]
    return bool(consumers) and all(_adds_on_grid(model, bias, node) for node in consumers)


def _adds_on_grid(model: ir.Model, bias: g.Quantizer, node: ir.Node) -> bool:
    if node.op_type == "Add":
        others = [v for v in node.inputs if v is not bias.node.outputs[0]]
        producer = others[0].producer() if len(others) == 1 and others[0] is not None else None
        if producer is None or producer.op_type != "MatMul":
            return False
        node = producer
    positions = COMPUTE.get(node.op_type)
    if positions is None:
        return False
    weight = weight_of(node.inputs[positions[1]])
    scale = grid_of(model, node.inputs[positions[0]])
    if weight is None or scale is None or scale.size != 1:
        return False
    product = (scale.reshape(-1).astype(np.float64) * weight.scale.reshape(-1)).astype(np.float64)
    own = bias.scale.reshape(-1)
    return own.size in (1, product.size) and bool(np.allclose(own, product, rtol=1e-6, atol=0))
