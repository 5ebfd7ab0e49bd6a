"""What has no exact integer form is refused by code, layer path, reason and remedy, all of it at once."""

import numpy as np
import pytest
import torch
from canonical_graphs import Builder
from export_networks import Composed, calibrated
from torch import nn

import brevitas.nn as qnn
from brevitas.errors import ExportError
from brevitas.export import to_integer

SHAPE = (1, 2, 4, 4)


def refused(make, match, bits=4, scale=0.1, **kwargs):
    b = Builder()
    x = b.quant("input", "first", SHAPE, scale, bits, **kwargs)
    out = make(b, x)
    with pytest.raises(ExportError, match=match):
        to_integer(b.model({"input": SHAPE}, [out]))


def test_a_float_model_names_every_layer():
    model = nn.Sequential(qnn.QuantLinear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ExportError) as caught:
        to_integer(model, input_shape=(1, 4))
    text = str(caught.value)
    assert text.startswith("the model cannot be exported to 'integer':")
    assert "E28 [integer] QuantLinear '0': found input of Gemm that is a model input, not quantized" in text
    assert "QuantIdentity(return_quant_tensor=True)" in text


def test_several_layers_are_refused_at_once():
    def function(m, x):
        x = torch.softmax(m.c1(m.q1(x)), 1)
        return torch.sin(m.c2(m.q2(x)))

    parts = {f"q{i}": qnn.QuantIdentity(return_quant_tensor=True) for i in (1, 2)}
    parts |= {f"c{i}": qnn.QuantConv2d(2, 2, 1) for i in (1, 2)}
    model = calibrated(Composed(function, **parts), (4, 2, 4, 4))
    with pytest.raises(ExportError) as caught:
        to_integer(model, input_shape=SHAPE)
    assert [v.code for v in caught.value.violations] == ["E04", "E04"]
    assert "Softmax" in str(caught.value) and "Sin" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda b, x: b.node("Softmax", [x], "y", SHAPE), "E04 .*Softmax 'y'.*no exact integer form"),
        (lambda b, x: b.node("Conv", [x, b.constant("w", np.ones((1, 2, 1, 1)))], "y", (1, 1, 4, 4)),
         "E28 .*Conv 'y'.*weight of Conv that is a float constant.*set weight_quant"),
        (lambda b, x: b.node("Conv", [b.node("Sigmoid", [x], "s", SHAPE), b.weight("w", np.ones((1, 2, 1, 1)), 1.0)],
                             "y", (1, 1, 4, 4)), "E28 .*Conv 'y'.*computed in float from integers .sigmoid."),
        (lambda b, x: b.node("Add", [x, b.quant("input", "other", SHAPE, 0.17, 4)], "y", SHAPE),
         "E12 .*Add 'y'.*different scales .0.1 and 0.17.*QuantEltwiseAdd"),
        (lambda b, x: b.node("Reshape", [b.node("Add", [x, b.quant("input", "other", SHAPE, 0.17, 4)], "y", SHAPE),
                                         b.constant("s", [1, 32], np.int64)], "z", (1, 32)),
         "E12 .*Reshape 'z'.*different scales .0.1 and 0.17"),
        (lambda b, x: b.node("MaxPool", [b.node("Gelu", [x], "g", SHAPE)], "y", SHAPE, kernel_shape=[1, 1]),
         "E04 .*MaxPool 'y'.*a max pool after gelu, which turns"),
        (lambda b, x: b.node("HardSigmoid", [x], "y", SHAPE, alpha=0.3), "E04 .*hard sigmoid of slope 0.3"),
        (lambda b, x: b.node("LeakyRelu", [x], "y", SHAPE, alpha=-0.5), "E04 .*leaky ReLU of slope -0.5"),
        (lambda b, x: b.node("Div", [x, x], "y", SHAPE), "E04 .*Div 'y'.*division by data"),
        (lambda b, x: b.node("Round", [x], "y", SHAPE), "E04 .*rounding outside of a quantizer"),
        (lambda b, x: b.node("Pad", [x, b.constant("p", [0] * 8, np.int64), b.constant("v", 1.5)], "y", SHAPE),
         r"E04 .*padding with \[1.5\]"),
        (lambda b, x: b.node("AveragePool", [x], "y", SHAPE, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
         "E23 .*windows of different sizes.*count_include_pad=True"),
        (lambda b, x: b.node("Resize", [x, "", b.constant("s", [1, 1, 2, 2])], "y", (1, 2, 8, 8), mode="linear"),
         "E04 .*linear interpolation.*nearest"),
        (lambda b, x: b.node("ReduceMean", [x, b.constant("a", [1, 3], np.int64)], "y", (1, 1, 4, 1)),
         r"E04 .*over dimensions \[1, 3\]"),
        (lambda b, x: b.quant(b.node("Relu", [x], "r", SHAPE), "second", SHAPE, 0.1, 20),
         "E25 .*1048575 thresholds for a bit width of 20"),
        (lambda b, x: b.quant(x, "second", SHAPE, 0.1, 4, zero_point=0.5), r"E21 .*zero point \[0.5\]"),
        (lambda b, x: b.quant(x, "second", SHAPE, 0.1, 4, rounding="UP"), "E27 .*rounding UP"),
        (lambda b, x: b.node("MatMul", [b.weight("w", np.ones((1, 2, 4, 4)), 1.0), x], "y", SHAPE),
         "E04 .*first operand is constant"),
        (lambda b, x: b.node("Conv", [x, b.weight("w", np.ones((2, 2, 1, 1)), [[[[1.0]], [[2.0]]]])], "y", SHAPE),
         "E26 .*varies within an output channel"),
        (lambda b, x: b.node("Add", [b.constant("c", np.ones(SHAPE)), "input"], "y", SHAPE),
         "E28 .*model output 'y'.*no quantizer precedes"),
        (lambda b, x: b.node("Gemm", [b.node("Reshape", [x, b.constant("s", [8, 4], np.int64)], "r", (8, 4)),
                                      b.weight("w", np.ones((4, 2)), 1.0)], "y", (8, 2), alpha=2.0),
         "E04 .*Gemm with factors"),
    ],
)  # fmt: skip
def test_nodes(make, match):
    refused(make, match)


