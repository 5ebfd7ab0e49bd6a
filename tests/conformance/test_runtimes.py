"""Exports run by their real consumers, and compared with the model integer by integer.

``onnxruntime`` and PyPI's ``qonnx`` execute the files; the model's integers come from the model, and in the last tests
from integer arithmetic written out here.
"""

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from export_networks import LENETS, Composed, calibrated, images, lenet
from torch import nn

from brevitas.export import QONNXManager, StdONNXManager, capture, lower, verify
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import (
    Int8WeightPerChannelFloat,
    IntBias,
    ShiftedUint8ActPerTensorFloat,
    Uint8ActPerTensorFloat,
)

MANAGERS = {"qdq": StdONNXManager, "qonnx": QONNXManager}
BATCH = {"input": {0: "batch"}}


def assert_equal_but_for_ties(report):
    assert report.diverged == 0, str(report)
    assert report.ties <= 1e-3 * report.total, str(report)
    assert all(row.most_steps <= 1 for row in report.rows if row.counted), str(report)


@pytest.fixture(scope="module", params=LENETS)
def captured_lenet(request):
    model = lenet(request.param)
    return model, capture(model, [torch.zeros(1, 1, 12, 12)], batch_names=["batch"])


@pytest.mark.slow
@pytest.mark.parametrize("target", MANAGERS)
def test_lenets(captured_lenet, target):
    model, graph = captured_lenet
    proto = lower(graph, target)
    report = verify(model, proto, images(300))
    assert report.total > 300 * (144 + 4 * 144)
    assert_equal_but_for_ties(report)


def qt(**kwargs):
    return QuantIdentity(return_quant_tensor=True, **kwargs)


class Residual(nn.Module):
    """Depthwise convolution, batch norm, and an addition of two branches of one quantizer."""

    def __init__(self):
        super().__init__()
        self.shared = qt()
        self.conv = QuantConv2d(4, 4, 3, padding=1, groups=4, bias=False, weight_quant=Int8WeightPerChannelFloat)
        self.bn = nn.BatchNorm2d(4)
        self.relu = QuantReLU(return_quant_tensor=True, bit_width=5)

    def forward(self, x):
        x = self.shared(x)
        return self.relu(x + self.shared(self.bn(self.conv(x))))


def linear(**kwargs):
    return QuantLinear(6, 5, weight_quant=Int8WeightPerChannelFloat, **kwargs)


GRAPHS = {
    "asymmetric and reflected padding": (
        lambda: nn.Sequential(
            qt(),
            QuantConv2d(2, 3, 3, stride=2, padding_type="same"),
            QuantReLU(return_quant_tensor=True),
            QuantConv2d(3, 2, 3, padding=1, padding_mode="reflect", output_quant=Uint8ActPerTensorFloat),
        ),
        [(4, 2, 6, 6)],
    ),
    "residual": (lambda: Residual(), [(8, 4, 6, 6)]),
    "linear on three dimensions": (
        lambda: Composed(lambda m, x: m.out(m.fc(m.act(x))), act=qt(), fc=linear(bias_quant=IntBias), out=qt()),
        [(8, 3, 6)],
    ),
    "12 and 10 bits": (
        lambda: Composed(
            lambda m, x: m.out(m.fc(m.act(x))),
            act=qt(bit_width=12),
            fc=linear(weight_bit_width=10),
            out=qt(bit_width=10),
        ),
        [(64, 6)],
    ),
    "snapping functions": (
        lambda: Composed(lambda m, x: m.fc(F.hardtanh(m.act(x).clamp(-0.7, 5.0), -0.33, 0.41)), act=qt(), fc=linear()),
        [(64, 6)],
    ),
    "cat and shared": (
        lambda: Composed(lambda m, x, y: m.out(torch.cat([m.act(x), m.act(y)], 1)), act=qt(), out=qt(bit_width=3)),
        [(16, 6), (16, 6)],
    ),
    "quantization partly off": (
        lambda: nn.Sequential(
            qt(),
            QuantConv2d(2, 4, 3, weight_quant=None),
            nn.BatchNorm2d(4),
            QuantReLU(act_quant=None),
            nn.Flatten(),
            QuantLinear(64, 3),
        ),
        [(4, 2, 6, 6)],
    ),
    "input and output quantizers of layers": (
        lambda: Composed(
            lambda m, x: m.b(m.a(x)),
            a=linear(
                input_quant=Uint8ActPerTensorFloat, output_quant=ShiftedUint8ActPerTensorFloat, return_quant_tensor=True
            ),
            b=QuantLinear(5, 5, bias_quant=IntBias),
        ),
        [(64, 6)],
    ),
}


