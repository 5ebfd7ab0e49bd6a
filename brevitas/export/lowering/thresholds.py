"""Thresholds that reproduce a quantizer exactly: for each code, the least float32 number that is given that code.

    >>> thresholds(np.float32(1.0), -2, 1, 'ROUND')  # the ties -1.5, -0.5 and 0.5 go to -2, 0 and 0
    array([-1.4999999 , -0.5       ,  0.50000006], dtype=float32)

A quantizer computes ``clamp(round(x / scale))`` in float32. Division and rounding never decrease as ``x`` grows, so
that each code begins at one float32 number, which bisection over the float32 numbers in order finds. ``x >= threshold``
then falls as the quantizer does: ties, the rounding of the division, and subnormal numbers included.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["ROUNDINGS", "thresholds"]


def _dpu_round(x: np.ndarray) -> np.ndarray:
    """To the nearest; halves to even where positive, up where negative."""
    return np.where((x < 0) & (x - np.floor(x) == 0.5), np.ceil(x), np.rint(x)).astype(x.dtype)


#: Rounding functions by the name of the mode.
ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ROUND": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "DOWN": np.trunc,
    "DPU": _dpu_round,
}

# float32 numbers are ordered as their bit patterns, read as sign and magnitude.
_SIGN = np.int64(1) << 31
_LEAST, _GREATEST = -(np.int64(0x7F800000)), np.int64(0x7F800000)  # -infinity and +infinity


def _from_order(order: np.ndarray) -> np.ndarray:
    """The float32 number at a place in the order of all of them; 0 is at 0."""
    bits = np.where(order < 0, -order + _SIGN, order).astype(np.uint32)
    return bits.view(np.float32)


def thresholds(scale: np.ndarray | np.float32, low: int, high: int, rounding: str) -> np.ndarray:
    """Least float32 number with code ``low + 1``, ``low + 2``, ..., ``high``, for each scale.

    Args:
        scale: positive, float32, of any shape.
        low: least code.
        high: greatest code.
        rounding: a key of :data:`ROUNDINGS`.

    Returns:
        Array of the shape of ``scale`` plus one dimension, not decreasing along it; infinite where no finite number has
        the code.
    """
    scale = np.asarray(scale, np.float32)
    divisor = scale.reshape(-1, 1)
    codes = np.arange(low + 1, high + 1, dtype=np.float32)
    function = ROUNDINGS[rounding]
    below = np.full((divisor.shape[0], codes.size), _LEAST)  # the code is not reached here ...
    reached = np.full_like(below, _GREATEST)  # ... and is here
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        while np.any(reached - below > 1):
            middle = (below + reached) // 2
            hit = function(_from_order(middle) / divisor) >= codes
            reached = np.where(hit, middle, reached)
            below = np.where(hit, below, middle)
    # Adding 0 makes -0 of 0, which compares equal.
    return (_from_order(reached) + np.float32(0)).reshape(*scale.shape, codes.size)
