"""What the FINN dialect cannot express: code, layer and remedy of each refusal; model and disk stay as they are."""

import os
import re

import numpy as np
import onnx_ir as ir
import pytest
import torch
from canonical_graphs import Builder
from export_networks import Composed, calibrated
from test_lower_finn import linear, pooled, quantized_bias
from test_untouched import assert_same, snapshot
from torch import nn

from brevitas import quant
from brevitas.errors import ExportError
from brevitas.export import FINNManager, QONNXManager, check
from brevitas.export.targets.finn import TARGET
from brevitas.nn import (
    QuantConv2d,
    QuantConvTranspose2d,
    QuantEmbedding,
    QuantIdentity,
    QuantLinear,
    QuantLSTM,
    QuantMultiheadAttention,
    QuantReLU,
)
from brevitas.proxy import TruncQuantProxyFromInjector
from brevitas.quant_tensor import QuantTensor


def qt(*args, **kwargs):
    return QuantIdentity(*args, return_quant_tensor=True, **kwargs)


class Truncated(nn.Module):
    """Truncates its quantized input, with no pooling before."""

    def __init__(self):
        super().__init__()
        self.first = qt()
        self.trunc_quant = TruncQuantProxyFromInjector(self, quant.TruncTo8bit.let(bit_width=4))

    def forward(self, x):
        return self.trunc_quant(self.first(x))


def conv(**kwargs):
    return nn.Sequential(qt(), QuantConv2d(2, 3, 3, **kwargs))


IMAGE = (2, 2, 6, 6)
# name: (model, shape of its input, code, layer, what the message says)
REFUSED = {
    "zero point of an activation": (
        lambda: nn.Sequential(qt(quant.ShiftedUint8ActPerTensorFloat)),
        (4, 3),
        ("E21", "0", r"zero point \[\d+\.0\] in act_quant; required 0; fix: use a preset without zero point"),
    ),
    "zero point of a weight": (
        lambda: nn.Sequential(QuantLinear(3, 2, weight_quant=quant.ShiftedUint8WeightPerTensorFloat)),
        (4, 3),
        ("E21", "0", r"zero point .* in weight_quant; required 0; fix: .*Int8"),
    ),
    "too many thresholds": (
        lambda: nn.Sequential(qt(bit_width=18)),
        (4, 3),
        ("E25", "0", r"bit width 18, which takes 262143 thresholds.*required 65535.*fix: set bit_width to 16"),
    ),
    "bias with a scale of its own": (
        lambda: conv(bias_quant=quant.Int8BiasPerTensorFloatInternalScaling),
        IMAGE,
        ("E22", "1", r"a bias scale of .*required the accumulator's.*fix: use Int8Bias"),
    ),
    "bias without input scale": (
        lambda: nn.Sequential(
            qt(), nn.Sigmoid(), QuantLinear(3, 2, bias_quant=quant.Int8BiasPerTensorFloatInternalScaling)
        ),
        (4, 3),
        ("E22", "2", r"layer input from Sigmoid '1'.*required an input quantized with one scale; fix: .*input_quant="),
    ),
    "weights of a convolution not quantized": (
        lambda: nn.Sequential(qt(), QuantConv2d(2, 3, 3, weight_quant=None)),
        IMAGE,
        ("E28", "1", "weights that are not quantized.*fix: pass weight_quant="),
    ),
    "weights of a linear layer not quantized": (
        lambda: nn.Sequential(QuantLinear(3, 2, weight_quant=None)),
        (4, 3),
        ("E28", "0", "weights that are not quantized.*fix: pass weight_quant="),
    ),
    "transposed convolution": (
        lambda: nn.Sequential(qt(), QuantConvTranspose2d(2, 3, 3)),
        IMAGE,
        ("E04", "1", "quantized parameters of QuantConvTranspose2d, read by ConvTranspose.*fix: .*replace the layer"),
    ),
    "recurrent layer": (
        lambda: nn.Sequential(QuantLSTM(3, 2)),
        (2, 2, 3),
        ("E04", "0.layers.0", "a quantized LSTMCell, which multiplies activations.*fix: use target 'qonnx' or 'qdq'"),
    ),
    "attention": (
        lambda: Composed(lambda m, x: m.attention(x, x, x)[0], attention=QuantMultiheadAttention(4, 2)),
        (3, 2, 4),
        ("E04", "attention", "a quantized QuantMultiheadAttention.*fix: use target 'qonnx' or 'qdq'"),
    ),
    "truncation without pooling": (
        Truncated,
        (4, 3),
        ("E04", "", "truncation of Truncated, which is no average pooling.*fix: quantize the accumulator"),
    ),
    "one dimension": (
        lambda: nn.Sequential(qt()),
        (4,),
        ("E15", "0", "a tensor of 1 dimensions.*required 2 to 4.*fix: reshape"),
    ),
    "five dimensions": (
        lambda: nn.Sequential(qt()),
        (1, 2, 2, 2, 2),
        ("E15", "0", "a tensor of 5 dimensions.*required 2 to 4.*fix: reshape"),
    ),
    "an activation that is no integer quantizer": (
        lambda: nn.Sequential(QuantIdentity(quant_type="ternary", threshold=0.3, bit_width=2)),
        (4, 3),
        ("E24", "0", "a quantizer that computes.*fix: use an integer preset"),
    ),
}


