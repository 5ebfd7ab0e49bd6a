"""Wires where a layer needs integers: what is on a grid, and the clear word where something is not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from brevitas.export.integer.builder import Builder, Unrepresentable
from brevitas.export.integer.values import Array, Constant, FloatValue, Pair, Value, Wire, compressed

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["integers", "per_tensor"]


def integers(b: Builder, node: ir.Node, value: Value | None, what: str) -> Wire:
    """``value`` as a wire without operations; a ReLU on codes becomes a step, a mean of codes a finer scale."""
    if isinstance(value, (FloatValue, Constant)) or value is None:
        kind = "a model input" if isinstance(value, FloatValue) else "a float constant"
        raise Unrepresentable(
            "E28",
            f"{what} of {node.op_type} that is {kind}, not quantized",
            f"a quantized {what}",
            "set weight_quant on the layer"
            if what == "weight"
            else "put QuantIdentity(return_quant_tensor=True) before the layer, or set its input_quant",
        )
    if isinstance(value, Pair):
        raise value.reason
    assert isinstance(value, Wire)
    while value.ops:
        op = value.ops[0]
        if op.kind == "relu":
            value = _rectified(b, node, value)
        elif op.kind == "mean":
            value = replace(value, scale=value.scale / op.constants[0], ops=value.ops[1:])
        else:
            kinds = ", ".join(op.kind for op in value.ops)
            raise Unrepresentable(
                "E28",
                f"{what} of {node.op_type} that was computed in float from integers ({kinds})",
                f"a quantized {what}",
                "put a QuantIdentity or QuantReLU before it, or set the input_quant of the layer",
            )
    return value


def _rectified(b: Builder, node: ir.Node, wire: Wire) -> Wire:
    if wire.is_constant:
        assert wire.codes is not None
        codes = np.maximum(wire.codes, wire.zero)
        return replace(wire, codes=codes, ops=wire.ops[1:])
    name = b.emit("relu", node, [wire.tensor], arrays={"zero": wire.zero}, suffix=".relu")
    low, high = np.maximum(wire.low, wire.zero), np.maximum(wire.high, wire.zero)
    return b.wire(name, wire.shape, wire.scale, wire.zero, low, high, ops=wire.ops[1:], claim=wire.claim)


def per_tensor(node: ir.Node, wire: Wire, what: str) -> Array:
    """The one scale of a wire."""
    scale = compressed(wire.scale)
    if scale.size != 1:
        raise Unrepresentable(
            "E12",
            f"a scale of shape {scale.shape} of the {what} of {node.op_type}: products of different scales have no "
            "integer sum",
            "one scale for the tensor",
            "set scaling_per_output_channel=False on the quantizer of the input",
        )
    return scale.reshape(())
