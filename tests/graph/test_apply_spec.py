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
from brevitas.graph import apply_spec, explain, register_converter, spec_of
from brevitas.graph.converters import _converters
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat, Int32Bias, from_spec
from brevitas.quant.rule_sets import register_rule_set
from injector import value


def width_of_input(module):
    return 8 if module.in_features == 36 else 3


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


def test_a_model_that_is_one_layer():
    quantized = apply_spec(nn.Linear(4, 2), {"rules": [{"match": "", "weight": "Int8WeightPerTensorFloat"}]})
    assert isinstance(quantized, QuantLinear)
    assert spec_of(quantized) == {"version": 1, "rules": [{"match": "", "weight": "Int8WeightPerTensorFloat"}]}
    with pytest.raises(QuantConfigError, match="cannot become another layer in place; use inplace=False"):
        apply_spec(nn.Linear(4, 2), {"rules": [{"weight": "Int8WeightPerTensorFloat"}]}, inplace=True)


def test_what_is_not_said_is_off_in_a_float_layer_and_stays_in_a_quantized_one():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    quantized = apply_spec(model, {"rules": [{"match": "0", "input": "Int8ActPerTensorFloat"}]})
    assert not quantized[0].is_weight_quant_enabled and quantized[0].is_input_quant_enabled
    more = apply_spec(quantized, {"rules": [{"match": "0", "weight": {"bit_width": 3}}]})
    assert more[0].is_input_quant_enabled and int(more[0].quant_weight_bit_width()) == 3


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


class Backwards(nn.Module):
    """Calls its layers in another order than it registers them; one is not called."""

    def __init__(self):
        super().__init__()
        self.c, self.unused, self.b, self.a = (nn.Linear(3, 3) for _ in range(4))
        self.noise = nn.Dropout()

    def forward(self, x, scale=1.0):
        return self.c(self.noise(self.b(self.a(x * scale))))


@pytest.mark.parametrize("inputs", [torch.ones(1, 3), (torch.ones(1, 3), 2.0), {"x": torch.ones(1, 3), "scale": 3.0}])
def test_first_and_last_in_the_order_of_calls(inputs):
    spec = {"rules": [{"where": place, "weight": {"bit_width": width}} for place, width in (("first", 7), ("last", 3))]}
    model = Backwards()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    quantized = apply_spec(model, spec, example_inputs=inputs)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert (int(quantized.a.quant_weight_bit_width()), int(quantized.c.quant_weight_bit_width())) == (7, 3)
    assert type(quantized.b) is nn.Linear and not quantized.a._forward_pre_hooks
    by_registration = apply_spec(model, spec)
    assert type(by_registration.a) is QuantLinear and int(by_registration.a.quant_weight_bit_width()) == 3


def test_types_include_subclasses_and_names_of_modules():
    class Narrow(nn.Linear):
        """Computes as its base does."""

    for name in ("Linear", "nn.Linear", "torch.nn.Linear", "torch.nn.modules.linear.Linear", "Narrow"):
        model = apply_spec(nn.Sequential(Narrow(4, 2)), {"rules": [{"type": name, "weight": {"bit_width": 3}}]})
        assert isinstance(model[0], QuantLinear)


class Doubled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class QuantDoubled(QuantLinear):
    def forward(self, x):
        return super().forward(x) * 2


def test_a_subclass_that_computes_otherwise_is_never_passed_over():
    model = nn.Sequential(nn.Linear(4, 4), Doubled(4, 4))
    rule = {"type": "Linear", "weight": "Int8WeightPerTensorFloat"}
    with pytest.raises(SpecError, match="Doubled '1' overrides 'forward' of Linear") as error:
        apply_spec(model, {"rules": [rule]})
    assert "register_converter" in str(error.value) and "{match: 1, keep: float}" in str(error.value)
    kept = apply_spec(model, {"rules": [rule, {"type": "Doubled", "keep": "float"}]})
    assert kept[1].__class__ is Doubled and type(kept[0]) is QuantLinear
    patched = nn.Sequential(nn.Linear(4, 4))
    patched[0].forward = lambda x: x
    with pytest.raises(SpecError, match="overrides 'forward'"):
        apply_spec(patched, {"rules": [rule]})


