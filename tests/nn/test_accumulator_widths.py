"""The width of an accumulator contains every sum of codes, and is at most one bit more than needed.

Sums are reached with the codes at the ends of the ranges of input, weight and bias, and counted as exact integers.
"""

import itertools

import pytest
import torch
from torch.nn import functional as F

from brevitas.nn import (
    HadamardClassifier,
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantConvTranspose3d,
    QuantLinear,
    QuantScaleBias,
)
from brevitas.quant import (
    Int8AccumulatorAwareWeightQuant,
    Int8AccumulatorAwareZeroCenterWeightQuant,
    Int8Bias,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFloat,
    Int16Bias,
    IntBias,
    ShiftedUint8WeightPerTensorFloat,
    SignedBinaryWeightPerTensorConst,
    SignedTernaryWeightPerTensorConst,
)
from brevitas.quant_tensor import QuantTensor

# Layer, arguments, options, an input in which some output element sees every weight, and the weights that it sees.
LAYERS = {
    "linear": (QuantLinear, (9, 2), {}, (1, 9), 9),
    "conv1d": (QuantConv1d, (4, 2, 5), {"stride": 2, "padding": 1}, (1, 4, 9), 20),
    "conv": (QuantConv2d, (6, 2, 3), {"padding_type": "same"}, (1, 6, 5, 5), 54),
    "conv groups": (QuantConv2d, (6, 4, (3, 2)), {"groups": 2, "dilation": 2}, (1, 6, 5, 5), 18),
    "conv depthwise": (QuantConv2d, (3, 6, 3), {"groups": 3}, (1, 3, 5, 5), 9),
    "conv3d": (QuantConv3d, (2, 3, (1, 3, 2)), {}, (1, 2, 2, 3, 3), 12),
    "transposed 1d": (QuantConvTranspose1d, (4, 2, 5), {"stride": 3}, (1, 4, 6), 8),
    "transposed": (QuantConvTranspose2d, (4, 2, 3), {"stride": 2}, (1, 4, 5, 5), 16),
    "transposed groups": (QuantConvTranspose2d, (4, 6, 3), {"groups": 2, "dilation": (2, 1)}, (1, 4, 7, 7), 18),
    "transposed depthwise": (QuantConvTranspose2d, (3, 6, 4), {"groups": 3, "stride": 4}, (1, 3, 3, 3), 1),
    "transposed 3d": (QuantConvTranspose3d, (2, 3, (1, 3, 4)), {"stride": (1, 1, 2)}, (1, 2, 2, 4, 4), 12),
    "scale bias": (QuantScaleBias, (3,), {}, (1, 3, 2, 2), 1),
}
WEIGHTS = {
    "8 bits": {"weight_quant": Int8WeightPerTensorFloat},
    "8 bits per channel": {"weight_quant": Int8WeightPerChannelFloat},
    "3 bits": {"weight_quant": Int8WeightPerTensorFloat, "weight_bit_width": 3},
    "learned width": {"weight_quant": Int8WeightPerTensorFloat, "weight_bit_width_impl_type": "parameter"},
    "wide": {"weight_quant": Int8WeightPerTensorFloat, "weight_narrow_range": False},
    "shifted": {"weight_quant": ShiftedUint8WeightPerTensorFloat},
    "binary": {"weight_quant": SignedBinaryWeightPerTensorConst},
    "ternary": {"weight_quant": SignedTernaryWeightPerTensorConst},
}
# Bits, sign and the zero points at which the range of code minus zero point is reached.
INPUTS = {
    "unsigned": (8, False, (0,)),
    "signed": (8, True, (0,)),
    "shifted": (8, False, (1, 255)),
    "one bit": (1, False, (0,)),
    "wide": (16, True, (0,)),
}


def build(name, **options):
    layer, arguments, geometry, shape, weights = LAYERS[name]
    layer = layer(*arguments, **({"bias": "bias_quant" in options} | geometry | options), return_quant_tensor=True)
    assert layer.weights_per_output == weights
    return layer.eval(), shape


def exact(layer, x):
    """The output's metadata, and the integers that its values stand for."""
    y = layer(x)
    weight, bias = layer.quant_weight(), layer.int_bias()
    sums = layer.double().inner_forward_impl(
        x.int().double() - x.zero_point.double(),
        weight.int().double() - weight.zero_point.double(),
        None if bias is None else bias.double(),
    )
    layer.float()
    return y, sums


def extremes(layer, shape, inputs):
    """Metadata of the output, and the least and the greatest sum over all combinations of extreme codes."""
    bits, signed, zero_points = inputs
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    found = []
    for weight, bias, code, zero_point in itertools.product((-1.0, 1.0), (-1e6, 1e6), ends, zero_points):
        with torch.no_grad():
            layer.weight.fill_(weight)
            if layer.bias is not None:
                layer.bias.fill_(bias)
        value = torch.full(shape, float(code - zero_point))
        found.append(exact(layer, QuantTensor(value, 1.0, float(zero_point), bits, signed)))
    return found[0][0], min(s.min().item() for _, s in found), max(s.max().item() for _, s in found)


def contains(bits, signed, lo, hi):
    return (-(2 ** (bits - 1)) <= lo and hi <= 2 ** (bits - 1) - 1) if signed else (lo >= 0 and hi <= 2**bits - 1)


