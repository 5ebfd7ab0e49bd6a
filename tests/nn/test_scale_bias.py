"""ScaleBias, its quantized form, and the batch norms that load into it."""

import copy

import pytest
import torch
from torch import nn

from brevitas import config
from brevitas.errors import QuantConfigError, QuantMetadataError
from brevitas.graph import apply_spec
from brevitas.nn import (
    BatchNorm1dToQuantScaleBias,
    BatchNorm2dToQuantScaleBias,
    QuantConv2d,
    QuantIdentity,
    QuantScaleBias,
    ScaleBias,
)
from brevitas.quant import Int8Bias, Int8WeightPerChannelFloat, Int32Bias, MXInt8Weight
from brevitas.quant_tensor import QuantTensor
from brevitas.utils.python_utils import patch

BATCH_NORMS = {
    "2d": (BatchNorm2dToQuantScaleBias, nn.BatchNorm2d, (4, 3, 5, 5)),
    "1d": (BatchNorm1dToQuantScaleBias, nn.BatchNorm1d, (6, 3)),
    "1d of sequences": (BatchNorm1dToQuantScaleBias, nn.BatchNorm1d, (4, 3, 7)),
}


def trained(name, **options):
    """A batch norm that has seen data, and an input."""
    _, float_class, shape = BATCH_NORMS[name]
    bn = float_class(3, **options)
    if bn.affine:
        nn.init.uniform_(bn.weight, 0.5, 2), nn.init.uniform_(bn.bias, -1, 1)
    bn(torch.randn(shape) * 3 + 1)
    return bn.eval(), torch.randn(shape)


def test_scale_bias_is_product_and_sum():
    layer = ScaleBias(3, bias=True)
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(layer(x), x)
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    expected = torch.stack([x[:, c] * layer.weight[c] + layer.bias[c] for c in range(3)], 1)
    assert torch.equal(layer(x), expected)
    assert {k: tuple(v.shape) for k, v in layer.state_dict().items()} == {"weight": (3,), "bias": (3,)}


@pytest.mark.parametrize("cls", [ScaleBias, QuantScaleBias])
def test_without_bias(cls):
    layer = cls(3, bias=False)
    assert layer.bias is None and list(layer.state_dict()) == ["weight"]
    assert torch.equal(layer(torch.ones(1, 3, 2, 2)), torch.ones(1, 3, 2, 2))


@pytest.mark.parametrize(
    ("runtime_shape", "shape", "scale_shape"),
    [
        ((1, -1, 1, 1), (2, 3, 4, 4), (1, 3, 1, 1)),
        ((1, -1, 1, 1), (3, 4, 4), (1, 3, 1, 1)),
        ((1, -1), (2, 3), (1, 3)),
        ((1, -1), (2, 5, 3), (1, 1, 3)),
        ((-1, 1, 1), (2, 3, 4, 4), (1, 3, 1, 1)),
        (None, (2, 3, 4), (1, 3, 1)),
    ],
)
def test_the_scale_of_the_output_runs_over_the_channels(runtime_shape, shape, scale_shape):
    layer = QuantScaleBias(
        3,
        True,
        runtime_shape,
        weight_quant=Int8WeightPerChannelFloat,
        bias_quant=Int32Bias,
        return_quant_tensor=True,
    )
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    y = layer(QuantTensor(torch.randint(-8, 8, shape) * 0.1, 0.1, 0.0, 4, True))
    assert y.scale.shape == scale_shape and y.is_valid
    torch.testing.assert_close(y.scale.flatten(), 0.1 * layer.weight.abs() / 127)
    if shape[0] == 2:
        assert y.shape == shape


def test_scales_per_channel_of_the_input():
    layer = QuantScaleBias(3, bias=True, bias_quant=Int8Bias, return_quant_tensor=True).eval()
    scale = torch.tensor([0.1, 0.2, 0.4]).view(1, 3, 1, 1)
    y = layer(QuantTensor(torch.randint(-8, 8, (2, 3, 4, 4)) * scale, scale, 0.0, 4, True))
    torch.testing.assert_close(y.scale, scale / 127)
    torch.testing.assert_close(layer.quant_bias_scale(), scale.flatten() / 127)
    assert y.is_valid


@pytest.mark.parametrize("runtime_shape", [(1, 3, 1, 1), (-1, -1), (1, 1), ()])
def test_other_runtime_shapes_are_refused(runtime_shape):
    with pytest.raises(QuantConfigError, match=r"QuantScaleBias: runtime_shape = .*expected 1 everywhere and -1"):
        QuantScaleBias(3, True, runtime_shape)


def test_groups_and_missing_scales_are_refused():
    with pytest.raises(QuantConfigError, match=r"group_dim = 1: the weight of QuantScaleBias has the shape \(3,\)"):
        QuantScaleBias(3, True, weight_quant=MXInt8Weight)
    model = nn.Sequential(QuantIdentity(), QuantScaleBias(3, True, bias_quant=Int8Bias))
    with pytest.raises(QuantMetadataError, match="QuantScaleBias '1': Int8Bias needs the input scale.*QuantIdentity"):
        model(torch.randn(1, 3, 2, 2))
    with pytest.raises(QuantMetadataError, match="bias on the accumulator grid, and the bias is in float"):
        QuantScaleBias(3, True, return_quant_tensor=True)(QuantTensor(torch.zeros(1, 3, 2, 2), 1.0, 0.0, 8, True))