def test_a_registered_converter_swaps_a_subclass_both_ways():
    @register_converter(Doubled, QuantDoubled)
    def doubled(layer):
        return {"in_features": layer.in_features, "out_features": layer.out_features, "bias": layer.bias is not None}

    try:
        model = nn.Sequential(Doubled(4, 4))
        quantized = apply_spec(model, {"rules": [{"type": "Linear", "weight": {"bit_width": 8}}]})
        assert type(quantized[0]) is QuantDoubled
        assert torch.allclose(quantized(torch.eye(4)), model(torch.eye(4)), atol=0.02)
        assert type(apply_spec(model, spec_of(quantized))[0]) is QuantDoubled
        assert type(apply_spec(quantized, "rules: [{keep: float}]")[0]) is Doubled
        with pytest.raises(QuantConfigError, match="Doubled has a converter already"):
            register_converter(Doubled, QuantDoubled)
    finally:
        del _converters[Doubled], _converters[QuantDoubled]
    with pytest.raises(QuantConfigError, match="QuantDoubled '0' overrides 'forward'"):
        spec_of(quantized)


def test_a_subclass_of_a_quantized_layer_keeps_its_class():
    class MyLinear(QuantLinear):
        """With a method of its own."""

    model = nn.Sequential(MyLinear(4, 4))
    changed = apply_spec(model, {"rules": [{"match": "0", "weight": {"bit_width": 2}}]})
    assert type(changed[0]) is MyLinear and int(changed[0].quant_weight_bit_width()) == 2
    assert changed[0].weight_quant.tracked_module_list == [changed[0]]


def test_every_layer_with_quantizers_has_a_converter():
    import brevitas.nn as qnn
    from brevitas.graph.converters import converters

    convertible = {converter.quantized for converter in converters()}
    bodies = {qnn.QuantNonLinearActLayer, qnn.QuantWeightBiasInputOutputLayer}
    layers = {getattr(qnn, name) for name in qnn.__all__ if issubclass(getattr(qnn, name), nn.Module)}
    layers = {cls for cls in layers - bodies if any(n.endswith("_quant") for n in cls.__init__.__code__.co_varnames)}
    assert convertible >= layers, "a new layer needs a converter in brevitas/graph/converters.py"


def test_hooks_modes_attributes_and_ties_survive():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    calls = []
    model[0].register_forward_hook(lambda *a: calls.append(1))
    model[0].note = "mine"
    model[1].eval()
    model[0].weight.requires_grad_(False)
    quantized = apply_spec(model, {"rules": [{"type": "Linear", "weight": {"bit_width": 4}}]})
    quantized(torch.ones(1, 4))
    assert calls == [1] and quantized[0].note == "mine"
    assert quantized[0].training and not quantized[1].training and not quantized[1].weight_quant.training
    assert quantized[0].weight is quantized[1].weight and not quantized[0].weight.requires_grad


def test_dtype_follows_the_layer_and_the_model():
    model = apply_spec(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).double(), "preset: int8")
    assert model(torch.ones(2, 4, dtype=torch.float64)).dtype == torch.float64
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_one_layer_under_two_names():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu)
    quantized = apply_spec(model, {"rules": [{"match": "3", "act": "Uint8ActPerTensorFloat"}]})
    assert quantized[1] is quantized[3] and type(quantized[1]) is QuantReLU
    assert spec_of(quantized)["rules"] == [{"match": "1", "act": "Uint8ActPerTensorFloat"}]


def test_one_parameter_gets_one_quantizer():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    rules = [{"match": "0", "weight": {"bit_width": 4}}, {"match": "1", "weight": {"bit_width": 5}}]
    with pytest.raises(SpecError, match="Linear '0' and Linear '1' share one parameter 'weight'") as error:
        apply_spec(model, {"rules": rules})
    assert "bit_width: 4" in str(error.value) and "bit_width: 5" in str(error.value) and "rules[1]" in str(error.value)
    with pytest.raises(SpecError, match="share one parameter"):
        apply_spec(model, {"rules": [rules[0], {"match": "1", "weight": None}]})
    assert apply_spec(model, {"rules": [rules[0], {"match": "1", "weight": {"bit_width": 4}}]})


def shared_model():
    first = QuantLinear(4, 4, weight_bit_width=4, weight_scaling_impl_type="parameter_from_stats")
    act = QuantIdentity(Int8ActPerTensorFloat, collect_stats_steps=1)
    second = QuantLinear(4, 4, weight_quant=first.weight_quant, input_quant=act.act_quant)
    return nn.Sequential(act, first, second)


def test_quantizers_that_layers_share_stay_shared():
    model = shared_model()
    spec = spec_of(model)
    assert spec["rules"][2] == {
        "match": "2", "weight": {"share": "1.weight_quant"}, "input": {"share": "0.act_quant"},
    }  # fmt: skip
    rebuilt = apply_spec(nn.Sequential(nn.Identity(), nn.Linear(4, 4), nn.Linear(4, 4)), spec)
    assert rebuilt[2].weight_quant is rebuilt[1].weight_quant and rebuilt[2].input_quant is rebuilt[0].act_quant
    assert rebuilt[1].weight_quant.tracked_module_list == [rebuilt[1], rebuilt[2]]
    assert rebuilt.state_dict().keys() == model.state_dict().keys() and spec_of(rebuilt) == spec
    x = torch.rand(3, 4)
    model(x)
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt.eval()(x), model.eval()(x))
    assert spec_of(apply_spec(model, spec)) == spec


