"""The search for the least squared error against brute force in float64."""

import copy
import math

import numpy as np
import pytest
import torch
from extension_catalogue import float_parts
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from brevitas.core import bit_width as bw
from brevitas.core import function_wrapper as fw
from brevitas.core import quant as q
from brevitas.core import restrict_val as rv
from brevitas.core import rounding as rd
from brevitas.core import scaling as sc
from brevitas.core import stats as stt
from brevitas.core import zero_point as zp
from brevitas.errors import QuantConfigError

rows = hnp.arrays("float64", st.integers(1, 30), elements=st.floats(-10, 10, width=32))


def quantize(x, statistic, bits, signed, power_of_two=False, low=0.0, min_val=1e-10):
    """The complete integer quantizer in numpy, for one statistic."""
    threshold = max(statistic, min_val)
    if power_of_two:
        threshold = max(2.0 ** math.ceil(math.log2(threshold)), 2.0 ** math.ceil(math.log2(min_val)))
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    steps = (2.0 ** (bits - 1) if signed else 2.0**bits) if power_of_two else -lowest if signed else highest
    scale = threshold / steps
    zero = np.clip(np.round(-low / scale) + lowest, lowest, highest) if low else lowest if not signed else 0
    zero = 0 if signed else zero
    return (np.clip(np.round(x / scale + zero), lowest, highest) - zero) * scale


def least(x, init, quantized, iters):
    """The candidates ``init k / n`` whose error is least, smallest first."""
    candidates = [init * (k / iters) for k in range(1, iters + 1)]
    errors = [float(np.sum((quantized(c) - x) ** 2)) for c in candidates]
    best = min(errors)
    return [c for c, e in zip(candidates, errors, strict=True) if e <= best + 1e-12 * max(best, init * init)]


def candidate_quant(bits, signed, power_of_two=False, low_end=None):
    return q.IntThresholdCandidate(
        q.IntQuant(False, signed),
        sc.PowerOfTwoIntScaling(signed) if power_of_two else sc.IntScaling(signed, False),
        bw.BitWidthConst(bits),
        rv.PowerOfTwoRestrictValue() if power_of_two else rv.FloatRestrictValue(),
        low_end_init_op=low_end,
    )


def assert_least(found, allowed):
    assert any(abs(found - a) <= 1e-12 * max(abs(a), 1.0) for a in allowed), (found, allowed)


@given(x=rows, bits=st.integers(2, 6), iters=st.integers(1, 30), power_of_two=st.booleans())
def test_symmetric_search_equals_brute_force(x, bits, iters, power_of_two):
    search = stt.MSE(candidate_quant(bits, True, power_of_two), stt.AbsMax(), iters)
    found = float(search(torch.tensor(x)))
    init = float(np.abs(x).max())
    assert_least(found, least(x, init, lambda c: quantize(x, c, bits, True, power_of_two), iters))


@given(x=rows, bits=st.integers(2, 6))
def test_shifted_search_equals_brute_force(x, bits):
    low = min(float(x.min()), 0.0)
    init = max(float(x.max()), 0.0) - low
    scale_search = stt.MSE(candidate_quant(bits, False, low_end=stt.NegativeMinOrZero()), stt.AbsMinMax())
    found = float(scale_search(torch.tensor(x)))
    assert_least(found, least(x, init, lambda c: quantize(x, c, bits, False, low=low), 20))
    low_quant = q.IntLowEndCandidate(
        q.IntQuant(False, False), sc.IntScaling(False, False), bw.BitWidthConst(bits), scale_search
    )
    found_low = float(stt.LowEndMSE(low_quant, stt.NegativeMinOrZero())(torch.tensor(x)))
    assert_least(found_low, least(x, low, lambda c: quantize(x, found, bits, False, low=c), 20))
    assert found_low <= 0.0


def test_ties_go_to_the_smaller_candidate():
    # With 2 bits and a power-of-two threshold, every candidate in (0.5, 1] has the threshold 1.
    x = torch.tensor([0.5, -0.5, 1.0, -1.0, 0.5, 0.5], dtype=torch.float64)
    search = stt.MSE(candidate_quant(2, True, power_of_two=True), stt.AbsMax(), 20)
    errors = {k: float(np.sum((quantize(x.numpy(), k / 20, 2, True, True) - x.numpy()) ** 2)) for k in range(1, 21)}
    best = min(errors.values())
    tied = [k for k, e in errors.items() if e == best]
    assert len(tied) > 1 and float(search(x)) == pytest.approx(min(tied) / 20, abs=1e-12)
    assert float(search(torch.zeros(4))) == 0.0


def test_channels_are_searched_apart():
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    per_row = stt.MSE(candidate_quant(3, True), stt.AbsMax(1), stats_reduce_dim=1)(x)
    alone = torch.stack([stt.MSE(candidate_quant(3, True), stt.AbsMax())(row) for row in x])
    torch.testing.assert_close(per_row, alone, rtol=0, atol=0)
    assert len(set((per_row / x.abs().amax(1)).tolist())) > 1 and bool((per_row < x.abs().amax(1)).any())


