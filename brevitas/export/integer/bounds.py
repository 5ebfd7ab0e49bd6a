"""Exact reachable extremes of sums of products, and inputs that reach them.

A tap of a convolution is present at some positions of the output and falls on padding at others. Which taps are present
is the product of one pattern per dimension, and each dimension has few different patterns, so that every position is
covered without visiting all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Bounds", "Geometry", "linear_bounds"]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Geometry:
    """Where the taps of a window lie: per spatial dimension, as in the ``conv`` kernel."""

    size: tuple[int, ...]
    out: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    upsample: tuple[int, ...]

    def source(self, dim: int) -> Array:
        """Input position of every tap at every output position of a dimension, (out, kernel); -1 on padding."""
        out, tap = np.arange(self.out[dim])[:, None], np.arange(self.kernel[dim])
        p = out * self.strides[dim] - self.begins[dim] + tap * self.dilations[dim]
        up = self.upsample[dim]
        inside = (p >= 0) & (p % up == 0) & (p // up < self.size[dim])
        return np.where(inside, p // up, -1)

    def patterns(self, dim: int) -> tuple[Array, Array]:
        """The different sets of present taps, (patterns, kernel) of 0 and 1, and an output position of each."""
        present, first = np.unique(self.source(dim) >= 0, axis=0, return_index=True)
        return present.astype(np.int64), first

    @property
    def is_full(self) -> bool:
        """Whether no window reaches over the edge."""
        return all(bool((self.source(dim) >= 0).all()) for dim in range(len(self.size)))


@dataclass(frozen=True, eq=False)
class Bounds:
    """Extremes per output channel, int64 (or exact Python integers where those do not fit).

    ``least`` and ``most`` are reached by the sum; ``partial_least`` and ``partial_most`` bound every partial sum,
    in any order of addition. ``where`` are the output positions, per channel, of least and most.
    """

    least: Array
    most: Array
    partial_least: Array
    partial_most: Array
    where: tuple[Array, Array]


def linear_bounds(weight: Array, low: Array, high: Array, geometry: Geometry | None, bias: Array | None) -> Bounds:
    """Extremes of ``sum(weight * x) + bias`` over x in ``low..high``.

    ``weight`` is (M, C, *kernel), ``low`` and ``high`` are (M, C): bounds of the inputs that each output reads, less
    their zero points.
    """
    m, spatial = weight.shape[0], weight.ndim - 2
    exact = weight.astype(object) if _may_overflow(weight, low, high) else weight.astype(np.int64)
    at = (slice(None), slice(None), *(None,) * spatial)
    products = exact * low[at], exact * high[at]
    most, least = np.maximum(*products).sum(axis=1), np.minimum(*products).sum(axis=1)
    up, down = np.maximum(np.maximum(*products), 0).sum(axis=1), np.minimum(np.minimum(*products), 0).sum(axis=1)
    taps = [least, most, down, up]
    firsts: list[Array] = []
    for dim in range(spatial):
        if geometry is None:
            break
        present, first = geometry.patterns(dim)
        firsts.append(first)
        # Contract the first remaining tap dimension; its patterns come last.
        taps = [np.tensordot(t, present.T, axes=([1], [0])) for t in taps]
    flat = [t.reshape(m, -1) for t in taps]
    b = np.zeros(m, np.int64) if bias is None else np.broadcast_to(bias, (m,))
    shapes = taps[0].shape[1:]
    where = tuple(
        np.stack([firsts[d][i] for d, i in enumerate(np.unravel_index(index, shapes))], axis=1)
        if firsts
        else np.zeros((m, 0), np.int64)
        for index in (_arg(flat[0], min), _arg(flat[1], max))
    )
    return Bounds(
        flat[0].min(axis=1) + b,
        flat[1].max(axis=1) + b,
        flat[2].min(axis=1) + np.minimum(b, 0),
        flat[3].max(axis=1) + np.maximum(b, 0),
        (where[0], where[1]),
    )


def _arg(flat: Array, best: Any) -> Array:
    return np.asarray([list(row).index(best(row)) for row in flat], np.int64)


def _may_overflow(weight: Array, low: Array, high: Array) -> bool:
    largest = max(abs(int(low.min(initial=0))), abs(int(high.max(initial=0))))
    return int(np.abs(weight).max(initial=0)) * largest * max(1, weight[0].size if len(weight) else 1) >= 2**62


def extreme_input(
    weight: Array, low: Array, high: Array, geometry: Geometry | None, where: Sequence[int], greatest: bool
) -> Array:
    """Shifted input of one channel's inputs, (C, *size), at which the sum at position ``where`` is extreme.

    ``weight`` is (C, *kernel) of that channel; ``low`` and ``high`` are (C,). Elsewhere the input is the value nearest
    to 0.
    """
    rest = np.clip(0, low, high)
    if geometry is None:
        return np.where((weight > 0) == greatest, high, low)
    x = np.empty((len(low), *geometry.size), np.int64)
    x[...] = rest.reshape(-1, *(1,) * len(geometry.size))
    for tap in np.ndindex(*geometry.kernel):
        place = [int(geometry.source(dim)[where[dim], t]) for dim, t in enumerate(tap)]
        if min(place) >= 0:
            every: list[Any] = [slice(None)]
            w = weight[tuple(every + list(tap))]
            x[tuple(every + place)] = np.where((w > 0) == greatest, high, low)
    return x
