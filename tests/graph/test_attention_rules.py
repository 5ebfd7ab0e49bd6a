"""Rules for attention: parameters that change their layout, quantizers of the parts, what is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from brevitas.errors import SpecError
from brevitas.graph import apply_spec, explain, spec_of
from brevitas.nn import QuantLinear, QuantMultiheadAttention, QuantScaledDotProductAttention

RULE = {
    "type": "MultiheadAttention",
    "in_proj_weight": {"bit_width": 4, "scaling_impl_type": "parameter_from_stats"},
    "q_scaled": {"bit_width": 5},
    "attn_output_weights": "Uint8ActPerTensorFloat",
    "out_proj_weight": "Int8WeightPerTensorFloat",
}
SEPARATE = RULE | {"layer": {"packed_in_proj": False}}

FORMS = {
    "packed": ({}, RULE),
    "no bias": ({"bias": False, "batch_first": True}, RULE),
    "bias_kv": ({"add_bias_kv": True, "add_zero_attn": True, "dropout": 0.25}, RULE),
    "separate": ({}, SEPARATE),
    "kdim": ({"kdim": 6, "vdim": 10}, RULE),  # which needs separate projections, so no rule has to ask for them
}


def model_of(name):
    torch.manual_seed(0)
    options, rule = FORMS[name]
    model = nn.Sequential(nn.MultiheadAttention(8, 2, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)
    return model, {"rules": [rule]}


@pytest.mark.parametrize("name", FORMS)
def test_there_and_back(name):
    model, spec = model_of(name)
    model[0].note, model[0].training = "mine", False
    model[0].out_proj.weight.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    layer = apply_spec(model, spec)[0]
    assert type(layer) is QuantMultiheadAttention and layer.note == "mine" and not layer.training
    assert not layer.out_proj.weight.requires_grad and next(layer.parameters()).requires_grad
    assert layer.dropout == model[0].dropout and layer.batch_first == model[0].batch_first
    assert layer.is_q_scaled_quant_enabled and not layer.is_v_quant_enabled
    assert int(layer.quant_q_scaled_bit_width()) == 5
    projections = [layer.in_proj] if layer.packed_in_proj else [layer.q_proj, layer.k_proj, layer.v_proj]
    for projection in projections:
        # A learned scale starts from the weight that was taken over: its largest element is code 7.
        torch.testing.assert_close(projection.quant_weight_scale(), projection.weight.abs().max() / 7)
    back = apply_spec(nn.Sequential(layer), "rules: [{keep: float}]")
    assert type(back[0]) is nn.MultiheadAttention
    for key, value in back.state_dict().items():
        assert torch.equal(value, before[key]) and torch.equal(value, model.state_dict()[key])


@pytest.mark.parametrize("name", FORMS)
def test_the_spec_of_the_result_makes_it_again(name):
    model, spec = model_of(name)
    quantized = apply_spec(model, spec)
    again = apply_spec(model, spec_of(quantized))
    assert spec_of(again) == spec_of(quantized)
    assert again.state_dict().keys() == quantized.state_dict().keys()
    for ours, theirs in zip(again.state_dict().values(), quantized.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_inside_torchs_encoder_layer():
    plain = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    quantized = apply_spec(plain, {"rules": [{"type": "Linear", "weight": {"bit_width": 8}}, RULE]})
    assert type(quantized.linear1) is QuantLinear and type(quantized.self_attn) is QuantMultiheadAttention
    x = torch.randn(3, 5, 8)
    quantized.train()(x), quantized.eval()
    with torch.no_grad():
        assert 1e-4 < (quantized(x) - plain(x)).abs().max() < 0.5
    text = str(explain(quantized, "self_attn.in_proj.weight_quant"))
    assert text.startswith("QuantMultiheadAttention") and "bit_width = 4" in text


def test_keywords_name_quantizers_of_the_parts():
    model, spec = model_of("packed")
    layer = apply_spec(model, spec, in_proj_weight_bit_width=3, q_scaled_bit_width=6)[0]
    assert int(layer.in_proj.quant_weight_bit_width()) == 3 and int(layer.quant_q_scaled_bit_width()) == 6
    assert int(layer.out_proj.quant_weight_bit_width()) == 8


def test_a_rule_for_linear_layers_leaves_the_inside_of_attention_alone():
    # torch's attention takes out_proj.weight without calling out_proj: a quantizer there would do nothing.
    model = nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2))
    quantized = apply_spec(model, {"rules": [{"type": "Linear", "weight": {"bit_width": 4}}]})
    assert type(quantized[0]) is QuantLinear and type(quantized[1].out_proj) is type(model[1].out_proj)


REFUSED = [
    ({"weight": {"bit_width": 4}}, "none of the layers that it selects has a quantizer 'weight'.*in_proj_weight"),
    ({"in_proj_weight": {"bit_widht": 4}}, "unknown option 'bit_widht'.*did you mean 'bit_width'"),
    ({"softmax_input": {"bit_width": 4}}, "'softmax_input' of MultiheadAttention '0' needs 'base'"),
    ({"q_scalde": {"bit_width": 4}}, "unknown key 'q_scalde'.*did you mean 'q_scaled'"),
    ({"v": "Int8WeightPerTensorFloat"}, "Int8WeightPerTensorFloat"),
    ({"layer": {"packed_proj": True}}, "'layer' has the unknown key 'packed_proj'.*did you mean 'packed_in_proj'"),
]


@pytest.mark.parametrize(("words", "text"), REFUSED, ids=[next(iter(words)) for words, _ in REFUSED])
def test_mistakes(words, text):
    model, _ = model_of("packed")
    with pytest.raises(SpecError, match=text):
        apply_spec(model, {"rules": [{"type": "MultiheadAttention", **words}]})


def test_more_mistakes():
    model, _ = model_of("kdim")
    with pytest.raises(SpecError, match="'packed_in_proj' of 'layer' is True, and MultiheadAttention '0' needs False"):
        apply_spec(model, {"rules": [RULE | {"layer": {"packed_in_proj": True}}]})
    quantized = apply_spec(*model_of("packed"))
    with pytest.raises(SpecError, match="'q_scaled' of QuantMultiheadAttention '0' cannot change"):
        apply_spec(quantized, {"rules": [RULE | {"q_scaled": {"bit_width": 3}}]})
    with pytest.raises(SpecError, match="packed_in_proj = True cannot change"):
        apply_spec(quantized, {"rules": [{"match": "0", "layer": {"packed_in_proj": False}}]})
    model, spec = model_of("packed")
    model[0].adapter = nn.Linear(8, 8)
    with pytest.raises(SpecError, match=r"holds further modules \(adapter\), which would be lost"):
        apply_spec(model, spec)
    model, spec = model_of("packed")
    model[0].out_proj.scale = nn.Parameter(torch.ones(8))
    with pytest.raises(SpecError, match="'out_proj.scale' of a MultiheadAttention has no counterpart"):
        apply_spec(model, spec)


def test_the_output_of_a_quantized_layer_can_be_switched():
    quantized = apply_spec(*model_of("packed"))
    kept = quantized[0].in_proj.weight_quant
    rule = {"match": "0", "layer": {"return_quant_tensor": True}}
    changed = apply_spec(quantized, {"rules": [rule]}, inplace=True)
    assert changed[0].out_proj.return_quant_tensor and changed[0].in_proj.weight_quant is kept


def test_the_core_takes_rules_too():
    model = nn.ModuleDict({"core": QuantScaledDotProductAttention()})
    changed = apply_spec(model, {"rules": [{"match": "core", "v": {"bit_width": 4}, "q_scaled": None}]})
    assert int(changed["core"].quant_v_bit_width()) == 4 and not changed["core"].is_q_scaled_quant_enabled
    assert changed["core"].is_k_transposed_quant_enabled and int(model["core"].quant_v_bit_width()) == 8
    bare = apply_spec(changed, "rules: [{keep: float}]")["core"]
    x = torch.randn(2, 5, 4)
    torch.testing.assert_close(bare(x, x, x), F.scaled_dot_product_attention(x, x, x))
    assert spec_of(changed)["rules"][0]["v"] == {"base": "Int8ActPerTensorFloat", "bit_width": 4}
