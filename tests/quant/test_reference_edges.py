"""No NaN, infinite, zero or negative scale from any input, for every preset; finite results for finite inputs.

What a NaN does: the values are NaN where the input is, the scale and the zero point stay numbers, and nothing of it
reaches a running estimate. An empty batch has no statistic: it is quantized with the estimate so far, and not counted.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_table import OFF, TRUNCATIONS

from brevitas.nn import QuantIdentity, QuantLinear
from brevitas.quant import registry

NAMES = [
    name
    for name, preset in registry.presets().items()
    if preset.__module__.startswith("brevitas.") and name not in (*OFF, *TRUNCATIONS)
]
ACTS = [name for name in NAMES if "Act" in name]
LARGEST = torch.finfo(torch.float32).max
HUGE = 9.999999680285692e37  # 1e38 in float32; beyond, gradients through log2 may overflow
SPECIAL = {
    "all zero": torch.zeros(4, 6),
    "constant": torch.full((4, 6), 0.3),
    "negative": torch.full((4, 6), -0.3),
    "one element": torch.tensor([[0.7]]),
    "one zero": torch.tensor([[0.0]]),
    "denormal": torch.tensor([[1e-42, -1e-40, 0.0, 1e-45]]),
    "huge": torch.tensor([[1e38, -1e38, 1.0, 0.0]]),
    "largest": torch.tensor([[LARGEST, -LARGEST, 1e-38, 0.0]]),
}
NUMBERS = st.one_of(
    st.floats(-HUGE, HUGE, width=32),
    st.floats(-2.0, 2.0, width=32),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, HUGE, -HUGE]),
)


def options_of(name):
    options = {}
    if name.startswith(("FpOCP", "FpFNUZ")):
        options = {"bit_width": 8, "exponent_bit_width": 4, "mantissa_bit_width": 3}
    if "ActPerChannel" in name:
        options["per_channel_broadcastable_shape"] = (1, 1, 1, 1)
    if "MinMaxInit" in name:
        options |= {"min_val": -1.0, "max_val": 1.0}
    elif "MaxInit" in name:
        options["max_val"] = 1.0
    return options


def quantizer_of(name, x):
    """(tensor quantizer, its input, a call)."""
    preset = registry.preset(name).let(**options_of(name))
    if "Bias" in name:
        layer = QuantLinear(3, x.numel(), bias_quant=preset)
        with torch.no_grad():
            layer.bias.copy_(x.reshape(-1))
        quantizer, given_ = layer.bias_quant.tensor_quant, layer.bias
        extra = () if "Internal" in name else (torch.tensor(0.01),)
        extra += (torch.tensor(16.0),) if name == "IntBias" else ()
    elif "Weight" in name:
        layer = QuantLinear(x.shape[1], x.shape[0], bias=False, weight_quant=preset)
        with torch.no_grad():
            layer.weight.copy_(x)
        quantizer, given_ = layer.weight_quant.tensor_quant, layer.weight
        extra = (torch.tensor(8.0), False) if "Accumulator" in name else ()
    else:
        given_ = (x[:, None, None] if "ActPerChannel" in name else x).clone().requires_grad_()
        quantizer, extra = QuantIdentity(preset).act_quant.tensor_quant, ()
    return quantizer, given_, lambda: quantizer(given_, *extra)


def finish(quantizer):
    """From the phase of statistics to that of learned parameters."""
    for module in quantizer.modules():
        for name in ("init_scale", "init_zp"):
            if hasattr(module, name):
                getattr(module, name)()


def assert_sound(name, x, finite=True):
    quantizer, given_, call = quantizer_of(name, x)
    for phase in ("training", "eval", "learned"):
        if phase == "learned":
            finish(quantizer)
        quantizer.train(phase != "eval")
        y, scale, zero_point = call()[:3]
        assert torch.isfinite(scale).all() and (scale > 0).all(), (name, phase, scale)
        assert torch.isfinite(zero_point).all(), (name, phase, zero_point)
        if not finite:
            assert torch.isnan(y[torch.isnan(given_)]).all()
            for key, value in quantizer.state_dict().items():
                assert not value.is_floating_point() or torch.isfinite(value).all(), (name, phase, key)
            continue
        assert torch.isfinite(y).all(), (name, phase, y)
        if y.requires_grad:
            leaves = [given_, *quantizer.parameters()]
            for g in torch.autograd.grad(y.sum() / y.numel(), leaves, allow_unused=True):
                assert g is None or torch.isfinite(g).all(), (name, phase)


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", NAMES)
def test_special_inputs(name, kind):
    assert_sound(name, SPECIAL[kind])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12)
@given(data=st.data())
def test_any_finite_input(name, data):
    rows, columns = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    numbers = data.draw(st.lists(NUMBERS, min_size=rows * columns, max_size=rows * columns))
    assert_sound(name, torch.tensor(numbers, dtype=torch.float32).reshape(rows, columns))


NOT_A_NUMBER = {
    "one NaN": torch.tensor([[math.nan, 1.0, -0.5], [0.1, 0.2, 0.3]]),
    "all NaN": torch.full((2, 3), math.nan),
}


@pytest.mark.parametrize("kind", NOT_A_NUMBER)
@pytest.mark.parametrize("name", NAMES)
def test_nan(name, kind):
    normalised = "WeightNorm" in name or "AccumulatorAware" in name
    if normalised and kind == "one NaN":
        # Dividing by the channel's norm, one NaN makes every code of the channel NaN; the scale is a number.
        quantizer, _, call = quantizer_of(name, NOT_A_NUMBER[kind])
        scale = call()[1]
        assert torch.isfinite(scale).all() and (scale > 0).all()
        return
    assert_sound(name, NOT_A_NUMBER[kind], finite=False)


@pytest.mark.parametrize("name", ACTS)
def test_nan_and_empty_batches_leave_no_trace(name):
    """The estimate after good, NaN, empty, good batches is that of the good ones."""
    good = [torch.linspace(-1, 2, 12).reshape(2, 6), torch.linspace(-3, 1, 12).reshape(2, 6)]
    shape = (lambda x: x[:, None, None]) if "ActPerChannel" in name else (lambda x: x)
    collects = "collect_stats_steps" in registry.preset(name) and "MX" not in name
    options = options_of(name) | ({"collect_stats_steps": 9} if collects else {})
    clean = QuantIdentity(registry.preset(name), **options).act_quant.tensor_quant
    mixed = QuantIdentity(registry.preset(name), **options).act_quant.tensor_quant
    for x in good:
        clean(shape(x))
    for x in (good[0], torch.full((2, 6), math.nan), torch.zeros(0, 6), good[1]):
        result = mixed(shape(x))
        assert result[0].shape == shape(x).shape
        assert torch.isfinite(result[1]).all() and (result[1] > 0).all()
    wanted = clean.state_dict()
    for key, value in mixed.state_dict().items():
        if not key.endswith("counter"):
            assert torch.equal(value, wanted[key]), key


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ACTS)
def test_empty_batch(name, training):
    """Works from the very first call, with gradients of no elements."""
    x = torch.zeros(0, 6)
    quantizer, given_, call = quantizer_of(name, x)
    quantizer.train(training)
    y, scale = call()[:2]
    assert y.shape == given_.shape
    assert torch.isfinite(scale).all() and (scale > 0).all()
    y.sum().backward()
    assert given_.grad is None or given_.grad.shape == given_.shape
    for parameter in quantizer.parameters():
        assert parameter.grad is None or not parameter.grad.any()


@pytest.mark.parametrize("statistic", ["MAX", "AVE", "MEAN_SIGMA_STD", "PERCENTILE", "MIN_MAX", "PERCENTILE_INTERVAL"])
@pytest.mark.parametrize("scaling", ["STATS", "AFFINE_STATS", "PARAMETER_FROM_STATS"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_every_statistic_of_an_empty_or_nan_batch(statistic, scaling, per_channel):
    channels = {"scaling_per_output_channel": True, "per_channel_broadcastable_shape": (1, 3)} if per_channel else {}
    sigma = {"sigma": 3.0} if "SIGMA" in statistic else {}
    layer = QuantIdentity(
        scaling_stats_op=statistic, scaling_impl_type=scaling, return_quant_tensor=True, **sigma, **channels
    )
    layer(torch.tensor([[1.0, -2.0, 3.0]]))
    before = layer.eval().quant_act_scale().clone()
    layer.train()
    for x in (torch.zeros(0, 3), torch.full((2, 3), math.nan)):
        scale = layer(x).scale
        assert torch.isfinite(scale).all() and (scale > 0).all()
    assert torch.equal(layer.eval().quant_act_scale(), before)
