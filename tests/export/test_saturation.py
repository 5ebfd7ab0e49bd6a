"""W32: where 8-bit products can saturate in kernels without VNNI, ``check`` says so, and only there."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from brevitas.export import ExportWarning, StdONNXManager, check
from brevitas.export.targets.saturation import greatest_pair
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int32Bias,
    ShiftedUint8ActPerTensorFloat,
    ShiftedUint8WeightPerTensorFloat,
    Uint8ActPerTensorFloat,
)


def network(act=Uint8ActPerTensorFloat, act_bits=8, weight_bits=8, codes=(127, 127, 0, 0), **options):
    """A linear layer of 4 inputs whose weights are the given codes, between two quantizers."""
    bounds = {"bit_width": act_bits, "return_quant_tensor": True}
    fc = QuantLinear(4, 2, bias_quant=Int32Bias, weight_bit_width=weight_bits, **options)
    model = nn.Sequential(QuantIdentity(act, **bounds), fc, QuantIdentity(ShiftedUint8ActPerTensorFloat))
    with torch.no_grad():
        fc.weight.copy_(torch.tensor([codes, [0, 0, 0, 2 ** (weight_bits - 1) - 1]]).float())
        model.train()(torch.rand(64, 4))
    return model.eval()


def warned(model, target="qdq", shape=(1, 4)):
    return [v for v in check(model, target, input_shape=shape) if v.code == "W32"]


@pytest.mark.parametrize(
    ("rows", "most", "expected"),
    [
        ([[127, 127, 5]], 255, 64770),
        ([[-128, -128, 127]], 255, -65280),
        ([[127], [3]], 255, 32385),  # one product alone: a depthwise 1 x 1 convolution
        ([[64, 64], [-64, 63]], 255, 32640),
        ([[100, 29, 1], [-1, -100, -29]], 254, -32766),  # of 129 and of -129; the pairs of 28 are less
        ([[1, -1]], 0, 0),
    ],
)
def test_the_greatest_pair_of_products(rows, most, expected):
    rows = np.array(rows)
    pairs = [
        most * (r[i] * (a > 0) + r[j] * (b > 0))  # data 0 or most
        for r in rows
        for i in range(len(r))
        for j in range(len(r))
        if i != j or len(r) == 1
        for a in (0, 1)
        for b in (0, 1 if len(r) > 1 else 0)
    ]
    assert abs(greatest_pair(rows, most)) == max(map(abs, pairs)) == abs(expected)


@pytest.mark.parametrize(
    ("options", "saturates"),
    [
        ({}, True),
        ({"codes": (127, 2, 0, 0)}, True),  # 255 * 129 = 32895
        ({"codes": (127, 1, 0, 0)}, False),  # 255 * 128 = 32640
        ({"codes": (127, -127, 0, 0)}, False),  # products of two signs
        ({"codes": (127, -127, -2, 0)}, True),
        ({"weight_bits": 7, "codes": (63, 63, 63, 63)}, False),
        ({"act_bits": 7}, False),  # 127 * 254 = 32258
        ({"act": Int8ActPerTensorFloat}, False),
        ({"act": ShiftedUint8ActPerTensorFloat}, True),
        ({"weight_quant": ShiftedUint8WeightPerTensorFloat}, False),
    ],
)
def test_it_is_said_where_it_can_happen_and_nowhere_else(options, saturates):
    found = warned(network(**options))
    assert len(found) == saturates
    if saturates:
        assert found[0].is_warning and "QuantLinear '1'" in str(found[0]) and "x64quantprecision" in found[0].fix


def test_one_warning_names_every_layer():
    torch.manual_seed(0)
    model = nn.Sequential(
        QuantReLU(return_quant_tensor=True),
        QuantConv2d(2, 3, 3, bias_quant=Int32Bias),
        QuantReLU(return_quant_tensor=True, bit_width=6),
        QuantConv2d(3, 3, 3, bias_quant=Int32Bias),
        QuantReLU(return_quant_tensor=True),
        nn.Flatten(),
        QuantLinear(12, 2, bias_quant=Int32Bias),
    )
    model.train()(torch.randn(4, 2, 6, 6))
    (found,) = warned(model.eval(), shape=(1, 2, 6, 6))
    assert found.where == "QuantConv2d '1', QuantLinear '6'"


@pytest.mark.parametrize(
    ("target", "remedy"), [("qop", "x64quantprecision"), ("torch", "qnnpack"), ("qonnx", None), ("finn", None)]
)
def test_each_target_has_its_remedy(target, remedy):
    found = warned(network(), target)
    assert [remedy in v.fix for v in found] == ([True] if remedy else [])


def test_a_quant_tensor_as_input_counts():
    model = network()
    x = model[0](torch.rand(2, 4))
    assert [v.code for v in check(model[1:], "qdq", input_t=x)] == ["W32"]


def test_an_export_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error", ExportWarning)
        StdONNXManager.export(network(), (1, 4))
