"""A float checkpoint in a quantized model, with a report."""

import copy

import pytest
import torch
from torch import nn

import brevitas.nn as qnn
from brevitas.errors import BrevitasError, QuantConfigError, StateDictError
from brevitas.graph import load_float_state_dict
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import Int8BiasPerTensorFloatInternalScaling


def float_model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Identity(), nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


def quantized():
    torch.manual_seed(4)
    return nn.Sequential(
        QuantIdentity(collect_stats_steps=2),
        QuantConv2d(1, 2, 3, weight_scaling_impl_type="parameter_from_stats"),
        nn.BatchNorm2d(2),
        QuantReLU(collect_stats_steps=2, bit_width_impl_type="parameter"),
        nn.Flatten(),
        QuantLinear(8, 3, weight_bit_width_impl_type="parameter", bias_quant=Int8BiasPerTensorFloatInternalScaling),
    )


def images():
    return torch.rand(4, 1, 4, 4)


def trained():
    model = quantized()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model(images()).square().sum().backward()
        optimizer.step()
    return model


def test_a_float_checkpoint_with_its_report():
    model, checkpoint = quantized(), float_model().state_dict()
    given = copy.deepcopy(checkpoint)
    parameters = dict(model.named_parameters())
    report = load_float_state_dict(model, checkpoint)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in given.items())
    assert checkpoint.keys() == given.keys()
    assert all(parameters[name] is p for name, p in model.named_parameters())
    assert model[1].quant_weight_scale().item() == pytest.approx(given["1.weight"].abs().max().item() / 127)
    assert model[1].weight_quant.tensor_quant.scaling_impl.value.item() == given["1.weight"].abs().max().item()
    assert report.matched == tuple(given)
    conv = "1.weight_quant.tensor_quant.scaling_impl."
    assert report.initialised == (
        conv + "value",
        conv + "initialised",
        "5.weight_quant.tensor_quant.msb_clamp_bit_width_impl.bit_width_offset",
    )
    assert set(given) | set(report.initialised) | set(report.left) == set(model.state_dict())
    assert (
        str(report)
        == """\
Sequential: 9 entries matched, 3 values initialised, 9 left
  matched      1.weight
  matched      1.bias
  matched      2.weight
  matched      2.bias
  matched      2.running_mean
  matched      2.running_var
  matched      2.num_batches_tracked
  matched      5.weight
  matched      5.bias
  initialised  1.weight_quant, from what was loaded
  initialised  5.weight_quant, from what was loaded
  left         0.act_quant, to be collected in training
  left         3.act_quant, to be collected in training
  left         3.act_quant, as it was"""
    )


def test_the_loaded_model_equals_one_that_was_built_from_the_weights():
    source = float_model()
    loaded, built = trained(), quantized()
    load_float_state_dict(loaded, source.state_dict())
    with torch.no_grad():
        for mine, theirs in zip(built, source, strict=True):
            for name, parameter in theirs.named_parameters():
                getattr(mine, name).copy_(parameter)
    for layer in (1, 5):
        assert torch.equal(loaded[layer].quant_weight().value, built[layer].quant_weight().value)
        assert torch.equal(loaded[layer].quant_weight_bit_width(), built[layer].quant_weight_bit_width())
    assert torch.equal(loaded[5].quant_bias().value, built[5].quant_bias().value)


def test_what_was_learned_of_activations_stays():
    model = trained()
    scale = model[0].quant_act_scale()
    report = load_float_state_dict(model, float_model().state_dict())
    assert torch.equal(model[0].quant_act_scale(), scale)
    assert "left         0.act_quant, as collected or learned before" in str(report)


def test_learned_rounding_starts_from_the_loaded_weights():
    model = nn.Sequential(QuantLinear(4, 2, weight_float_to_int_impl_type="learned_round"))
    source = nn.Sequential(nn.Linear(4, 2))
    load_float_state_dict(model, source.state_dict())
    reference = QuantLinear(4, 2)
    reference.load_state_dict(source[0].state_dict())
    # Training reproduces the weight; in eval the rounding is the nearest.
    torch.testing.assert_close(model.train()[0].weight_quant(model[0].weight).value, source[0].weight)
    assert torch.equal(model[0].quant_weight().value, reference.quant_weight().value)


def test_a_shared_quantizer_starts_from_all_its_weights():
    model = nn.Sequential(QuantLinear(2, 2, weight_scaling_impl_type="parameter_from_stats"))
    model.append(QuantLinear(2, 2, weight_quant=model[0].weight_quant))
    source = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        source[0].weight.fill_(1.0), source[1].weight.fill_(5.0)
    report = load_float_state_dict(model, source.state_dict())
    assert model[0].quant_weight_scale().item() == pytest.approx(5 / 127)
    assert len(report.initialised) == 4 and "1.weight_quant.tensor_quant.scaling_impl.value" in report.initialised


