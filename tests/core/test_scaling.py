"""Thresholds: restriction, bounds, and the phases of what is estimated first and learned afterwards."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brevitas.core.function_wrapper import FloorSte, LogTwo, OverOutputChannelView, OverTensorView, PowerOfTwo, RoundSte
from brevitas.core.restrict_val import (
    FloatRestrictValue,
    IntRestrictValue,
    LogFloatRestrictValue,
    PowerOfTwoRestrictValue,
    RestrictedThreshold,
)
from brevitas.core.scaling import (
    ConstScaling,
    IntScaling,
    ParameterFromRuntimeStatsScaling,
    ParameterFromStatsFromParameterScaling,
    ParameterScaling,
    PowerOfTwoIntScaling,
    RuntimeStatsScaling,
    StatsFromParameterScaling,
)
from brevitas.core.stats import AbsMax, AbsPercentile
from brevitas.errors import QuantConfigError


def runtime(steps=3, restrict=None, **kwargs):
    return ParameterFromRuntimeStatsScaling(steps, AbsMax(), OverTensorView(), restrict_scaling_impl=restrict, **kwargs)


def t(*values):
    return torch.tensor(values)


def test_exact_powers_and_logarithms():
    for dtype, low, high in ((torch.float32, -126, 127), (torch.float64, -1022, 1023)):
        exponents = torch.arange(low, high + 1, dtype=dtype)
        powers = torch.tensor([2.0**e for e in range(low, high + 1)], dtype=dtype)
        assert torch.equal(PowerOfTwo()(exponents), powers)
        assert torch.equal(LogTwo()(powers), exponents)


@pytest.mark.parametrize(
    ("restrict", "expected"),
    [
        (FloatRestrictValue(), [0.3, 0.5, 0.75, 3.0]),
        (IntRestrictValue(), [1e-10, 1e-10, 1.0, 3.0]),  # half to even; never below the bound
        (PowerOfTwoRestrictValue(), [0.5, 0.5, 1.0, 4.0]),
        (PowerOfTwoRestrictValue(RoundSte()), [0.25, 0.5, 1.0, 4.0]),
        (PowerOfTwoRestrictValue(FloorSte()), [0.25, 0.5, 0.5, 2.0]),
    ],
)
def test_restrictions_by_hand(restrict, expected):
    x = t(0.3, 0.5, 0.75, 3.0)
    torch.testing.assert_close(RestrictedThreshold(restrict)(x), torch.tensor(expected), rtol=1e-6, atol=0.0)
    scaling = ParameterScaling(x, restrict_scaling_impl=restrict)
    torch.testing.assert_close(scaling(x).detach(), torch.tensor(expected), rtol=1e-6, atol=0.0)


@given(st.floats(2.0**-30, 2.0**30, width=32))
def test_a_power_of_two_threshold_never_shrinks(value):
    threshold = RestrictedThreshold(PowerOfTwoRestrictValue())(t(value)).item()
    assert math.log2(threshold).is_integer() and threshold < 2.0 * value * (1 + 1e-6)
    assert threshold >= value * (1 - 1e-6)  # log2 of a float just above a power of two rounds to an integer


@pytest.mark.parametrize("exponent", range(-33, 34))
@pytest.mark.parametrize("rounding", [None, RoundSte(), FloorSte()])
def test_an_exact_power_of_two_maps_to_itself(exponent, rounding):
    assert RestrictedThreshold(PowerOfTwoRestrictValue(rounding))(t(2.0**exponent)).item() == 2.0**exponent


def test_gradients_of_the_restrictions():
    for restrict, u, expected in (
        (FloatRestrictValue(), 1.7, 1.0),
        (LogFloatRestrictValue(), 1.7, math.log(2) * 2**1.7),
        (IntRestrictValue(), 1.7, 1.0),
        (PowerOfTwoRestrictValue(), 1.7, math.log(2) * 4.0),
    ):
        x = t(u).requires_grad_()
        restrict(x).backward()
        assert x.grad.item() == pytest.approx(expected, rel=1e-6)


def test_lower_bounds():
    zero = torch.zeros(3)
    assert RestrictedThreshold()(zero[0]).item() == pytest.approx(1e-10, rel=1e-6)
    assert RestrictedThreshold(LogFloatRestrictValue())(zero[0]).item() == pytest.approx(1e-10, rel=1e-5)
    assert RestrictedThreshold(PowerOfTwoRestrictValue())(zero[0]).item() == 2.0**-33
    assert RestrictedThreshold(PowerOfTwoRestrictValue(), 0.3)(t(0.1)).item() == 0.5
    assert RestrictedThreshold(FloatRestrictValue(), 0.3)(t(0.1)).item() == pytest.approx(0.3)
    x = t(0.0).requires_grad_()
    RestrictedThreshold(FloatRestrictValue(), 0.3)(x).backward()
    assert x.grad.item() == 1.0  # straight through


def test_huge_values_keep_a_finite_threshold():
    for restrict in (FloatRestrictValue(), PowerOfTwoRestrictValue()):
        assert RestrictedThreshold(restrict)(t(3.4e38)).isfinite().all()
        half = torch.tensor([65504.0, 1e-8], dtype=torch.float16)
        threshold = RestrictedThreshold(restrict)(half)
        assert threshold.dtype == torch.float16 and threshold.isfinite().all() and (threshold > 0).all()
    assert RestrictedThreshold(PowerOfTwoRestrictValue())(half)[0].item() == 32768.0


def test_integer_thresholds():
    eight = torch.tensor(8.0)
    assert IntScaling(True, False)(eight).item() == 128.0
    assert IntScaling(True, True)(eight).item() == 127.0
    assert IntScaling(False, False)(eight).item() == 255.0
    assert IntScaling(False, True)(eight).item() == 254.0
    assert PowerOfTwoIntScaling(True)(eight).item() == 128.0
    assert PowerOfTwoIntScaling(False)(eight).item() == 256.0


def test_const_scaling_is_not_state():
    scaling = ConstScaling(0.3, PowerOfTwoRestrictValue())
    assert scaling(torch.zeros(2)).item() == 0.5
    assert not scaling.state_dict() and not list(scaling.parameters())


def test_parameter_scaling_may_cross_zero():
    scaling = ParameterScaling(2.0)
    assert scaling.value.shape == (1,) and scaling(t(0.0)).shape == ()
    with torch.no_grad():
        scaling.value.fill_(-0.5)
    threshold = scaling(t(0.0))
    threshold.backward()
    assert threshold.item() == 0.5 and scaling.value.grad.item() == -1.0
    with torch.no_grad():
        scaling.value.zero_()
    scaling.value.grad = None
    scaling(t(0.0)).backward()
    assert scaling.value.grad.item() == 1.0  # +g at 0: the value can leave it


def test_parameter_scaling_shapes():
    assert ParameterScaling(2.0, (3, 1))(t(0.0)).tolist() == [[2.0]] * 3
    assert ParameterScaling(t(2.0), (3, 1))(t(0.0)).shape == (3, 1)
    assert ParameterScaling(torch.ones(3, 1))(t(0.0)).shape == (3, 1)
    with pytest.raises(QuantConfigError, match=r"shape \(2,\).*\(3, 1\)"):
        ParameterScaling(torch.ones(2), (3, 1))


def test_statistics_of_weights_back_propagate_into_them():
    weight = torch.nn.Parameter(t(0.5, -1.27, 0.1))
    scaling = StatsFromParameterScaling(AbsMax(), OverTensorView(), 0, [weight], None, ())
    threshold = scaling(weight)
    threshold.backward()
    assert threshold.item() == pytest.approx(1.27) and weight.grad.tolist() == [0.0, -1.0, 0.0]
    assert not scaling.state_dict()


def test_shared_statistics_cover_all_parameters_and_follow_replacements():
    first, second = torch.nn.Parameter(t(0.5)), torch.nn.Parameter(t(-2.0, 1.0))
    scaling = StatsFromParameterScaling(AbsMax(), OverTensorView(), 0, [first, second], None, ())
    threshold = scaling(first)
    threshold.backward()
    assert threshold.item() == 2.0 and second.grad.tolist() == [-1.0, 0.0]
    scaling.set_tracked_parameters([first, torch.nn.Parameter(t(3.0))])
    assert scaling(first).item() == 3.0
    scaling.set_tracked_parameters([first])
    assert scaling(first).item() == 0.5
    a = torch.nn.Parameter(torch.tensor([[1.0], [2.0]]))
    b = torch.nn.Parameter(torch.tensor([[3.0, 0.0], [0.0, -1.0]]))
    per_channel = StatsFromParameterScaling(AbsMax(1), OverOutputChannelView(), 1, [a, b], None, (2, 1))
    assert per_channel(a).tolist() == [[3.0], [2.0]]


def test_affine_rescaling_takes_absolute_values_only_of_linear_domains():
    weight = torch.nn.Parameter(t(2.0**-3))
    for restrict, bias, expected in (
        (PowerOfTwoRestrictValue(), 0.0, 2.0**-3),
        (LogFloatRestrictValue(), -1.0, 2.0**-4),
        (FloatRestrictValue(), -1.0, 1.0 - 2.0**-3),
    ):
        scaling = StatsFromParameterScaling(AbsMax(), OverTensorView(), 0, [weight], restrict, (), True)
        with torch.no_grad():
            scaling.stats_scaling_impl.affine_rescaling.affine_bias.fill_(bias)
        assert scaling(weight).item() == pytest.approx(expected, rel=1e-6)
        scaling(weight).backward()
        assert scaling.stats_scaling_impl.affine_rescaling.affine_weight.grad.shape == (1,)


def test_runtime_statistics_average_in_training_and_are_used_in_eval():
    scaling = RuntimeStatsScaling(AbsMax(), OverTensorView(), None, (), False, scaling_stats_momentum=0.25)
    assert scaling.eval()(t(9.0)).item() == 1.0  # before any batch
    scaling.train()
    assert scaling(t(4.0)).item() == 4.0
    assert scaling.runtime_stats.running_stats.item() == 4.0  # the first batch replaces the start value
    assert scaling(t(8.0)).item() == 8.0
    assert scaling.eval()(t(100.0)).item() == 0.75 * 4.0 + 0.25 * 8.0
    assert scaling.runtime_stats.counter.item() == 2 and scaling.runtime_stats.initialised.item()


def test_phases_of_a_learned_scale():
    scaling = runtime(steps=3)
    assert scaling.eval()(t(9.0)).item() == 1.0 and scaling.counter.item() == 0
    scaling.train()
    estimate = None
    for step, batch in enumerate((4.0, -8.0, 2.0)):
        x = t(batch).requires_grad_()
        threshold = scaling(x)
        threshold.backward()
        assert threshold.item() == abs(batch)
        assert x.grad.item() == math.copysign(1.0, batch)  # through the statistic
        assert scaling.value.grad.tolist() == [0.0]  # zero, not None
        scaling.value.grad = None
        estimate = abs(batch) if estimate is None else 0.9 * estimate + 0.1 * abs(batch)
        assert scaling.running_stats.item() == pytest.approx(estimate)
        assert scaling.value.item() == pytest.approx(estimate)  # mirrors
        assert scaling.counter.item() == step + 1 and not scaling.initialised
        assert scaling.eval()(t(50.0)).item() == pytest.approx(estimate)
        assert scaling.counter.item() == step + 1  # eval does not count
        scaling.train()
    with torch.no_grad():
        scaling.value.mul_(0.5)  # weight decay during collection
    x = t(100.0).requires_grad_()
    threshold = scaling(x)
    threshold.backward()
    assert threshold.item() == pytest.approx(estimate) and scaling.initialised
    assert x.grad is None and scaling.value.grad.tolist() == [1.0]
    with torch.no_grad():
        scaling.value.fill_(-7.0)
    assert scaling(t(100.0)).item() == 7.0 == scaling.eval()(t(1.0)).item()
    assert scaling.counter.item() == 3


def test_a_true_average():
    scaling = runtime(steps=4, scaling_stats_momentum=None)
    for batch in (1.0, 2.0, 6.0, 7.0):
        scaling(t(batch))
    assert scaling.running_stats.item() == pytest.approx(4.0)
    assert scaling(t(0.0)).item() == pytest.approx(4.0)


@pytest.mark.parametrize("training", [True, False])
def test_a_power_of_two_scale_is_one_in_every_phase(training):
    scaling = runtime(steps=3, restrict=PowerOfTwoRestrictValue())
    for batch in (0.3, 0.7, 5.0, 0.1, 0.1):
        scaling.train()
        thresholds = [scaling(t(batch)).item()]
        thresholds.append(scaling.train(training)(t(batch)).item() if not training else thresholds[0])
        assert all(math.log2(v).is_integer() for v in thresholds)


def test_eval_while_collecting_restricts_the_running_estimate():
    scaling = runtime(steps=5, restrict=LogFloatRestrictValue())
    scaling(t(6.0))
    assert scaling.eval()(t(1.0)).item() == pytest.approx(6.0)
    assert scaling.value.item() == pytest.approx(math.log2(6.0))


def test_init_scale_ends_collection():
    scaling = runtime(steps=300)
    scaling.init_scale()
    assert not scaling.initialised  # nothing was collected
    scaling(t(3.0))
    scaling.init_scale()
    assert scaling.initialised and scaling(t(50.0)).item() == 3.0 and scaling.counter.item() == 1


def test_per_channel_phases():
    scaling = ParameterFromRuntimeStatsScaling(
        1, AbsMax(1), OverOutputChannelView(), (1, 2, 1), scaling_stats_permute_dims=(1, 0, 2)
    )
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 0.0], [0.0, 0.0]]])
    assert scaling(x).tolist() == [[[5.0], [4.0]]]
    assert scaling(torch.zeros(2, 2, 2)).tolist() == [[[5.0], [4.0]]]
    assert scaling.value.shape == (1, 2, 1)


def test_learned_from_weights_follows_them_until_trained():
    weight = torch.nn.Parameter(t(0.5, -2.0))
    scaling = ParameterFromStatsFromParameterScaling(AbsMax(), OverTensorView(), 0, [weight], PowerOfTwoRestrictValue())
    assert scaling.value.item() == 1.0  # log2 of the statistic, from construction
    with torch.no_grad():
        weight.mul_(3.0)
    assert scaling.eval()(weight).item() == 8.0 and not scaling.initialised
    scaling.refresh()
    assert scaling.value.item() == pytest.approx(math.log2(6.0))
    scaling.set_tracked_parameters([torch.nn.Parameter(t(16.0))])
    assert scaling.value.item() == 4.0
    threshold = scaling.train()(weight)
    threshold.backward()
    assert threshold.item() == 8.0 and scaling.initialised
    assert weight.grad is None and scaling.value.grad.item() == pytest.approx(math.log(2) * 8.0)
    with torch.no_grad():
        weight.mul_(100.0)
    assert scaling(weight).item() == 8.0 == scaling.eval()(weight).item()


def test_percentiles_of_a_long_batch():
    x = torch.arange(1.0, 100001.0)
    scaling = ParameterFromRuntimeStatsScaling(1, AbsPercentile(99.9), OverTensorView())
    assert scaling(x).item() == 99900.0


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: runtime(steps=0), "collect_stats_steps=0"),
        (lambda: runtime(steps=2.0), "collect_stats_steps=2.0"),
        (lambda: runtime(scaling_stats_momentum=0.0), "scaling_stats_momentum=0"),
        (lambda: runtime(scaling_min_val=0.0), "scaling_min_val=0"),
        (lambda: runtime(scaling_stats_permute_dims=(1, 1)), r"permute_dims=\(1, 1\)"),
        (lambda: runtime(scaling_shape=(0,)), r"scaling_shape=\(0,\)"),
        (lambda: ConstScaling(0.0), "scaling_init=0"),
        (lambda: ConstScaling(t(1.0, -1.0)), "scaling_init"),
        (lambda: ParameterScaling(float("nan")), "scaling_init=nan"),
        (lambda: ConstScaling(1.0, PowerOfTwoRestrictValue), "restrict_scaling_impl is the class"),
        (
            lambda: StatsFromParameterScaling(AbsMax(), OverTensorView(), 0, [3], None, ()),
            r"tracked_parameter_list\[0\]=3",
        ),
        (lambda: IntScaling(1, False), "signed=1"),
    ],
)
def test_illegal_arguments_are_named(build, named):
    with pytest.raises(QuantConfigError, match=named):
        build()
