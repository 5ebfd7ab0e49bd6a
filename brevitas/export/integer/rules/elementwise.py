"""Operators on single elements: float32 steps that wait for a quantizer, and sums and products of codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from brevitas.export.integer.builder import Builder, Rule, Unrepresentable
from brevitas.export.integer.floatops import FloatOp
from brevitas.export.integer.network import Border
from brevitas.export.integer.rules.grid import integers
from brevitas.export.integer.values import Array, Constant, FloatValue, Pair, Value, Wire, aligned

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["RULES", "append", "on_grid"]

LONGEST_TABLE = 2**18
SAME_SCALE = 1e-6  # scales that differ by less are one: the metadata of QuantTensor says the same


def append(b: Builder, node: ir.Node, x: Value, op: FloatOp) -> Value:
    """``x`` after one more float operation."""
    known = _float(x)
    if known is not None:
        return Constant(op.numpy(known))
    shape = np.broadcast_shapes(x.shape or (), *(c.shape for c in op.constants))
    if isinstance(x, FloatValue):
        name = f"{node.name}.out{len(b.border)}"
        b.border.append(Border(op.kind, x.tensor, name, shape, {"number": op.number}, op.constants))
        return FloatValue(name, shape)
    if isinstance(x, Pair):
        if any(c.size != 1 for c in op.constants):
            raise x.reason
        return replace(x, ops=(*x.ops, op))
    assert isinstance(x, Wire)
    if shape != x.shape:
        raise Unrepresentable(
            "E04",
            f"{node.op_type} that broadcasts a tensor of shape {x.shape} to {shape}",
            "a constant that broadcasts to the tensor",
            "expand the tensor first",
        )
    rank = len(x.shape)
    return x.then(replace(op, constants=tuple(aligned(c, rank) for c in op.constants)))


def on_grid(bias: Wire, scale: Array) -> bool:
    """Whether codes of a bias count in steps of an accumulator."""
    return not bias.ops and bool(np.allclose(bias.scale, scale, rtol=SAME_SCALE, atol=0))


def _float(value: Value | None) -> Array | None:
    """A constant operand in float32."""
    if isinstance(value, Constant):
        return value.array.astype(np.float32)
    return value.values() if isinstance(value, Wire) and value.is_constant and not value.ops else None


def _add(b: Builder, node: ir.Node, values: list[Value | None]) -> Value:
    x, y = values
    minus = node.op_type == "Sub"
    constant = _float(y)
    if constant is not None:
        assert x is not None
        if isinstance(x, Wire) and isinstance(y, Wire) and not x.ops and on_grid(y, x.scale):
            return _plus_codes(b, node, x, y, minus)
        return append(b, node, x, FloatOp("add", (-constant if minus else constant,)))
    constant = _float(x)
    if constant is not None:
        assert y is not None
        if minus:
            return append(b, node, append(b, node, y, FloatOp("neg")), FloatOp("add", (constant,)))
        if isinstance(y, Wire) and isinstance(x, Wire) and not y.ops and on_grid(x, y.scale):
            return _plus_codes(b, node, y, x, False)
        return append(b, node, y, FloatOp("add", (constant,)))
    kind = "sub" if minus else "add"
    try:
        return _sum(b, node, integers(b, node, x, "operand"), integers(b, node, y, "operand"), minus)
    except Unrepresentable as reason:
        return _paired(x, y, kind, reason)


def _paired(x: Value | None, y: Value | None, kind: str, reason: Unrepresentable) -> Value:
    """Two tensors of few integers each: a table may say what their quantized sum or product is."""
    if not (isinstance(x, Wire) and isinstance(y, Wire) and x.is_per_tensor and y.is_per_tensor):
        raise reason
    if x.is_constant or y.is_constant:
        raise reason
    if (max(x.span, y.span) if x.tensor == y.tensor else x.span * y.span) > LONGEST_TABLE:
        raise reason
    return Pair(x, y, kind, np.broadcast_shapes(x.shape, y.shape), reason)


def _plus_codes(b: Builder, node: ir.Node, x: Wire, bias: Wire, minus: bool) -> Value:
    assert bias.codes is not None
    codes = aligned((bias.codes - bias.zero) * (-1 if minus else 1), len(x.shape))
    flat = codes.reshape(-1)
    if codes.shape[-1] == codes.size == x.shape[-1] and b.fold_bias(x, flat, bias.claim):
        low, high = (aligned(a + flat, len(x.shape)) for a in (x.low, x.high))
        return b.wire(x.tensor, x.shape, x.scale, x.zero, low, high)
    low, high = x.shifted
    name = b.emit(
        "add", node, [x.tensor], attributes={"factor": 1, "factor_y": 1}, arrays={"zero": x.zero, "other": codes}
    )
    return b.wire(name, x.shape, x.scale, 0, low + codes, high + codes)


def _sum(b: Builder, node: ir.Node, x: Wire, y: Wire, minus: bool) -> Value:
    """Codes of one scale, or of scales that are a power of two apart, are added as integers."""
    ratio = np.log2(x.scale.astype(np.float64) / y.scale)
    shift = np.rint(ratio)
    exact = np.array_equal(ratio, shift) and shift.size == 1 and abs(int(shift.flat[0])) <= 24
    same = bool(np.allclose(x.scale, y.scale, rtol=SAME_SCALE, atol=0))
    if not (exact or same):
        raise Unrepresentable(
            "E12",
            f"a sum of codes of different scales ({_short(x.scale)} and {_short(y.scale)}), which has no exact "
            "integer form",
            "one scale, or scales that are a power of two apart",
            "let both operands go through one quantizer (QuantEltwiseAdd, or a shared QuantIdentity)",
        )
    k = 0 if same else int(shift.flat[0])
    factor, factor_y = 2 ** max(k, 0), 2 ** max(-k, 0) * (-1 if minus else 1)
    shape = np.broadcast_shapes(x.shape, y.shape)
    name = b.emit(
        "add",
        node,
        [x.tensor, y.tensor],
        attributes={"factor": factor, "factor_y": factor_y},
        arrays={"zero": aligned(x.zero, len(shape)), "zero_y": aligned(y.zero, len(shape))},
    )
    (a, c), (d, e) = x.shifted, y.shifted
    ends = np.minimum(d * factor_y, e * factor_y), np.maximum(d * factor_y, e * factor_y)
    return b.wire(name, shape, y.scale if k > 0 else x.scale, 0, a * factor + ends[0], c * factor + ends[1])


def _short(scale: Array) -> str:
    return f"{float(scale.flat[0]):.6g}" if scale.size == 1 else f"{scale.size} values from {float(scale.min()):.6g}"


def _mul(b: Builder, node: ir.Node, values: list[Value | None]) -> Value:
    x, y = values
    if isinstance(x, Wire) and isinstance(y, Wire) and not x.ops and not y.ops:
        if x.is_constant:
            x, y = y, x
        if not x.is_constant:
            return _product(b, node, x, y)
    if _float(y) is None:
        x, y = y, x
    constant = _float(y)
    if constant is not None and x is not None:
        if (
            isinstance(x, Wire)
            and not x.ops
            and np.array_equal(x.scale, np.ones_like(x.scale))
            and (constant > 0).all()
        ):
            # Integers times a scale: that is what a grid is.
            return replace(x, scale=aligned(constant, len(x.shape)))
        if (
            isinstance(x, Wire)
            and x.ops
            and x.ops[-1].kind == "mean"
            and np.array_equal(x.ops[-1].constants[0], constant)
        ):
            return replace(x, ops=x.ops[:-1])
        return append(b, node, x, FloatOp("mul", (constant,)))
    try:
        return _product(b, node, integers(b, node, x, "operand"), integers(b, node, y, "operand"))
    except Unrepresentable as reason:
        return _paired(x, y, "mul", reason)


def _product(b: Builder, node: ir.Node, x: Wire, y: Wire) -> Value:
    shape = np.broadcast_shapes(x.shape, y.shape)
    other = None if y.codes is None else aligned(y.codes - y.zero, len(shape))
    zeros = {"zero": aligned(x.zero, len(shape)), "other": other}
    if other is None:
        zeros["zero_y"] = aligned(y.zero, len(shape))
    name = b.emit("mul", node, [x.tensor] if other is not None else [x.tensor, y.tensor], arrays=zeros)
    low, high = x.shifted
    low_y, high_y = y.shifted if other is None else (other, other)
    corners = [p * q for p in (low, high) for q in (low_y, high_y)]
    least, most = np.minimum.reduce(corners), np.maximum.reduce(corners)
    return b.wire(name, shape, x.scale * y.scale, 0, least, most)


def _div(b: Builder, node: ir.Node, values: list[Value | None]) -> Value:
    x, constant = values[0], _float(values[1])
    if constant is None or x is None:
        raise Unrepresentable(
            "E04", "a division by data", "a constant divisor", "multiply by constants, or quantize the quotient"
        )
    return append(b, node, x, FloatOp("div", (constant,)))


def _round(b: Builder, node: ir.Node, values: list[Value | None]) -> Value:
    """Values divided by their own scale and rounded: the integers themselves."""
    x = values[0]
    if isinstance(x, Wire) and len(x.ops) == 1 and x.ops[0].kind == "div":
        by = x.ops[0].constants[0]
        if np.array_equal(
            np.broadcast_to(by, np.broadcast_shapes(by.shape, x.scale.shape)),
            np.broadcast_to(x.scale, np.broadcast_shapes(by.shape, x.scale.shape)),
        ):
            return replace(x, scale=np.ones_like(x.scale), ops=())
    raise Unrepresentable("E04", "rounding outside of a quantizer", "rounding by quantizers", "use a QuantIdentity")


def _unary(kind: str, number: Callable[[ir.Node], float] = lambda node: 0.0) -> Rule:
    def rule(b: Builder, node: ir.Node, values: list[Value | None]) -> Value:
        assert values[0] is not None
        return append(b, node, values[0], FloatOp(kind, (), number(node)))

    return rule


def _leaky(b: Builder, node: ir.Node, values: list[Value | None]) -> Value:
    slope = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 0.01
    if slope < 0:
        raise Unrepresentable("E04", f"a leaky ReLU of slope {slope}", "a slope of 0 or more", "use another slope")
    assert values[0] is not None
    return append(b, node, values[0], FloatOp("leaky_relu", (), slope))


def _gelu(b: Builder, node: ir.Node, values: list[Value | None]) -> Value:
    tanh = "approximate" in node.attributes and node.attributes["approximate"].as_string() == "tanh"
    assert values[0] is not None
    return append(b, node, values[0], FloatOp("gelu_tanh" if tanh else "gelu"))


def _hard_sigmoid(b: Builder, node: ir.Node, values: list[Value | None]) -> Value:
    slope = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 0.2
    if abs(slope - 1 / 6) > 1e-6 or ("beta" in node.attributes and node.attributes["beta"].as_float() != 0.5):
        raise Unrepresentable("E04", f"a hard sigmoid of slope {slope}", "torch's, of slope 1/6", "use nn.Hardsigmoid")
    assert values[0] is not None
    return append(b, node, values[0], FloatOp("hard_sigmoid"))


def _clip(b: Builder, node: ir.Node, values: list[Value | None]) -> Value:
    ends: list[Array] = []
    for i, default in ((1, -np.inf), (2, np.inf)):
        end = values[i] if len(values) > i else None
        ends.append(np.asarray(default if not isinstance(end, Constant) else end.array, np.float32))
    assert values[0] is not None
    return append(b, node, values[0], FloatOp("clip", tuple(ends)))


def _batch_norm(b: Builder, node: ir.Node, values: list[Value | None]) -> Value:
    x = values[0]
    assert x is not None and x.shape is not None
    arrays = []
    for value in values[1:5]:
        if not isinstance(value, Constant):
            raise Unrepresentable(
                "E04", "a batch norm with computed statistics", "running statistics", "export the model in eval mode"
            )
        arrays.append(value.array.astype(np.float32).reshape(-1, *(1,) * (len(x.shape) - 2)))
    eps = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    # The file holds epsilon in float32; torch adds the decimal number that the user wrote.
    return append(b, node, x, FloatOp("batch_norm", tuple(arrays), float(str(np.float32(eps)))))


RULES: dict[tuple[str, str], Rule] = {
    ("", "Add"): _add,
    ("", "Sub"): _add,
    ("", "Mul"): _mul,
    ("", "Div"): _div,
    ("", "Round"): _round,
    ("", "Relu"): _unary("relu"),
    ("", "Neg"): _unary("neg"),
    ("", "Sigmoid"): _unary("sigmoid"),
    ("", "Tanh"): _unary("tanh"),
    ("", "Abs"): _unary("abs"),
    ("", "HardSwish"): _unary("hard_swish"),
    ("", "HardSigmoid"): _hard_sigmoid,
    ("", "Gelu"): _gelu,
    ("", "LeakyRelu"): _leaky,
    ("", "Clip"): _clip,
    ("", "BatchNormalization"): _batch_norm,
}
