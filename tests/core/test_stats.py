"""Statistics against values by hand and against definitions over sorted lists."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brevitas.core.stats import (
    AbsAve,
    AbsMax,
    AbsMaxAve,
    AbsMaxL2,
    AbsMinMax,
    AbsPercentile,
    MeanLearnedSigmaStd,
    MeanSigmaStd,
    NegativeMinOrZero,
    NegativePercentileOrZero,
    PercentileInterval,
)
from brevitas.errors import QuantConfigError

ROWS = torch.tensor([[1.0, -3.0, 2.0], [0.5, 0.25, 0.75]])
FLOATS = st.floats(-100.0, 100.0, width=32)


def gradient(module, x):
    x = x.clone().requires_grad_()
    y = module(x)
    y.sum().backward()
    return x.grad


def test_checks_of_the_specification():
    assert AbsPercentile(90)(torch.arange(1.0, 11.0)).item() == 9.0
    assert AbsMinMax()(torch.tensor([1.0, 2.0, 3.0])).item() == 3.0
    assert AbsMinMax()(torch.tensor([-1.0, 3.0])).item() == 4.0


@pytest.mark.parametrize(
    ("module", "whole", "rows"),
    # 20 % of 6 sorted values is the ceil(1.2) = 2nd, 0.25, of 3 the 1st; 60 % of 6 is the floor(4.1) = 4th, 0.75.
    [
        (AbsMax, 3.0, [3.0, 0.75]),
        (AbsMinMax, 5.0, [5.0, 0.75]),
        (AbsAve, 1.25, [2.0, 0.5]),
        (NegativeMinOrZero, -3.0, [-3.0, 0.0]),
        (lambda d: AbsPercentile(50.0, d), 0.75, [2.0, 0.5]),
        (lambda d: PercentileInterval(20.0, 60.0, d), 0.75, [4.0, 0.5]),
        (lambda d: NegativePercentileOrZero(20.0, d), 0.0, [-3.0, 0.0]),
    ],
)
def test_by_hand(module, whole, rows):
    assert module(None)(ROWS).item() == whole
    assert module(1)(ROWS).tolist() == rows


def test_over_channels():
    assert AbsMaxAve(1)(ROWS).item() == (3.0 + 0.75) / 2
    assert AbsMaxL2(1)(ROWS).item() == pytest.approx(math.sqrt((9.0 + 0.5625) / 2))
    assert AbsMaxAve(1)(ROWS).shape == AbsMaxL2(1)(ROWS).shape == ()
    assert gradient(AbsMaxL2(1), torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


@given(values=st.lists(FLOATS, min_size=1, max_size=40), q=st.floats(0.001, 100.0))
def test_percentile_is_that_of_the_sorted_list(values, q):
    x = torch.tensor(values)
    k = min(max(math.floor(q * len(values) / 100 + 0.5), 1), len(values))
    assert AbsPercentile(q)(x).item() == x.abs().sort().values[k - 1].item()
    assert AbsPercentile(q, 1)(x.view(1, -1)).tolist() == [x.abs().sort().values[k - 1].item()]


@given(values=st.lists(FLOATS, min_size=1, max_size=40), low=st.floats(0.0, 49.9), high=st.floats(50.0, 100.0))
def test_interval_is_that_of_the_sorted_list_and_holds_zero(values, low, high):
    x = torch.tensor(values)
    ordered = sorted(x.tolist())
    n = len(values)
    lo = ordered[max(math.ceil(low * n / 100), 1) - 1]
    hi = ordered[min(max(math.floor(high * n / 100 + 0.5), 1), n) - 1]
    assert PercentileInterval(low, high)(x).item() == torch.tensor(max(hi, 0.0)).sub(min(lo, 0.0)).item()
    assert NegativePercentileOrZero(low)(x).item() == min(lo, 0.0)


@given(values=st.lists(FLOATS, min_size=2, max_size=20), sigma=st.floats(0.1, 5.0))
def test_mean_and_deviation(values, sigma):
    x = torch.tensor(values, dtype=torch.float64)
    expected = x.abs().mean() + sigma * torch.sqrt(x.abs().var() + 1e-8)
    torch.testing.assert_close(MeanSigmaStd(None, sigma)(x), expected)
    torch.testing.assert_close(MeanSigmaStd(1, sigma)(x.view(1, -1)), expected.view(1))
    learned = MeanLearnedSigmaStd(None, sigma, ()).double()
    torch.testing.assert_close(learned(x).detach(), expected, rtol=1e-6, atol=1e-6)  # sigma starts as a float32


def test_one_value_deviates_by_nothing():
    x = torch.tensor([[2.0], [0.0]])
    assert MeanSigmaStd(1, 3.0)(x).tolist() == pytest.approx([2.0 + 3e-4, 3e-4])
    assert gradient(MeanSigmaStd(1, 3.0), x).tolist() == [[1.0], [0.0]]


def test_learned_sigma_gets_its_gradient():
    x = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    module = MeanLearnedSigmaStd(1, 2.0, (2, 1))
    module(x).sum().backward()
    torch.testing.assert_close(module.sigma.grad, torch.tensor([[math.sqrt(2.0)], [1e-4]]), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("module", "x", "expected"),
    [
        (AbsMax(), [1.0, -3.0, 3.0, 0.0], [0.0, -0.5, 0.5, 0.0]),  # equal maxima share
        (AbsMax(), [0.0, 0.0], [0.0, 0.0]),
        (AbsMinMax(), [-1.0, 0.5, 2.0], [-1.0, 0.0, 1.0]),
        (AbsMinMax(), [1.0, 2.0], [0.0, 1.0]),  # the low end is 0, which is no value of x
        (AbsMinMax(), [0.0, 0.0], [0.0, 0.0]),
        (NegativeMinOrZero(), [-1.0, 3.0], [1.0, 0.0]),
        (NegativeMinOrZero(), [1.0, 3.0], [0.0, 0.0]),
        (NegativeMinOrZero(), [0.0, 3.0], [0.0, 0.0]),
        (AbsAve(), [-2.0, 1.0, 0.0, 3.0], [-0.25, 0.25, 0.0, 0.25]),
        (AbsPercentile(50.0), [-1.0, 2.0, -3.0, 4.0], [0.0, 1.0, 0.0, 0.0]),
        (PercentileInterval(0.0, 100.0), [-1.0, 0.5, 2.0], [-1.0, 0.0, 1.0]),
        (NegativePercentileOrZero(0.0), [-1.0, 0.5], [1.0, 0.0]),
    ],
)
def test_gradients(module, x, expected):
    assert gradient(module, torch.tensor(x)).tolist() == expected


def test_along_a_dimension_the_first_maximum_takes_the_gradient():
    x = torch.tensor([[1.0, -3.0, 3.0], [2.0, 2.0, 2.0]])
    assert gradient(AbsMax(1), x).tolist() == [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]


def test_float16_is_averaged_without_overflow():
    x = torch.full((70000,), 100.0, dtype=torch.float16)
    assert AbsAve()(x).item() == 100.0
    assert MeanSigmaStd(None, 1.0)(x).item() == 100.0
    assert AbsMaxL2(1)(torch.full((9, 1), 30000.0, dtype=torch.float16)).item() == 30000.0


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: AbsPercentile(0.0), "percentile_q=0.0.*(0.0, 100.0]"),
        (lambda: AbsPercentile(101.0), "percentile_q=101"),
        (lambda: AbsPercentile("90"), "percentile_q='90'"),
        (lambda: PercentileInterval(50.0, 90.0), "low_percentile_q=50"),
        (lambda: PercentileInterval(40.0, 30.0), "low_percentile_q=40.*high_percentile_q=30"),
        (lambda: NegativePercentileOrZero(-1.0), "low_percentile_q=-1"),
        (lambda: MeanSigmaStd(None, 0.0), "sigma=0"),
        (lambda: MeanLearnedSigmaStd(None, 1.0, (0,)), r"stats_output_shape=\(0,\)"),
        (lambda: AbsMax(True), "stats_reduce_dim=True"),
        (lambda: AbsMaxAve(None), "stats_reduce_dim=None"),
    ],
)
def test_illegal_arguments_are_named(build, named):
    with pytest.raises(QuantConfigError, match=named.replace("(0.0, 100.0]", r"\(0.0, 100.0\]")):
        build()


@pytest.mark.parametrize("dim", [None, 1])
@pytest.mark.parametrize("q", [0.01, 1.0, 1.6, 50.0, 98.4, 98.5, 99.99, 100.0])
def test_percentiles_of_long_rows(q, dim):
    x = torch.randn(1, 5000, generator=torch.Generator().manual_seed(0))
    k = min(max(math.floor(q * 5000 / 100 + 0.5), 1), 5000)
    magnitude, place = x.abs().view(-1).sort()
    assert AbsPercentile(q, dim)(x).item() == magnitude[k - 1].item()
    expected = torch.zeros(5000)
    expected[place[k - 1]] = x.view(-1)[place[k - 1]].sign()
    assert torch.equal(gradient(AbsPercentile(q, dim), x).view(-1), expected)
    if q < 50.0:
        ordered = x.view(-1).sort().values
        low = ordered[max(math.ceil(q * 5000 / 100), 1) - 1].item()
        assert NegativePercentileOrZero(q, dim)(x).item() == min(low, 0.0)
