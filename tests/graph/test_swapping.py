"""Swapping layers: subclasses and converters, what survives a swap, shared parameters and shared quantizers."""

import pickle

import pytest
import torch
from torch import nn

import brevitas
from brevitas.errors import QuantConfigError, SpecError
from brevitas.graph import apply_spec, explain, register_converter, spec_of
from brevitas.graph.converters import _converters
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat
from injector import value


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
    assert "register_converter" in str(error.value) and "{match: '1', keep: float}" in str(error.value)
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
    # They have no float form with the same parameters: a batch norm becomes one of them when its state is loaded. Rules
    # give them other quantizers nevertheless, by the converter of QuantScaleBias, their base.
    loaders = {qnn.BatchNorm1dToQuantScaleBias, qnn.BatchNorm2dToQuantScaleBias}
    layers = {
        cls for cls in layers - bodies - loaders if any(n.endswith("_quant") for n in cls.__init__.__code__.co_varnames)
    }
    assert convertible >= layers, "a new layer needs a converter in brevitas/graph/layer_pairs"


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


def test_the_result_pickles_and_still_names_its_rules():
    model = apply_spec(nn.Sequential(nn.Linear(4, 4)), "rules: [{match: '0', weight: {bit_width: 3}}]")
    again = pickle.loads(pickle.dumps(model))
    x = torch.rand(2, 4)
    assert torch.equal(again(x), model(x)) and spec_of(again) == spec_of(model)
    text = str(explain(again, "0.weight_quant"))
    assert "<text>:1:31, rules[0] (match: 0)" in text and text == str(explain(model, "0.weight_quant"))
