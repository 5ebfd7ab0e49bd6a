"""apply_spec and spec_of: what is swapped, what is kept, what is learned, and what the result computes."""

import copy

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import brevitas
from brevitas.errors import QuantConfigError, SpecError
from brevitas.graph import apply_spec, explain, spec_of
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import Int32Bias, from_spec
from brevitas.quant.rule_sets import register_rule_set


class Net(nn.Module):
    """Layers by hand, in a container, nested, and one that is called twice."""

    def __init__(self):
        super().__init__()
        self.quant_in = nn.Identity()
        self.features = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 1)
        )
        self.relu = nn.ReLU()
        self.head = nn.ModuleDict({"fc": nn.Linear(36, 5), "out": nn.Linear(5, 3)})

    def forward(self, x):
        x = self.relu(self.features(self.quant_in(x)))
        return self.head["out"](self.relu(self.head["fc"](x.flatten(1))))


def image(seed=0):
    return torch.rand(4, 2, 7, 7, generator=torch.Generator().manual_seed(seed)) - 0.3


FULL = """
version: 1
rules:
  - {type: [Conv2d, Linear], weight: {base: Int8WeightPerTensorFloat, bit_width: 4}}
  - {type: Conv2d, where: depthwise, weight: {scaling_per_output_channel: true}}
  - {match: 'features.{0,4}', bias: Int32Bias}
  - {type: ReLU, act: {base: Uint8ActPerTensorFloat, collect_stats_steps: 2}, layer: {return_quant_tensor: true}}
  - {match: relu, act: {bit_width: 6}, layer: {return_quant_tensor: false}}
  - {match: quant_in, act: {base: Int8ActPerTensorFloat, collect_stats_steps: 2}, layer: {return_quant_tensor: true}}
  - {match: features.2, layer: {return_quant_tensor: true}, weight: {bit_width: 5}}
  - {match: 're:head\\.o.*', weight: {bit_width: 8}, input: Int8ActPerTensorFloat}
"""


def trained(model, steps=3):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for step in range(steps):
        optimizer.zero_grad()
        model(image(step)).square().mean().backward()
        optimizer.step()
    return model.eval()


def snapshot(model):
    return (
        {name: (id(module), type(module)) for name, module in model.named_modules()},
        {name: (id(p), p._version, p.clone()) for name, p in model.state_dict(keep_vars=True).items()},
    )


def same_snapshot(a, b):
    return (
        a[0] == b[0]
        and a[1].keys() == b[1].keys()
        and all(a[1][n][:2] == b[1][n][:2] and torch.equal(a[1][n][2], b[1][n][2]) for n in a[1])
    )


def test_rules_apply_from_top_to_bottom_key_by_key():
    model = apply_spec(Net(), FULL)
    widths = {
        n: int(m.quant_weight_bit_width()) for n, m in model.named_modules() if hasattr(m, "quant_weight_bit_width")
    }
    assert widths == {"features.0": 4, "features.2": 5, "features.4": 4, "head.fc": 4, "head.out": 8}
    assert model.features[2].quant_weight_scale().shape == (4, 1, 1, 1)
    assert model.features[0].is_bias_quant_enabled and not model.head["fc"].is_bias_quant_enabled
    assert model.features[1].return_quant_tensor and not model.relu.return_quant_tensor
    assert model.head["out"].is_input_quant_enabled and not model.head["fc"].is_input_quant_enabled
    assert isinstance(model.quant_in, QuantIdentity)


def test_a_spec_of_the_model_reproduces_it_exactly():
    source = trained(apply_spec(Net(), FULL))
    spec = yaml.safe_load(yaml.safe_dump(spec_of(source), sort_keys=False))
    rebuilt = apply_spec(Net(), spec)
    assert spec_of(rebuilt) == spec
    assert rebuilt.state_dict().keys() == source.state_dict().keys()
    rebuilt.load_state_dict(source.state_dict())
    assert torch.equal(rebuilt.eval()(image(9)), source(image(9)))
    for model in (source, rebuilt):
        trained(model, 2)
    assert torch.equal(rebuilt(image(9)), source(image(9)))


def test_float_weights_are_the_same_values_and_the_generator_does_not_notice():
    model = Net()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    quantized = apply_spec(model, FULL)
    assert torch.equal(torch.rand(3), expected)
    ours = quantized.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in model.state_dict().items())


def test_the_original_is_untouched_unless_inplace():
    model = Net()
    before = snapshot(model)
    result = apply_spec(model, FULL)
    assert same_snapshot(before, snapshot(model)) and result is not model
    parameters = dict(model.named_parameters())
    same = apply_spec(model, FULL, inplace=True)
    assert same is model and type(model.relu) is QuantReLU
    assert all(dict(model.named_parameters())[name] is p for name, p in parameters.items())