def refused_model(name):
    make, shape, expected = REFUSED[name]
    torch.manual_seed(0)
    return calibrated(make(), shape), shape, expected


# The same for QONNXManager, with the keywords of its export.
FRONT_END = {"consumer": "finn"}
REFUSED_QONNX = {
    "zero point": (
        lambda: nn.Sequential(qt(), QuantLinear(3, 2, weight_quant=quant.ShiftedUint8WeightPerTensorFloat)),
        (4, 3),
        ("E21", "1", r"zero point .*required 0 for consumer 'finn'; fix: use a preset without zero point", FRONT_END),
    ),
    "unsigned input": (
        lambda: nn.Sequential(qt(quant.Uint8ActPerTensorFloat)),
        (4, 3),
        (
            "E13",
            "0",
            "unsigned codes after the model's input.*fix: use Int8ActPerTensorFloat, or a QuantReLU",
            FRONT_END,
        ),
    ),
    "signed codes after a ReLU": (
        lambda: nn.Sequential(qt(), QuantReLU(quant.Int8ActPerTensorFloat)),
        (4, 3),
        ("E13", "1", "signed codes after a ReLU.*fix: use Uint8ActPerTensorFloat", FRONT_END),
    ),
    "rounding": (
        lambda: nn.Sequential(qt(float_to_int_impl_type="ceil")),
        (4, 3),
        (
            "E27",
            "0",
            "rounding CEIL.*takes every mode of an activation for it; fix: set float_to_int_impl_type",
            FRONT_END,
        ),
    ),
    "binary quantizers alone": (
        lambda: nn.Sequential(QuantIdentity(quant.SignedBinaryActPerTensorConst)),
        (4, 3),
        ("E24", "0", "binary codes, as in every quantizer.*fix: quantize the input with an integer preset", FRONT_END),
    ),
    "truncation without pooling": (
        Truncated,
        (4, 3),
        ("E04", "", "truncation of Truncated.*fix: quantize the accumulator", FRONT_END),
    ),
    "rounding mode without a name": (
        lambda: nn.Sequential(qt(float_to_int_impl_type="dpu")),
        (4, 3),
        ("E27", "0", "rounding DPU.*required ROUND, CEIL, FLOOR or ROUND_TO_ZERO; fix: set float_to_int_impl_type", {}),
    ),
}


