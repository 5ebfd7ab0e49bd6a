"""Weights from their definition, and what the tests of weights share: data, layers, comparison."""

import numpy as np
import torch
from reference_arithmetic import (
    STATISTICS,
    best_candidate,
    codes_of,
    int_threshold,
    learned_threshold,
    low_end,
    magnitude,
    margin,
    no_margin,
    restart_margin,
    stored,
    threshold_of,
    zero_point_of,
)

from brevitas.nn import QuantConv2d, QuantLinear
from brevitas.quant import registry

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-7}  # relative to the largest number compared


def layout(x, per, group=(1, 32), channel_dim=0):
    """``(rows, spread)``: ``x`` with a row per statistic, and how a number per row goes back over ``x``."""
    if per == "tensor":
        return x.reshape(1, -1), lambda v: v.reshape(())
    if per == "channel":
        shape = [1] * x.ndim
        shape[channel_dim] = x.shape[channel_dim]
        return x.movedim(channel_dim, 0).reshape(x.shape[channel_dim], -1), lambda v: v.reshape(shape)
    dim, size = group[0] % x.ndim, group[1]
    count = -(-x.shape[dim] // size)
    missing = list(x.shape)
    missing[dim] = count * size - x.shape[dim]
    padded = torch.cat([x, x.new_zeros(missing)], dim=dim).movedim(dim, -1)
    split = padded.reshape(*padded.shape[:-1], count, size).movedim(-2, dim)

    def spread(v):
        return v.reshape(split.shape[:-1]).repeat_interleave(size, dim=dim).narrow(dim, 0, x.shape[dim])

    return split.reshape(-1, size), spread


def statistics_of(preset, rows, bits):
    """(statistic of the threshold, low end) of each row; searched ones without a gradient."""
    low = low_end(rows) if preset.shifted else None
    stat = STATISTICS[preset.statistic](rows)
    if not preset.search:
        return stat, low
    rows = rows.detach()

    def quantized(rows, candidate, low):
        t = threshold_of(candidate, preset.restriction)
        s = (t / int_threshold(bits, preset.signed, preset.narrow, preset.restriction))[:, None]
        z = zero_point_of(low[:, None], s, bits) if preset.shifted else torch.zeros_like(s)
        with no_margin():
            return (codes_of(rows, s, z, bits, preset.signed, preset.narrow) - z) * s

    low = low_end(rows)
    stat = best_candidate(rows, stat.detach(), lambda x, candidate: quantized(x, candidate, low))
    if not preset.shifted:
        return stat, None
    return stat, best_candidate(rows, low, lambda x, candidate: quantized(x, stat, candidate))


def quantized_weight(preset, w, bits, state=None, rounding="ROUND", group=(1, 32)):
    """(value, scale, zero point, codes) of a weight; ``state``: what ``learned_state`` returns."""
    rows, spread = layout(w, preset.per, group)
    if preset.scaling == "CONST":
        t, low = threshold_of(torch.full((1,), preset.constant, dtype=torch.float64), preset.restriction), None
    elif state is None:
        stat, low = statistics_of(preset, rows, bits)
        t = threshold_of(stat, preset.restriction)
    else:
        t = learned_threshold(state[0], preset.restriction)
        low = None if state[1] is None else -magnitude(state[1])
    s = spread(t / int_threshold(bits, preset.signed, preset.narrow, preset.restriction))
    z = zero_point_of(spread(low), s, bits) if preset.shifted else torch.zeros((), dtype=torch.float64)
    q = codes_of(w, s, z, bits, preset.signed, preset.narrow, rounding, preset.passing)
    return (q - z) * s, s, z, q


def learned_state(preset, w, bits):
    """What the first training call stores: leaves of (stored threshold, size of the low end)."""
    stat, low = statistics_of(preset, layout(w, preset.per)[0], bits)
    leaves = [stored(stat.detach(), preset.restriction), None if low is None else -low.detach()]
    return [None if leaf is None else leaf.clone().requires_grad_() for leaf in leaves]


def draw(seed, shape, outliers=True):
    """Numbers that float32 holds exactly, off-centre, a few of them far out."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0.05, 0.3, shape)
    if outliers:
        flat = x.reshape(-1)
        flat[rng.integers(0, flat.size, 3)] *= 3.0
    return torch.from_numpy(x.astype(np.float32)).double()


def away_from_jumps(compute, shape, near=2e-4, tries=60, **options):
    """The first drawn tensor for which ``compute`` meets no tie that float32 would break."""
    for seed in range(tries):
        x = draw(seed, shape, **options)
        restart_margin()
        compute(x)
        if margin() > near:
            return x
    raise AssertionError(f"{tries} draws, all near a tie")


def weight_layer(name, weight, dtype=torch.float64, **options):
    options = {f"weight_{key}": value for key, value in options.items()}
    preset = registry.preset(name)
    if weight.ndim == 2:
        layer = QuantLinear(weight.shape[1], weight.shape[0], bias=False, weight_quant=preset, **options)
    else:
        out, into, *kernel = weight.shape
        layer = QuantConv2d(into, out, tuple(kernel), bias=False, weight_quant=preset, **options)
    layer = layer.to(dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def mixed_loss(tensors, like, seed=7):
    """A scalar that depends on every element of value, scale, ... with a weight of its own."""
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for tensor in tensors:
        factors = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        total = total + (tensor.expand(like.shape) * factors.to(tensor.dtype)).sum()
    return total


def gradients(tensors, like, leaves):
    found = torch.autograd.grad(mixed_loss(tensors, like), leaves, allow_unused=True)
    return [
        torch.zeros_like(leaf) if g is None else g.reshape(leaf.shape) for g, leaf in zip(found, leaves, strict=True)
    ]


def assert_near(actual, expected, dtype, what, floor=1e-12, scale=1.0):
    actual, expected = actual.detach().double(), expected.detach().double()
    actual = actual.expand(torch.broadcast_shapes(actual.shape, expected.shape))
    expected = expected.expand(actual.shape)
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    limit = scale * TOLERANCE[dtype] * largest + floor
    worst = float((actual - expected).abs().max()) if expected.numel() else 0.0
    assert worst <= limit, f"{what}: {worst} off, {limit} allowed"


def assert_quantized(qt, expected, bits, dtype, signed):
    value, scale, zero_point, codes = expected
    assert qt.value.dtype == dtype
    assert_near(qt.scale, scale, dtype, "scale")
    assert torch.equal(
        qt.zero_point.detach().double().expand_as(scale + zero_point), zero_point.detach().expand_as(scale + zero_point)
    ), "zero point"
    assert torch.equal(qt.int().double(), codes.detach()), "codes"
    assert_near(qt.value, value, dtype, "value")
    assert qt.bit_width.item() == float(bits)
    assert qt.signed is signed