@pytest.mark.parametrize(
    "last_rule",
    [
        "{match: nowhere, keep: float}",
        "{match: head.fc, weight: {percentile_q: 99.0}}",
        "{match: head.fc, layer: {return_quant: true}}",
        "{match: head.fc, input: {share: nothing.act_quant}}",
    ],
)
@pytest.mark.parametrize("quantized", [False, True])
def test_a_failed_apply_in_place_changes_nothing(last_rule, quantized):
    model = apply_spec(Net(), FULL) if quantized else Net()
    before, spec = snapshot(model), spec_of(model)
    text = FULL.replace("bit_width: 4", "bit_width: 7") + f"  - {last_rule}\n"
    with pytest.raises(SpecError):
        apply_spec(model, text, inplace=True)
    assert same_snapshot(before, snapshot(model)) and spec_of(model) == spec


def test_a_quantizer_that_does_not_change_keeps_what_it_has_learned():
    model = trained(apply_spec(Net(), FULL))
    scale = model.relu.quant_act_scale()
    again = apply_spec(model, spec_of(model))
    assert torch.equal(again(image(5)), model(image(5))) and torch.equal(again.relu.quant_act_scale(), scale)
    wider = apply_spec(model, {"rules": [{"match": "head.fc", "weight": {"bit_width": 8}}]})
    assert torch.equal(wider.relu.quant_act_scale(), scale) and int(wider.head["fc"].quant_weight_bit_width()) == 8
    changed = apply_spec(model, {"rules": [{"match": "relu", "act": {"bit_width": 3}}]})
    assert changed.relu.act_quant.never_calibrated() and int(changed.relu.quant_act_bit_width()) == 3


def test_keep_float_takes_quantizers_away():
    model = apply_spec(Net(), FULL)
    kept = apply_spec(model, {"rules": [{"match": "features.**", "keep": "float"}]})
    assert [type(m) for m in kept.features] == [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.Conv2d]
    assert type(kept.relu) is QuantReLU
    assert "cache_inference_quant_out" not in vars(kept.features[0])
    everything = apply_spec(model, "rules: [{keep: float}]")
    float_model = Net()
    float_model.load_state_dict(everything.state_dict())
    assert torch.equal(float_model(image()), everything(image())) and spec_of(everything)["rules"] == []


def test_later_rules_put_back_what_an_earlier_one_keeps():
    spec = {"rules": [{"keep": "float"}, {"match": "head.*", "weight": "Int8WeightPerTensorFloat"}]}
    model = apply_spec(Net(), spec)
    assert type(model.head["fc"]) is QuantLinear and type(model.features[0]) is nn.Conv2d


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("features.0", ["features.0"]),
        ("features.?", ["features.0", "features.2", "features.4"]),
        ("*", []),
        ("**", ["features.0", "features.2", "features.4", "head.fc", "head.out"]),
        ("head.**", ["head.fc", "head.out"]),
        ("**.{fc,4}", ["features.4", "head.fc"]),
        ("*.fc", ["head.fc"]),
        (r"re:.*\.\d", ["features.0", "features.2", "features.4"]),
        ("h*.o?t", ["head.out"]),
    ],
)
def test_names_and_globs(pattern, names):
    spec = {"rules": [{"match": pattern, "weight": "Int8WeightPerTensorFloat"}]}
    if not names:
        with pytest.raises(SpecError, match="matches nothing"):
            apply_spec(Net(), spec)
        return
    model = apply_spec(Net(), spec)
    assert [n for n, m in model.named_modules() if isinstance(m, QuantConv2d | QuantLinear)] == names


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("first", "features.0"),
        ("last", "head.out"),
        ("depthwise", "features.2"),
        ("pointwise", "features.4"),
        ("no_bias", "features.2"),
        (["bias", "last"], "head.out"),
        (["pointwise", "first"], "features.4"),
    ],
)
def test_places(where, name):
    model = apply_spec(Net(), {"rules": [{"where": where, "weight": "Int8WeightPerTensorFloat"}]})
    assert [n for n, m in model.named_modules() if isinstance(m, QuantConv2d | QuantLinear)] == [name]


def test_keywords_come_last():
    model = apply_spec(Net(), FULL, weight_bit_width=2, act_collect_stats_steps=1, bias_bit_width=None)
    assert {int(m.quant_weight_bit_width()) for m in model.modules() if isinstance(m, QuantConv2d | QuantLinear)} == {2}
    assert int(model.features[0].bias_quant.quant_injector.bit_width) == 32
    assert "let on" in str(explain(model, "head.fc.weight_quant")) and "test_apply_spec.py" in str(
        explain(model, "head.fc.weight_quant")
    )
    assert spec_of(model)["rules"][1]["weight"]["bit_width"] == 2