def assert_refused(manager, model, shape, expected, path, **options):
    """Code, layer and text of the one violation; the model and what is on disk stay as they were."""
    code, layer, text = expected
    before = snapshot(model)
    path.write_text("what was there before")
    with pytest.raises(ExportError, match=text) as caught:
        manager.export(model, shape, path, **options)
    found = [(v.code, v.layer, v.target) for v in caught.value.violations if not v.is_warning]
    assert found == [(code, layer, manager.target)]
    assert_same(before, snapshot(model))
    assert path.read_text() == "what was there before" and os.listdir(path.parent) == [path.name]


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_code_layer_and_remedy_and_changes_nothing(name, tmp_path):
    make, shape, expected = REFUSED[name]
    assert_refused(FINNManager, calibrated(make(), shape), shape, expected, tmp_path / "m.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED_QONNX)
def test_so_does_one_of_the_qonnx_dialect(name, tmp_path):
    make, shape, (*expected, options) = REFUSED_QONNX[name]
    assert_refused(QONNXManager, calibrated(make(), shape), shape, expected, tmp_path / "m.onnx", **options)


def test_all_violations_come_at_once():
    model = calibrated(
        nn.Sequential(qt(quant.ShiftedUint8ActPerTensorFloat), QuantLinear(3, 3, weight_quant=None), qt(bit_width=20)),
        (4, 3),
    )
    assert [(v.code, v.layer) for v in check(model, "finn", (4, 3))] == [("E21", "0"), ("E25", "2"), ("E28", "1")]


def row(numbers):
    return np.float32([numbers])


def violations(builder, inputs, outputs):
    return [v for v in TARGET.check(builder.model(inputs, outputs), {}) if not v.is_warning]


def test_weight_scales_of_input_channels():
    b = Builder()
    w = b.weight("fc.weight", [[1, 2, 3], [4, 5, 6]], row([0.5, 0.25, 0.125]))
    b.node("Gemm", ["x", w], "fc", (4, 2), transB=1)
    (found,) = violations(b, {"x": (4, 3)}, ["fc"])
    assert (found.code, found.layer) == ("E12", "fc") and "one an output channel" in found.required


def test_an_activation_scale_along_another_dimension():
    b = Builder()
    scale = row([0.5, 0.25, 0.125]).reshape(1, 1, 3)
    (found,) = violations(b, {"x": (4, 2, 3)}, [b.quant("x", "a.act", (4, 2, 3), scale)])
    assert found.code == "E12" and "dimension 2" in found.found


def test_an_unknown_rounding_mode():
    b = Builder()
    (found,) = violations(b, {"x": (4, 2)}, [b.quant("x", "a.act", (4, 2), 0.5, rounding="UP")])
    assert found.code == "E27" and "UP" in found.found and "float_to_int_impl_type" in found.fix


def test_a_bias_of_more_than_32_bits():
    b = Builder()
    x = b.quant("x", "a.act", (4, 3), 0.25, bits=4)
    linear(b, quantized_bias(b, [10, -20], 0.125, bits=33), x=x)
    (found,) = violations(b, {"x": (4, 3)}, ["fc"])
    assert found.code == "E10" and "33" in found.found


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda b: pooled(b, 3, 2, True), "a truncation of 2 bits"),
        (lambda b: pooled(b, 2, 4, removed=3), "a truncation of 3 bits"),
        (lambda b: pooled(b, 2, 4, out_bits=1), "1 output bits"),
    ],
)
def test_a_pooling_whose_shift_or_width_the_operator_does_not_have(make, text):
    b = Builder()
    (found,) = violations(b, {"x": (1, 2, 6, 6)}, [make(b)])
    assert found.code == "E23" and found.layer == "pool" and text in found.found


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"kernel_shape": [2, 3], "strides": [2, 2]}, r"a window of \(2, 3\)"),
        ({"kernel_shape": [2, 2], "strides": [2, 1]}, r"stride \(2, 1\)"),
        ({"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1]}, "padding"),
        ({"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, "ceil_mode"),
    ],
)
def test_a_pooling_geometry_that_the_operator_does_not_have(attributes, text):
    b = Builder()
    x = b.quant("x", "a.act", (1, 2, 6, 6), 0.5, bits=4, signed=False)
    b.node("AveragePool", [x], "mean", (1, 2, 3, 3), **attributes)
    area = attributes["kernel_shape"][0] * attributes["kernel_shape"][1]
    bits = (area * 15).bit_length()
    y = b.trunc("mean", "pool.trunc", (1, 2, 3, 3), 0.5 / area, bits, bits - 4, 4)
    (found,) = violations(b, {"x": (1, 2, 6, 6)}, [y])
    assert found.code == "E23" and re.search(text, found.found)


def test_a_pooling_that_rounds_and_one_of_floats():
    b = Builder()
    y = pooled(b)
    next(a for a in b.nodes[-1].attribute if a.name == "rounding_mode").s = b"ROUND"
    (found,) = violations(b, {"x": (1, 2, 6, 6)}, [y])
    assert found.code == "E23" and "rounding ROUND" in found.found and "floor" in found.fix
    b = Builder()
    b.node("AveragePool", ["x"], "mean", (1, 2, 3, 3), kernel_shape=[2, 2], strides=[2, 2])
    (found,) = violations(b, {"x": (1, 2, 6, 6)}, [b.trunc("mean", "pool.trunc", (1, 2, 3, 3), 0.125, 6, 2, 4)])
    assert found.code == "E23" and "no integer tensor" in found.found


def test_parameters_that_a_layer_and_something_else_read():
    b = Builder()
    w = b.weight("fc.weight", [[1, 2, 3], [-4, 5, -6]], 0.5, bits=4)
    b.node("Gemm", ["x", w], "fc", (4, 2), transB=1)
    b.node("ReduceSum", [w], "sum", (1, 1))
    (found,) = violations(b, {"x": (4, 3)}, ["fc", "sum"])
    assert found.code == "E04" and "ReduceSum" in found.found


def test_a_quantized_embedding():
    model = nn.Sequential(QuantEmbedding(5, 3))
    found = [v for v in check(model, "finn", input_t=torch.tensor([[1, 2]])) if not v.is_warning]
    assert [(v.code, v.layer) for v in found] == [("E04", "0")] and "Gather" in found[0].found


def test_inputs_of_a_width_without_datatype():
    x = QuantTensor(torch.tensor([[1.0, -1.0]]), torch.tensor(1.0), torch.tensor(0.0), torch.tensor(1.0), True)
    found = check(nn.Sequential(nn.ReLU()), "finn", input_t=x)
    assert [v.code for v in found] == ["E03"] and "bit_width" in found[0].found


def test_a_dynamic_channel_dimension():
    b = Builder()
    y = b.quant("x", "a.act", (4, 2), 0.5)
    model = b.model({"x": (4, 2)}, [y])
    model.graph[0].outputs[0].shape = ir.Shape([4, "channels"])
    (found,) = TARGET.check(model, {})
    assert found.code == "E15" and "channels" in found.found
