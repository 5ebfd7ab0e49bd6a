"""Zero points: integers of the code range, so that real 0 is exactly a code."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brevitas.core.function_wrapper import OverOutputChannelView, OverTensorView
from brevitas.core.quant import IntQuant
from brevitas.core.stats import NegativeMinOrZero, NegativePercentileOrZero
from brevitas.core.zero_point import (
    MinUintZeroPoint,
    ParameterFromRuntimeMinZeroPoint,
    ParameterFromStatsFromParameterZeroPoint,
    ParameterZeroPoint,
    StatsFromParameterZeroPoint,
    ZeroZeroPoint,
)
from brevitas.errors import QuantConfigError

EIGHT = torch.tensor(8.0)
UNSIGNED = IntQuant(narrow_range=False, signed=False)


def t(*values):
    return torch.tensor(values)


def weight_zero_point(shape=(), dim=None, view=None, tracked=None):
    return MinUintZeroPoint(UNSIGNED, view or OverTensorView(), shape, dim, tracked)


def test_checks_of_the_presets():
    zero_point = weight_zero_point()
    assert zero_point(t(-1.0, 3.0), torch.tensor(4.0 / 255), EIGHT).item() == 64.0
    assert zero_point(t(1.0, 3.0), torch.tensor(3.0 / 255), EIGHT).item() == 0.0
    assert zero_point(t(-300.0), torch.tensor(1.0), EIGHT).item() == 255.0  # clamped
    assert zero_point(t(-2.5), torch.tensor(1.0), EIGHT).item() == 2.0  # half to even
    assert ZeroZeroPoint()(t(1.0), torch.tensor(1.0), EIGHT).item() == 0.0


@given(st.floats(-1e3, 0.0, width=32), st.floats(0.015625, 4.0, width=32), st.booleans(), st.booleans())
def test_it_is_an_integer_of_the_range(low, scale, signed, narrow):
    quant = IntQuant(narrow_range=narrow, signed=signed)
    zero_point = StatsFromParameterZeroPoint(quant, OverTensorView(), (), NegativeMinOrZero())
    z = zero_point(t(low, 1.0), torch.tensor(scale), EIGHT).item()
    smallest = {True: -127 if narrow else -128, False: 0}[signed]
    largest = {True: 127, False: 254 if narrow else 255}[signed]
    assert z == int(z) and smallest <= z <= largest
    # -low/scale within float32 rounding of the wanted real number, then rounded, shifted and clamped
    assert min(max(-low / scale + smallest - 0.5001, smallest), largest) <= z
    assert z <= max(min(-low / scale + smallest + 0.5001, largest), smallest)


def test_gradients():
    x, scale = t(-1.0, 3.0).requires_grad_(), torch.tensor(0.1, requires_grad=True)
    weight_zero_point()(x, scale, EIGHT).backward()
    torch.testing.assert_close(x.grad, t(-10.0, 0.0))
    torch.testing.assert_close(scale.grad, torch.tensor(-100.0))
    x, scale = t(-300.0).requires_grad_(), torch.tensor(1.0, requires_grad=True)
    weight_zero_point()(x, scale, EIGHT).backward()  # clamped: nothing reaches x
    assert x.grad.item() == 0.0 and scale.grad.item() == 0.0


def test_per_channel_and_shared():
    zero_point = weight_zero_point((2, 1), 1, OverOutputChannelView())
    x = torch.tensor([[-1.0, 2.0], [3.0, 4.0]])
    assert zero_point(x, torch.tensor([[0.1], [0.1]]), EIGHT).tolist() == [[10.0], [0.0]]
    shared = weight_zero_point(tracked=[torch.nn.Parameter(t(-1.0)), torch.nn.Parameter(t(-4.0, 1.0))])
    assert shared(t(-1.0), torch.tensor(0.5), EIGHT).item() == 8.0
    shared.set_tracked_parameters([torch.nn.Parameter(t(-1.0))])
    assert shared(t(-1.0), torch.tensor(0.5), EIGHT).item() == 2.0


def test_learned():
    zero_point = ParameterZeroPoint(-2.0, UNSIGNED)
    assert zero_point(t(0.0), torch.tensor(0.5), EIGHT).item() == 4.0
    zero_point(t(0.0), torch.tensor(0.5), EIGHT).backward()
    assert zero_point.value.grad.tolist() == [-2.0]  # abs of a negative value, divided by the scale
    assert ParameterZeroPoint(0.0, UNSIGNED, (2, 1))(t(0.0), torch.tensor(0.5), EIGHT).tolist() == [[0.0], [0.0]]


def test_phases():
    zero_point = ParameterFromRuntimeMinZeroPoint(2, UNSIGNED, None, (), OverTensorView())
    scale = torch.tensor(0.5)
    assert zero_point.eval()(t(-5.0), scale, EIGHT).item() == 0.0  # before any batch the low end is 0
    zero_point.train()
    assert zero_point(t(-4.0, 1.0), scale, EIGHT).item() == 8.0
    assert zero_point.value.tolist() == [4.0] and zero_point.running_stats.item() == -4.0
    x = t(-2.0).requires_grad_()
    z = zero_point(x, scale, EIGHT)
    z.backward()
    assert z.item() == 4.0 and x.grad.item() == -2.0 and zero_point.value.grad.tolist() == [0.0]
    assert zero_point.running_stats.item() == pytest.approx(-3.8)
    assert zero_point.counter.item() == 2 and not zero_point.initialised
    assert zero_point(t(-100.0), scale, EIGHT).item() == 8.0  # 3.8 / 0.5 = 7.6
    assert zero_point.initialised and zero_point.value.tolist() == pytest.approx([3.8])
    assert zero_point.eval()(t(-100.0), scale, EIGHT).item() == 8.0


def test_init_zp_and_another_statistic():
    zero_point = ParameterFromRuntimeMinZeroPoint(
        300, UNSIGNED, None, (), OverTensorView(), zero_point_stats_impl=NegativePercentileOrZero(40.0)
    )
    assert zero_point(t(-9.0, -2.0, 1.0, 2.0, 3.0), torch.tensor(1.0), EIGHT).item() == 2.0
    zero_point.init_zp()
    assert zero_point.initialised and zero_point(t(-50.0), torch.tensor(1.0), EIGHT).item() == 2.0


def test_learned_from_weights():
    weight = torch.nn.Parameter(t(-3.0, 1.0))
    zero_point = ParameterFromStatsFromParameterZeroPoint(UNSIGNED, OverTensorView(), (), NegativeMinOrZero(), [weight])
    one = torch.tensor(1.0)
    assert zero_point.value.tolist() == [3.0]
    with torch.no_grad():
        weight.mul_(2.0)
    assert zero_point.eval()(weight, one, EIGHT).item() == 6.0 and not zero_point.initialised
    assert zero_point.train()(weight, one, EIGHT).item() == 6.0 and zero_point.initialised
    with torch.no_grad():
        weight.mul_(2.0)
    assert zero_point(weight, one, EIGHT).item() == 6.0


def test_the_quantizer_is_not_part_of_its_state():
    quant = IntQuant(narrow_range=False, signed=False, quant_delay_steps=4)
    zero_point = ParameterFromRuntimeMinZeroPoint(2, quant, None, (), OverTensorView())
    assert set(zero_point.state_dict()) == {"value", "running_stats", "counter", "initialised"}
    with pytest.raises(QuantConfigError, match="signed"):
        ParameterZeroPoint(0.0, torch.nn.Identity())
