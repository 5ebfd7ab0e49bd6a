"""value == (q - z) * s, bit for bit, after every preset with integers and every function that keeps the grid."""

import pytest
import torch
from catalogue import PARTS, POOLS, REARRANGING, SELECTING
from grids import assert_on_grid
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear
from brevitas.proxy import TruncQuantProxyFromInjector
from brevitas.quant.registry import presets
from brevitas.quant_tensor import QuantTensor
from injector import declarations

SHAPE = (2, 4, 4, 4)


def declared(preset, name):
    declaration = declarations(preset).get(name)
    return None if declaration is None else declaration.obj


def by_role(role):
    return {
        name: preset
        for name, preset in presets().items()
        if declared(preset, "_role") == role and not name.startswith("None")
    }


def options_of(name, preset):
    """What a preset leaves open, filled in."""
    options = {}
    if name.startswith(("FpOCP", "FpFNUZ")):
        options |= {"bit_width": 6, "exponent_bit_width": 3, "mantissa_bit_width": 2}
    if "MaxInit" in name:
        options |= {"max_val": 1.0}
        options |= {"min_val": -1.0} if "MinMax" in name else {}
    if "2d" in name:
        options |= {"per_channel_broadcastable_shape": (1, 4, 1, 1)}
    if declared(preset, "scaling_impl_type") == "PARAMETER_FROM_STATS" and declared(preset, "_role") == "act":
        options |= {"collect_stats_steps": 2}
    return options


def has_integers(preset):
    return "exponent_bit_width_impl" not in declarations(preset)


def drawn(seed, shape=SHAPE, spread=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread


def outputs_of_activation(name, preset, seed, spread):
    """In every phase: while statistics are collected, after, and in eval."""
    layer = QuantIdentity(preset, **options_of(name, preset))
    for step in range(4):
        yield layer.act_quant(drawn(seed + step, spread=spread))
    layer.eval()
    yield layer.act_quant(drawn(seed + 9, spread=3 * spread))


def outputs_of_weight(name, preset, seed, spread):
    quantizer = preset.let(**options_of(name, preset)) if options_of(name, preset) else preset
    layers = [
        QuantLinear(40, 3, weight_quant=quantizer),
        QuantConv2d(4, 3, 3, weight_quant=quantizer),
    ]
    x = QuantTensor(torch.ones(1), 1.0, 0.0, 8, True)
    for layer in layers:
        with torch.no_grad():
            layer.weight.copy_(drawn(seed, layer.weight.shape, spread))
        given = (x,) if layer.weight_quant.requires_quant_input else ()
        for training in (True, False):
            yield layer.train(training).weight_quant(layer.weight, *given)


def outputs_of_bias(name, preset, seed, spread):
    layer = QuantLinear(4, 6, bias_quant=preset)
    with torch.no_grad():
        layer.bias.copy_(drawn(seed, (6,), spread))
    for scale in (torch.tensor(0.013 * spread), torch.rand(6, generator=torch.Generator().manual_seed(seed)) + 0.01):
        yield layer.bias_quant(layer.bias, scale, torch.tensor(12.0))


def outputs_of_trunc(name, preset, seed, spread):
    trunc = TruncQuantProxyFromInjector(nn.Module(), preset)
    for signed in (True, False):
        lo, hi = (-(2**11), 2**11) if signed else (0, 2**12)
        codes = torch.randint(lo, hi, SHAPE, generator=torch.Generator().manual_seed(seed))
        yield trunc(QuantTensor(codes * (0.013 * spread), 0.013 * spread, 0.0, 12, signed))


MAKERS = {
    "act": outputs_of_activation,
    "weight": outputs_of_weight,
    "bias": outputs_of_bias,
    "trunc": outputs_of_trunc,
}
CASES = [(role, name) for role in MAKERS for name in by_role(role)]
seeds, spreads = st.integers(0, 2**31 - 20), st.sampled_from([1e-3, 0.7, 1.0, 40.0])


def test_the_cases_are_all_presets_that_are_on():
    assert {name for _, name in CASES} == {name for name in presets() if not name.startswith("None")}


@pytest.mark.parametrize(("role", "name"), CASES)
@settings(max_examples=4)
@given(seed=seeds, spread=spreads)
def test_every_preset_puts_its_values_on_the_grid(role, name, seed, spread):
    preset = presets()[name]
    for out in MAKERS[role](name, preset, seed, spread):
        if has_integers(preset):
            assert_on_grid(out)
        else:
            assert type(out) is torch.Tensor  # a minifloat has a scale, and no integers


FUNCTIONS = {**REARRANGING, **SELECTING, **POOLS, **PARTS}
ACTIVATIONS = [name for name, preset in by_role("act").items() if has_integers(preset)]


@pytest.mark.filterwarnings("ignore:.*upsample_nearest. is deprecated")
@pytest.mark.parametrize("name", ACTIVATIONS)
@settings(max_examples=1)
@given(seed=seeds)
def test_every_function_that_keeps_the_grid_after_every_activation_preset(name, seed):
    for out in list(outputs_of_activation(name, presets()[name], seed, 1.0))[-2:]:
        for label, function in FUNCTIONS.items():
            if not (label in POOLS and _differs_within_a_window(out)):
                result = function(out)
                for part in result if isinstance(result, tuple) else (result,):
                    assert_on_grid(part)


def _differs_within_a_window(qt):
    """Groups along the last dims: the maximum of several grids has none, by rule."""
    return any(field.dim() > 2 and field.shape[-1] * field.shape[-2] > 1 for field in (qt.scale, qt.zero_point))