def test_merge_bn():
    layer, (bn, x) = QuantScaleBias(3, bias=False, weight_quant=None), trained("2d")
    nn.init.normal_(layer.weight)
    expected = bn(layer(x))
    layer.merge_bn_in(bn)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", BATCH_NORMS)
def test_a_batch_norm_is_folded_when_it_is_loaded(name, affine):
    bn, x = trained(name, affine=affine, eps=1e-3)
    layer = BATCH_NORMS[name][0](3, eps=1e-3, weight_quant=None)
    state = bn.state_dict()
    before = dict(state)
    assert not any(layer.load_state_dict(state))
    assert list(state) == list(before) and all(state[key] is before[key] for key in before)
    torch.testing.assert_close(layer(x), bn(x), rtol=1e-5, atol=1e-6)
    factor = (bn.weight if affine else 1) / torch.sqrt(bn.running_var + 1e-3)
    torch.testing.assert_close(layer.weight.data, factor.detach())
    torch.testing.assert_close(layer.bias.data, ((bn.bias if affine else 0) - bn.running_mean * factor).detach())


def test_a_batch_norm_inside_a_model_is_folded():
    bn, x = trained("2d")
    float_model = nn.Sequential(nn.Conv2d(3, 3, 1), bn).eval()
    model = nn.Sequential(QuantConv2d(3, 3, 1, weight_quant=None), BatchNorm2dToQuantScaleBias(3, weight_quant=None))
    model.load_state_dict(float_model.state_dict())
    torch.testing.assert_close(model(x), float_model(x), rtol=1e-5, atol=1e-5)
    # Its own state loads as it is, and does not look like a batch norm's.
    twin = copy.deepcopy(model)
    nn.init.zeros_(twin[1].weight)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(x), model(x)) and "1.running_mean" not in model.state_dict()


def test_the_weights_are_loaded_before_scales_are_derived():
    bn, x = trained("2d")
    layer = BatchNorm2dToQuantScaleBias(3, weight_scaling_impl_type="parameter_from_stats")
    with patch(config, "IGNORE_MISSING_KEYS", True):
        layer.load_state_dict(bn.state_dict())
    expected = (bn.weight / torch.sqrt(bn.running_var + bn.eps)).abs().max() / 127
    torch.testing.assert_close(layer.quant_weight_scale(), expected)
    torch.testing.assert_close(layer(x), bn(x), atol=0.1, rtol=0.01)


@pytest.mark.parametrize("assign", [True, False])
def test_the_state_of_a_batch_norm_in_bfloat16(assign):
    bn, _ = trained("2d")
    layer = BatchNorm2dToQuantScaleBias(3, weight_quant=None, dtype=torch.bfloat16 if assign else None)
    layer.load_state_dict({k: v.bfloat16() if v.ndim else v for k, v in bn.state_dict().items()}, assign=assign)
    assert layer.weight.dtype == (torch.bfloat16 if assign else torch.float32)
    torch.testing.assert_close(
        layer.weight.data.float(), (bn.weight / torch.sqrt(bn.running_var + bn.eps)).detach(), rtol=0.02, atol=0
    )


def test_states_that_are_no_batch_norm_are_refused():
    state = trained("2d")[0].state_dict()
    layer = BatchNorm2dToQuantScaleBias(3)
    for lost in ("running_var", "running_mean", "weight", "bias"):
        with pytest.raises(RuntimeError, match=rf"BatchNorm2dToQuantScaleBias\): .* batch norm without '{lost}'"):
            layer.load_state_dict({k: v for k, v in state.items() if k != lost})
    with pytest.raises(RuntimeError, match=r"'running_mean' of shape \(5,\); expected \(3,\)"):
        layer.load_state_dict(state | {"running_mean": torch.zeros(5)})
    assert torch.equal(layer.weight, torch.ones(3)) and torch.equal(layer.bias, torch.zeros(3))


def test_inputs_of_another_rank_are_refused():
    with pytest.raises(QuantConfigError, match=r"BatchNorm2dToQuantScaleBias: an input of shape \(3, 4\)"):
        BatchNorm2dToQuantScaleBias(3)(torch.zeros(3, 4))
    with pytest.raises(QuantConfigError, match=r"expected \(N, C\) or \(N, C, L\)"):
        BatchNorm1dToQuantScaleBias(3)(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_rules_change_the_quantizers_and_take_them_away(name):
    cls, _, shape = BATCH_NORMS[name]
    model = nn.Sequential(cls(3))
    changed = apply_spec(model, {"rules": [{"match": "0", "weight": {"bit_width": 3}}]})
    assert type(changed[0]) is cls and changed[0].quant_weight_bit_width() == 3
    kept = apply_spec(model, "rules: [{keep: float}]")
    x = torch.randn(shape)
    assert type(kept[0]) is ScaleBias and torch.equal(kept(x), x)


def test_the_quantized_batch_norm_has_integer_metadata():
    bn, x = trained("1d of sequences")
    layer = BatchNorm1dToQuantScaleBias(3, bias_quant=Int32Bias, return_quant_tensor=True)
    layer.load_state_dict(bn.state_dict())
    y = layer(QuantTensor((x / 0.05).round().clamp(-128, 127) * 0.05, 0.05, 0.0, 8, True))
    assert y.is_valid and y.scale.numel() == 1 and y.shape == x.shape