def test_sharing_in_a_model_that_is_quantized_already():
    model = nn.Sequential(nn.Identity(), QuantLinear(4, 4), QuantLinear(4, 4))
    old = model[1].weight_quant
    rules = [
        {"match": "1", "weight": "Int8WeightPerTensorFloat"},
        {"match": "2", "weight": {"share": "1.weight_quant"}},
    ]
    shared = apply_spec(model, {"rules": rules})
    assert shared[1].weight_quant is shared[2].weight_quant
    assert shared[1].weight_quant.tracked_module_list == [shared[1], shared[2]]
    assert model[1].weight_quant is old and old.tracked_module_list == [model[1]]


def test_statistics_of_a_shared_quantizer_run_over_the_weights_of_all():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight.fill_(0.1), model[1].weight.fill_(2.54)
    rules = [{"match": "0", "weight": {"bit_width": 8}}, {"match": "1", "weight": {"share": "0.weight_quant"}}]
    shared = apply_spec(model, {"rules": rules})
    assert [layer.quant_weight_scale().item() for layer in shared] == pytest.approx([0.02, 0.02])
    tracked = [p for m in shared[0].weight_quant.modules() for p in getattr(m, "tracked_parameters", ())]
    assert tracked and all(any(p is layer.weight for layer in shared) for p in tracked)


def test_a_shared_quantizer_changes_in_all_layers_or_in_none():
    with pytest.raises(SpecError, match="shares a quantizer with '2', and a rule changes it in the first only"):
        apply_spec(shared_model(), {"rules": [{"match": "1", "weight": {"bit_width": 8}}]})
    both = apply_spec(shared_model(), {"rules": [{"match": "{1,2}", "weight": {"bit_width": 8}}]})
    assert both[1].weight_quant is not both[2].weight_quant


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
        apply_spec(nn.Sequential(nn.Sigmoid()), "preset: int8")
    remove = register_rule_set("mine", [{"type": "Linear", "weight": {"bit_width": 3}}])
    try:
        assert int(apply_spec(nn.Sequential(nn.Linear(2, 2)), "preset: mine")[0].quant_weight_bit_width()) == 3
        with pytest.raises(QuantConfigError, match="there is a rule set 'mine' already"):
            register_rule_set("mine", [])
    finally:
        remove()


def test_padding_same_is_kept():
    model = nn.Sequential(nn.Conv2d(1, 2, 4, padding="same"))
    quantized = apply_spec(model, {"rules": [{"match": "0", "weight": {"bit_width": 8}}]})
    x = torch.rand(1, 1, 6, 6)
    assert quantized(x).shape == model(x).shape and torch.allclose(quantized(x), model(x), atol=0.1)
    strided = nn.Sequential(QuantConv2d(1, 2, 4, stride=2, padding_type="same"))
    spec = spec_of(strided)
    assert spec["rules"][0]["layer"] == {"padding_type": "same"}
    rebuilt = apply_spec(nn.Sequential(nn.Conv2d(1, 2, 4, stride=2)), spec)
    rebuilt.load_state_dict(strided.state_dict())
    assert torch.equal(rebuilt(x), strided(x)) and spec_of(rebuilt) == spec


def test_spec_of_names_what_cannot_be_data():
    class Odd(Int8WeightPerTensorFloat):
        @value
        def bit_width(module):
            return 4

    with pytest.raises(QuantConfigError, match=r"weight_quant of QuantLinear '0': Odd.bit_width .*cannot be imported"):
        spec_of(nn.Sequential(QuantLinear(2, 2, weight_quant=Odd)))


def test_mixins_whose_names_are_not_read_leave_no_trace():
    class Shared(brevitas.inject.ExtendedInjector):
        percentile_q = 99.0
        bit_width = 6

    class Weight(Shared, Int8WeightPerTensorFloat):
        pass

    model = nn.Sequential(QuantLinear(2, 2, weight_quant=Weight))
    spec = spec_of(model)
    assert spec["rules"] == [{"match": "0", "weight": {"base": "Int8WeightPerTensorFloat", "bit_width": 6}}]
    assert spec_of(apply_spec(nn.Sequential(nn.Linear(2, 2)), spec)) == spec


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
