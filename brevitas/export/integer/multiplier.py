"""Requantization by multiplier and shift, and how often it gives another code than the thresholds do.

    code = clamp(round((integer * multiplier + offset) / 2^shift), low, high)

``multiplier`` is an int32 (31 bits and a sign), ``offset`` an int64 that holds zero points, bias and batch norm, and
``round`` is the quantizer's own mode, to nearest with ties to even where that is ROUND.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from brevitas.export.integer.kernels import multiplied
from brevitas.export.integer.thresholds import Chain, Thresholds
from brevitas.export.integer.values import Array

__all__ = ["Deviation", "find_multiplier"]

MULTIPLIER_BITS = 31
SUM_BITS = 62  # integer * multiplier + offset stays within int64
ROUNDED: dict[str, Callable[[Fraction], int]] = {
    "ROUND": round,
    "CEIL": math.ceil,
    "FLOOR": math.floor,
    "DOWN": math.trunc,
}
LINEAR = frozenset({"add", "mul", "div", "mean", "neg", "batch_norm", "relu", "clip"})


@dataclass(frozen=True)
class Deviation:
    """How far one layer in multiplier form is from its thresholds.

    Of ``values`` integers that the accumulator can reach (summed over the rows of different constants), ``different``
    give another code, by ``most`` steps at most.
    """

    layer: str
    quantizer: str
    values: int
    different: int
    most: int

    @property
    def share(self) -> float:
        """Part of the reachable integers that give another code."""
        return self.different / self.values if self.values else 0.0

    def __str__(self) -> str:
        return (
            f"{self.quantizer}: {self.different} of {self.values} accumulator values ({self.share:.3g}) give another "
            f"code than the thresholds, by {self.most} at most"
        )


@dataclass(frozen=True)
class _Affine:
    """``clamp(slope * u + intercept, low, high)`` in exact fractions; ``None`` is no bound."""

    slope: Fraction
    intercept: Fraction
    low: Fraction | None = None
    high: Fraction | None = None

    def mapped(self, factor: Fraction, shift: Fraction) -> _Affine:
        ends = [None if e is None else e * factor + shift for e in (self.low, self.high)]
        if factor < 0:
            ends.reverse()
        return _Affine(self.slope * factor, self.intercept * factor + shift, *ends)

    def clamped(self, low: Fraction | None, high: Fraction | None) -> _Affine:
        def bound(value: Fraction | None) -> Fraction | None:
            if value is None:
                return None
            value = value if low is None else max(value, low)
            return value if high is None else min(value, high)

        return _Affine(
            self.slope,
            self.intercept,
            low if self.low is None else bound(self.low),
            high if self.high is None else bound(self.high),
        )


def _fraction(x: Any) -> Fraction:
    return Fraction(float(x))


def _row(chain: Chain, row: int) -> _Affine:
    """The chain of a row in real arithmetic, as a function of the integer, in steps of the quantizer."""
    scale = _fraction(chain.scale[row, 0])
    made = _Affine(scale, -scale * int(chain.zero[row, 0]))
    for op, constants in zip(chain.wire.ops, chain.constants, strict=True):
        c = [float(a[row, 0]) for a in constants]
        if op.kind == "add":
            made = made.mapped(Fraction(1), _fraction(c[0]))
        elif op.kind == "mul":
            made = made.mapped(_fraction(c[0]), Fraction(0))
        elif op.kind in ("div", "mean"):
            made = made.mapped(1 / _fraction(c[0]), Fraction(0))
        elif op.kind == "neg":
            made = made.mapped(Fraction(-1), Fraction(0))
        elif op.kind == "batch_norm":
            weight, bias, mean, var = c
            factor = _fraction(weight) * _fraction(1 / math.sqrt(var + op.number))
            made = made.mapped(factor, _fraction(bias) - _fraction(mean) * factor)
        elif op.kind == "relu":
            made = made.clamped(Fraction(0), None)
        else:
            ends = [None if math.isinf(e) else _fraction(e) for e in c]
            made = made.clamped(*ends)
    return made.mapped(1 / _fraction(chain.out_scale[row, 0]), _fraction(chain.out_zero[row, 0]))


def _rounded(value: Fraction, mode: str) -> int:
    return ROUNDED[mode](value)


def _fixed(slope: Fraction, intercept: Fraction, extreme: int) -> tuple[int, int, int] | None:
    """Multiplier, shift and offset; ``None`` where they do not fit."""
    if slope == 0:
        multiplier, shift = 0, 16
    else:
        shift = MULTIPLIER_BITS - 1 - math.floor(math.log2(abs(slope)))
        multiplier = round(slope * Fraction(2) ** shift)
        while shift > 1 and (
            abs(multiplier) >= 2**MULTIPLIER_BITS
            or abs(multiplier) * extreme + abs(intercept) * 2**shift >= 2**SUM_BITS
            or shift >= SUM_BITS
        ):
            shift -= 1
            multiplier = round(slope * Fraction(2) ** shift)
    offset = round(intercept * Fraction(2) ** shift) if shift >= 1 else 0
    if shift < 1 or abs(multiplier) * extreme + abs(offset) >= 2**SUM_BITS:
        return None
    return multiplier, shift, offset


def find_multiplier(
    chain: Chain, thresholds: Thresholds
) -> tuple[str, dict[str, Any], dict[str, Array], Deviation] | None:
    """The step in multiplier form and its deviations; ``None`` for chains that are no clamped straight line.

    Those (sigmoid, tanh, leaky ReLU, truncation, binary codes) keep their thresholds.
    """
    q = chain.quantizer
    if (
        q.rounding not in ROUNDED
        or q.is_bipolar
        or q.truncated is not None
        or any(op.kind not in LINEAR for op in chain.wire.ops)
    ):
        return None
    rows = []
    for row in range(len(chain.sign)):
        affine = _row(chain, row)
        extreme = max(abs(int(chain.least[row, 0])), abs(int(chain.most[row, 0])))
        fixed = _fixed(affine.slope, affine.intercept, extreme)
        if fixed is None:
            return None
        low, high = q.range
        ends = [
            e if v is None else min(max(_rounded(v, q.rounding), low), high)
            for v, e in ((affine.low, low), (affine.high, high))
        ]
        rows.append((*fixed, *ends))
    table = np.asarray(rows, np.int64)
    arrays = dict(zip(("multiplier", "shift", "offset", "lows", "highs"), table.T.copy(), strict=True))
    arrays["rows"] = chain.rows

    def codes(integers: Array, part: slice) -> Array:
        made = []
        for x, (multiplier, shift, offset) in zip(integers, table[part, :3].tolist(), strict=True):
            made.append(multiplied(x, multiplier, shift, offset, q.rounding))
        return np.clip(np.stack(made), table[part, 3:4], table[part, 4:5])

    deviation = _deviation(chain, thresholds.values, chain.bisected(codes))
    return "multiplier", {"rounding": q.rounding}, arrays, deviation


def _deviation(chain: Chain, ours: Array, theirs: Array) -> Deviation:
    """Between two neighbouring thresholds, of either form, both give one code: so the segments are counted."""
    values = different = most = 0
    for row in range(len(ours)):
        ends = sorted(int(chain.sign[row, 0] * e[row, 0]) for e in (chain.least, chain.most))
        starts = np.unique(np.clip(np.concatenate([ours[row], theirs[row], [ends[0]]]), ends[0], ends[1] + 1))
        sizes = np.diff(np.append(starts, ends[1] + 1))
        apart = np.abs(
            np.searchsorted(ours[row], starts, side="right") - np.searchsorted(theirs[row], starts, side="right")
        )
        values += ends[1] - ends[0] + 1
        different += int(sizes[apart > 0].sum())
        most = max(most, int(apart[sizes > 0].max(initial=0)))
    return Deviation(chain.quantizer.layer, chain.quantizer.name, values, different, most)
