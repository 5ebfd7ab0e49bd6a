"""Compare integer codes and say of each difference whether a rounding tie explains it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from brevitas.export.tracing.record import Record
from brevitas.export.verification.causes import cause_of

__all__ = ["ACCUMULATION", "TIE", "Comparison", "boundary_distance", "compare_activation"]

# A pre-rounding value within this part of a rounding boundary may fall either way in float32.
TIE = 2.0**-18
# So may one within this part of the sum of absolute terms that made it: the error of a float32 sum is relative to that.
ACCUMULATION = 2.0**-20


def boundary_distance(before: np.ndarray, rounding: str) -> tuple[np.ndarray, np.ndarray]:
    """Nearest rounding boundary of each pre-rounding value (float64, in steps), and the distance to it.

    >>> boundary_distance(np.array([1.25, -0.5]), 'ROUND')
    (array([ 1.5, -0.5]), array([0.25, 0.  ]))
    >>> boundary_distance(np.array([1.25]), 'FLOOR')
    (array([1.]), array([0.25]))
    """
    if rounding in ("ROUND", "DPU"):
        boundary = np.floor(before) + 0.5
    elif rounding == "DOWN":  # no boundary at 0
        boundary = np.rint(before)
        boundary = np.where(boundary == 0, np.where(before < 0, -1.0, 1.0), boundary)
    else:
        boundary = np.rint(before)
    return boundary, np.abs(before - boundary)


class Comparison:
    """Running counts over the chunks of one quantizer call."""

    def __init__(self) -> None:
        self.total = self.equal = self.ties = self.diverged = 0
        self.most_steps = 0.0
        self.tie_distance = 0.0
        self.max_abs_difference: float | None = None
        self.counted = True
        self.causes: Counter[str] = Counter()

    def add_codes(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Codes that must be equal: weights and biases."""
        if ours.shape != theirs.shape:
            self.total += ours.size
            self.diverged += ours.size
            self.causes[f"shape {theirs.shape} instead of {ours.shape}"] += ours.size
            return
        steps = np.abs(ours - theirs)
        self.total += ours.size
        self.equal += int((steps == 0).sum())
        self.diverged += int((steps != 0).sum())
        self.most_steps = max(self.most_steps, float(steps.max(initial=0)))
        if (steps != 0).any():
            self.causes["different constants"] += int((steps != 0).sum())

    def add_output(self, ours: np.ndarray, theirs: np.ndarray, step: np.ndarray | None) -> None:
        """Float outputs; with ``step``, the grid of their integers, counted as equal below half a step."""
        difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
        self.total += ours.size
        self.max_abs_difference = max(self.max_abs_difference or 0.0, float(difference.max(initial=0.0)))
        if step is None:
            self.counted = False
            return
        steps = difference / step
        self.most_steps = max(self.most_steps, float(steps.max(initial=0.0)))
        off = int((steps >= 0.5).sum())
        self.equal += ours.size - off
        self.diverged += off
        if off:
            self.causes["half a step or more"] += off


def compare_activation(
    into: Comparison,
    r: Record,
    ours: np.ndarray,
    theirs: np.ndarray,
    exact: np.ndarray,
    magnitude: Callable[[], np.ndarray],
    spread: bool = False,
    slack: np.ndarray | None = None,
) -> None:
    """Add one chunk: codes of the model and of the artifact, and the float64 tensor that both rounded.

    A difference of one step is a tie where the exact value lies within :data:`TIE` of a boundary, relative to the
    boundary, or within :data:`ACCUMULATION` of it, relative to ``magnitude()``, the sum of absolute terms (computed
    only where the first does not decide). ``spread``: other differences may come from an earlier layer. ``slack``: by
    how much, in real units, the format itself moves what is rounded.
    """
    into.total += ours.size
    if ours.shape != theirs.shape:
        into.diverged += ours.size
        into.causes[f"shape {theirs.shape} instead of {ours.shape}"] += ours.size
        return
    # Binary codes are two apart, and change at 0.
    binary = r.kind == "BipolarQuant"
    steps = np.abs(ours - theirs) // (2 if binary else 1)
    different = steps != 0
    count = int(different.sum())
    into.equal += ours.size - count
    if not count:
        return
    into.most_steps = max(into.most_steps, float(steps.max()))
    one = steps[different] == 1
    scale = np.broadcast_to(r.scale.double().numpy(), ours.shape)[different]
    zero_point = np.broadcast_to(r.zero_point.double().numpy(), ours.shape)[different]
    before = exact[different] / scale + zero_point
    if r.float_format is not None:
        before = before / r.float_format.spacing(before)
    boundary, distance = (np.zeros_like(before), np.abs(before)) if binary else boundary_distance(before, r.rounding)
    near = one & (distance <= TIE * np.abs(boundary))
    parity = near & (distance <= 2.0**-40) & (zero_point % 2 != 0)
    cancelled = np.zeros_like(near)
    if not near.all():
        terms = np.broadcast_to(magnitude(), ours.shape)[different] / scale
        cancelled = one & ~near & (distance <= ACCUMULATION * terms)
    moved = np.zeros_like(near)
    if slack is not None:
        moved = one & ~near & ~cancelled & (distance <= np.broadcast_to(slack, ours.shape)[different] / scale)
    ties = near | cancelled | moved
    into.ties += int(ties.sum())
    into.diverged += count - int(ties.sum())
    if ties.any():
        into.tie_distance = max(into.tie_distance, float(distance[ties].max()))
    for cause, where in (
        ("tie, zero-point parity", parity),
        ("rounding tie", near & ~parity),
        ("tie, accumulation order", cancelled),
        ("tie, bias rounded to the accumulator's grid", moved),
        (_unexplained(r, ours, theirs, different, ties, spread), ~ties),
    ):
        if where.any():
            into.causes[cause] += int(where.sum())


def _unexplained(
    r: Record, ours: np.ndarray, theirs: np.ndarray, different: np.ndarray, ties: np.ndarray, spread: bool
) -> str:
    """The cause of the differences that are no ties."""
    if spread:
        return "spread from an earlier layer"
    off = different.copy()
    off[different] = ~ties
    return cause_of(ours, theirs, off, *r.range) if off.any() else ""
