"""A float checkpoint in a quantized layer: what was derived from the weights is derived from the loaded ones."""

import copy

import pytest
import torch
from torch import nn

from brevitas import config
from brevitas.nn import QuantConv2d, QuantLinear
from brevitas.quant import (
    Int4WeightPerTensorFloatDecoupled,
    Int8BiasPerTensorFloatInternalScaling,
    Int8WeightPerTensorFloat,
)
from brevitas.utils.python_utils import patch

LEARNED_ROUND = {"weight_float_to_int_impl_type": "LEARNED_ROUND", "weight_learned_round_impl_type": "HARD_SIGMOID"}
DECLARATIONS = {
    "learned rounding": LEARNED_ROUND,
    "learned rounding, learned scale": {**LEARNED_ROUND, "weight_scaling_impl_type": "parameter_from_stats"},
    "learned scale": {"weight_scaling_impl_type": "parameter_from_stats"},
    "decoupled": {"weight_quant": Int4WeightPerTensorFloatDecoupled},
    "bias": {"bias_quant": Int8BiasPerTensorFloatInternalScaling, "bias_scaling_impl_type": "parameter_from_stats"},
}


def layer(name, seed):
    torch.manual_seed(seed)
    return QuantLinear(6, 3, **DECLARATIONS[name])


def float_weights(module):
    return {k: v.detach().clone() for k, v in module.state_dict().items() if k in ("weight", "bias")}


@pytest.mark.parametrize("name", DECLARATIONS)
@pytest.mark.parametrize("trained", [False, True])
def test_the_layer_is_the_one_that_was_built_around_these_weights(name, trained):
    other, model = layer(name, 1), layer(name, 2)
    with torch.no_grad():
        other.weight.mul_(3), other.bias.mul_(3)
    expected = copy.deepcopy(other)
    for quantizer in (expected.weight_quant, expected.bias_quant):
        quantizer.restart()
    if trained:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            model(torch.randn(4, 6)).square().sum().backward()
            optimizer.step()
    held = dict(model.named_parameters())
    with patch(config, "IGNORE_MISSING_KEYS", True):
        model.load_state_dict(float_weights(other))
    assert all(held[key] is p for key, p in model.named_parameters())
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    x = torch.randn(4, 6)
    assert torch.equal(model.eval()(x), expected.eval()(x))


def test_rounding_is_to_nearest_after_a_float_checkpoint():
    model = layer("learned rounding", 2).eval()
    weights = float_weights(layer("learned rounding", 1))
    model.load_state_dict(weights, strict=False)
    nearest = torch.round(weights["weight"] / model.quant_weight_scale())
    assert torch.equal(model.int_weight(), nearest.to(torch.int32))
    assert not torch.equal(QuantLinear(6, 3).int_weight(), model.int_weight())


def test_a_checkpoint_with_the_quantizer_is_taken_as_it_is():
    source, target = layer("learned rounding, learned scale", 1), layer("learned rounding, learned scale", 2)
    for _ in range(2):
        source(torch.randn(4, 6)).sum().backward()
        torch.optim.SGD(source.parameters(), lr=0.1).step()
    target.load_state_dict(source.state_dict())
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


def test_a_checkpoint_without_the_layer_changes_nothing():
    model = nn.ModuleDict({"a": layer("learned scale", 1), "b": layer("learned scale", 2)})
    for each in model.values():
        each(torch.randn(4, 6))
    before = copy.deepcopy(model["b"].state_dict())
    model.load_state_dict({"a.weight": torch.ones(3, 6), "a.bias": torch.zeros(3)}, strict=False)
    assert model["a"].quant_weight_scale().item() == pytest.approx(1 / 127)
    assert all(torch.equal(value, before[key]) for key, value in model["b"].state_dict().items())


def test_a_shared_quantizer_starts_from_all_loaded_weights():
    first = QuantConv2d(1, 2, 3, weight_quant=Int8WeightPerTensorFloat, weight_scaling_impl_type="parameter_from_stats")
    model = nn.Sequential(first, QuantConv2d(2, 2, 3, weight_quant=first.weight_quant))
    state = {
        k: torch.full_like(v, 2.0 if k.startswith("0") else 5.0)
        for k, v in model.state_dict().items()
        if "quant" not in k
    }
    model.load_state_dict(state, strict=False)
    assert first.quant_weight_scale().item() == pytest.approx(5 / 127)
