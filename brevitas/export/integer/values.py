"""What a value of the canonical graph is, seen as integers.

A :class:`Wire` is a tensor of integers with the grid that they lie on and the float32 operations that the model applies
to ``(codes - zero) * scale``. A quantizer at its end turns all of that into thresholds; a layer that multiplies needs a
wire without operations.

Arrays that go with a wire (scale, zero, bounds, constants) broadcast against its shape, which includes the batch of
one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from brevitas.export.integer.floatops import FloatOp

__all__ = ["Array", "Claim", "Constant", "FloatValue", "Pair", "Unknown", "Value", "Wire", "compressed", "moved"]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Constant:
    """A float or index array of the graph."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.array.shape


@dataclass(frozen=True)
class FloatValue:
    """A float tensor before the first quantizer: a model input, or what elementwise operations made of it."""

    tensor: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Unknown:
    """A value without an integer form. Why was said where it arose."""

    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Claim:
    """What a quantizer says of its codes, from which layers derive the width of their accumulators."""

    bits: float
    signed: bool
    narrow: bool
    shifted: bool


@dataclass(frozen=True, eq=False)
class Wire:
    """Integers, their grid, and the float operations that wait for a quantizer.

    ``tensor`` names the integers in the network; ``codes`` holds them where they are constant. Every code lies in
    ``low..high``.
    """

    tensor: str
    shape: tuple[int, ...]
    scale: Array
    zero: Array
    low: Array
    high: Array
    ops: tuple[FloatOp, ...] = ()
    codes: Array | None = None
    claim: Claim | None = None

    @property
    def is_constant(self) -> bool:
        """Whether the codes are known."""
        return self.codes is not None

    def then(self, op: FloatOp) -> Wire:
        """The wire with one more float operation."""
        return replace(self, ops=(*self.ops, op))

    @property
    def shifted(self) -> tuple[Array, Array]:
        """Bounds of codes less zero point."""
        return self.low - self.zero, self.high - self.zero

    def values(self) -> Array:
        """Real values of constant codes, float32, as the model computes them."""
        assert self.codes is not None and not self.ops
        return (self.codes - self.zero).astype(np.float32) * self.scale

    @property
    def is_monotone(self) -> bool:
        """Whether the value never turns as the code grows."""
        return all(op.is_monotone for op in self.ops)

    @property
    def is_per_tensor(self) -> bool:
        """Whether one set of numbers serves every position."""
        return all(a.size == 1 for a in (self.scale, self.zero, *(c for op in self.ops for c in op.constants)))

    @property
    def span(self) -> int:
        """How many integers the codes may be."""
        return int(self.high.max()) - int(self.low.min()) + 1

    def direction(self) -> Array:
        """+1 where the value never falls as the code grows, -1 where it never rises; broadcasts against the shape."""
        sign: Array = np.ones((1,) * len(self.shape), np.int64)
        for op in self.ops:
            sign = sign * op.direction()
        return sign

    def map_parameters(self, function: Callable[[Array], Array]) -> dict[str, Any]:
        """Every array that goes with the wire, through ``function``: keywords for a wire of another shape."""
        return {
            "scale": function(self.scale),
            "zero": function(self.zero),
            "low": function(self.low),
            "high": function(self.high),
            "ops": tuple(replace(op, constants=tuple(function(c) for c in op.constants)) for op in self.ops),
        }


@dataclass(frozen=True, eq=False)
class Pair:
    """Two wires joined by an operation of which no integer form is known, short enough to be written as a table.

    ``kind`` is add, sub or mul; ``ops`` follow. A quantizer at its end makes the table; anything else is refused for
    ``reason``.
    """

    left: Wire
    right: Wire
    kind: str
    shape: tuple[int, ...]
    reason: Exception
    ops: tuple[FloatOp, ...] = ()


Value = Wire | Constant | FloatValue | Unknown | Pair


def compressed(array: Array) -> Array:
    """The array with every dimension along which it is constant reduced to size 1.

    >>> compressed(np.array([[1, 2], [1, 2]])).tolist()
    [[1, 2]]
    """
    for axis in range(array.ndim):
        first = array.take([0], axis)
        if array.shape[axis] > 1 and bool((array == first).all()):
            array = first
    return array


def moved(array: Array, table: Array, shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Array:
    """An array that goes with a tensor of ``shape``, for the tensor that ``table`` picks out of it, flat."""
    if array.size == 1:
        return array.reshape((1,) * len(out_shape))
    full = np.broadcast_to(array, shape).reshape(-1)
    return compressed(full[np.maximum(table, 0)].reshape(out_shape))


def aligned(array: Array, rank: int) -> Array:
    """The array with leading dimensions of size 1 up to ``rank``."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape) if array.ndim < rank else array
