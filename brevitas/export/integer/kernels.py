"""The steps of an integer network in NumPy, int64 throughout.

A tensor is an array (samples, *shape), where ``shape`` is that of one sample and includes its batch of one. ``zero``
arrays broadcast against ``shape``.

    conv        sum over taps of weight * (x - zero), + bias. Attributes: strides, dilations, begins (zeros before each
                spatial dimension, negative ones cut), upsample (x stands at every upsample-th position: a transposed
                convolution), group. Weight (M, C / group, *kernel)
    matmul      (x - zero) @ weight + bias, or of two tensors
    add, mul    (x - zero) factor + (y - zero_y) factor_y;  (x - zero) (y - zero_y);  y may be the constant ``other``
    max_pool    greatest code of a window, least one where sign is -1; kernel, strides, dilations, begins
    sum_pool    sum of x - zero over a window
    sum         sum of x - zero over the middle one of the dimensions (outer, reduce, inner)
    relu        max(x, zero)
    reshape     the same integers
    gather      integers picked by ``table`` out of the inputs, flat one after another; -1 gives ``fill``
    threshold   low + step * number of thresholds <= sign * x; ``rows`` says which row of ``thresholds`` counts where
    table       table[row, x - lows[row]] with ``rows`` as above;  of two tensors, table[x - low, y - low_y]
    multiplier  clamp(round((x * multiplier + offset) / 2^shift)), arrays by row; lows and highs by row
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

__all__ = ["KERNELS", "Kernel", "multiplied", "window_view"]

Array = np.ndarray[Any, np.dtype[Any]]
Kernel = Callable[[Sequence[Array], tuple[int, ...], Mapping[str, Any], Mapping[str, Array]], Array]

CHUNK = 1 << 22


def window_view(
    x: Array,
    kernel: Sequence[int],
    out: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    begins: Sequence[int],
    upsample: Sequence[int],
    fill: int,
) -> Array:
    """Windows of (B, C, *spatial) as (B, C, *out, *kernel); positions outside hold ``fill``."""
    if min((*kernel, *out, *strides, *dilations, *upsample), default=1) < 1:
        raise ValueError("kernels, strides, dilations and output sizes are positive")
    spatial = x.shape[2:]
    extent = [(o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(out, strides, kernel, dilations, strict=True)]
    padded = np.full((*x.shape[:2], *extent), fill, np.int64)
    inside: list[slice] = []
    source: list[slice] = []
    for size, begin, up, end in zip(spatial, begins, upsample, extent, strict=True):
        first = max(0, -(begin // up)) if begin < 0 else 0  # the first x at a position >= 0
        count = max(0, min(size - first, -(-(end - begin - first * up) // up)))
        inside.append(slice(begin + first * up, begin + first * up + (count - 1) * up + 1, up) if count else slice(0))
        source.append(slice(first, first + count))
    every = (slice(None), slice(None))
    padded[(*every, *inside)] = x[(*every, *source)]
    steps = [n * s for n, s in zip(padded.strides[2:], strides, strict=True)]
    steps += [n * d for n, d in zip(padded.strides[2:], dilations, strict=True)]
    return np.lib.stride_tricks.as_strided(
        padded, (*x.shape[:2], *out, *kernel), (*padded.strides[:2], *steps), writeable=False
    )


def _merged(x: Array) -> Array:
    """(N, B, C, *spatial) -> (N * B, C, *spatial)."""
    return x.reshape(-1, *x.shape[2:])


def _shifted(x: Array, arrays: Mapping[str, Array], name: str = "zero") -> Array:
    return x - arrays[name] if name in arrays else x


def _conv(xs: Sequence[Array], shape: tuple[int, ...], a: Mapping[str, Any], arrays: Mapping[str, Array]) -> Array:
    x = _merged(_shifted(xs[0], arrays))
    weight, group, out = arrays["weight"].astype(np.int64), a["group"], shape[2:]
    kernel, m = weight.shape[2:], weight.shape[0]
    rank, c = len(kernel), weight.shape[1]
    result = np.empty((x.shape[0], m, prod(out)), np.int64)
    chunk = max(1, CHUNK // max(1, x.shape[1] * prod(out) * prod(kernel)))
    for start in range(0, x.shape[0], chunk):
        part = x[start : start + chunk]
        view = window_view(part, kernel, out, a["strides"], a["dilations"], a["begins"], a["upsample"], 0)
        # (B, C, *out, *kernel) -> (B, group, C / group * kernel, out)
        order = (0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
        columns = view.transpose(order).reshape(part.shape[0], group, c * prod(kernel), prod(out))
        sums = np.matmul(weight.reshape(group, m // group, -1), columns)
        result[start : start + chunk] = sums.reshape(part.shape[0], m, prod(out))
    if "bias" in arrays:
        result += arrays["bias"].reshape(-1, 1)
    return result.reshape(-1, *shape)


def _matmul(xs: Sequence[Array], shape: tuple[int, ...], a: Mapping[str, Any], arrays: Mapping[str, Array]) -> Array:
    x = _shifted(xs[0], arrays)
    if "weight" in arrays:
        result = np.matmul(x, arrays["weight"].astype(np.int64))
    else:
        y = _shifted(xs[1], arrays, "zero_y")
        # Each sample alone, with the ranks that the model multiplies.
        result = np.stack([np.matmul(p, q) for p, q in zip(x, y, strict=True)])
    if "bias" in arrays:
        result = result + arrays["bias"]
    return result.reshape(-1, *shape)


def _operands(xs: Sequence[Array], arrays: Mapping[str, Array]) -> tuple[Array, Array]:
    y = arrays["other"] if "other" in arrays else _aligned(xs[1], xs[0].ndim)
    return _aligned(_shifted(xs[0], arrays), xs[-1].ndim), _shifted(y, arrays, "zero_y")


def _aligned(x: Array, ndim: int) -> Array:
    """Broadcasting aligns the dimensions of one sample from the right; the samples stay in front."""
    return x.reshape(x.shape[0], *(1,) * (ndim - x.ndim), *x.shape[1:]) if x.ndim < ndim else x


def _add(xs: Sequence[Array], shape: tuple[int, ...], a: Mapping[str, Any], arrays: Mapping[str, Array]) -> Array:
    x, y = _operands(xs, arrays)
    return np.asarray(x * a["factor"] + y * a["factor_y"])


def _mul(xs: Sequence[Array], shape: tuple[int, ...], a: Mapping[str, Any], arrays: Mapping[str, Array]) -> Array:
    x, y = _operands(xs, arrays)
    return np.asarray(x * y)


def _pool_windows(x: Array, shape: tuple[int, ...], a: Mapping[str, Any], fill: int) -> tuple[Array, tuple[int, ...]]:
    ones = [1] * len(a["kernel"])
    x = _merged(x)
    view = window_view(x, a["kernel"], shape[2:], a["strides"], a["dilations"], a["begins"], ones, fill)
    return view, tuple(range(view.ndim - len(a["kernel"]), view.ndim))


def _max_pool(xs: Sequence[Array], shape: tuple[int, ...], a: Mapping[str, Any], arrays: Mapping[str, Array]) -> Array:
    sign = arrays.get("sign")
    view, axes = _pool_windows(xs[0] if sign is None else xs[0] * sign, shape, a, np.iinfo(np.int64).min)
    # One pass a tap: a window is small, and a reduction over short strided axes is slow.
    rest: list[Any] = [slice(None)] * axes[0]
    best: Array | None = None
    for tap in product(*(range(n) for n in a["kernel"])):
        one = view[tuple(rest + list(tap))]
        best = one.copy() if best is None else np.maximum(best, one, out=best)
    assert best is not None
    best = best.reshape(-1, *shape)
    return best if sign is None else best * sign


def _sum_pool(xs: Sequence[Array], shape: tuple[int, ...], a: Mapping[str, Any], arrays: Mapping[str, Array]) -> Array:
    view, axes = _pool_windows(_shifted(xs[0], arrays), shape, a, 0)
    return np.asarray(view.sum(axis=axes)).reshape(-1, *shape)


def _sum(xs: Sequence[Array], shape: tuple[int, ...], a: Mapping[str, Any], arrays: Mapping[str, Array]) -> Array:
    x = _shifted(xs[0], arrays)
    return np.asarray(x.reshape(-1, a["outer"], a["reduce"], a["inner"]).sum(axis=2)).reshape(-1, *shape)


def _relu(xs: Sequence[Array], shape: tuple[int, ...], a: Mapping[str, Any], arrays: Mapping[str, Array]) -> Array:
    return np.asarray(np.maximum(xs[0], arrays.get("zero", np.int64(0))))


def _reshape(xs: Sequence[Array], shape: tuple[int, ...], a: Mapping[str, Any], arrays: Mapping[str, Array]) -> Array:
    return xs[0].reshape(-1, *shape)


def _gather(xs: Sequence[Array], shape: tuple[int, ...], a: Mapping[str, Any], arrays: Mapping[str, Array]) -> Array:
    flat = [x.reshape(x.shape[0], -1) for x in xs]
    joined = flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)
    table = arrays["table"]
    picked = joined[:, np.maximum(table, 0)]
    picked[:, table < 0] = a["fill"]
    return picked.reshape(-1, *shape)


def by_row(x: Array, rows: Array, function: Callable[[Array, int], Array]) -> Array:
    """``function(values, row)`` on the values of each row; ``rows`` broadcasts against one sample of ``x``."""
    if rows.size == 1:
        return function(x, int(rows.flat[0]))
    out = np.empty(x.shape, np.int64)
    wide = [axis for axis, n in enumerate(rows.shape) if n > 1]
    if len(wide) == 1:
        axis = wide[0] + 1
        for i, row in enumerate(rows.reshape(-1)):
            place = (slice(None),) * axis + (i,)
            out[place] = function(x[place], int(row))
        return out
    full = np.broadcast_to(rows, x.shape[1:])
    for row in np.unique(rows):
        out[:, full == row] = function(x[:, full == row], int(row))
    return out


def _threshold(xs: Sequence[Array], shape: tuple[int, ...], a: Mapping[str, Any], arrays: Mapping[str, Array]) -> Array:
    thresholds, sign = arrays["thresholds"], arrays["sign"]

    def counted(x: Array, row: int) -> Array:
        return np.searchsorted(thresholds[row], x * sign[row], side="right")

    return np.asarray(a["low"] + a["step"] * by_row(xs[0], arrays["rows"], counted).astype(np.int64))


def multiplied(x: Array, multiplier: int, shift: int, offset: int, rounding: str) -> Array:
    """round((x * multiplier + offset) / 2^shift) on int64: to nearest with ties to even, up, down, or towards zero."""
    y = x * np.int64(multiplier) + np.int64(offset)
    floor = y >> np.int64(shift)
    rest = y - (floor << np.int64(shift))
    half = np.int64(1) << np.int64(shift - 1)
    if rounding == "ROUND":
        return np.asarray(floor + ((rest > half) | ((rest == half) & (floor & 1 == 1))))
    if rounding == "CEIL":
        return np.asarray(floor + (rest > 0))
    if rounding == "DOWN":
        return np.asarray(floor + ((rest > 0) & (floor < 0)))
    return np.asarray(floor)


def _table(xs: Sequence[Array], shape: tuple[int, ...], a: Mapping[str, Any], arrays: Mapping[str, Array]) -> Array:
    table = arrays["table"].astype(np.int64)
    if len(xs) == 2:
        x, y = _operands(xs, {})
        return np.asarray(table[x - a["low"], y - a["low_y"]])
    lows = arrays["lows"]
    return by_row(xs[0], arrays["rows"], lambda x, row: table[row, x - lows[row]])


def _multiplier(
    xs: Sequence[Array], shape: tuple[int, ...], a: Mapping[str, Any], arrays: Mapping[str, Array]
) -> Array:
    m, s, o, low, high = (arrays[name] for name in ("multiplier", "shift", "offset", "lows", "highs"))

    def requantized(x: Array, r: int) -> Array:
        return np.clip(multiplied(x, int(m[r]), int(s[r]), int(o[r]), a["rounding"]), low[r], high[r])

    return by_row(xs[0], arrays["rows"], requantized)


KERNELS: dict[str, Kernel] = {
    "conv": _conv,
    "matmul": _matmul,
    "add": _add,
    "mul": _mul,
    "max_pool": _max_pool,
    "sum_pool": _sum_pool,
    "sum": _sum,
    "relu": _relu,
    "reshape": _reshape,
    "gather": _gather,
    "threshold": _threshold,
    "table": _table,
    "multiplier": _multiplier,
}
