"""Integer thresholds that reproduce a float32 chain and the quantizer at its end, exactly.

Positions of a tensor whose constants are the same share a row. Within a row the chain is a function of one integer, and
it never falls (a row of sign -1 counts negated integers), so that bisection finds for each code the least integer that
reaches it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from brevitas.export.graph import Quantizer
from brevitas.export.integer.floatops import ROUND, apply_exactly, quantized, scaled
from brevitas.export.integer.values import Array, Wire, aligned

__all__ = ["Chain", "NotMonotoneError", "Thresholds", "find_thresholds"]

CHUNK = 1 << 20
WINDOW = 64


class NotMonotoneError(ValueError):
    """A float32 chain that falls somewhere, or rises and falls."""


@dataclass(frozen=True, eq=False)
class Thresholds:
    """``codes = low + step * number of thresholds <= sign * integer``; ``rows`` broadcasts against the tensor."""

    values: Array
    rows: Array
    sign: Array
    low: int
    step: int


class Chain:
    """A wire and the quantizer behind it, with their parameters by row.

    Attributes:
        rows: row of each position, broadcasts against the wire's shape.
        least, most: bounds of the integers of each row.
        sign: +1 where codes rise with the integers, -1 where they fall.
        scale, zero, constants, out_scale, out_zero, in_scale: parameters, (rows, 1).
    """

    def __init__(self, wire: Wire, q: Quantizer) -> None:
        self.wire, self.quantizer = wire, q
        rank = len(wire.shape)
        in_scale = q.scale if q.truncated is None else q.truncated.scale
        given = [wire.scale, wire.zero, q.scale, q.zero_point, in_scale, wire.direction()]
        given += [c for op in wire.ops for c in op.constants]
        given = [aligned(np.asarray(a), rank) for a in given]
        shape = np.broadcast_shapes(*(a.shape for a in given))
        table = np.stack([np.broadcast_to(a, shape).reshape(-1).astype(np.float64) for a in given], axis=1)
        unique, rows = np.unique(table, axis=0, return_inverse=True)
        self.rows = rows.reshape(shape).astype(np.int64)
        columns = [unique[:, i : i + 1] for i in range(unique.shape[1])]
        self.scale, self.zero = columns[0].astype(np.float32), columns[1].astype(np.int64)
        self.out_scale, self.out_zero, self.in_scale = (c.astype(np.float32) for c in columns[2:5])
        self.sign = columns[5].astype(np.int64)
        floats = iter(c.astype(np.float32) for c in columns[6:])
        self.constants = [[next(floats) for _ in op.constants] for op in wire.ops]
        self.least, self.most = self._bounds()

    def _bounds(self) -> tuple[Array, Array]:
        wire, n = self.wire, int(self.rows.max()) + 1
        shape = np.broadcast_shapes(self.rows.shape, wire.low.shape, wire.high.shape)
        rows = np.broadcast_to(self.rows, shape).reshape(-1)
        least, most = np.full(n, np.iinfo(np.int64).max), np.full(n, np.iinfo(np.int64).min)
        np.minimum.at(least, rows, np.broadcast_to(wire.low, shape).reshape(-1))
        np.maximum.at(most, rows, np.broadcast_to(wire.high, shape).reshape(-1))
        return least[:, None], most[:, None]

    @property
    def step(self) -> int:
        """Difference of neighbouring codes."""
        return 2 if self.quantizer.is_bipolar else 1

    def codes(self, integers: Array, rows: slice = slice(None)) -> Array:
        """Codes of integers, (rows, values), as the model's float32 arithmetic gives them."""
        q = self.quantizer
        x = scaled(integers - self.zero[rows], self.scale[rows])
        x = apply_exactly(self.wire.ops, x, [[c[rows] for c in constants] for constants in self.constants])
        if q.is_bipolar:
            return np.where(x >= 0, 1, -1)
        low, high = q.range
        if q.truncated is None:
            return quantized(x, self.out_scale[rows], self.out_zero[rows], low, high, q.rounding)
        steps = np.rint(x.astype(np.float64) / self.in_scale[rows])
        factor = np.exp2(np.rint(np.log2(self.out_scale[rows].astype(np.float64) / self.in_scale[rows])))
        code = ROUND[q.rounding](steps / factor) + self.out_zero[rows]
        return np.clip(code, low, high).astype(np.int64)

    def bisected(self, codes: Callable[[Array, slice], Array]) -> Array:
        """Thresholds of a function of (integers, rows) that never falls against ``sign * integer``, (rows, codes - 1).

        A code that no integer in bounds reaches has the threshold after the last integer.
        """
        low, high = self.quantizer.range
        wanted = np.arange(low + self.step, high + 1, self.step, dtype=np.int64)[None]
        out = np.empty((len(self.sign), wanted.shape[1]), np.int64)
        chunk = max(1, CHUNK // max(1, wanted.shape[1]))
        for start in range(0, len(out), chunk):
            rows = slice(start, start + chunk)
            sign = self.sign[rows]
            ends = sign * self.least[rows], sign * self.most[rows]
            below = np.broadcast_to(np.minimum(*ends), out[rows].shape).copy()
            above = np.broadcast_to(np.maximum(*ends) + 1, out[rows].shape).copy()
            while (below < above).any():
                middle = (below + above) >> 1
                reached = codes(sign * np.minimum(middle, above - 1), rows) >= wanted
                open_ = below < above
                above = np.where(open_ & reached, middle, above)
                below = np.where(open_ & ~reached, middle + 1, below)
            out[rows] = above
        return out

    def check_monotone(self, thresholds: Array) -> None:
        """Refuse a chain of approximated functions that turns: near every threshold, or everywhere in a small range."""
        if all(op.is_proved_monotone for op in self.wire.ops):
            return
        low, _ = self.quantizer.range
        first, last = (f(self.sign * self.least, self.sign * self.most) for f in (np.minimum, np.maximum))
        for row in range(len(thresholds)):
            a, b = int(first[row, 0]), int(last[row, 0])
            if b - a < CHUNK:
                integers = np.arange(a, b + 1)
            else:
                near = thresholds[row][:, None] + np.arange(-WINDOW, WINDOW)
                integers = np.unique(np.clip(near, a, b))
            rows = slice(row, row + 1)
            codes = self.codes(self.sign[rows] * integers[None], rows)[0]
            counted = low + self.step * np.searchsorted(thresholds[row], integers, side="right")
            if not np.array_equal(codes, counted):
                at = int(integers[int(np.argmax(codes != counted))] * self.sign[row, 0])
                raise NotMonotoneError(f"the float32 chain falls near the integer {at}")


def find_thresholds(chain: Chain) -> Thresholds:
    """Thresholds of a chain."""
    values = chain.bisected(chain.codes)
    chain.check_monotone(values)
    return Thresholds(values, chain.rows, chain.sign[:, 0], chain.quantizer.range[0], chain.step)
