"""Minifloats from their definition, spec/core.md 11.4: y = clamp(round(v / ulp) ulp, -V, V) s, v = x / s."""

import numpy as np
import torch
from reference_arithmetic import best_candidate, clamped, no_margin, rounded, threshold_of


def exponent_of(v):
    """floor(log2 abs v), exactly; very small for 0."""
    _, exponent = np.frexp(v.detach().numpy())
    return torch.where(v.detach() == 0, torch.tensor(-999), torch.from_numpy(exponent - 1)).double()


def quantized(x, s, form, rounding="ROUND"):
    largest = form.numbers()[-1]
    v = x / s
    ulp = 2.0 ** (torch.clamp(exponent_of(v), min=1 - form.bias) - form.mantissa)
    return clamped(rounded(v / ulp, rounding) * ulp, -largest, largest) * s


def nearest(v, form):
    """The number of the format nearest to each v, ties to the even code: by looking at all of them."""
    numbers = form.numbers()
    distance = (v.detach().abs().reshape(-1, 1) - numbers).abs()
    best = distance.min(dim=1, keepdim=True).values
    candidates = (distance == best).int()
    first = candidates.argmax(dim=1)
    last = numbers.numel() - 1 - candidates.flip(1).argmax(dim=1)
    code = torch.where(first % 2 == 0, first, last)
    return (numbers[code] * torch.sign(v.detach().reshape(-1))).reshape(v.shape)


def searched(rows, form, unit, restriction):
    """The threshold with the least squared error, per row."""
    rows = rows.detach()

    def candidate(x, t):
        with no_margin():
            return quantized(x, (threshold_of(t, restriction) / unit)[:, None], form)

    return best_candidate(rows, rows.abs().max(dim=1).values, candidate)


def wide_draw(seed, shape, low, high):
    """Numbers of all magnitudes between two powers of two, float32-exact, some of them negative, one of them 0."""
    rng = np.random.default_rng(seed)
    x = rng.choice([-1.0, 1.0], shape) * 2.0 ** rng.uniform(low, high, shape)
    x.reshape(-1)[rng.integers(0, x.size)] = 0.0
    return torch.from_numpy(x.astype(np.float32)).double()
