"""Minifloat quantizers as standard operators on ONNX's 8-bit float types."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from brevitas.export import graph as g
from brevitas.export.lowering.build import add_initializer, insert_before, make_node, redirect, remove_if_unused
from brevitas.export.minifloat import FloatQuantizer

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["lower_float8"]


def lower_float8(model: ir.Model, f: FloatQuantizer) -> None:
    """QuantizeLinear and DequantizeLinear of an activation; DequantizeLinear of a float8 constant for a parameter."""
    import onnx_ir as ir

    assert f.format.onnx_type is not None
    kind = ir.DataType[f.format.onnx_type]
    node, out, x = f.node, f.node.outputs[0], f.node.inputs[0]
    assert x is not None
    if not f.is_parameter:
        x = _without_relu(model, node, x)
    name, base = node.name or f.name, f.name.removesuffix("_quant")
    axes = f.varying_dims
    attributes = {"axis": axes[0]} if axes else {}
    size = f.scale.size if axes else ()
    for position in range(1, len(node.inputs)):  # frees the names
        node.replace_input_with(position, None)
    scale = add_initializer(model, f"{base}_scale", f.scale.reshape(size).astype(np.float32))
    zero = add_initializer(model, f"{base}_zero_point", np.zeros(size, kind.numpy()))
    meta = {k: v for k, v in node.metadata_props.items() if k in (g.LAYER, g.CLASS, g.QUANTIZER, g.ROLE, g.CALL)}
    if f.is_parameter:
        values = g.constant(x)
        assert values is not None
        codes = (values.astype(np.float64) / f.scale).astype(np.float32).astype(kind.numpy())
        stored = add_initializer(model, f"{x.name}_codes", codes)
    else:
        quantize = make_node(
            "QuantizeLinear",
            [x, scale, zero],
            name=name,
            like=out,
            dtype=kind,
            attributes={**attributes, "saturate": int(f.format.saturating)},
            meta={**meta, g.PART: "quantize"},
        )
        insert_before(node, quantize)
        stored = quantize.outputs[0]
    dequantize = make_node(
        "DequantizeLinear",
        [stored, scale, zero],
        name=f"{name}.dequantize",
        like=out,
        attributes=attributes,
        meta={**meta, g.PART: g.VALUES},
    )
    insert_before(node, dequantize)
    redirect(out, dequantize.outputs[0])
    remove_if_unused(model, node)


def _without_relu(model: ir.Model, node: ir.Node, x: ir.Value) -> ir.Value:
    """Max(x, 0) in place of a Relu: onnxruntime's optimizer drops one before a float8 type."""
    relu = x.producer()
    if relu is None or relu.op_type != "Relu" or relu.domain != "":
        return x
    zero = add_initializer(model, "zero", np.zeros((), np.float32))
    maximum = make_node("Max", [relu.inputs[0], zero], name=relu.name or "Max", like=x, meta=relu.metadata_props)
    insert_before(node, maximum)
    node.replace_input_with(0, None)
    if x.uses() or x.is_graph_output():
        maximum.name = maximum.outputs[0].name = f"{relu.name}.max"
    else:
        remove_if_unused(model, relu)
    return maximum.outputs[0]
