"""Nodes that mark, in an exported graph, what layers are given and give: identities with a name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from brevitas.export import graph as g
from brevitas.export.lowering.build import insert_before, make_node, redirect

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["add_debug_markers"]

DOMAIN = "finn.custom_op.general"


def add_debug_markers(model: ir.Model) -> None:
    """Put a ``DebugMarker`` before and behind each layer that has an ``export_debug_name``."""
    names = json.loads(model.metadata_props.get(g.DEBUG, "{}"))
    for layer, name in names.items():
        nodes = [n for n in model.graph if g.meta(n, g.LAYER) == layer]
        inside = {id(n) for n in nodes}
        given = [v for n in nodes for v in n.inputs if v is not None and g.constant(v) is None]
        entry = next((v for v in given if v.producer() is None or id(v.producer()) not in inside), None)
        if entry is not None:
            readers = [n for n, _ in entry.uses() if id(n) in inside]
            marker = _marker(entry, layer, f"{name}.input")
            insert_before(readers[0], marker)
            for reader, position in list(entry.uses()):
                if id(reader) in inside:
                    reader.replace_input_with(position, marker.outputs[0])
        if nodes:
            last = nodes[-1]
            value = last.outputs[0]
            marker = _marker(value, layer, f"{name}.output")
            model.graph.insert_after(last, marker)
            redirect(value, marker.outputs[0], keep=[marker])
    if names:
        model.graph.opset_imports.setdefault(DOMAIN, 1)


def _marker(value: ir.Value, layer: str, name: str) -> ir.Node:
    return make_node(
        "DebugMarker",
        [value],
        name=f"{name}.marker",
        like=value,
        domain=DOMAIN,
        attributes={"export_debug_name": name},
        meta={g.LAYER: layer},
    )
