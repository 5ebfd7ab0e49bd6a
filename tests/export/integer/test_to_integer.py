"""Models as integer networks: equal to the model but for ties, whatever they are built of."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from export_networks import Composed, calibrated, images, lenet
from torch import nn

import brevitas.nn as qnn
from brevitas import quant
from brevitas.errors import ExportError
from brevitas.export import IntegerNetwork, capture, to_integer, verify
from brevitas.quant_tensor import QuantTensor


def qt(*args, **kwargs):
    return qnn.QuantIdentity(*args, return_quant_tensor=True, **kwargs)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = qt()

    def forward(self, left, right):
        return self.q(left) - self.q(right)


def conv(*args, **kwargs):
    return qnn.QuantConv2d(*args, **{"weight_scaling_per_output_channel": True, **kwargs})


def normalised(features):
    bn = nn.BatchNorm2d(features)
    with torch.no_grad():
        bn.weight.copy_(torch.linspace(-1, 1, features))
        bn.bias.copy_(torch.linspace(0.5, -0.5, features))
    return bn


MODELS = {
    "batch norm, max pool and ReLU on accumulators": lambda: Composed(
        lambda m, x: m.o(F.relu(F.max_pool2d(m.bn(m.c(m.q(x))), 3, 2, 1))),
        q=qt(), c=conv(4, 6, 3, groups=2), bn=normalised(6), o=qnn.QuantReLU(bit_width=4),
    ),
    "batch norm flattened": lambda: Composed(
        lambda m, x: m.o(m.bn(m.c(m.q(x))).flatten(1)), q=qt(), c=conv(4, 3, 3), bn=normalised(3), o=qt(bit_width=4)
    ),
    "residual": lambda: Composed(
        lambda m, x: m.o(m.shared(m.c(m.q(x))) + m.shared(m.q(x))),
        q=qt(), c=conv(4, 4, 3, padding=1), shared=qt(), o=qnn.QuantReLU(bit_width=5),
    ),
    "QuantEltwiseAdd and QuantCat": lambda: Composed(
        lambda m, x: m.cat([m.add(m.q(x), m.q(x.flip(3))), m.q(x)], dim=1),
        q=qt(), add=qnn.QuantEltwiseAdd(return_quant_tensor=True), cat=qnn.QuantCat(),
    ),
    "average pool and truncation": lambda: Composed(
        lambda m, x: m.p(m.q(x)), q=qt(quant.Uint8ActPerTensorFloat), p=qnn.QuantAvgPool2d(4, 2)
    ),
    "mean and linear": lambda: Composed(
        lambda m, x: m.fc(m.o(m.q(x).mean((2, 3)))), q=qt(), o=qt(bit_width=6), fc=qnn.QuantLinear(4, 3)
    ),
    "zero points and same padding": lambda: Composed(
        lambda m, x: m.o(m.c(m.q(x))),
        q=qt(quant.ShiftedUint8ActPerTensorFloat), o=qt(quant.ShiftedUint8ActPerTensorFloat),
        c=qnn.QuantConv2d(4, 5, 4, padding_type="same", weight_quant=quant.ShiftedUint8WeightPerTensorFloat),
    ),
    "binary": lambda: Composed(
        lambda m, x: m.b(m.c(m.q(x))), q=qt(quant.SignedBinaryActPerTensorConst),
        c=qnn.QuantConv2d(4, 4, 3, weight_quant=quant.SignedBinaryWeightPerTensorConst),
        b=qt(quant.SignedBinaryActPerTensorConst),
    ),
    "depthwise, a scale per channel": lambda: Composed(
        lambda m, x: m.o(m.c(m.q(x))), c=conv(4, 8, 3, groups=4), o=qt(bit_width=5),
        q=qt(scaling_per_output_channel=True, per_channel_broadcastable_shape=(1, 4, 1, 1),
             scaling_stats_permute_dims=(1, 0, 2, 3)),
    ),
    "transposed, then a float bias": lambda: Composed(
        lambda m, x: m.t(m.q(x)), q=qt(),
        t=qnn.QuantConvTranspose2d(4, 4, 3, 2, padding=1, output_padding=1, groups=2),
    ),
    "linear on sequences, quantized bias": lambda: Composed(
        lambda m, x: m.o(m.fc(m.q(x))), q=qt(), fc=qnn.QuantLinear(8, 3, bias_quant=quant.Int16Bias), o=qt(bit_width=5)
    ),
    "data by data": lambda: Composed(
        lambda m, x: m.o(F.relu(m.q(x)).clamp(-1, 1) @ m.q(x).transpose(2, 3)), q=qt(), o=qt(bit_width=6)
    ),
    "sigmoid times tanh": lambda: Composed(
        lambda m, x: m.o(m.s(m.c(m.q(x))) * m.t(m.c(m.q(x)))), q=qt(), c=conv(4, 3, 3, groups=1),
        s=qnn.QuantSigmoid(bit_width=5, return_quant_tensor=True),
        t=qnn.QuantTanh(bit_width=5, return_quant_tensor=True), o=qt(bit_width=6),
    ),
    "float steps before the first quantizer": lambda: Composed(
        lambda m, x: m.c(m.q((x.flip(1) - 0.4) / 0.3)), q=qt(bit_width=5), c=conv(4, 3, 3)
    ),
    "GRU": lambda: Composed(lambda m, x: m.r(x[:, 0, :2])[0], r=qnn.QuantGRU(8, 3, batch_first=True)),
    "LSTM": lambda: Composed(lambda m, x: m.r(x[:, 0, :2])[0], r=qnn.QuantLSTM(8, 3, batch_first=True)),
}  # fmt: skip


FAST = {"batch norm, max pool and ReLU on accumulators", "zero points and same padding", "average pool and truncation"}


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_models(name):
    torch.manual_seed(5)
    model = calibrated(MODELS[name](), (12, 4, 8, 8))
    x = torch.randn(12, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    net = to_integer(model, x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and not model.training
    report = verify(model, net, x)
    assert report.diverged == 0 and report.ties <= 2, report
    assert {row.quantizer for row in report.rows if row.kind == "activation"}
    out = model(x)
    out = out[0] if isinstance(out, tuple) else out
    ours = (out.value if isinstance(out, QuantTensor) else out).detach().numpy()
    (theirs,) = net.run(x).values.values()
    assert theirs.shape == ours.shape and theirs.dtype == np.float32
    if report.ties == 0:
        assert np.abs(theirs - ours).max() < 1e-5
    assert all(s.arrays.get("weight", np.zeros(1, int)).dtype.kind == "i" for s in net.steps)


@pytest.fixture(scope="module")
def net_and_model():
    model = lenet("W4A4")
    return to_integer(model, images(1)), model


def test_steps_layers_and_text(net_and_model):
    net, model = net_and_model
    assert [s.op for s in net.steps] == [
        *("conv", "threshold", "max_pool", "conv", "threshold", "max_pool", "reshape"),
        *("matmul", "threshold", "matmul"),
    ]
    layer = net.layer("relu1.act_quant")
    assert layer.thresholds.shape[1] == 15 and (layer.output.low, layer.output.high, layer.output.bits) == (0, 15, 4)
    assert not layer.output.signed and layer.inputs[0].signed and layer.step.layer == "relu1"
    assert np.array_equal(net.layer("conv2").step.arrays["weight"], model.conv2.int_weight().numpy())
    lines = str(net).splitlines()
    assert lines[0] == "integer network: 10 steps" and len(lines) == 12
    assert "QuantReLU 'relu2'" in str(net) and "0..15" in str(net)
    with pytest.raises(ExportError, match=r"no step is named 'conv3'.*did you mean 'conv"):
        net.layer("conv3")


def test_codes_or_floats_or_tensors_go_in(net_and_model):
    net, model = net_and_model
    x = images(7)
    result = net.run(x.numpy())
    codes = model.quant_inp(x).int().numpy()
    every = net.codes(x)
    assert np.array_equal(every["quant_inp.act_quant"], codes)
    for same in (net.run(x), net.run(codes), net.run(x.numpy().astype(np.float64))):
        assert np.array_equal(same.codes["output"], result.codes["output"])
    assert np.array_equal(every["fc2"], result.codes["output"]) and result.codes["output"].dtype == np.int64
    assert np.array_equal(every["relu2.act_quant"].reshape(7, -1).max(1), every["MaxPool_1"].reshape(7, -1).max(1))


def test_a_captured_graph_with_a_dynamic_batch(net_and_model):
    net, model = net_and_model
    dynamic = to_integer(capture(model, [images(4)], batch_names=["batch"]))
    assert np.array_equal(dynamic.run(images(5)).codes["output"], net.run(images(5)).codes["output"])
    fixed = capture(model, [images(4)])
    with pytest.raises(ExportError, match=r"E15 .*model input 'input'.*\(4, 1, 12, 12\).*a batch of one"):
        to_integer(fixed)
    with pytest.raises(TypeError, match="leave inputs and input_shape out"):
        to_integer(fixed, input_shape=(1, 1, 12, 12))


def test_codes_of_a_quant_tensor():
    model = Composed(lambda m, x: m.fc(x), fc=qnn.QuantLinear(4, 3, bias_quant=quant.Int16Bias)).eval()
    x = QuantTensor(torch.arange(-8, 4).reshape(3, 4) * 0.5, scale=0.5, zero_point=0, bit_width=4, signed=True)
    model(x)  # the bias is quantized in units of the input that it met last
    net = to_integer(model, x)
    expected = x.int().numpy() @ model.fc.int_weight().numpy().T + model.fc.int_bias().numpy()
    for given in (x.int(), x.value, x.int().numpy()):
        assert np.array_equal(net.run(given).codes["output"], expected)
    assert verify(model, net, x).diverged == 0


def test_inputs_by_name():
    net = to_integer(TwoInputs().eval(), {"right": torch.zeros(4, 3), "left": torch.zeros(4, 3)})
    assert [i.name for i in net.inputs] == ["right", "left"]
    left, right = np.full((2, 3), 5), np.full((2, 3), 3)
    assert (net.run({"left": left, "right": right}).codes["output"] == 2).all()
    assert (net.run(right, left).codes["output"] == 2).all()
    with pytest.raises(ExportError, match="inputs are right, left; given: left, rihgt"):
        net.run({"left": left, "rihgt": right})


def test_bad_inputs_of_a_run(net_and_model):
    net, _ = net_and_model
    with pytest.raises(ExportError, match="the network has 1 inputs, 2 were given"):
        net.run(images(1), images(1))
    with pytest.raises(ExportError, match=r"input 'input' has shape \(2, 1, 11, 12\); expected \(samples, 1, 12, 12\)"):
        net.run(np.zeros((2, 1, 11, 12)))
    with pytest.raises(ExportError, match=r"holds codes 0\.\.128; expected -128\.\.127"):
        net.run(np.r_[128, np.zeros(143, int)].reshape(1, 1, 12, 12))
    before = calibrated(Composed(lambda m, x: m.q(x + 1), q=qt()), (4, 3))
    with pytest.raises(ExportError, match="cannot be given as codes, because a float operation reads it"):
        to_integer(before, input_shape=(1, 3)).run(np.zeros((1, 3), int))


def test_verify_takes_networks_and_says_what_does_not_fit(net_and_model):
    net, model = net_and_model
    report = verify(model, net, images(30), mode="end_to_end", chunk=7)
    assert report.ok and report.rows[0].total == 30 * 144 and report.runtime.startswith("to_integer")
    with pytest.raises(ExportError, match="leave runtime='qonnx' out"):
        verify(model, net, images(2), runtime="qonnx")
    with pytest.raises(ExportError, match="the network has 1 inputs"):
        verify(model, net, (images(2), images(2)))
    other = calibrated(Composed(lambda m, x: m.first(x), first=qt()), (4, 1, 12, 12))
    with pytest.raises(ExportError, match="made from another model.*quant_inp.act_quant"):
        verify(other, net, images(2))


def test_verify_finds_a_changed_threshold(net_and_model):
    from dataclasses import replace

    net, model = net_and_model
    steps = list(net.steps)
    i = next(i for i, s in enumerate(steps) if s.name == "relu2.act_quant")
    shifted = {**steps[i].arrays, "thresholds": steps[i].arrays["thresholds"] + 9}
    steps[i] = replace(steps[i], arrays=shifted)
    report = verify(model, replace(net, steps=tuple(steps)), images(30))
    assert {row.quantizer for row in report.rows if row.diverged} == {"relu2.act_quant"}
    assert isinstance(net, IntegerNetwork)
