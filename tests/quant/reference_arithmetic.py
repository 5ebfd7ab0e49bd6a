"""Quantization from its definition (spec/core.md), as plain float64 torch: the reference that presets are held against.

Nothing here calls the library. Gradients come from autograd of these compositions, with straight-through functions of
our own. Every rounding notes how near its input was to where the result jumps: float32 codes can be compared with those
of float64 only where ``margin()`` is well above the noise of float32.
"""

import contextlib
import math

import torch

MIN_THRESHOLD = 1e-10

_nearest = [math.inf]
_noting = [True]


def restart_margin():
    _nearest[0] = math.inf


@contextlib.contextmanager
def no_margin():
    """What is computed inside does not jump where its roundings do (an error is the same on both sides of a tie)."""
    _noting[0] = False
    yield
    _noting[0] = True


def margin():
    """Distance to the nearest jump of all roundings (and choices) since ``restart_margin``."""
    return _nearest[0]


def note_margin(distance):
    if _noting[0]:
        _nearest[0] = min(_nearest[0], float(distance))


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, function):
        return function(x)

    @staticmethod
    def backward(ctx, g):
        return g, None


def through(x, function):
    """``function(x)``, with the gradient passed to ``x`` unchanged."""
    return _Through.apply(x, function)


def _dpu(x):
    return torch.where(x >= 0, torch.round(x), torch.floor(x + 0.5))


ROUNDINGS = {
    "ROUND": torch.round,
    "CEIL": torch.ceil,
    "FLOOR": torch.floor,
    "ROUND_TO_ZERO": torch.trunc,
    "DPU": _dpu,
}


def rounded(x, rounding="ROUND"):
    jump = 0.5 if rounding in ("ROUND", "DPU") else 0.0
    if x.numel():
        offset = (x.detach() - jump).abs()
        note_margin((offset - offset.round()).abs().min())
    return through(x, ROUNDINGS[rounding])


def clamped(x, low, high):
    """Gradient to ``x`` inside, to the bound outside."""
    return torch.where(x > high, high, torch.where(x < low, low, x))


def clamped_through(x, low, high):
    """Gradient to ``x`` everywhere, none to the bounds."""
    low, high = low.detach(), high.detach()
    return through(x, lambda v: clamped(v, low, high))


def at_least(x, bound):
    return through(x, lambda v: torch.clamp(v, min=bound))


def magnitude(x):
    """abs x with gradient +1 at 0."""
    return x * torch.where(x.detach() >= 0, 1.0, -1.0)


def int_range(bits, signed, narrow):
    """(smallest, largest) code; ``bits`` is a tensor and may have a gradient."""
    if signed:
        half = 2.0 ** (bits - 1)
        return -half + float(narrow), half - 1
    return torch.zeros_like(bits), 2.0**bits - 1 - float(narrow)


def int_threshold(bits, signed, narrow, restriction):
    if restriction == "POWER_OF_TWO":
        return 2.0 ** (bits - 1) if signed else 2.0**bits
    if restriction == "MX":  # group scale 2^floor(log2 amax) / 2^(b - 2); one bit more without a sign
        return 2.0 ** (bits - 2) if signed else 2.0 ** (bits - 1)
    low, high = int_range(bits, signed, narrow)
    return -low if signed else high


def codes_of(x, scale, zero_point, bits, signed, narrow, rounding="ROUND", passing=False):
    low, high = int_range(bits, signed, narrow)
    clamp = clamped_through if passing else clamped
    return clamp(rounded(x / scale + zero_point, rounding), low, high)


def zero_point_of(low_end, scale, bits, signed=False, narrow=False):
    low, high = int_range(bits, signed, narrow)
    low_end = torch.where(low_end < 0, low_end, torch.zeros_like(low_end))
    return clamped(rounded(-low_end / scale) + low, low, high)


# Restriction of the threshold -----------------------------------------------------------------------------------------


def bound_of(restriction, bound=MIN_THRESHOLD):
    return 2.0 ** math.ceil(math.log2(bound)) if restriction in ("POWER_OF_TWO", "MX") else bound


