"""PyTorch's quantized operators: the module's integers are the model's, and other readers understand it."""

import io
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from export_networks import LeNet
from torch import nn

from brevitas import quant
from brevitas.errors import ExportError
from brevitas.export import PytorchQuantManager, QONNXManager, TorchQOpManager, check, export_torch_qop, lower, verify
from brevitas.nn import QuantConv1d, QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant_tensor import QuantTensor

UNSIGNED, SHIFTED = quant.Uint8ActPerTensorFloat, quant.ShiftedUint8ActPerTensorFloat
PRODUCTS = ("quantized::conv1d", "quantized::conv2d", "quantized::linear")


def calibrated(model, *shape):
    torch.manual_seed(1)
    for _ in range(4):
        model.train()(torch.randn(shape))
    return model.eval()


class Quantized(LeNet):
    """The LeNet with unsigned codes everywhere, as torch's kernels want them."""

    def __init__(self, weight=quant.Int8WeightPerTensorFloat, **options):
        super().__init__(inputs=SHIFTED, weight=weight, **options)
        self.fc2 = QuantLinear(24, 10, weight_quant=weight, bias_quant=options.get("bias"), output_quant=SHIFTED)


def kinds(module):
    return [node.kind() for node in module.graph.nodes() if not node.kind().startswith("prim::")]


#: torch rounds float biases to the accumulator's grid, which the model does not.
BIAS = "tie, bias rounded to the accumulator's grid"
NETWORKS = {
    "8 bits, float biases": {},
    "7-bit activations, 5-bit weights": {"act_bits": 7, "weight_bits": 5, "bias": quant.Int16Bias},
    "a scale per channel, 8-bit biases": {"weight": quant.Int8WeightPerChannelFloat, "bias": quant.Int8Bias},
    "zero points": {"act": SHIFTED, "weight": quant.Int8WeightPerChannelFloat},
    "binary weights": {"weight": quant.SignedBinaryWeightPerTensorConst, "bias": quant.Int8Bias},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_exact(name, tmp_path):
    torch.manual_seed(0)
    model = calibrated(Quantized(**NETWORKS[name]), 8, 1, 12, 12)
    x = torch.randn(30, 1, 12, 12)
    exported = export_torch_qop(model, input_shape=(1, 1, 12, 12), export_path=tmp_path / "model.pt")
    assert [k for k in kinds(exported) if k in PRODUCTS] == ["quantized::conv2d"] * 2 + ["quantized::linear"] * 2
    assert "aten::conv2d" not in kinds(exported) and "aten::linear" not in kinds(exported)
    for artifact in (exported, tmp_path / "model.pt"):
        report = verify(model, artifact, x)
        assert report.ok and report.ties <= report.equal / 1000, report
        causes = {cause for row in report.rows for cause in row.causes}
        assert causes <= ({"rounding tie"} if "bias" in NETWORKS[name] else {"rounding tie", BIAS}), causes
        assert {r.quantizer for r in report.rows} >= {"conv1.weight_quant", "relu1.act_quant", "fc2.output_quant"}
    loaded = torch.jit.load(tmp_path / "model.pt")
    assert torch.equal(loaded(x), exported(x))


def test_a_changed_weight_is_found():
    model = calibrated(nn.Sequential(QuantIdentity(UNSIGNED), QuantLinear(4, 3, output_quant=SHIFTED)), 8, 4)
    model[0].return_quant_tensor = True
    exported = export_torch_qop(model, input_shape=(1, 4))
    with torch.no_grad():
        model[1].weight[0, 0] += 3 * model[1].quant_weight_scale()
    report = verify(model, exported, torch.rand(64, 4))
    (row,) = [r for r in report.rows if r.quantizer == "1.weight_quant"]
    assert row.diverged >= 1 and not report.ok


def test_functions_and_layers_between():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp = QuantIdentity(UNSIGNED, return_quant_tensor=True)
            self.conv = QuantConv1d(2, 3, 3, padding=1, output_quant=SHIFTED, return_quant_tensor=True)
            self.fc = QuantLinear(12, 5, output_quant=SHIFTED)
            self.norm = nn.LayerNorm(5)

        def forward(self, x):
            x = F.max_pool1d(F.relu(self.conv(self.inp(x))), 2)
            return torch.softmax(self.norm(self.fc(x.reshape(x.shape[0], 12))), -1)

    model = calibrated(Net(), 8, 2, 8)
    exported = export_torch_qop(model, input_shape=(1, 2, 8))
    x = torch.randn(16, 2, 8)
    assert verify(model, exported, x).ok
    assert exported(x).shape == (16, 5), "the batch size is free"
    assert {"aten::relu", "aten::layer_norm", "aten::softmax"} <= set(kinds(exported))


def test_quant_tensors_at_the_border_are_quantized_tensors():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = QuantLinear(8, 5, output_quant=SHIFTED, return_quant_tensor=True)

        def forward(self, x):
            return self.fc(x)

    codes = torch.randint(0, 256, (6, 8)).float()
    x = QuantTensor((codes - 7) * 0.05, 0.05, 7.0, 8.0, False)
    model = Net()
    model.train()(x)
    model.eval()
    exported = TorchQOpManager.export(model, input_t=x)
    assert kinds(exported) == ["quantized::linear"]
    assert verify(model, exported, x).ok
    given = torch._make_per_tensor_quantized_tensor(codes.to(torch.uint8), 0.05, 7)
    out = exported(given)
    assert out.dtype == torch.quint8 and out.shape == (6, 5)


def test_narrower_codes_are_clamped():
    model = nn.Sequential(QuantIdentity(quant.Int8ActPerTensorFloat, bit_width=4))
    model = calibrated(model, 4, 8)
    exported = export_torch_qop(model, input_shape=(1, 8))
    x = torch.linspace(-9, 9, 64).reshape(8, 8)
    assert verify(model, exported, x).ok
    scale = float(model[0].quant_act_scale())
    assert np.allclose(torch.unique(torch.round(exported(x) / scale)).numpy(), np.arange(-8, 8))


def test_torchs_exporter_reads_the_module():
    import onnxruntime

    model = calibrated(Quantized(), 8, 1, 12, 12)
    exported = export_torch_qop(model, input_shape=(2, 1, 12, 12))
    x = torch.randn(2, 1, 12, 12)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(exported, (x,), file, dynamo=False, opset_version=17, input_names=["x"])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"x": x.numpy()})
    step = float(model.fc2.quant_output_scale())
    assert np.abs(theirs - model(x).detach().numpy()).max() < step / 2