@pytest.fixture(scope="module", params=GRAPHS)
def captured_graph(request):
    torch.manual_seed(1)
    make, shapes = GRAPHS[request.param]
    model = calibrated(make(), *shapes)
    inputs = tuple(torch.randn(shape) for shape in shapes)
    return model, inputs, capture(model, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("target", MANAGERS)
def test_graphs(captured_graph, target):
    model, inputs, graph = captured_graph
    proto = lower(graph, target)
    assert_equal_but_for_ties(verify(model, proto, inputs))


@pytest.mark.slow
@pytest.mark.parametrize("target", MANAGERS)
def test_a_quant_tensor_as_input(target):
    torch.manual_seed(2)
    model = Composed(lambda m, x: m.out(m.fc(x)), fc=linear(bias_quant=IntBias), out=qt())
    quantize = calibrated(qt(act_quant=ShiftedUint8ActPerTensorFloat), (40, 6))
    model.train()
    model(quantize(torch.randn(40, 6)))
    model.eval()
    x = quantize(torch.randn(40, 6))
    proto = MANAGERS[target].export(model, input_t=x, dynamic_axes=BATCH)
    kind = proto.graph.input[0].type.tensor_type.elem_type
    assert kind == (2 if target == "qdq" else 1)  # uint8 codes, or float values
    assert_equal_but_for_ties(verify(model, proto, x))


@pytest.mark.slow
@pytest.mark.parametrize("rounding", ["floor", "ceil", "round_to_zero"])
def test_other_roundings_in_qonnx(rounding):
    model = calibrated(Composed(lambda m, x: m.b(m.a(x)), a=qt(float_to_int_impl_type=rounding), b=linear()), (64, 6))
    proto = QONNXManager.export(model, (64, 6))
    assert_equal_but_for_ties(verify(model, proto, torch.randn(64, 6)))


@pytest.mark.slow
def test_integer_kernels_of_onnxruntime_and_the_reference_give_the_model_s_integers(captured_lenet):
    model, graph = captured_lenet
    proto = lower(graph, "qdq")
    assert_equal_but_for_ties(verify(model, proto, images(5), runtime="reference"))
    fused = verify(model, proto, images(300), runtime="onnxruntime-optimized")
    if model.conv1.is_bias_quant_enabled:
        assert_equal_but_for_ties(fused)
    else:
        # Its integer convolution rounds a float bias to the accumulator's grid: at most a step, and only there.
        assert fused.equal >= 0.98 * fused.total and all(row.most_steps <= 1 for row in fused.rows)


@pytest.mark.slow
def test_end_to_end_outputs_are_equal_where_no_tie_falls_differently():
    model = lenet("W4A4")
    for manager in MANAGERS.values():
        proto = manager.export(model, (1, 1, 12, 12), dynamic_axes=BATCH)
        report = verify(model, proto, images(300), mode="end_to_end")
        assert report.equal == report.total, str(report)


def integer_convolution(x, w, padding):
    """Sums of products of int64 codes, with loops over the kernel."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    height, width = x.shape[2] - w.shape[2] + 1, x.shape[3] - w.shape[3] + 1
    out = np.zeros((x.shape[0], w.shape[0], height, width), np.int64)
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            out += np.einsum("ncyx,oc->noyx", x[:, :, i : i + height, j : j + width], w[:, :, i, j])
    return out


def test_fixed_point_against_integer_arithmetic_written_out():
    """With power-of-two scales every product is exact, so that onnxruntime's codes equal shifts of integer sums."""
    model = lenet("fixed point")
    proto = StdONNXManager.export(model, (1, 1, 12, 12), dynamic_axes=BATCH)
    x = images(50)

    def codes(layer):
        return layer.int_weight().numpy().astype(np.int64), layer.int_bias().numpy().astype(np.int64)

    def requantized(accumulator, scale, layer):
        real = np.maximum(accumulator * float(scale.detach()), 0)
        return np.clip(np.rint(real / float(layer.quant_act_scale().detach())), 0, 255).astype(
            np.int64
        ), layer.quant_act_scale()

    scale = model.quant_inp.quant_act_scale()
    q = np.clip(np.rint(x.double().numpy() / float(scale.detach())), -128, 127).astype(np.int64)
    for conv, relu, padding in ((model.conv1, model.relu1, 1), (model.conv2, model.relu2, 0)):
        w, b = codes(conv)
        accumulator = integer_convolution(q, w, padding) + b[:, None, None]
        q, scale = requantized(accumulator, scale * conv.quant_weight_scale(), relu)
        n, c, height, width = q.shape
        q = q[:, :, : height // 2 * 2, : width // 2 * 2].reshape(n, c, height // 2, 2, width // 2, 2).max((3, 5))
    q = q.reshape(len(x), -1)
    w, b = codes(model.fc1)
    q, scale = requantized(q @ w.T + b, scale * model.fc1.quant_weight_scale(), model.relu3)
    w, b = codes(model.fc2)
    expected = (q @ w.T + b) * float((scale * model.fc2.quant_weight_scale()).detach())

    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": x.numpy()})
    assert np.array_equal(found.astype(np.float64), expected)
