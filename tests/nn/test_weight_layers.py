"""Layers with a weight: equality with torch, the formulas, metadata, bias, padding, getters."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from weight_layer_cases import LAYERS, build, quantized_input

from brevitas.errors import QuantConfigError, QuantMetadataError
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.nn.utils import merge_bn, rename_state_dict_by_postfix, rename_state_dict_by_prefix
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8Bias,
    Int8BiasPerTensorFloatInternalScaling,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFloat,
    Int32Bias,
    IntBias,
    ShiftedUint8ActPerTensorFloat,
    ShiftedUint8WeightPerTensorFloat,
)
from brevitas.quant_tensor import QuantTensor


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_torch_when_every_quantizer_is_off(name, bias):
    quantized, plain, shape = build(name, weight_quant=None)
    if not bias:
        quantized.bias = plain.bias = None
    plain.load_state_dict(quantized.state_dict())
    x = torch.randn(shape)
    assert torch.equal(quantized(x), plain(x))


@pytest.mark.parametrize("preset", [Int8WeightPerTensorFloat, Int8WeightPerChannelFloat])
@pytest.mark.parametrize("name", LAYERS)
def test_is_the_float_operation_on_quantized_values(name, preset):
    quantized, plain, shape = build(name, weight_quant=preset, weight_bit_width=3)
    x = torch.randn(shape)
    with torch.no_grad():
        plain.weight.copy_(quantized.quant_weight().value)
        plain.bias.copy_(quantized.bias)
        assert torch.equal(quantized(x), plain(x))
    quantized(x).sum().backward()
    assert quantized.weight.grad.isfinite().all() and quantized.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", LAYERS)
def test_trains_under_a_gradient_check_without_quantizers(name):
    quantized, _, shape = build(name, weight_quant=None)
    quantized.double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def forward(x, weight, bias):
        return torch.func.functional_call(quantized, {"weight": weight, "bias": bias}, x)

    assert torch.autograd.gradcheck(forward, (x, quantized.weight, quantized.bias), fast_mode=True)


@pytest.mark.parametrize(
    "weight_quant", [Int8WeightPerTensorFloat, Int8WeightPerChannelFloat, ShiftedUint8WeightPerTensorFloat]
)
@pytest.mark.parametrize("zero_point", [0.0, 3.0])
@pytest.mark.parametrize("name", [n for n in LAYERS if not ("unbatched" in n or "padded by" in n)])
def test_output_metadata_is_the_grid_of_the_accumulator(name, weight_quant, zero_point):
    layer, _, shape = build(name, weight_quant=weight_quant, bias_quant=Int32Bias, return_quant_tensor=True)
    layer.eval()
    x = quantized_input(shape, bits=8, signed=False, zero_point=zero_point)
    y = layer(x)
    weight = layer.quant_weight()
    # Integers, exactly: the operation in float64 on codes minus zero points.
    ints = copy.deepcopy(layer).double()
    codes_x = x.int().double() - zero_point
    codes_w = weight.int().double() - weight.zero_point.double()
    acc = ints.inner_forward_impl(codes_x, codes_w, layer.int_bias().double())
    assert torch.allclose(y.value.double(), acc * y.scale.double(), rtol=1e-5, atol=0.1 * y.scale.max().item())
    assert y.is_valid
    assert torch.equal(y.int(), acc.round().int())
    assert y.zero_point.item() == 0
    limit = 2 ** (int(y.bit_width) - 1)
    assert acc.max() < limit and acc.min() >= -limit
    dim = -1 if isinstance(layer, QuantLinear) else 1
    expected = [1] * y.value.ndim
    expected[dim] = layer.out_channels
    assert list(y.scale.shape) == (expected if weight_quant is Int8WeightPerChannelFloat else [])


@pytest.mark.parametrize("name", [n for n in LAYERS if "unbatched" in n])
def test_scale_of_an_unbatched_convolution_runs_over_its_channels(name):
    layer, _, shape = build(
        name, weight_quant=Int8WeightPerChannelFloat, bias_quant=Int32Bias, return_quant_tensor=True
    )
    y = layer(quantized_input(shape))
    assert y.scale.shape == (6, *[1] * (len(shape) - 1)) and y.is_valid


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_are_those_of_the_formulas(name, per_channel):
    layer, plain, shape = build(name, bias_quant=Int32Bias, weight_scaling_per_output_channel=per_channel)
    layer.double(), plain.double()
    codes = quantized_input(shape, signed=False).int()

    def gradients(forward, weight, bias):
        scale = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
        y = forward(QuantTensor(codes * scale, scale, 0, 8, False), weight, bias)
        (y * torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)).sum().backward()
        return y, weight.grad, bias.grad, scale.grad

    def formulas(x, weight, bias):
        dims = [d for d in range(weight.ndim) if d != layer.output_channel_dim or not per_channel]
        scale = (weight.abs().amax(dims, keepdim=True) if dims else weight.abs()) / 127
        steps = weight / scale
        quantized = (steps + (steps.round() - steps).detach()) * scale
        # The channels of a transposed weight are those of one group; the next group has the same scales.
        bias_scale = x.scale * (scale.flatten().repeat(len(bias) // scale.numel()) if per_channel else scale.flatten())
        bias_steps = bias / bias_scale
        bias = (bias_steps + (bias_steps.round() - bias_steps).detach()) * bias_scale
        return torch.func.functional_call(plain, {"weight": quantized, "bias": bias}, x.value)

    start = [p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias)]
    expected = gradients(formulas, *start)
    for found, wanted in zip(gradients(lambda x, *_: layer(x), layer.weight, layer.bias), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_bit_width_golden_values():
    conv = QuantConv2d(6, 1, 3, bias=False, return_quant_tensor=True)
    assert conv.weights_per_output == 54
    assert conv(quantized_input((1, 6, 5, 5), signed=False)).bit_width.item() == 22
    linear = QuantLinear(10, 3, bias=False, weight_bit_width=4, return_quant_tensor=True)
    assert linear(quantized_input((1, 10), bits=4, signed=False)).bit_width.item() == 12
    with_bias = QuantLinear(64, 3, bias_quant=Int8Bias, return_quant_tensor=True)
    assert with_bias(quantized_input((1, 64))).bit_width.item() == 21
    assert conv.per_elem_ops == 108 and linear.per_elem_ops == 20


def test_per_channel_input_scale_of_a_depthwise_convolution():
    conv = QuantConv2d(2, 4, 3, groups=2, bias=False, return_quant_tensor=True)
    assert conv.channelwise_separable
    scale = torch.tensor([0.1, 0.2]).view(1, 2, 1, 1)
    codes = torch.randint(-8, 8, (1, 2, 4, 4)).float()
    y = conv(QuantTensor(codes * scale, scale, 0.0, 4, True))
    weight_scale = conv.quant_weight_scale()
    assert torch.allclose(y.scale.flatten(), torch.tensor([0.1, 0.1, 0.2, 0.2]) * weight_scale)
    assert y.is_valid


def test_per_channel_input_scale_is_refused_where_channels_are_added():
    conv = QuantConv2d(2, 4, 3, bias=False, return_quant_tensor=True)
    scale = torch.tensor([0.1, 0.2]).view(1, 2, 1, 1)
    x = QuantTensor(torch.zeros(1, 2, 4, 4), scale, 0.0, 4, True)
    with pytest.raises(QuantMetadataError, match="per-tensor input scale.*\\(1, 2, 1, 1\\)"):
        conv(x)


class Net(nn.Module):
    def __init__(self, relu_returns_qt=False, **options):
        super().__init__()
        self.features = nn.Sequential(
            QuantIdentity(), QuantReLU(return_quant_tensor=relu_returns_qt), QuantLinear(4, 2, **options)
        )

    def forward(self, x):
        return self.features(x)


def test_missing_input_scale_names_layer_producer_and_fix():
    for model in (Net(bias_quant=Int8Bias), Net(bias_quant=Int8Bias).eval()):
        with pytest.raises(QuantMetadataError) as caught:
            model(torch.randn(2, 4))
        text = str(caught.value)
        for fragment in (
            "QuantLinear 'features.2'",
            "Int8Bias needs the input scale",
            "a plain Tensor returned by QuantReLU 'features.1' (return_quant_tensor=False)",
            "set return_quant_tensor=True on 'features.1'",
            "input_quant= on 'features.2'",
            "Int8BiasPerTensorFloatInternalScaling",
        ):
            assert fragment in text, text


def test_function_that_dropped_the_scale_is_named():
    class Drops(nn.Module):
        def __init__(self):
            super().__init__()
            self.quant = QuantIdentity(return_quant_tensor=True)
            self.fc = QuantLinear(4, 2, bias_quant=Int8Bias)

        def forward(self, x):
            return self.fc(torch.sigmoid(self.quant(x)))

    with pytest.raises(QuantMetadataError, match=r"made by torch\.sigmoid"):
        Drops()(torch.randn(2, 4))


def test_tensor_from_outside_is_named():
    with pytest.raises(QuantMetadataError, match="from outside quantized layers"):
        QuantLinear(4, 2, bias_quant=IntBias)(torch.randn(2, 4))


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({}, "bias on the accumulator grid, and the bias is in float"),
        ({"bias_quant": Int8BiasPerTensorFloatInternalScaling}, "has a scale of its own"),
        ({"bias": False, "weight_quant": None}, "weight quantization, and weight_quant is off"),
    ],
)
def test_return_quant_tensor_without_metadata_says_what_is_missing(options, fragment):
    model = Net(relu_returns_qt=True, return_quant_tensor=True, **options)
    with pytest.raises(QuantMetadataError, match=fragment) as caught:
        model(torch.randn(2, 4))
    assert "QuantLinear 'features.2'" in str(caught.value)
    assert "return_quant_tensor=False here" in str(caught.value)


def test_output_quantizer_replaces_the_metadata():
    layer = QuantLinear(4, 2, output_quant=Int8ActPerTensorFloat, output_bit_width=5, return_quant_tensor=True)
    y = layer(torch.randn(8, 4))
    assert isinstance(y, QuantTensor) and y.bit_width.item() == 5 and y.is_valid


def test_input_quantizer_gives_the_bias_its_scale():
    layer = QuantLinear(4, 2, input_quant=Int8ActPerTensorFloat, bias_quant=Int8Bias, return_quant_tensor=True)
    y = layer(torch.randn(8, 4))
    assert y.is_valid


def test_quant_tensor_input_is_requantized_by_an_input_quantizer():
    layer = QuantLinear(
        4, 2, bias=False, input_quant=Int8ActPerTensorFloat, input_bit_width=3, return_quant_tensor=True
    )
    layer(quantized_input((8, 4)))
    assert layer.quant_input_bit_width().item() == 3


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding_gives_the_ceiling_of_the_size(size, stride, kernel, dilation):
    conv = QuantConv2d(1, 1, kernel, stride=stride, dilation=dilation, padding_type="same", weight_quant=None)
    x = torch.randn(1, 1, size, size + 1)
    y = conv(x)
    assert y.shape[2:] == (math.ceil(size / stride), math.ceil((size + 1) / stride))
    pads = []
    for length in (size + 1, size):
        total = max((math.ceil(length / stride) - 1) * stride + (kernel - 1) * dilation + 1 - length, 0)
        pads += [total // 2, total - total // 2]
    assert torch.equal(y, F.conv2d(F.pad(x, pads), conv.weight, conv.bias, stride=stride, dilation=dilation))


def test_getters_change_nothing():
    model = nn.Sequential(
        QuantIdentity(collect_stats_steps=5, return_quant_tensor=True),
        QuantLinear(4, 2, bias_quant=Int8Bias, output_quant=Int8ActPerTensorFloat),
    )
    model(torch.randn(8, 4))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    identity, layer = model
    for get in (
        identity.quant_act_scale,
        identity.quant_act_zero_point,
        identity.quant_act_bit_width,
        layer.quant_weight,
        layer.int_weight,
        layer.quant_weight_scale,
        layer.quant_weight_zero_point,
        layer.quant_weight_bit_width,
        layer.quant_output_scale,
        layer.quant_output_zero_point,
        layer.quant_output_bit_width,
        layer.quant_input_scale,
        layer.quant_bias_scale,
    ):
        get()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags


def test_getters_keep_gradients():
    layer = QuantLinear(4, 2)
    layer.quant_weight_scale().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_getters_of_what_is_off_or_unknown():
    layer = QuantLinear(4, 2, weight_quant=None)
    assert layer.quant_weight() is layer.weight
    assert (
        layer.quant_weight_scale() is None
        and layer.quant_input_scale() is None
        and layer.quant_output_bit_width() is None
    )
    assert layer.quant_bias() is None and layer.int_bias() is None
    assert not layer.is_weight_quant_enabled and layer.is_quant_weight_signed is None
    with pytest.raises(QuantMetadataError, match="int_weight"):
        layer.int_weight()


def test_external_bias_needs_one_eval_forward():
    layer = QuantLinear(4, 2, input_quant=Int8ActPerTensorFloat, bias_quant=Int8Bias)
    layer(torch.randn(8, 4))
    assert layer.quant_bias_scale() is None
    with pytest.raises(QuantMetadataError, match="run one forward in eval mode first"):
        layer.int_bias()


def test_layers_that_share_a_bias_quantizer_remember_their_own_accumulators():
    a = QuantLinear(4, 4, bias_quant=Int8Bias)
    b = QuantLinear(4, 4, bias_quant=a.bias_quant)
    a.eval()(quantized_input((2, 4), scale=0.01)), b.eval()(quantized_input((2, 4), scale=0.5))
    for layer, scale in ((a, 0.01), (b, 0.5)):
        expected = scale * layer.quant_weight_scale()
        torch.testing.assert_close(layer.quant_bias_scale(), expected)
        codes = torch.round(layer.bias / expected).clamp(-128, 127)
        assert torch.equal(layer.int_bias(), codes.int())


def test_input_metadata_come_from_the_cached_eval_forward():
    layer = QuantLinear(4, 2)
    layer.cache_inference_quant_inp = True
    layer(quantized_input((2, 4)))
    assert layer.quant_input_scale() is None
    layer.eval()(quantized_input((2, 4)))
    assert layer.quant_input_scale().item() == pytest.approx(0.02)
    assert layer.is_quant_input_signed is True
    assert "_cached" not in " ".join(layer.state_dict())


def test_signs_and_ranges():
    layer = QuantLinear(4, 2, input_quant=ShiftedUint8ActPerTensorFloat, bias_quant=IntBias)
    assert layer.is_quant_weight_signed is True and layer.is_quant_weight_narrow_range is True
    assert layer.is_quant_input_signed is False and layer.is_quant_input_narrow_range is False
    assert layer.is_quant_bias_signed is True and layer.is_bias_quant_enabled
    assert not layer.is_output_quant_enabled


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_merge_bn_equals_layer_and_batch_norm(bias, affine):
    conv, bn = QuantConv2d(3, 4, 3, bias=bias, weight_quant=None), nn.BatchNorm2d(4, affine=affine)
    bn.running_mean.uniform_(-1, 1)
    bn.running_var.uniform_(0.5, 2)
    if affine:
        nn.init.uniform_(bn.weight, 0.5, 2)
        nn.init.uniform_(bn.bias)
    conv.eval(), bn.eval()
    x = torch.randn(2, 3, 6, 6)
    expected = bn(conv(x))
    conv.merge_bn_in(bn)
    torch.testing.assert_close(conv(x), expected, rtol=1e-5, atol=1e-5)


def test_merge_bn_of_a_grouped_transposed_convolution():
    conv, bn = nn.ConvTranspose2d(4, 6, 3, groups=2).eval(), nn.BatchNorm2d(6).eval()
    bn.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, 5, 5)
    expected = bn(conv(x))
    merge_bn(conv, bn, output_channel_dim=1)
    torch.testing.assert_close(conv(x), expected, rtol=1e-5, atol=1e-5)


def test_merge_bn_refuses_what_is_no_fixed_factor():
    conv = QuantConv2d(3, 4, 3)
    weight = conv.weight.clone()
    with pytest.raises(QuantConfigError, match="no running statistics"):
        conv.merge_bn_in(nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(QuantConfigError, match="5 features.*4 output channels"):
        conv.merge_bn_in(nn.BatchNorm2d(5))
    with pytest.raises(QuantConfigError, match="expected a batch norm to merge, got ReLU"):
        conv.merge_bn_in(nn.ReLU())
    assert torch.equal(conv.weight, weight)


def test_rename_state_dict():
    d = {"a.x": 1, "b.x": 2}
    rename_state_dict_by_prefix("a.", "c.", d)
    rename_state_dict_by_postfix(".x", ".y", d)
    assert d == {"c.y": 1, "b.y": 2}
