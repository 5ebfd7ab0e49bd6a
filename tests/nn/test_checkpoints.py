"""Checkpoints: any moment to any moment, the names of published files, and what is missing from them."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from brevitas import config
from brevitas.nn import QuantIdentity, QuantLinear, QuantReLU
from brevitas.proxy.quant_proxy import MISSING_KEYS_HINT
from brevitas.proxy.utils import ConvertRuntimeStatsToParameter
from brevitas.quant import (
    Int8AccumulatorAwareWeightQuant,
    Int8ActPerTensorFixedPoint,
    Int8ActPerTensorFloat,
    Int32Bias,
    ShiftedUint8ActPerTensorFloat,
)
from brevitas.utils.python_utils import patch

STEPS = 3
ACTIVATIONS = {
    "collected": {"act_quant": Int8ActPerTensorFloat, "collect_stats_steps": STEPS},
    "shifted": {"act_quant": ShiftedUint8ActPerTensorFloat, "collect_stats_steps": STEPS},
    "power of two": {"act_quant": Int8ActPerTensorFixedPoint, "collect_stats_steps": STEPS},
    "running": {"act_quant": Int8ActPerTensorFloat, "scaling_impl_type": "stats"},
    "learned": {"scaling_impl_type": "parameter", "min_val": -1.0, "max_val": 1.0},
    "learned width": {"collect_stats_steps": STEPS, "bit_width_impl_type": "parameter"},
    "delayed": {"collect_stats_steps": STEPS, "quant_delay_steps": 2},
    "per channel": {
        "collect_stats_steps": STEPS,
        "scaling_per_output_channel": True,
        "per_channel_broadcastable_shape": (1, 4),
    },
}
WEIGHTS = {
    "statistics": {},
    "learned": {"weight_scaling_impl_type": "parameter_from_stats"},
    "learned per channel": {
        "weight_scaling_impl_type": "parameter_from_stats",
        "weight_scaling_per_output_channel": True,
    },
    "learned width": {"weight_bit_width_impl_type": "parameter"},
    "accumulator-aware": {"weight_quant": Int8AccumulatorAwareWeightQuant},
}


def build(activation, weight, seed=0):
    torch.manual_seed(seed)
    fc = WEIGHTS[weight]
    if activation != "per channel":
        fc = {**fc, "bias_quant": Int32Bias}
    return nn.Sequential(
        QuantIdentity(return_quant_tensor=True, **ACTIVATIONS[activation]),
        QuantLinear(4, 3, **fc),
        QuantReLU(bit_width=4, collect_stats_steps=STEPS),
    )


def train(model, steps, seed=0):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(steps):
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed + step))
        optimizer.zero_grad()
        model.train()(x).square().sum().backward()
        optimizer.step()
    return model


def assert_equal_state(a, b):
    for (key, mine), (other, theirs) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert key == other and torch.equal(mine, theirs), key


moments = st.integers(0, STEPS + 2)


@settings(max_examples=40)
@given(st.sampled_from(sorted(ACTIVATIONS)), st.sampled_from(sorted(WEIGHTS)), moments, moments, st.booleans())
def test_strict_loading_from_any_moment_into_any_other_continues_identically(activation, weight, here, there, assign):
    source = train(build(activation, weight), here)
    target = train(build(activation, weight, seed=1), there, seed=50)
    saved = copy.deepcopy(source.state_dict())
    target.load_state_dict(saved, strict=True, assign=assign)
    assert_equal_state(source, target)
    # Where the entries were assigned, the two would train one and the same tensors.
    source = copy.deepcopy(source)
    train(source, 3, seed=9), train(target, 3, seed=9)
    assert_equal_state(source, target)
    x = torch.randn(5, 4)
    assert torch.equal(source.eval()(x), target.eval()(x))
    # And back, into a model that has gone on.
    train(target, 2, seed=20)
    source.load_state_dict(copy.deepcopy(target.state_dict()), strict=True, assign=assign)
    assert_equal_state(source, target)


@pytest.mark.parametrize("weight", sorted(WEIGHTS))
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_the_keys_never_change(activation, weight):
    model = build(activation, weight)
    keys, shapes = list(model.state_dict()), [tuple(t.shape) for t in model.state_dict().values()]
    for step in range(STEPS + 2):
        train(model, 1, seed=step)
        assert list(model.state_dict()) == keys
        assert [tuple(t.shape) for t in model.state_dict().values()] == shapes


# --- Published names -------------------------------------------------------------------------------------------------

ACT = "0.act_quant.fused_activation_quant_proxy.tensor_quant."
WEIGHT = "1.weight_quant.tensor_quant."


def published():
    """A network and a checkpoint with the names, and the 0-d tensors, of other releases."""
    model = nn.Sequential(
        QuantIdentity(collect_stats_steps=5, bit_width_impl_type="parameter", bit_width=4),
        QuantLinear(2, 2, weight_scaling_impl_type="parameter_from_stats", weight_bit_width_impl_type="parameter"),
    )
    state = {
        f"{ACT}scaling_impl.value": torch.tensor(1.75),
        f"{ACT}msb_clamp_bit_width_impl.bit_width_offset": torch.tensor(1.0),
        "1.weight": torch.tensor([[1.0, 2.0], [3.0, -4.0]]),
        "1.bias": torch.tensor([1.0, 0.0]),
        f"{WEIGHT}scaling_impl.value": torch.tensor(6.35),
        f"{WEIGHT}msb_clamp_bit_width_impl.bit_width_offset": torch.tensor(6.0),
    }
    return model, state


def assert_published_values(model):
    # Width: the offset plus the least width, 2. Scales: threshold over the largest code.
    assert model[0].quant_act_bit_width().item() == 3 and model[1].quant_weight_bit_width().item() == 8
    assert model[0].quant_act_scale().item() == pytest.approx(1.75 / 4)
    assert model[1].quant_weight_scale().item() == pytest.approx(6.35 / 127)
    model.train()(torch.full((3, 2), 100.0))  # nothing is collected any more
    assert model[0].quant_act_scale().item() == pytest.approx(1.75 / 4)


def test_a_published_checkpoint_loads_strictly():
    model, state = published()
    before = copy.deepcopy(state)
    model.load_state_dict(state, strict=True)
    assert_published_values(model)
    assert state.keys() == before.keys() and all(torch.equal(v, before[k]) for k, v in state.items())
    trained, _ = published()
    train_step = torch.randn(3, 2)
    for _ in range(7):
        trained.train()(train_step)
    trained.load_state_dict(state, strict=True)  # after training has started
    assert_published_values(trained)


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.replace("scaling_impl.value", "scaling_impl.learned_value"),
        lambda key: key.replace("act_quant.", "act_quant_proxy."),
        lambda key: key.replace("act_quant.", "act_quant_proxy.").replace("impl.value", "impl.learned_value"),
    ],
)
def test_older_names_load_strictly(rename):
    model, state = published()
    model.load_state_dict({rename(key): value for key, value in state.items()}, strict=True)
    assert_published_values(model)


def test_stray_entries_are_ignored():
    model, state = published()
    for key in (
        f"{ACT}zero_hw_sentinel",
        f"{ACT}int_quant.zero_hw_sentinel",
        f"{ACT}scaling_impl.training",
        "0.act_quant.zero_hw_sentinel",
        "1.weight_quant.zero_hw_sentinel",
        "1.bias_quant.zero_hw_sentinel",
    ):
        state[key] = torch.tensor(0.0)
    model.load_state_dict(state, strict=True)
    assert_published_values(model)
    with pytest.raises(RuntimeError, match="Unexpected.*scaling_impl.surplus"):
        model.load_state_dict({**state, f"{ACT}scaling_impl.surplus": torch.tensor(0.0)})


def test_running_statistics_become_a_learned_value():
    running = {"relu.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.runtime_stats." + name: value
               for name, value in (("running_stats", torch.tensor(-3.0)), ("counter", torch.tensor(7)))}  # fmt: skip
    state = {**running, "fc.weight": torch.ones(1)}
    ConvertRuntimeStatsToParameter()("relu.act_quant.", state)
    key = "relu.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.value"
    assert set(state) == {key, "fc.weight"} and state[key].item() == 3.0


# --- Missing keys ----------------------------------------------------------------------------------------------------


def weights_of(model):
    return {k: v for k, v in model.state_dict().items() if k in ("1.weight", "1.bias")}


def test_the_error_about_missing_quantizer_keys_says_what_to_do():
    model, state = published()
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(weights_of(model))
    message = str(caught.value)
    assert "Missing key(s)" in message and message.count(MISSING_KEYS_HINT) == 1
    assert "BREVITAS_IGNORE_MISSING_KEYS=1" in message and "load_float_state_dict(model, state_dict)" in message
    result = model.load_state_dict(weights_of(model), strict=False)
    assert len(result.missing_keys) == 8 and all("_quant." in key for key in result.missing_keys)
    del state["1.weight"]
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(state)
    assert "1.weight" in str(caught.value) and MISSING_KEYS_HINT not in str(caught.value)


def test_ignoring_missing_keys_forgives_what_quantizers_own_and_nothing_else():
    model, state = published()
    with patch(config, "IGNORE_MISSING_KEYS", True):
        model.load_state_dict({"1.weight": torch.full((2, 2), 2.54), "1.bias": torch.zeros(2)})
        assert model[1].quant_weight_scale().item() == pytest.approx(2.54 / 127)
        for owned_by_torch in ("1.weight", "1.bias"):
            with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "{owned_by_torch}"'):
                model.load_state_dict({k: v for k, v in state.items() if k != owned_by_torch})
        with pytest.raises(RuntimeError, match="Unexpected key"):
            model.load_state_dict({**state, "surplus": torch.zeros(1)})


@pytest.mark.parametrize("left_out", ["running_stats", "counter", "initialised"])
def test_a_quantizer_of_which_a_part_is_missing(left_out):
    source, target = build("collected", "learned"), build("collected", "learned", seed=1)
    train(source, 2)
    state = source.state_dict()
    state.pop(f"{ACT}scaling_impl.{left_out}")
    with pytest.raises(RuntimeError, match=f"scaling_impl.{left_out}"):
        target.load_state_dict(state)
    with patch(config, "IGNORE_MISSING_KEYS", True):
        target.load_state_dict(state)
    scaling = target[0].act_quant.tensor_quant.scaling_impl
    given = {name for name in ("value", "running_stats", "counter", "initialised") if name != left_out}
    for name in given:
        assert torch.equal(getattr(scaling, name), source.state_dict()[f"{ACT}scaling_impl.{name}"]), name


def test_a_debug_name_is_no_state():
    layer = QuantReLU()
    layer.export_debug_name = "features"
    assert layer.export_debug_name == "features" and not any("debug" in key for key in layer.state_dict())
    assert copy.deepcopy(layer).export_debug_name == "features" and QuantLinear(2, 2).export_debug_name is None
