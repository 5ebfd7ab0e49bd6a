"""Thresholds against torch's own arithmetic, at each threshold and at the float32 numbers beside it."""

import numpy as np
import pytest
import torch

from brevitas.core.rounding import DPURoundSte
from brevitas.export.lowering.thresholds import ROUNDINGS, thresholds
from brevitas.function.int_quant_op import int_quant

TORCH = {
    "ROUND": torch.round,
    "CEIL": torch.ceil,
    "FLOOR": torch.floor,
    "DOWN": torch.trunc,
    "DPU": DPURoundSte(),
}
SCALES = [1.0, 0.5, 2.0**-7, 0.1, 1 / 3, 0.037, 7.3, 1e-6, 3e4, 1.1754944e-38, 1e-42, 1e30]
RANGES = [(-8, 7), (-7, 7), (0, 15), (0, 1), (-1, 1), (-128, 127), (0, 255)]


def codes(x, scale, low, high, rounding):
    """The definition: clamp(round(x / scale)), in torch's float32."""
    quotient = torch.from_numpy(np.asarray(x, np.float32)) / torch.tensor(scale, dtype=torch.float32)
    return TORCH[rounding](quotient).clamp(low, high).numpy()


def test_each_rounding_mode_has_a_definition():
    assert set(TORCH) == set(ROUNDINGS)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("scale", SCALES)
def test_a_code_begins_exactly_at_its_threshold(rounding, scale):
    for low, high in RANGES:
        found = thresholds(np.float32(scale), low, high, rounding)
        assert found.dtype == np.float32 and found.shape == (high - low,)
        assert np.all(np.diff(found) >= 0)
        expected = np.arange(low + 1, high + 1)
        before = np.nextafter(found, np.float32(-np.inf))
        with np.errstate(under="ignore"):
            assert np.all(codes(found, scale, low, high, rounding) >= expected)
            assert np.all(codes(before, scale, low, high, rounding) < expected)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_counting_thresholds_gives_the_codes_of_any_number(rounding):
    generator = np.random.default_rng(0)
    for scale, low, high in [(0.1, -8, 7), (1 / 3, 0, 255), (0.0625, -2, 1)]:
        steps = generator.uniform(low - 3, high + 3, 2000)
        ties = np.arange(2 * low - 4, 2 * high + 5) / 2
        x = (np.concatenate([steps, ties]) * scale).astype(np.float32)
        x = np.concatenate([x, np.nextafter(x, np.float32(np.inf)), np.float32([0.0, -0.0, np.inf, -np.inf])])
        counted = (x[:, None] >= thresholds(np.float32(scale), low, high, rounding)).sum(1) + low
        assert np.array_equal(counted, codes(x, scale, low, high, rounding))


@pytest.mark.parametrize(("signed", "narrow"), [(True, False), (True, True), (False, False)])
def test_the_operator_that_layers_run_falls_at_the_thresholds(signed, narrow):
    generator = np.random.default_rng(1)
    for scale in np.exp(generator.uniform(-9, 4, 40)).astype(np.float32):
        low, high = (-8 + narrow, 7) if signed else (0, 15)
        found = thresholds(scale, low, high, "ROUND")
        x = np.concatenate([found, np.nextafter(found, np.float32(-np.inf)), np.nextafter(found, np.float32(np.inf))])
        y = int_quant(
            torch.from_numpy(x), torch.tensor(scale), torch.tensor(0.0), torch.tensor(4.0), signed, narrow
        ).numpy()
        counted = ((x[:, None] >= found).sum(1) + low).astype(np.float32)
        assert np.array_equal(counted * scale, y)


def test_scales_of_channels_have_rows_of_their_own():
    scales = np.float32([0.1, 0.7, 3.0])
    found = thresholds(scales, -4, 3, "ROUND")
    assert found.shape == (3, 7)
    for row, scale in zip(found, scales):
        assert np.array_equal(row, thresholds(scale, -4, 3, "ROUND"))


def test_a_code_that_no_finite_number_reaches_begins_at_infinity():
    found = thresholds(np.float32(3e38), 0, 3, "ROUND")
    assert np.isfinite(found[0]) and found[1:].tolist() == [np.inf, np.inf]
    assert codes(np.float32([3.4e38, np.inf]), 3e38, 0, 3, "ROUND").tolist() == [1, 3]


def test_ties_by_hand():
    # 1 = 0.5 steps goes to 0, 3 = 1.5 steps to 2, 5 = 2.5 steps to 2.
    after_1, after_5 = (np.nextafter(np.float32(n), np.float32(9)) for n in (1, 5))
    assert thresholds(np.float32(2.0), 0, 3, "ROUND").tolist() == [after_1, 3.0, after_5]
