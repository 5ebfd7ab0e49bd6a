"""Forms of the QONNX dialect that FINN's front end takes: the rewrites of ``consumer='finn'``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from brevitas.export import graph as g
from brevitas.export.lowering.build import add_initializer, insert_before, make_node, redirect, remove_if_unused
from brevitas.export.lowering.integer import part_meta
from brevitas.export.lowering.pools import Pool

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["apply_profile"]

#: Version of the domain in which Trunc has five inputs and keeps its scale.
TRUNC_VERSION = 1


def apply_profile(model: ir.Model) -> None:
    """Rewrite a checked graph in place."""
    for q in list(g.quantizers(model)):
        if q.kind == "Trunc":
            _lower_truncation(model, q)
        elif q.is_bipolar and not q.is_parameter:
            _factor_scale(model, q)
        elif q.role == "bias":
            _shape_bias(model, q)
    for node in list(model.graph):
        if node.domain == g.DOMAIN and g.meta(node, g.ROLE) in g.PARAMETER_ROLES:
            _duplicate(node)


def _factor_scale(model: ir.Model, q: g.Quantizer) -> None:
    """BipolarQuant of scale 1, then Mul."""
    if np.all(q.scale == 1):
        return
    node, out = q.node, q.node.outputs[0]
    name, scale = node.name or q.name, node.inputs[1]
    codes = make_node(
        "BipolarQuant",
        [node.inputs[0], add_initializer(model, f"{name}_one", np.ones((), np.float32))],
        name=name,
        like=out,
        domain=g.DOMAIN,
        meta={k: v for k, v in node.metadata_props.items() if k in (g.LAYER, g.CLASS)},
    )
    factor = make_node("Mul", [codes.outputs[0], scale], name=f"{name}.scale", like=out, meta=part_meta(q, g.VALUES))
    insert_before(node, codes, factor)
    redirect(out, factor.outputs[0])
    remove_if_unused(model, node)


def _shape_bias(model: ir.Model, q: g.Quantizer) -> None:
    """Scale of shape (1,) or (C,), zero point of shape (1,); a float constant where nothing is quantized after it."""
    node, out = q.node, q.node.outputs[0]
    values = node.inputs[0]
    assert values is not None
    if _is_last(out):
        for reader, position in list(out.uses()):
            reader.replace_input_with(position, values)
            entry = {"quantizer": q.name, "call": int(g.meta(node, g.CALL, "0")), "initializer": values.name}
            entry |= {"perm": None, "offset": 0, "scale": q.scale.reshape(-1).astype(float).tolist()}
            reader.metadata_props[g.CONSTANTS] = json.dumps([entry])
        remove_if_unused(model, node)
        return
    for position, array in ((1, q.scale), (2, q.zero_point)):
        old = node.inputs[position]
        assert old is not None
        node.replace_input_with(position, None)
        node.replace_input_with(position, add_initializer(model, old.name or "", array.astype(np.float32).reshape(-1)))


def _is_last(value: ir.Value) -> bool:
    """Whether values made of ``value`` reach an output of the model without another quantizer on the way."""
    todo, seen = [value], set()
    while todo:
        value = todo.pop()
        if value.is_graph_output():
            return True
        for node, _ in value.uses():
            if node.domain != g.DOMAIN and node not in seen:
                seen.add(node)
                todo.extend(node.outputs)
    return False


def _lower_truncation(model: ir.Model, q: g.Quantizer) -> None:
    """AveragePool -> Mul(window) -> Trunc of version 1, which keeps the scale -> Mul(2^removed / window)."""
    pool, given = Pool.read(q), q.truncated
    assert pool is not None and given is not None
    node, out = q.node, q.node.outputs[0]
    name, base = node.name or q.name, q.name.removesuffix("_quant") or "trunc"
    area = np.float32(pool.area)
    meta = {k: v for k, v in node.metadata_props.items() if k in (g.LAYER, g.CLASS)}
    # Version 1 removes as many bits as the widths differ by. A sum that is narrower than the result loses none.
    sum_bits = np.asarray(q.bits + pool.removed_bits(), np.float32)
    summed = make_node(
        "Mul",
        [node.inputs[0], add_initializer(model, f"{base}_window", np.asarray(area, np.float32))],
        name=f"{name}.sum",
        like=out,
        meta=meta,
    )
    truncated = make_node(
        "Trunc",
        [
            summed.outputs[0],
            add_initializer(model, f"{base}_sum_scale", (given.scale * area).astype(np.float32)),
            node.inputs[2],
            add_initializer(model, f"{base}_sum_bit_width", sum_bits),
            node.inputs[5],
        ],
        name=name,
        like=out,
        domain=g.DOMAIN,
        attributes={"rounding_mode": q.rounding},
        meta=meta,
    )
    factor = np.asarray(2.0 ** pool.removed_bits() / pool.area, np.float32)
    scaled = make_node(
        "Mul",
        [truncated.outputs[0], add_initializer(model, f"{base}_factor", factor)],
        name=f"{name}.scale",
        like=out,
        meta=part_meta(q, g.VALUES),
    )
    insert_before(node, summed, truncated, scaled)
    redirect(out, scaled.outputs[0])
    remove_if_unused(model, node)


def _duplicate(node: ir.Node) -> None:
    """A quantizer of a parameter that several nodes read becomes one for each."""
    import onnx_ir as ir

    out = node.outputs[0]
    assert node.graph is not None
    for number, (reader, position) in enumerate(list(out.uses())[1:], start=1):
        copy = ir.Node(
            node.domain,
            node.op_type,
            list(node.inputs),
            attributes=list(node.attributes.values()),
            outputs=[ir.Value(name=f"{out.name}_{number}", type=out.type, shape=out.shape)],
            name=f"{node.name}_{number}",
            metadata_props=dict(node.metadata_props),
        )
        node.graph.insert_after(node, copy)
        reader.replace_input_with(position, copy.outputs[0])
