"""Every preset in a model that becomes data and is rebuilt."""

import re

import pytest
import torch
import yaml
from torch import nn

from brevitas.errors import SpecError
from brevitas.graph import apply_spec, spec_of
from brevitas.quant.registry import presets
from brevitas.quant.spec_check import role_of

#: What presets leave to be declared.
REQUIRED = {
    "max_val": 1.5,
    "min_val": -1.5,
    "per_channel_broadcastable_shape": [1, 8, 1, 1],
    "threshold": 0.5,
    "bit_width": 4,
    "exponent_bit_width": 2,
    "mantissa_bit_width": 1,
}
RULES = {
    "weight": lambda q: [{"match": "1", "weight": q}],
    "act": lambda q: [{"match": "0", "act": q}],
    "bias": lambda q: [{"match": "1", "weight": "Int8WeightPerTensorFloat", "bias": q}],
}
ACT = {
    "match": "0",
    "act": {"base": "Int8ActPerTensorFloat", "collect_stats_steps": 2},
    "layer": {"return_quant_tensor": True},
}
NAMES = sorted(name for name, preset in presets().items() if role_of(preset) in RULES)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Identity(), nn.Conv2d(8, 8, 3))


def image(seed):
    return torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(seed))


def applied(name, role):
    """The model with a preset, with what it requires declared."""
    quantizer = {"base": name}
    for _ in range(len(REQUIRED)):
        rules = RULES[role](dict(quantizer))
        try:
            return apply_spec(net(), {"version": 1, "rules": rules if role == "act" else [ACT, *rules]})
        except SpecError as error:
            missing = re.search(r"'(\w+)' is required|(\w+) is required", str(error))
            assert missing, error
            name_of = missing.group(1) or missing.group(2)
            quantizer[name_of] = REQUIRED[name_of]
    raise AssertionError(quantizer)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_goes_round(name):
    model = applied(name, role_of(presets()[name]))
    spec = yaml.safe_load(yaml.safe_dump(spec_of(model)))
    rebuilt = apply_spec(net(), spec)
    assert spec_of(rebuilt) == spec
    assert rebuilt.state_dict().keys() == model.state_dict().keys()
    for step in range(3):
        model(image(step))
    rebuilt.load_state_dict(model.state_dict())
    out, again = model.eval()(image(9)), rebuilt.eval()(image(9))
    assert torch.equal(getattr(out, "value", out), getattr(again, "value", again))


def test_there_are_presets_of_each_role():
    assert len(NAMES) > 20 and {role_of(presets()[name]) for name in NAMES} == set(RULES)