def test_a_scale_per_channel_needs_a_depthwise_convolution():
    scale = np.float32([0.1, 0.2]).reshape(1, 2, 1, 1)

    def conv(b, x, group=1):
        weight = b.weight("w", np.ones((2, 2 // group, 1, 1)), 1.0)
        return b.node("Conv", [x, weight], "y", SHAPE, group=group)

    refused(conv, r"E12 .*a scale of shape \(1, 2, 1, 1\) of the input of Conv.*per_output_channel=False", scale=scale)
    b = Builder()
    x = b.quant("input", "first", SHAPE, scale, 4)
    net = to_integer(b.model({"input": SHAPE}, [conv(b, x, 2)]))
    (out,) = net.outputs
    assert out.scale.reshape(-1).tolist() == scale.reshape(-1).tolist()


def test_tables_have_a_longest_length():
    def make(b, x):
        other = b.quant("input", "other", SHAPE, 0.17, 12)
        return b.quant(b.node("Add", [x, other], "y", SHAPE), "second", SHAPE, 0.3, 4)

    refused(make, "E12 .*Add 'y'.*different scales", bits=12)
    wide = lambda b, x: b.node("MatMul", [x, b.weight("w", np.full((4, 4), 2**14), 1.0, 16)], "y", SHAPE)  # noqa: E731
    refused(
        lambda b, x: b.quant(b.node("Gelu", [wide(b, x)], "g", SHAPE), "second", SHAPE, 0.3, 4),
        "E25 .*entries in a table for gelu .*second_quant.*at most 16777216",
        bits=12,
    )


def test_a_dimension_that_is_no_batch_is_found():
    model = Composed(lambda m, x: m.r(x)[0], r=qnn.QuantRNN(3, 2))
    model = calibrated(model, (5, 2, 3))
    x = torch.randn(5, 2, 3)
    with pytest.raises(
        ExportError, match=r"E15 .*5 samples whose last one gives something else alone.*batch_first=True"
    ):
        to_integer(model, x)
    fixed = calibrated(Composed(lambda m, x: m.q(x).sum(0), q=qnn.QuantIdentity()), (5, 3))
    with pytest.raises(ExportError, match="E15 .*5 samples"):
        to_integer(fixed, torch.randn(5, 3))


def test_wider_than_int64():
    refused(
        lambda b, x: b.node("MatMul", [x, b.weight("w", np.full((4, 4), 2**31 - 1), 1.0, 32)], "y", SHAPE),
        "E11 .*MatMul 'y'.*integers of 6[4-9] bits",
        bits=32,
    )


def test_nothing_else_is_said_about_what_depends_on_a_refused_node():
    b = Builder()
    x = b.quant("input", "first", SHAPE, 0.1, 4)
    y = b.node("Softmax", [x], "soft", SHAPE)
    z = b.node("Relu", [y], "z", SHAPE)
    q = b.quant(z, "second", SHAPE, 0.1, 4)
    w = b.weight("w", np.ones((2, 2, 1, 1)), 1.0)
    with pytest.raises(ExportError) as caught:
        to_integer(b.model({"input": SHAPE}, [b.node("Conv", [q, w], "out", SHAPE)]))
    assert [v.layer for v in caught.value.violations] == ["soft"]


def test_arguments():
    with pytest.raises(ExportError, match="E01 .*neither input_shape nor input_t"):
        to_integer(nn.Sequential(qnn.QuantLinear(2, 2)))
    with pytest.raises(ExportError, match="E01 .*both"):
        to_integer(nn.Sequential(qnn.QuantLinear(2, 2)), torch.zeros(1, 2), input_shape=(1, 2))
    with pytest.raises(TypeError, match="got function"):
        to_integer(test_arguments)
