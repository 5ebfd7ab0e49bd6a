"""Transposed convolutions: output sizes, channels in groups, batch norms; and padding of the other convolutions."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from weight_layer_cases import quantized_input

from brevitas.errors import QuantConfigError, QuantMetadataError, UnknownOptionError
from brevitas.nn import (
    QuantConv1d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantConvTranspose3d,
    QuantIdentity,
)
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8Bias,
    Int8BiasPerTensorFloatInternalScaling,
    Int8WeightPerChannelFloat,
    Int16Bias,
    IntBias,
    MXInt8Weight,
)
from brevitas.quant_tensor import QuantTensor

TRANSPOSED = {
    1: (QuantConvTranspose1d, nn.ConvTranspose1d, nn.BatchNorm1d),
    2: (QuantConvTranspose2d, nn.ConvTranspose2d, nn.BatchNorm2d),
    3: (QuantConvTranspose3d, nn.ConvTranspose3d, nn.BatchNorm3d),
}


def pair(dims, **geometry):
    quantized_class, float_class, _ = TRANSPOSED[dims]
    quantized, plain = quantized_class(4, 6, 3, weight_quant=None, **geometry), float_class(4, 6, 3, **geometry)
    plain.load_state_dict(quantized.state_dict())
    return quantized, plain


@pytest.mark.parametrize("dims", TRANSPOSED)
def test_output_size_chooses_among_the_possible_ones(dims):
    quantized, plain = pair(dims, stride=2, padding=1)
    x = torch.randn(2, 4, *[5] * dims)
    for size in ([9] * dims, [10] * dims, [2, 6, *[10] * dims]):
        assert torch.equal(quantized(x, output_size=size), plain(x, output_size=size))
    with pytest.raises(ValueError, match="output size"):
        quantized(x, output_size=[12] * dims)


def test_output_size_works_on_quantized_values():
    layer = QuantConvTranspose2d(4, 6, 3, stride=2, bias_quant=Int8Bias, return_quant_tensor=True)
    x = quantized_input((1, 4, 5, 5))
    y, smaller = layer(x, [12, 12]), layer(x)
    assert y.shape == (1, 6, 12, 12) and smaller.shape == (1, 6, 11, 11) and y.is_valid
    assert torch.equal(y.value[..., :11, :11], smaller.value)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_channels_at_the_same_place_in_their_groups_share_a_scale(groups):
    layer = QuantConvTranspose1d(
        4,
        8,
        3,
        groups=groups,
        weight_quant=Int8WeightPerChannelFloat,
        bias_quant=Int8Bias,
        return_quant_tensor=True,
    ).eval()
    each = 8 // groups
    scale = layer.quant_weight_scale()
    assert scale.shape == (1, each, 1)
    assert torch.allclose(scale.flatten(), layer.weight.abs().amax((0, 2)) / 127)
    y = layer(quantized_input((2, 4, 5)))
    expected = 0.02 * torch.stack([scale.flatten()[c % each] for c in range(8)])
    torch.testing.assert_close(y.scale.flatten(), expected)
    torch.testing.assert_close(layer.quant_bias_scale(), expected)
    assert y.scale.shape == (1, 8, 1) and y.is_valid


def test_per_channel_input_scales_of_a_depthwise_transposed_convolution():
    layer = QuantConvTranspose2d(
        2, 6, 3, stride=2, groups=2, bias=False, weight_quant=Int8WeightPerChannelFloat, return_quant_tensor=True
    )
    assert layer.channelwise_separable and not QuantConvTranspose2d(2, 6, 3).channelwise_separable
    scale = torch.tensor([0.1, 0.2]).view(1, 2, 1, 1)
    y = layer(QuantTensor(torch.randint(-8, 8, (1, 2, 4, 4)) * scale, scale, 0.0, 4, True))
    ours = layer.quant_weight_scale().flatten()
    torch.testing.assert_close(y.scale.flatten(), torch.cat([0.1 * ours, 0.2 * ours]))
    assert y.is_valid


def test_input_scales_along_another_dim_are_refused():
    layer = QuantConvTranspose2d(2, 6, 3, groups=2, bias=False, return_quant_tensor=True)
    scale = torch.tensor([0.1, 0.2]).view(1, 1, 1, 2)
    with pytest.raises(QuantMetadataError, match=r"per-tensor input scale.*\(1, 1, 1, 2\)"):
        layer(QuantTensor(torch.zeros(1, 2, 2, 2), scale, 0.0, 4, True))


@pytest.mark.parametrize("bias", [Int8Bias, Int16Bias, IntBias])
@pytest.mark.parametrize("per_channel", [False, True])
def test_bias_codes_are_in_units_of_the_accumulator(bias, per_channel):
    layer = QuantConvTranspose2d(
        4, 6, 3, stride=2, groups=2, bias_quant=bias, weight_scaling_per_output_channel=per_channel
    ).eval()
    layer(quantized_input((1, 4, 5, 5)))
    scale = layer.quant_weight_scale().flatten()
    units = 0.02 * (torch.cat([scale, scale]) if per_channel else scale)
    bits = int(layer.quant_bias_bit_width())
    assert bits == {Int8Bias: 8, Int16Bias: 16}.get(bias, bits)
    expected = (layer.bias / units).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert torch.equal(layer.int_bias(), expected.int())


def test_a_bias_with_a_scale_of_its_own_needs_no_input_scale():
    layer = QuantConvTranspose2d(4, 6, 3, groups=2, bias_quant=Int8BiasPerTensorFloatInternalScaling)
    assert layer(torch.randn(1, 4, 5, 5)).shape == (1, 6, 7, 7)
    torch.testing.assert_close(layer.quant_bias_scale(), layer.bias.abs().max() / 128)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dims", TRANSPOSED)
def test_merge_bn(dims, groups):
    quantized, bn = pair(dims, groups=groups, bias=groups == 1)[0].eval(), TRANSPOSED[dims][2](6).eval()
    for parameter, low, high in ((bn.running_mean, -1, 1), (bn.running_var, 0.5, 2), (bn.weight, 0.5, 2)):
        nn.init.uniform_(parameter, low, high)
    x = torch.randn(2, 4, *[4] * dims)
    expected = bn(quantized(x))
    quantized.merge_bn_in(bn)
    torch.testing.assert_close(quantized(x), expected, rtol=1e-5, atol=1e-5)


def test_merge_bn_refreshes_the_scales_per_channel():
    layer = QuantConvTranspose2d(
        4,
        6,
        3,
        groups=2,
        weight_quant=Int8WeightPerChannelFloat,
        weight_scaling_impl_type="parameter_from_stats",
    )
    bn = nn.BatchNorm2d(6).eval()
    nn.init.uniform_(bn.running_var, 0.1, 4)
    factor = torch.rsqrt(bn.running_var + bn.eps)
    largest = torch.maximum(*[(w.abs().amax((0, 2, 3)) * f) for w, f in zip(layer.weight.chunk(2), factor.chunk(2))])
    layer.merge_bn_in(bn)
    torch.testing.assert_close(layer.quant_weight_scale().flatten(), largest / 127)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 4])
@pytest.mark.parametrize("dims", [1, 3])
def test_same_padding_in_other_dimensions(dims, kernel, stride):
    layer_class, function = {1: (QuantConv1d, F.conv1d), 3: (QuantConv3d, F.conv3d)}[dims]
    layer = layer_class(2, 3, kernel, stride=stride, padding="same", weight_quant=None)
    sizes = [5, 6, 7][:dims]
    x = torch.randn(2, *sizes)
    pads = []
    for size in reversed(sizes):
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    y = layer(x)
    assert y.shape == (3, *[math.ceil(size / stride) for size in sizes])
    assert torch.equal(y, function(F.pad(x, pads), layer.weight, layer.bias, stride=stride))


def test_scales_of_groups_are_no_scales_of_an_accumulator():
    x = quantized_input((1, 64, 3, 3))
    for options in ({"bias": False, "return_quant_tensor": True}, {"bias_quant": Int8Bias}):
        layer = QuantConvTranspose2d(64, 4, 3, weight_quant=MXInt8Weight, **options)
        with pytest.raises(QuantMetadataError) as caught:
            layer(x)
        for fragment in (
            "QuantConvTranspose2d",
            "MXInt8Weight varies within a channel (shape (64, 4, 3, 3))",
            "weight_scaling_per_output_type='channel' or 'tensor'",
        ):
            assert fragment in str(caught.value)
    assert QuantConvTranspose2d(64, 4, 3, weight_quant=MXInt8Weight)(x).shape == (1, 4, 5, 5)


def test_bad_arguments():
    with pytest.raises(QuantConfigError, match="QuantConvTranspose1d: padding_mode = 'reflect' is not legal"):
        QuantConvTranspose1d(4, 6, 3, padding_mode="reflect")
    with pytest.raises(UnknownOptionError, match="QuantConvTranspose2d.*'output_pading' = 1.*'output_padding'"):
        QuantConvTranspose2d(4, 6, 3, output_pading=1)
    with pytest.raises(QuantConfigError, match="QuantConv3d: padding_type = 'sam'.*'same'"):
        QuantConv3d(4, 6, 3, padding_type="sam")
    shared = QuantConvTranspose2d(4, 6, 3, weight_quant=Int8WeightPerChannelFloat).weight_quant
    with pytest.raises(QuantConfigError, match="3 and 6 output channels cannot share"):
        QuantConvTranspose2d(4, 6, 3, groups=2, weight_quant=shared)
    with pytest.raises(QuantConfigError, match="different dims of the weight"):
        QuantConv1d(4, 6, 3, weight_quant=shared)


def test_missing_input_scale_names_layer_producer_and_fix():
    model = nn.Sequential(QuantIdentity(), QuantConvTranspose1d(4, 6, 3, bias_quant=Int8Bias))
    with pytest.raises(QuantMetadataError) as caught:
        model(torch.randn(1, 4, 5))
    text = str(caught.value)
    assert "QuantConvTranspose1d '1': Int8Bias needs the input scale" in text
    assert "QuantIdentity '0' (return_quant_tensor=False)" in text


def test_input_and_output_quantizers():
    layer = QuantConvTranspose2d(
        4,
        6,
        3,
        groups=2,
        input_quant=Int8ActPerTensorFloat,
        bias_quant=Int8Bias,
        output_quant=Int8ActPerTensorFloat,
        output_bit_width=5,
        return_quant_tensor=True,
    )
    y = layer(torch.randn(2, 4, 5, 5))
    assert isinstance(y, QuantTensor) and y.bit_width.item() == 5 and y.is_valid