def assert_tight(y, lo, hi):
    bits = int(y.bit_width)
    assert bits == y.bit_width and contains(bits, y.signed, lo, hi), (bits, lo, hi)
    assert bits <= 2 or not contains(bits - 2, y.signed, lo, hi), (bits, lo, hi)


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", LAYERS)
def test_widths_without_bias(name, weight, inputs):
    layer, shape = build(name, **WEIGHTS[weight])
    assert_tight(*extremes(layer, shape, INPUTS[inputs]))


@pytest.mark.parametrize("bias", [Int8Bias, Int16Bias])
@pytest.mark.parametrize("name", LAYERS)
def test_widths_with_a_bias(name, bias):
    layer, shape = build(name, bias_quant=bias, weight_bit_width=4)
    y, lo, hi = extremes(layer, shape, (4, False, (0,)))
    assert_tight(y, lo, hi)
    bound = 2 ** (bias.bit_width - 1)
    assert lo == -15 * 7 * layer.weights_per_output - bound and hi == 15 * 7 * layer.weights_per_output + bound - 1


@pytest.mark.parametrize("name", LAYERS)
def test_a_bias_as_wide_as_the_accumulator_takes_one_bit_more(name):
    layer, shape = build(name, bias_quant=IntBias)
    y, lo, hi = extremes(layer, shape, (8, False, (0,)))
    assert_tight(y, lo, hi)
    plain, _ = build(name)
    assert y.bit_width == plain(QuantTensor(torch.zeros(shape), 1.0, 0.0, 8, False)).bit_width + 1


def test_golden_widths():
    for layer, shape, bits, weights, expected in (
        (QuantConv2d(6, 1, 3, bias=False, return_quant_tensor=True), (1, 6, 5, 5), 8, 54, 22),
        (QuantLinear(10, 3, bias=False, weight_bit_width=4, return_quant_tensor=True), (1, 10), 4, 10, 12),
        (QuantConvTranspose2d(4, 2, 3, stride=2, bias=False, return_quant_tensor=True), (1, 4, 5, 5), 8, 16, 20),
    ):
        y = layer(QuantTensor(torch.zeros(shape), 1.0, 0.0, bits, False))
        assert (layer.weights_per_output, y.bit_width.item()) == (weights, expected)


@pytest.mark.parametrize("kernel", range(1, 8))
@pytest.mark.parametrize("stride", range(1, 7))
@pytest.mark.parametrize("dilation", range(1, 5))
def test_transposed_convolutions_count_the_weights_that_the_stride_lets_meet(kernel, stride, dilation):
    layer = QuantConvTranspose1d(2, 1, kernel, stride=stride, dilation=dilation, weight_quant=None)
    most = F.conv_transpose1d(torch.ones(1, 2, 40), torch.ones(2, 1, kernel), stride=stride, dilation=dilation).max()
    assert layer.weights_per_output == most.item()
    assert layer.per_elem_ops == 2 * 2 * kernel / stride


def test_operations_count_the_weights_of_a_group():
    assert QuantConvTranspose2d(4, 2, 3, stride=2).per_elem_ops == 18
    assert QuantConvTranspose2d(4, 2, 3, stride=2, groups=2).per_elem_ops == 9
    assert QuantConv3d(4, 2, 3, groups=2).per_elem_ops == 2 * 2 * 27
    assert QuantScaleBias(4, bias=True).per_elem_ops == 2


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("quantizer", [Int8AccumulatorAwareWeightQuant, Int8AccumulatorAwareZeroCenterWeightQuant])
@pytest.mark.parametrize("name", LAYERS)
def test_accumulator_aware_weights_bound_the_sums(name, quantizer, signed):
    layer, shape = build(name, weight_quant=quantizer, weight_accumulator_bit_width=12)
    lo, hi = (-8, 7) if signed else (0, 15)
    torch.manual_seed(0)
    with torch.no_grad():
        # Some channels of one sign, some of large weights: the cases that come near the bound.
        layer.weight.normal_(0.3, 1).mul_(torch.logspace(-1, 1, layer.weight.numel()).view(layer.weight.shape))
    layer(QuantTensor(torch.zeros(shape), 1.0, 0.0, 4, signed))
    codes = layer.int_weight().double()
    ones = torch.ones(shape, dtype=torch.float64)
    positive = layer.inner_forward_impl(ones, codes.clamp(min=0), None)
    negative = layer.inner_forward_impl(ones, codes.clamp(max=0), None)
    assert (positive * hi + negative * lo).max() <= 2**11 - 1
    assert (positive * lo + negative * hi).min() >= -(2**11) + 1
    if not (isinstance(layer, QuantScaleBias) and quantizer is Int8AccumulatorAwareZeroCenterWeightQuant):
        assert codes.abs().sum() > 0


@pytest.mark.parametrize("inputs", INPUTS)
def test_hadamard_classifier(inputs):
    bits, signed, zero_points = INPUTS[inputs]
    layer = HadamardClassifier(6, 4, return_quant_tensor=True)
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    sums = []
    for zero_point in zero_points:
        # Every row meets the codes of its own signs, and those of the opposite ones.
        codes = torch.where(torch.cat([layer.matrix, -layer.matrix]) > 0, float(ends[1]), float(ends[0])) - zero_point
        y = layer(QuantTensor(codes, 1.0, float(zero_point), bits, signed))
        sums.append(-codes.double() @ layer.matrix.double().T)
        assert torch.equal(y.int(), sums[-1].int())
    sums = torch.stack(sums)
    assert_tight(y, sums.min().item(), sums.max().item())
