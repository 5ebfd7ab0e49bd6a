"""Declare another opset where every node means the same in it.

The graph is captured at one opset. Most operators change between opsets only in the types they take, so that a node is
valid in both; ``opset_violations`` finds those that are not, from onnx's own operator schemas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from brevitas.export import graph as g
from brevitas.export.lowering.build import drop_unused_initializers
from brevitas.export.violations import Violation

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["opset_violations", "set_opset"]


def _default(attribute: Any) -> Any:
    import onnx

    proto = attribute.default_value
    return onnx.helper.get_attribute_value(proto) if proto.type else None


def _schema(op_type: str, opset: int) -> Any:
    import onnx

    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    return None if schema.deprecated else schema


def _difference(node: ir.Node, now: int, wanted: int) -> str:
    """Why ``node``, valid at opset ``now``, has no equal meaning at ``wanted``; '' if it has."""
    old, new = _schema(node.op_type, now), _schema(node.op_type, wanted)
    if new is None:
        return f"{node.op_type} does not exist"
    if old is None:
        return f"{node.op_type} is unknown at opset {now}"
    if old.since_version == new.since_version:
        return ""
    rewritten = _has_older_form(node, now, wanted)
    used = [i for i, v in enumerate(node.inputs) if v is not None and not (rewritten and i == 1)]
    for i in used:
        if i >= new.max_input:
            return f"{node.op_type} takes {new.max_input} inputs, not {len(node.inputs)}"
        formal = new.inputs[min(i, len(new.inputs) - 1)]
        value = node.inputs[i]
        allowed = {t for c in new.type_constraints if c.type_param_str == formal.type_str for t in c.allowed_type_strs}
        if value is not None and value.dtype is not None and allowed:
            name = f"tensor({_type_name(value.dtype)})"
            if name not in allowed:
                return f"{node.op_type} does not take {name}"
    for name, attribute in node.attributes.items():
        if rewritten and name == "num_outputs":
            continue
        if name not in new.attributes and attribute.value != _plain(_default(old.attributes[name])):
            return f"{node.op_type} has no attribute '{name}'"
    for name in set(old.attributes) & set(new.attributes) - set(node.attributes):
        if _plain(_default(old.attributes[name])) != _plain(_default(new.attributes[name])):
            return f"{node.op_type} has another default of '{name}'"
    return ""


# Their axes became an input in opset 18, and were an attribute before.
_REDUCTIONS = frozenset(
    {
        *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
        *("ReduceProd", "ReduceSumSquare"),
    }
)
_AXES_INPUT = 18


def _has_older_form(node: ir.Node, now: int, wanted: int) -> bool:
    """Whether a node of opset 18 says in another place what it says: constant axes, or the number of equal parts."""
    if not wanted < _AXES_INPUT <= now:
        return False
    if node.op_type in _REDUCTIONS:
        return len(node.inputs) < 2 or node.inputs[1] is None or g.constant(node.inputs[1]) is not None
    if node.op_type == "Split" and "num_outputs" in node.attributes:
        x = node.inputs[0]
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        size = None if x is None or x.shape is None else x.shape[axis]
        return isinstance(size, int) and size % len(node.outputs) == 0
    return False


def _take_older_form(node: ir.Node) -> None:
    import onnx_ir as ir

    if node.op_type == "Split":
        del node.attributes["num_outputs"]
        return
    axes = g.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if len(node.inputs) > 1:
        node.resize_inputs(1)
    if axes is not None:
        node.attributes.add(ir.convenience.convert_attribute("axes", [int(axis) for axis in axes.reshape(-1)]))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return tuple(value) if isinstance(value, list) else value


def _type_name(dtype: ir.DataType) -> str:
    name = dtype.name.lower()
    return {"float": "float", "bool": "bool"}.get(name, name)


def current_opset(model: ir.Model) -> int:
    """Declared version of the default domain."""
    return int(model.graph.opset_imports.get("", 0))


def opset_violations(model: ir.Model, wanted: int, target: str, least: int) -> list[Violation]:
    """E05 for each node that the wanted opset does not allow, and for an opset below the target's least."""
    import onnx

    newest = onnx.defs.onnx_opset_version()
    fix = f"pass opset_version={current_opset(model)} or leave it out"
    if not least <= wanted <= newest:
        return [
            Violation("E05", target, f"opset_version={wanted}", f"an opset from {least} to {newest}", fix),
        ]
    found = []
    for node in model.graph:
        if node.domain not in ("", "ai.onnx"):
            continue
        why = _difference(node, current_opset(model), wanted)
        if why:
            found.append(
                Violation(
                    "E05",
                    target,
                    f"opset_version={wanted}, where {why} (node '{node.name}')",
                    f"opset {_schema(node.op_type, current_opset(model)).since_version} or newer",
                    fix,
                    layer=g.meta(node, g.LAYER),
                    layer_class=g.meta(node, g.CLASS),
                )
            )
    return found


def set_opset(model: ir.Model, wanted: int) -> None:
    """Declare ``wanted``, drop attributes unknown to it (all at their defaults), and the lowest IR version.

    What a node of a newer opset says in an input, an older one says in an attribute.
    """
    import onnx

    now = current_opset(model)
    for node in model.graph:
        if now != wanted and node.domain in ("", "ai.onnx"):
            if _has_older_form(node, now, wanted):
                _take_older_form(node)
            schema = _schema(node.op_type, wanted)
            for name in [n for n in node.attributes if n not in schema.attributes]:
                del node.attributes[name]
    others = {domain: version for domain, version in model.graph.opset_imports.items() if domain}
    model.graph.opset_imports.clear()
    model.graph.opset_imports.update({"": wanted, **others})  # some readers take the first for the default domain
    if wanted < _AXES_INPUT <= now:
        drop_unused_initializers(model)
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", wanted)])
