"""Small helpers for rewriting onnx_ir graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from brevitas.export import graph as g

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["add_initializer", "insert_before", "make_node", "redirect", "remove_if_unused"]


def add_initializer(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    """Register a constant under ``name``. Equal constants of one name are shared; another one gets ``name_1``, ..."""
    import onnx_ir as ir

    array = np.array(array, order="C")
    unique, n = name, 0
    while unique in model.graph.initializers:
        old = model.graph.initializers[unique]
        held = g.constant(old)
        if held is not None and held.dtype == array.dtype and np.array_equal(held, array) and held.shape == array.shape:
            return old
        if not old.uses() and not old.is_graph_output():
            del model.graph.initializers[unique]
            break
        n += 1
        unique = f"{name}_{n}"
    tensor = ir.tensor(array, name=unique)
    value = ir.Value(name=unique, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    model.graph.initializers[unique] = value
    return value


def make_node(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    *,
    name: str,
    like: ir.Value,
    dtype: ir.DataType | None = None,
    shape: ir.Shape | None = None,
    attributes: Mapping[str, Any] | None = None,
    meta: Mapping[str, str] | None = None,
    domain: str = "",
) -> ir.Node:
    """A node with one output, whose type and shape are those of ``like`` unless given."""
    import onnx_ir as ir

    out = ir.Value(
        name=f"{name}.out",
        type=ir.TensorType(dtype) if dtype is not None else like.type,
        shape=shape if shape is not None else (like.shape.copy() if like.shape is not None else None),
    )
    return ir.Node(
        domain,
        op_type,
        list(inputs),
        attributes=[ir.convenience.convert_attribute(k, v) for k, v in (attributes or {}).items()],
        outputs=[out],
        name=name,
        metadata_props=dict(meta or {}),
    )


def insert_before(node: ir.Node, *nodes: ir.Node) -> None:
    """Insert nodes into the graph of ``node``, in order, ahead of it."""
    assert node.graph is not None
    node.graph.insert_before(node, list(nodes))


def redirect(old: ir.Value, new: ir.Value, *, keep: Sequence[ir.Node] = ()) -> None:
    """Let every consumer of ``old`` (and the graph's outputs, whose name moves) read ``new``, except ``keep``."""
    for node, index in list(old.uses()):
        if node not in keep:
            node.replace_input_with(index, new)
    producer = new.producer()
    if not old.is_graph_output() or producer is None or producer.graph is None:
        return
    outputs = producer.graph.outputs
    name = old.name
    for i, value in enumerate(outputs):
        if value is old:
            outputs[i] = new
    old.name = f"{name}.before"
    new.name = name


def remove_if_unused(model: ir.Model, *nodes: ir.Node) -> None:
    """Remove nodes nobody reads, and initializers that served only them."""
    for node in nodes:
        if node.graph is not None and not any(v.uses() or v.is_graph_output() for v in node.outputs):
            model.graph.remove(node, safe=True)
    drop_unused_initializers(model)


def drop_unused_initializers(model: ir.Model) -> None:
    """Remove initializers that no node reads."""
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