def test_entries_of_quantizers_are_loaded_where_there_are_any():
    source, model = trained(), quantized()
    state = {k: v for k, v in source.state_dict().items() if not k.startswith("0.act_quant")}
    report = load_float_state_dict(model, state)
    assert torch.equal(model[1].quant_weight_scale(), source[1].quant_weight_scale())
    assert report.initialised == () and {key.partition(".")[0] for key in report.left} == {"0"}
    complete = load_float_state_dict(model, source.state_dict())
    assert complete.left == {} and complete.initialised == ()


def test_checkpoints_of_recurrent_layers_and_attention():
    x = torch.randn(5, 3, 8)
    sources = [nn.LSTM(8, 6, num_layers=2), nn.GRU(8, 6, bidirectional=True), nn.MultiheadAttention(8, 2)]
    targets = [
        qnn.QuantLSTM(8, 6, num_layers=2),
        qnn.QuantGRU(8, 6, bidirectional=True),
        qnn.QuantMultiheadAttention(8, 2),
    ]
    for source, target in zip(sources, targets, strict=True):
        report = load_float_state_dict(target, source.state_dict())
        assert report.matched == tuple(source.state_dict())
        assert "to be collected in training" in str(report)
        arguments = (x, x, x) if isinstance(source, nn.MultiheadAttention) else (x,)
        for _ in range(3):
            target.train()(*arguments)
        expected, found = source(*arguments)[0], target.eval()(*arguments)[0]
        assert (expected - found).abs().max() < 0.1 * expected.abs().max()
        with pytest.raises(StateDictError, match="missing in the state dict"):
            load_float_state_dict(target, {})


def test_a_batch_norm_becomes_scale_and_bias():
    source, target = nn.BatchNorm2d(2), qnn.BatchNorm2dToQuantScaleBias(2)
    report = load_float_state_dict(target, source.state_dict())
    assert "running_mean" in report.matched
    torch.testing.assert_close(target.weight, source.weight / (source.running_var + source.eps).sqrt())


def test_a_model_that_is_one_layer():
    model = QuantLinear(4, 2, weight_scaling_impl_type="parameter_from_stats")
    report = load_float_state_dict(model, nn.Linear(4, 2).state_dict())
    assert report.matched == ("weight", "bias") and len(report.initialised) == 2


# --- Refusals --------------------------------------------------------------------------------------------------------


def without(state, *keys):
    return {k: v for k, v in state.items() if k not in keys}


def renamed(state, old, new):
    return {k.replace(old, new): v for k, v in state.items()}


def wrong_shape(state):
    return {**state, "5.weight": torch.zeros(3, 9)}


def prefixed(state):
    return {f"module.{k}": v for k, v in state.items()}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: without(s, "5.weight"), ["missing in the state dict: 5.weight"]),
        (
            lambda s: renamed(s, "5.weight", "5.wieght"),
            [
                "missing in the state dict: 5.weight (nearest: 5.wieght)",
                "not in the model: 5.wieght (nearest: 5.weight)",
            ],
        ),
        (lambda s: {**s, "7.bias": torch.zeros(1)}, ["not in the model: 7.bias (nearest: "]),
        (wrong_shape, ["size mismatch for 5.weight", "[3, 9]"]),
        (
            prefixed,
            ["Every name starts with 'module.'", "consume_prefix_in_state_dict_if_present(state_dict, 'module.')"],
        ),
        (lambda s: {}, ["missing in the state dict: 1.weight", "missing in the state dict: 2.running_var"]),
    ],
)
@pytest.mark.parametrize("make", [quantized, trained])
def test_what_does_not_fit_is_refused_and_nothing_changes(change, expected, make):
    model = make()
    before = copy.deepcopy(model.state_dict())
    parameters = dict(model.named_parameters())
    with pytest.raises(StateDictError) as caught:
        load_float_state_dict(model, change(float_model().state_dict()))
    message = str(caught.value)
    assert message.startswith("load_float_state_dict: the state dict does not fit Sequential; nothing was changed.")
    for text in expected:
        assert text in message
    assert isinstance(caught.value, BrevitasError) and isinstance(caught.value, RuntimeError)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(parameters[name] is p for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("model", "state", "message"),
    [
        (3, {}, "expected a torch.nn.Module, got 3"),
        (nn.ReLU(), [1], "expected a state dict, name -> tensor, got list"),
        (nn.ReLU(), float_model(), "got Sequential"),
        (
            nn.ReLU(),
            {"epoch": 3, "state_dict": {}},
            r"'state_dict' of the state dict is a dict itself; pass checkpoint\['s",
        ),
    ],
)
def test_bad_arguments(model, state, message):
    with pytest.raises(QuantConfigError, match=message):
        load_float_state_dict(model, state)