def stored(stat, restriction, bound=MIN_THRESHOLD):
    """A statistic, bounded, in the domain in which it is learned."""
    stat = at_least(stat, bound_of(restriction, bound))
    return torch.log2(stat) if restriction in ("LOG_FP", "POWER_OF_TWO", "MX") else stat


def _restricted(u, restriction, rounding):
    if restriction == "POWER_OF_TWO":
        return 2.0 ** rounded(u, rounding or "CEIL")
    if restriction == "MX":
        return 2.0 ** rounded(u, "FLOOR")
    if restriction == "LOG_FP":
        return 2.0**u
    if restriction == "INT":
        return rounded(u, "ROUND")
    return u


def threshold_of(stat, restriction="FP", rounding=None, bound=MIN_THRESHOLD):
    """Threshold of a statistic, spec/core.md 7.1."""
    t = _restricted(stored(stat, restriction, bound), restriction, rounding)
    return at_least(t, bound_of(restriction, bound))


def learned_threshold(u, restriction="FP", rounding=None, bound=MIN_THRESHOLD):
    """Threshold of a learned value, L(u) of spec/core.md 7; the absolute value in the linear domains only."""
    t = _restricted(u, restriction, rounding)
    if restriction in ("FP", "INT"):
        t = magnitude(t)
    return at_least(t, bound_of(restriction, bound))


# Statistics of rows ---------------------------------------------------------------------------------------------------


def kth(rows, k):
    return torch.sort(rows, dim=1).values[:, k - 1]


def high_rank(n, q):
    return min(max(math.floor(q * n / 100 + 0.5), 1), n)


def low_rank(n, q):
    return max(math.ceil(q * n / 100), 1)


def _upper(x):
    return torch.where(x > 0, x, torch.zeros_like(x))


def _lower(x):
    return torch.where(x < 0, x, torch.zeros_like(x))


def abs_max(rows):
    return rows.abs().max(dim=1).values


def min_max(rows):
    return _upper(rows.max(dim=1).values) - _lower(rows.min(dim=1).values)


def low_end(rows):
    return _lower(rows.min(dim=1).values)


def percentile(rows, q=99.999):
    return kth(rows.abs(), high_rank(rows.shape[1], q))


def percentile_interval(rows, low_q=0.001, high_q=99.999):
    n = rows.shape[1]
    return _upper(kth(rows, high_rank(n, high_q))) - _lower(kth(rows, low_rank(n, low_q)))


def low_percentile(rows, q=0.001):
    return _lower(kth(rows, low_rank(rows.shape[1], q)))


def mean_sigma_std(rows, sigma=3.0, epsilon=1e-8):
    n = rows.shape[1]
    size = rows.abs()
    mean = size.mean(dim=1)
    variance = ((size - mean[:, None]) ** 2).sum(dim=1) / (n - 1) if n > 1 else torch.zeros_like(mean)
    return mean + sigma * torch.sqrt(variance + epsilon)


STATISTICS = {
    "MAX": abs_max,
    "AVE": lambda rows: rows.abs().mean(dim=1),
    "MAX_AVE": lambda rows: abs_max(rows).mean(),
    "MEAN_SIGMA_STD": mean_sigma_std,
    "PERCENTILE": percentile,
    "MIN_MAX": min_max,
    "PERCENTILE_INTERVAL": percentile_interval,
}


def best_candidate(rows, initial, quantized, steps=20):
    """Of ``initial * k / steps`` the one whose ``quantized(rows, candidate)`` has the least squared error, per row."""
    errors = []
    for k in range(1, steps + 1):
        errors.append(((quantized(rows, initial * (k / steps)) - rows) ** 2).sum(dim=1))
    errors = torch.stack(errors)
    ordered = errors.sort(dim=0).values
    for row in range(errors.shape[1]):
        worse = ordered[:, row][ordered[:, row] > ordered[0, row]]
        if worse.numel() and ordered[0, row] > 0:
            note_margin(worse[0] / ordered[0, row] - 1)
    return initial * (errors.argmin(dim=0) + 1) / steps  # argmin: the first, so the smaller candidate
