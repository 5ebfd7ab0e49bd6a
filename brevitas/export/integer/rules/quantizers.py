"""Quantizer nodes: constant codes, the border before the first integers, and requantization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from brevitas.export import graph as g
from brevitas.export.integer.builder import Builder, Rule, Unrepresentable
from brevitas.export.integer.floatops import ROUND, FloatOp, apply_exactly, quantized, scaled
from brevitas.export.integer.multiplier import find_multiplier
from brevitas.export.integer.network import Border
from brevitas.export.integer.thresholds import Chain, NotMonotoneError, find_thresholds
from brevitas.export.integer.values import (
    Array,
    Claim,
    Constant,
    FloatValue,
    Pair,
    Unknown,
    Value,
    Wire,
    aligned,
    compressed,
)

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["RULES"]

WIDEST = 16
LONGEST = 2**24  # entries of all rows of a table


def _quantize(b: Builder, node: ir.Node, values: list[Value | None]) -> Value:
    try:
        q = g.Quantizer.read(node)
    except ValueError as error:
        raise Unrepresentable(
            "E24", str(error), "constant scales, zero points and widths", "use a quantizer of constant scale"
        ) from error
    x = values[0]
    assert x is not None
    if g.meta(node, g.UNSUPPORTED) or (q.signed and q.bits == 1 and not q.is_bipolar):
        return Unknown(x.shape)  # the common rules have said so
    _supported(q)
    shape = x.shape
    if isinstance(x, Constant) or (isinstance(x, Wire) and x.is_constant and not x.ops):
        held = x.array if isinstance(x, Constant) else x.values()
        return _constant(b, q, held)
    if shape is None:
        if node.outputs[0].shape is None:
            return Unknown()
        shape = tuple(int(d) if isinstance(d, int) else 1 for d in node.outputs[0].shape)
    scale, zero = (compressed(aligned(np.asarray(a), len(shape))) for a in (q.scale, q.zero_point))
    low, high = q.range
    if isinstance(x, FloatValue):
        name = _fresh(b, node.name or q.name)
        a = {"low": low, "high": high, "rounding": q.rounding, "bipolar": q.is_bipolar}
        b.border.append(
            Border("quantize", x.tensor, name, shape, a, (scale, zero), q.name, int(g.meta(node, g.CALL, "0")))
        )
    elif isinstance(x, Wire) and b.requantize is not None:
        name = _requantized(b, node, x, q) if x.is_monotone else _looked_up(b, node, x, q)
    elif isinstance(x, Pair) and b.requantize is not None:
        name = _looked_up_pair(b, node, x, q)
    else:
        name = _fresh(b, node.name or q.name)  # bounds alone
    return b.wire(name, shape, scale, zero, low, high, claim=_claim(q))


def _fresh(b: Builder, base: str) -> str:
    name, n = base, 0
    while name in b.tensors:
        n += 1
        name = f"{base}_{n}"
    return name


def _supported(q: g.Quantizer) -> None:
    if np.any(q.zero_point != np.rint(q.zero_point)):
        raise Unrepresentable(
            "E21",
            f"zero point {np.unique(q.zero_point).tolist()}",
            "an integer zero point",
            "use a preset whose zero point is an integer (Shifted...), or none",
        )
    if q.rounding not in ROUND:
        raise Unrepresentable(
            "E27", f"rounding {q.rounding}", "ROUND, CEIL, FLOOR or ROUND_TO_ZERO", "set float_to_int_impl_type='round'"
        )


def _constant(b: Builder, q: g.Quantizer, held: Array) -> Value:
    if q.is_parameter:
        codes = g.to_codes(held, q.scale, q.zero_point)
    elif q.is_bipolar:
        codes = np.where(held >= 0, 1, -1)
    else:
        codes = quantized(held.astype(np.float32), q.scale, q.zero_point, *q.range, q.rounding)
    rank = held.ndim
    scale, zero = (aligned(np.asarray(a), rank) for a in (q.scale, q.zero_point))
    return b.wire(q.name, held.shape, scale, zero, *q.range, codes=codes, claim=_claim(q))


def _claim(q: g.Quantizer) -> Claim:
    return Claim(q.bit_width, q.signed, q.narrow, bool(np.any(q.zero_point)))


def _requantized(b: Builder, node: ir.Node, x: Wire, q: g.Quantizer) -> str:
    """The step that turns integers into codes; returns the name of its tensor."""
    if q.bits > WIDEST:
        raise Unrepresentable(
            "E25",
            f"{2**q.bits - 1} thresholds for a bit width of {q.bits}",
            f"at most {WIDEST} bits where codes are computed from integers",
            "set bit_width to 16 or less",
        )
    chain = Chain(x, q)
    _short_enough(len(chain.sign) * 2**q.bits, "thresholds")
    try:
        thresholds = find_thresholds(chain)
    except NotMonotoneError as error:
        raise Unrepresentable(
            "E04", str(error), "a function that never turns", "use fewer bits, or another activation function"
        ) from error
    arrays = {"thresholds": thresholds.values, "rows": thresholds.rows, "sign": thresholds.sign}
    attributes = {"low": thresholds.low, "step": thresholds.step}
    op = "threshold"
    if b.requantize == "multiplier":
        found = find_multiplier(chain, thresholds)
        if found is not None:
            op, attributes, arrays, deviation = found
            b.deviations.append(deviation)
    return b.emit(op, node, [x.tensor], attributes=attributes, arrays=arrays, quantizer=q.name)


def _short_enough(entries: int, what: str) -> None:
    if entries > LONGEST:
        raise Unrepresentable(
            "E25", f"{entries} {what}", f"at most {LONGEST}", "use fewer bits, or one scale for all channels"
        )


def _looked_up(b: Builder, node: ir.Node, x: Wire, q: g.Quantizer) -> str:
    """The step that finds codes in a table with an entry for every integer, for functions that turn."""
    chain = Chain(x, q)
    sizes = chain.most - chain.least + 1
    _short_enough(len(sizes) * int(sizes.max()), f"entries in a table for {x.ops[-1].kind}")
    integers = np.minimum(chain.least + np.arange(int(sizes.max())), chain.most)
    arrays = {"table": chain.codes(integers), "rows": chain.rows, "lows": chain.least[:, 0]}
    return b.emit("table", node, [x.tensor], arrays=arrays, quantizer=q.name)


def _looked_up_pair(b: Builder, node: ir.Node, pair: Pair, q: g.Quantizer) -> str:
    """The same for a sum or product of two tensors: an entry for every pair of integers."""
    if any(np.asarray(a).size != 1 for a in (q.scale, q.zero_point)) or q.truncated is not None:
        raise pair.reason
    lows = [int(w.low.min()) for w in (pair.left, pair.right)]
    integers = [np.arange(low, low + w.span)[None] for low, w in zip(lows, (pair.left, pair.right), strict=True)]
    same = pair.left.tensor == pair.right.tensor
    left, right = (_values(w, i) for w, i in zip((pair.left, pair.right), integers, strict=True))
    if not same:
        left, right = left[0][:, None], right
    joined = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[pair.kind](left, right)
    shape = joined.shape
    x = apply_exactly(pair.ops, joined.reshape(1, -1), _scalars(pair.ops))
    if q.is_bipolar:
        codes = np.where(x >= 0, 1, -1)
    else:
        codes = quantized(x, q.scale.reshape(()), q.zero_point.reshape(()), *q.range, q.rounding)
    table = codes.reshape(shape)
    if same:
        arrays = {"table": table, "rows": np.zeros((1,) * len(pair.shape), np.int64), "lows": np.asarray(lows[:1])}
        return b.emit("table", node, [pair.left.tensor], arrays=arrays, quantizer=q.name)
    attributes = {"low": lows[0], "low_y": lows[1]}
    inputs = [pair.left.tensor, pair.right.tensor]
    return b.emit("table", node, inputs, attributes=attributes, arrays={"table": table}, quantizer=q.name)


def _values(wire: Wire, integers: Array) -> Array:
    """Float values of integers, (1, n), of a wire with one set of numbers."""
    x = scaled(integers - wire.zero.reshape(()), wire.scale.reshape(()))
    return apply_exactly(wire.ops, x, _scalars(wire.ops))


def _scalars(ops: Sequence[FloatOp]) -> list[list[Array]]:
    return [[c.reshape(1, 1) for c in op.constants] for op in ops]


RULES: dict[tuple[str, str], Rule] = {
    (g.DOMAIN, "Quant"): _quantize,
    (g.DOMAIN, "BipolarQuant"): _quantize,
    (g.DOMAIN, "Trunc"): _quantize,
}
