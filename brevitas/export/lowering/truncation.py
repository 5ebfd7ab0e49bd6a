"""Truncation as float operators, for readers that have no operator for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from brevitas.export import graph as g
from brevitas.export.lowering.build import add_initializer, insert_before, make_node, redirect, remove_if_unused
from brevitas.export.lowering.integer import part_meta

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["lower_truncation"]


def lower_truncation(model: ir.Model, q: g.Quantizer, given: g.Grid) -> None:
    """Truncation that does not round half to even, in float: integers are exact there, and it can run anywhere.

    Div(s), Round (cleans the float noise of codes), Div(T), Floor or Ceil, Clip, Mul(s * T).
    """
    name = q.node.name or q.name
    base = q.name.removesuffix("_quant") or name
    x, out = q.node.inputs[0], q.node.outputs[0]
    assert x is not None
    factor = np.exp2(np.rint(np.log2(q.scale.astype(np.float64) / given.scale)))
    if factor.size and np.all(factor == factor.flat[0]):
        factor = factor.reshape(-1)[:1].reshape(())
    steps = {"FLOOR": ["Floor"], "CEIL": ["Ceil"], "DOWN": ["Abs", "Floor", "Sign"]}[q.rounding]
    low, high = (
        add_initializer(model, f"{base}_{e}", np.asarray(b, np.float32))
        for e, b in zip(("min", "max"), q.range, strict=True)
    )
    nodes: list[ir.Node] = []

    def emit(op_type: str, *inputs: ir.Value | None, part: str = "") -> ir.Value:
        made = make_node(
            op_type, inputs, name=f"{name}.{op_type.lower()}_{len(nodes)}", like=out, meta=part_meta(q, part)
        )
        nodes.append(made)
        return made.outputs[0]

    code = emit(
        "Round", emit("Div", x, add_initializer(model, f"{base}_in_scale", np.asarray(given.scale, np.float32)))
    )
    code = shifted = emit("Div", code, add_initializer(model, f"{base}_shift", np.asarray(factor, np.float32)))
    for op_type in steps:
        code = emit("Mul", code, emit("Sign", shifted)) if op_type == "Sign" else emit(op_type, code)
    code = emit("Clip", code, low, high)
    emit("Mul", code, add_initializer(model, f"{base}_scale", np.asarray(q.scale, np.float32)), part=g.VALUES)
    for node in nodes[:-1]:
        del node.metadata_props[g.QUANTIZER]
    insert_before(q.node, *nodes)
    redirect(out, nodes[-1].outputs[0])
    remove_if_unused(model, q.node)
