"""Why codes that no tie explains differ: what the pattern of the differences says."""

from __future__ import annotations

import numpy as np

__all__ = ["cause_of"]

_UNKNOWN = "off a tie"
#: Smallest number of differences in which a pattern is looked for.
_ENOUGH = 4


def cause_of(ours: np.ndarray, theirs: np.ndarray, off: np.ndarray, low: int, high: int) -> str:
    """What differences of codes look like, in words.

    >>> ours = np.array([[0, 3, 7, 7, 6, 7]])
    >>> cause_of(ours, np.array([[0, 3, 9, 8, 6, 9]]), np.array([[0, 0, 1, 1, 0, 1]], bool), 0, 7)
    'clip: codes outside 0..7'

    Args:
        ours, theirs: codes of the model and of the artifact, of one shape.
        off: where they differ and no tie explains it.
        low, high: range of the model's codes.

    Returns:
        ``clip``: the artifact clamps less, or more; ``padding``: only the border of images differs; ``bias``: in each
        channel that differs, nearly everything has moved by one number; else ``off a tie``.
    """
    mine, other = ours[off], theirs[off]
    if ((other < low) | (other > high)).all():
        return f"clip: codes outside {low}..{high}"
    least, greatest = int(theirs.min()), int(theirs.max())
    if other.size >= _ENOUGH and (((other == greatest) & (mine > other)) | ((other == least) & (mine < other))).all():
        return f"clip: codes stop at {least}..{greatest}, those of the model reach further"
    if ours.ndim >= 3 and other.size >= _ENOUGH and _only_border(off):
        return "padding: only values at the border differ"
    if ours.ndim >= 2 and other.size >= _ENOUGH and _moved(ours, theirs, off, low, high):
        return "bias or its scale: channels are moved by one number"
    return _UNKNOWN


def _only_border(off: np.ndarray) -> bool:
    """Whether the spatial interior, all but the first and last two of each dim behind the channels, is equal."""
    spatial = off.shape[2:]
    if any(n < 5 for n in spatial):
        return False
    inside = (slice(None), slice(None), *(slice(2, n - 2) for n in spatial))
    return not off[inside].any()


def _moved(ours: np.ndarray, theirs: np.ndarray, off: np.ndarray, low: int, high: int) -> bool:
    """Whether each channel that differs is moved by one number, but for codes that are clamped."""
    difference = theirs - ours
    free = (ours > low) & (ours < high) & (theirs > low) & (theirs < high)
    channels = np.flatnonzero(off.any(axis=tuple(d for d in range(off.ndim) if d != 1)))
    for channel in channels:
        steps = np.take(difference, channel, axis=1)[np.take(free, channel, axis=1)]
        if steps.size < _ENOUGH:
            return False
        # Rounding lets a number that is no whole step come out as either of two neighbours.
        common = np.round(steps.mean())
        if common == 0 and abs(steps.mean()) < 0.2 or (np.abs(steps - common) > 1).any():
            return False
        if (np.sign(steps[steps != 0]) != np.sign(steps.mean())).any():
            return False
    return bool(channels.size)
