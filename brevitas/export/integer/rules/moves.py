"""Operators that move integers without changing them: a reshape, or a table of what comes from where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from brevitas.export.integer.builder import Builder, Rule, Unrepresentable
from brevitas.export.integer.network import Border
from brevitas.export.integer.rules.grid import integers
from brevitas.export.integer.values import Array, Constant, FloatValue, Value, Wire, moved

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["RULES", "evaluated"]


def evaluated(node: ir.Node, arrays: Sequence[Array | None]) -> list[Value]:
    """What a node makes of arrays, by onnx's reference evaluator."""
    import onnx
    import onnx_ir
    from onnx.reference import ReferenceEvaluator

    proto = onnx_ir.to_proto(node)
    names = [f"x{i}" if a is not None else "" for i, a in enumerate(arrays)]
    outputs = [f"y{i}" for i in range(len(node.outputs))]
    assert isinstance(proto, onnx.NodeProto)
    del proto.input[:], proto.output[:], proto.metadata_props[:]
    proto.input.extend(names)
    proto.output.extend(outputs)
    given = {n: a for n, a in zip(names, arrays, strict=True) if a is not None}
    info = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in given.items()
    ]
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UNDEFINED, None) for n in outputs]
    opset = 20 if node.graph is None else node.graph.opset_imports.get("", 20)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([proto], "node", info, ends), opset_imports=[onnx.helper.make_opsetid("", opset)]
    )
    return [Constant(np.asarray(y)) for y in ReferenceEvaluator(model).run(None, given)]


def _tables(node: ir.Node, shape: tuple[int, ...], values: Sequence[Value | None]) -> list[Array]:
    """For every output, the flat position in the first input of each of its elements."""
    positions = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    others: list[Array | None] = []
    for value in values[1:]:
        if value is not None and not isinstance(value, Constant):
            raise Unrepresentable(
                "E04",
                f"{node.op_type} whose shape or positions are computed from data",
                "constant shapes and positions",
                "take them from x.shape or write them as numbers",
            )
        others.append(None if value is None else value.array)
    # Some operators are defined for floats alone, which hold these integers exactly.
    try:
        results = evaluated(node, [positions, *others])
    except Exception:  # the evaluator raises what each implementation raises
        results = evaluated(node, [positions.astype(np.float64), *others])
    return [np.asarray(r.array).astype(np.int64) for r in results if isinstance(r, Constant)]


def _move(b: Builder, node: ir.Node, values: list[Value | None]) -> Value | Sequence[Value]:
    x = values[0]
    assert isinstance(x, (Wire, FloatValue))
    made = [_picked(b, node, x, table) for table in _tables(node, x.shape, values)]
    return made if len(made) > 1 else made[0]


def _picked(b: Builder, node: ir.Node, x: Wire | FloatValue, table: Array, fill: int = 0) -> Wire | FloatValue:
    """``x`` moved by a table of positions, shaped as the output."""
    shape, flat = table.shape, table.reshape(-1)
    whole = np.array_equal(flat, np.arange(int(np.prod(x.shape))))
    if isinstance(x, FloatValue):
        name = f"{node.name}.out{len(b.border)}"
        op, arrays = ("reshape", ()) if whole else ("gather", (flat,))
        b.border.append(Border(op, x.tensor, name, shape, {"fill": fill}, arrays))
        return FloatValue(name, shape)
    parameters = x.map_parameters(lambda a: moved(np.asarray(a), flat, x.shape, shape))
    if x.codes is not None:
        return replace(x, shape=shape, codes=x.codes.reshape(-1)[flat].reshape(shape), **parameters)
    if whole:
        if shape == x.shape:
            return x
        name = b.emit("reshape", node, [x.tensor])
    else:
        name = b.emit("gather", node, [x.tensor], attributes={"fill": fill}, arrays={"table": flat})
    low, high = parameters["low"], parameters["high"]
    if (flat < 0).any():
        parameters["low"], parameters["high"] = np.minimum(low, fill), np.maximum(high, fill)
    return b.wire(name, shape, **parameters, claim=x.claim)