def test_the_model_is_left_as_it_was(tmp_path):
    model = calibrated(Quantized(), 8, 1, 12, 12).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    engine = torch.backends.quantized.engine
    export_torch_qop(model, input_shape=(1, 1, 12, 12))
    assert model.training and torch.backends.quantized.engine == engine
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def layers(first=UNSIGNED, weight=quant.Int8WeightPerTensorFloat, out=SHIFTED, **options):
    return nn.Sequential(
        QuantIdentity(first, return_quant_tensor=True),
        QuantLinear(8, 4, weight_quant=weight, output_quant=out, **options),
    )


class Wide(quant.Uint8ActPerTensorFloat):
    bit_width = 10


REFUSED = {
    "signed activations": (layers(quant.Int8ActPerTensorFloat), "E13 .*'0'.*signed codes.*engine.*ShiftedUint8Act"),
    "unsigned weights": (
        layers(weight=quant.ShiftedUint8WeightPerTensorFloat),
        "E13 .*'1'.*unsigned weights.*Int8WeightPerTensorFloat",
    ),
    "no output quantizer": (layers(out=None), "E28 .*'1'.*an output of the model.*output_quant="),
    "no input quantizer": (nn.Sequential(QuantLinear(8, 4, output_quant=SHIFTED)), "E28 .*'0'.*not quantized"),
    "wide activations": (layers(Wide), "E11 .*'0'.*bit width 10.*1 to 8 bits"),
    "rounding down": (
        nn.Sequential(QuantIdentity(UNSIGNED, float_to_int_impl_type="floor")),
        "E27 .*'0'.*rounding FLOOR",
    ),
    "binary activations": (
        nn.Sequential(QuantIdentity(quant.SignedBinaryActPerTensorConst)),
        "E24 .*'0'.*binary codes",
    ),
    "a scale per channel": (
        nn.Sequential(QuantIdentity(scaling_per_output_channel=True, per_channel_broadcastable_shape=(1, 8))),
        r"E12 .*'0'.*scale of shape \(1, 8\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_layer_and_leave_everything_alone(case, tmp_path):
    model, text = REFUSED[case]
    model = calibrated(model, 4, 8)
    with pytest.raises(ExportError, match=text) as caught:
        PytorchQuantManager.export(model, input_shape=(4, 8), export_path=tmp_path / "model.pt")
    assert "[torch]" in str(caught.value) and "fix: " in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert [v.code for v in check(model, "torch", input_shape=(4, 8)) if not v.is_warning]


def test_mistakes_of_the_call(tmp_path):
    model = calibrated(layers(), 4, 8)
    with pytest.raises(ExportError, match="E02 .*unknown keyword 'export_pth'.*write export_path"):
        PytorchQuantManager.export(model, input_shape=(4, 8), export_pth=tmp_path)
    with pytest.raises(ExportError, match="E01 .*neither input_shape nor input_t"):
        PytorchQuantManager.export(model)
    with pytest.raises(FileNotFoundError):
        PytorchQuantManager.export(model, input_shape=(4, 8), export_path=tmp_path / "missing" / "model.pt")
    exported = PytorchQuantManager.export(model, input_shape=(4, 8))
    with pytest.raises(ExportError, match="'onnxruntime' cannot run a TorchScript module; use runtime='torch'"):
        verify(model, exported, torch.randn(4, 8), runtime="onnxruntime")
    proto = QONNXManager.export(model, input_shape=(4, 8))
    with pytest.raises(ExportError, match="'torch' cannot run an ONNX graph"):
        verify(model, proto, torch.randn(4, 8), runtime="torch")
    with pytest.raises(ExportError, match="no brevitas metadata"):
        verify(model, torch.jit.trace(nn.ReLU(), torch.ones(1)), torch.randn(4, 8))
    from brevitas.export import capture

    with pytest.raises(ExportError, match="use PytorchQuantManager.export"):
        lower(capture(model, [torch.zeros(4, 8)]), "torch")


def test_without_an_engine(monkeypatch):
    class Backend:
        engine, supported_engines = "none", ["none", "qnnpack"]

    model = calibrated(layers(), 4, 8)
    monkeypatch.setattr(torch.backends, "quantized", Backend)
    with pytest.raises(ExportError, match="E06 .*no quantized engine.*torch.backends.quantized.engine = 'qnnpack'"):
        PytorchQuantManager.export(model, input_shape=(4, 8))


def test_layers_whose_input_or_output_is_float():
    model = calibrated(nn.Sequential(QuantIdentity(UNSIGNED), QuantReLU(), QuantConv2d(1, 1, 1)), 1, 1, 2, 2)
    assert "E28" in [v.code for v in check(model, "torch", input_shape=(1, 1, 2, 2))]