def test_explain_names_the_rule_behind_a_value(tmp_path):
    path = tmp_path / "net.yaml"
    path.write_text(FULL.lstrip(), encoding="utf-8")
    rows = FULL.lstrip().splitlines()

    def place(row, key):
        return f"{path}:{row}:{rows[row - 1].index(key) + 1}"

    for given_as in (path, str(path)):
        text = str(explain(apply_spec(Net(), given_as), "features.2.weight_quant"))
        # The line that chose the preset.
        assert text.startswith(f"QuantConv2d ({place(3, 'base')}, rules[0] (type: Conv2d, Linear)), weight_quant=Int8")
        width = next(line for line in text.splitlines() if line.strip().startswith("bit_width = 5"))
        assert f"{place(9, 'bit_width')}, rules[6] (match: features.2)" in width
        channels = next(line for line in text.splitlines() if "scaling_per_output_channel = True" in line)
        assert f"{place(4, 'scaling_per')}, rules[1] (type: Conv2d, where: depthwise)" in channels


def test_rule_sets():
    model = apply_spec(Net(), "preset: int8")
    assert type(model.relu) is QuantReLU and model.head["fc"].is_weight_quant_enabled
    model = apply_spec(Net(), {"preset": ["int8", "int8_per_channel"], "rules": [{"match": "relu", "keep": "float"}]})
    assert model.head["fc"].quant_weight_scale().shape == (5, 1) and type(model.relu) is nn.ReLU
    # A set is for many models: this one has no activation, and another has nothing at all for it.
    assert apply_spec(nn.Sequential(nn.Linear(2, 2)), "preset: int8")
    with pytest.raises(SpecError, match="no rule of the preset 'int8' matches a layer"):
        apply_spec(nn.Sequential(nn.Softmax(1)), "preset: int8")
    remove = register_rule_set("mine", [{"type": "Linear", "weight": {"bit_width": 3}}])
    try:
        assert int(apply_spec(nn.Sequential(nn.Linear(2, 2)), "preset: mine")[0].quant_weight_bit_width()) == 3
        with pytest.raises(QuantConfigError, match="there is a rule set 'mine' already"):
            register_rule_set("mine", [])
    finally:
        remove()


WEIGHTS = st.fixed_dictionaries(
    {
        "base": st.sampled_from(
            ["Int8WeightPerTensorFloat", "Int8WeightPerTensorFixedPoint", "ShiftedUint8WeightPerTensorFloat"]
        )
    },
    optional={
        "bit_width": st.integers(2, 8),
        "scaling_per_output_channel": st.booleans(),
        "scaling_impl_type": st.sampled_from(["STATS", "PARAMETER_FROM_STATS", "AFFINE_STATS"]),
        "scaling_min_val": st.sampled_from([1e-6, 0.25]),
    },
)
ACTS = st.fixed_dictionaries(
    {"base": st.sampled_from(["Int8ActPerTensorFloat", "Uint8ActPerTensorFloat", "Int8ActPerTensorFixedPoint"])},
    optional={"bit_width": st.integers(2, 8), "collect_stats_steps": st.integers(1, 2), "percentile_q": st.just(90.0)},
)
BIASES = st.sampled_from(
    [None, "Int32Bias", {"base": "IntBias", "bit_width": 16}, "Int8BiasPerTensorFloatInternalScaling"]
)


@given(weights=st.lists(WEIGHTS, min_size=5, max_size=5), acts=st.lists(ACTS, min_size=4, max_size=4), bias=BIASES)
@settings(max_examples=20)
def test_any_spec_goes_round(weights, acts, bias):
    names = ["features.0", "features.2", "features.4", "head.fc", "head.out"]
    rules = [{"match": name, "weight": weight} for name, weight in zip(names, weights, strict=True)]
    quantized = ["quant_in", "features.1", "features.3", "relu"]
    rules += [
        {"match": name, "act": act, "layer": {"return_quant_tensor": True}}
        for name, act in zip(quantized, acts, strict=True)
    ]
    if bias is not None:
        rules.append({"match": "features.0", "bias": bias})
    spec = {"version": 1, "rules": rules}
    model = apply_spec(Net(), spec)
    described = spec_of(model)
    assert yaml.safe_load(yaml.safe_dump(described)) == described
    rebuilt = apply_spec(Net(), described)
    assert spec_of(rebuilt) == described
    trained(model)
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt.eval()(image(7)), model(image(7)))
    twin = copy.deepcopy(model)
    assert spec_of(twin) == described


def test_names_of_the_package():
    assert brevitas.apply_spec is apply_spec and brevitas.spec_of is spec_of and brevitas.from_spec is from_spec
    assert {"apply_spec", "spec_of", "diff", "to_spec", "from_spec", "explain"} <= set(dir(brevitas))
    assert Int32Bias is from_spec("Int32Bias")