def _pad(b: Builder, node: ir.Node, values: list[Value | None]) -> Value:
    """Padding with the real value 0: the code of the zero point."""
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
    x = values[0]
    assert isinstance(x, (Wire, FloatValue))
    if mode != "constant":
        return _picked(b, node, x, _tables(node, x.shape, values)[0])
    number = values[2].array if len(values) > 2 and isinstance(values[2], Constant) else np.zeros(())
    pads = values[1]
    if not isinstance(pads, Constant) or np.any(number != 0):
        raise Unrepresentable(
            "E04", f"padding with {number.reshape(-1).tolist()}", "padding with zeros", "pad with zeros before a layer"
        )
    fill = 0
    if isinstance(x, Wire):
        x = integers(b, node, x, "input")
        fill = _one(node, x.zero)
    axes = values[3] if len(values) > 3 else None
    rank = len(x.shape)
    along = [int(a) % rank for a in axes.array] if isinstance(axes, Constant) else list(range(rank))
    width = [(0, 0)] * rank
    for i, axis in enumerate(along):
        width[axis] = (int(pads.array[i]), int(pads.array[i + len(along)]))
    positions = np.arange(int(np.prod(x.shape)), dtype=np.int64).reshape(x.shape)
    cut = tuple(slice(max(0, -a), n - max(0, -e)) for n, (a, e) in zip(x.shape, width, strict=True))
    grown = [(max(0, a), max(0, e)) for a, e in width]
    return _picked(b, node, x, np.pad(positions[cut], grown, constant_values=-1), fill)


def _one(node: ir.Node, zero: Array) -> int:
    if np.unique(zero).size != 1:
        raise Unrepresentable(
            "E12",
            f"zero points {np.unique(zero).tolist()} of the input of {node.op_type}",
            "one zero point",
            "use a per-tensor activation quantizer",
        )
    return int(zero.flat[0])


def _concat(b: Builder, node: ir.Node, values: list[Value | None]) -> Value:
    """Codes side by side, each part with its own grid."""
    axis = node.attributes["axis"].as_int()
    wires = [integers(b, node, v, "operand") for v in values]
    if all(w.is_constant for w in wires) or any(w.is_constant for w in wires):
        raise Unrepresentable(
            "E04", "a concatenation with constants", "computed operands", "concatenate before the quantizer"
        )
    sizes = np.cumsum([0, *(int(np.prod(w.shape)) for w in wires)])
    parts = [np.arange(a, e).reshape(w.shape) for a, e, w in zip(sizes, sizes[1:], wires, strict=False)]
    table = np.concatenate(parts, axis=axis)

    def joined(arrays: list[Array]) -> Array:
        full = [np.broadcast_to(a, w.shape).reshape(-1) for a, w in zip(arrays, wires, strict=True)]
        size = (int(sizes[-1]),)
        return moved(np.concatenate(full), table.reshape(-1), size, table.shape)

    name = b.emit(
        "gather", node, [w.tensor for w in wires], attributes={"fill": 0}, arrays={"table": table.reshape(-1)}
    )
    fields = [joined([np.asarray(getattr(w, field)) for w in wires]) for field in ("scale", "zero", "low", "high")]
    claims = {w.claim for w in wires}
    return b.wire(name, table.shape, *fields, claim=claims.pop() if len(claims) == 1 else None)


def _same(b: Builder, node: ir.Node, values: list[Value | None]) -> Value:
    assert values[0] is not None
    return values[0]


_MOVES = (
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split", "Expand", "Tile"),
    *("DepthToSpace", "SpaceToDepth"),
)


def _resize(b: Builder, node: ir.Node, values: list[Value | None]) -> Value | Sequence[Value]:
    mode: Any = node.attributes["mode"].as_string() if "mode" in node.attributes else "nearest"
    if mode != "nearest":
        raise Unrepresentable(
            "E04",
            f"{mode} interpolation, which mixes codes with fractions",
            "nearest-neighbour interpolation",
            "use QuantUpsamplingNearest2d, or a transposed convolution",
        )
    return _move(b, node, values)


RULES: dict[tuple[str, str], Rule] = {
    **{("", op): _move for op in _MOVES},
    ("", "Resize"): _resize,
    ("", "Pad"): _pad,
    ("", "Concat"): _concat,
    ("", "Identity"): _same,
    ("", "Dropout"): _same,
    ("", "Cast"): _same,
}