@pytest.mark.parametrize("name", ["e2m1", "e4m3_ocp"])
def test_minifloat_search_equals_brute_force(name):
    x = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = stt.MSE(q.FloatThresholdCandidate(*float_parts(name)), stt.AbsMax())(x)

    def quantized(threshold):
        quant = q.FloatQuant(*float_parts(name), scaling_impl=sc.ParameterScaling(torch.tensor(threshold)).double())
        quant.scaling_impl.value.data = torch.tensor([threshold], dtype=torch.float64)
        return quant(x)[0].detach().numpy()

    assert_least(float(found), least(x.numpy(), float(x.abs().max()), quantized, 20))


def weight_quantizer(w, shifted=False, learned_width=False):
    int_quant = q.IntQuant(False, not shifted, rd.LearnedRoundSte(rd.LearnedRoundHardSigmoid(), torch.zeros_like(w)))
    width = bw.BitWidthParameter(3) if learned_width else bw.BitWidthConst(3)
    int_scaling, view = sc.IntScaling(not shifted, False), fw.OverTensorView()
    low = stt.NegativeMinOrZero() if shifted else None
    search = stt.MSE(
        q.IntThresholdCandidate(int_quant, int_scaling, width, low_end_init_op=low),
        stt.AbsMinMax() if shifted else stt.AbsMax(),
    )
    scaling = sc.ParameterFromStatsFromParameterScaling(search, view, 0, [w])
    zero = zp.ZeroZeroPoint()
    if shifted:
        low_search = stt.LowEndMSE(q.IntLowEndCandidate(int_quant, int_scaling, width, search), stt.NegativeMinOrZero())
        zero = zp.ParameterFromStatsFromParameterZeroPoint(int_quant, view, (), low_search, [w])
    return q.RescalingIntQuant(int_quant, scaling, int_scaling, zero, width)


@pytest.mark.parametrize("shifted", [False, True])
def test_the_search_has_no_state_and_no_gradient(shifted):
    w = torch.randn(30, generator=torch.Generator().manual_seed(0), requires_grad=True)
    quant = weight_quantizer(w, shifted, learned_width=True)
    expected = {
        "int_quant.float_to_int_impl.value",
        "scaling_impl.value",
        "scaling_impl.initialised",
        "msb_clamp_bit_width_impl.bit_width_offset",
    }
    if shifted:
        expected |= {"zero_point_impl.value", "zero_point_impl.initialised"}
    assert set(quant.state_dict()) == expected
    search = quant.scaling_impl.parameter_list_stats.stats.stats_impl
    before = copy.deepcopy(quant.state_dict())
    assert not search(w).requires_grad
    assert all(torch.equal(v, before[k]) for k, v in quant.state_dict().items())
    found = search(w.detach())
    quant.eval()
    y, scale, *_ = quant(w)
    torch.testing.assert_close(scale, found / (7 if shifted else 4))
    quant.train()(w)
    assert float(quant.scaling_impl.value.detach()) == float(found)


def test_a_seeded_rounding_is_not_advanced():
    rounding = rd.StochasticRoundSte(seed=0)
    quant = q.IntThresholdCandidate(q.IntQuant(False, True, rounding), sc.IntScaling(True, False), bw.BitWidthConst(3))
    stt.MSE(quant, stt.AbsMax())(torch.randn(10))
    assert int(rounding.uniform.calls) == 0 and list(quant.state_dict()) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1e-40, 1e-7, 1.0, 6e4, 1e38])
def test_finite_for_every_magnitude(dtype, value):
    x = torch.tensor([value, -value / 2, value / 3], dtype=dtype)
    if not bool(x.isfinite().all()):
        pytest.skip("not a number of this dtype")
    for search in (
        stt.MSE(candidate_quant(4, True), stt.AbsMax()),
        stt.MSE(candidate_quant(4, True, power_of_two=True), stt.AbsMax()),
        stt.MSE(candidate_quant(4, False, low_end=stt.NegativeMinOrZero()), stt.AbsMinMax()),
    ):
        found = search(x)
        assert found.dtype == dtype and bool(found.isfinite()) and float(found) >= 0.0
        assert float(found) > value / 4 or value < 1e-7


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: stt.MSE(candidate_quant(3, True), stt.AbsMax(), 0), ["mse_iters=0", ">= 1"]),
        (
            lambda: stt.MSE(candidate_quant(3, True), stt.AbsMax(), mse_search_method="golden"),
            ["mse_search_method='golden'", "grid"],
        ),
        (lambda: stt.MSE(candidate_quant(3, True), stt.AbsMax), ["mse_init_op", "instance"]),
        (
            lambda: q.IntLowEndCandidate(
                q.IntQuant(False, False),
                sc.IntScaling(False, False),
                bw.BitWidthConst(3),
                stt.MeanLearnedSigmaStd(None, 2.0, ()),
            ),
            ["MeanLearnedSigmaStd", "stored twice"],
        ),
        (lambda: q.IntThresholdCandidate(fw.Identity(), fw.Identity(), bw.BitWidthConst(3)), ["int_quant.signed"]),
    ],
)
def test_illegal_arguments(make, says):
    with pytest.raises(QuantConfigError) as error:
        make()
    for part in says:
        assert part in str(error.value)
