"""Integer operators: what stands for which layer, and the integers that two programs compute with them."""

import numpy as np
import pytest
import torch
from export_networks import LeNet, attribute, initializers, node_named, op_types
from torch import nn

from brevitas import quant
from brevitas.errors import ExportError
from brevitas.export import StdONNXManager, StdQOpONNXManager, check, export_onnx_qop, verify
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant_tensor import QuantTensor

RUNTIMES = ("onnxruntime", "onnxruntime-optimized", "reference")


def calibrated(model, *shape):
    torch.manual_seed(1)
    for _ in range(4):
        model.train()(torch.randn(shape))
    return model.eval()


def exact(model, proto, x):
    """Every integer equal in every runtime."""
    for runtime in RUNTIMES:
        report = verify(model, proto, x, runtime=runtime)
        assert report.ok and report.ties == 0, f"{runtime}\n{report}"
        assert all(row.equal == row.total for row in report.rows if row.counted), report
    return report


class Quantized(LeNet):
    """The LeNet whose last layer has a quantized output."""

    def __init__(self, **options):
        super().__init__(**options)
        weight = options.get("weight", quant.Int8WeightPerTensorFloat)
        bias, out = options.get("bias"), quant.Int8ActPerTensorFloat
        self.fc2 = QuantLinear(24, 10, weight_quant=weight, bias_quant=bias, output_quant=out)


SHIFTED = quant.ShiftedUint8ActPerTensorFloat
NETWORKS = {
    "signed input, unsigned activations": {},
    "4-bit activations, 3-bit weights, 8-bit biases": {"bias": quant.Int8Bias, "act_bits": 4, "weight_bits": 3},
    "a scale per channel": {"weight": quant.Int8WeightPerChannelFloat, "bias": quant.Int16Bias},
    "zero points": {"inputs": SHIFTED, "act": SHIFTED, "weight": quant.ShiftedUint8WeightPerTensorFloat},
    "unsigned weights behind a signed input": {"weight": quant.ShiftedUint8WeightPerTensorFloat},
    "binary weights": {"weight": quant.SignedBinaryWeightPerTensorConst},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_exact(name):
    torch.manual_seed(0)
    model = calibrated(Quantized(**{"bias": quant.Int32Bias, **NETWORKS[name]}), 8, 1, 12, 12)
    x = torch.randn(20, 1, 12, 12)
    proto = StdONNXManager.export(model, input_t=x[:1], export_format="qop", dynamic_axes={"input": [0]})
    assert op_types(proto).count("QLinearConv") == 2 and op_types(proto).count("MatMulInteger") == 2
    assert not {"Conv", "Gemm", "MatMul"} & set(op_types(proto))
    report = exact(model, proto, x)
    names = {row.quantizer for row in report.rows}
    assert {"quant_inp.act_quant", "conv1.weight_quant", "conv1.bias_quant", "relu1.act_quant"} <= names
    assert {"fc1.weight_quant", "fc1.bias_quant", "fc2.output_quant"} <= names


def test_constants_of_a_convolution():
    model = calibrated(
        nn.Sequential(
            QuantIdentity(quant.Uint8ActPerTensorFloat, return_quant_tensor=True),
            QuantConv2d(2, 3, 3, stride=2, padding=1, bias_quant=quant.Int32Bias, weight_bit_width=4),
            QuantReLU(bit_width=4),
        ),
        *(4, 2, 6, 6),
    )
    proto = export_onnx_qop(model, input_shape=(1, 2, 6, 6))
    assert op_types(proto) == ["QuantizeLinear", "QLinearConv", "Clip", "DequantizeLinear"]
    conv = node_named(proto, "1")
    arrays = initializers(proto)
    model(torch.randn(1, 2, 6, 6))
    x, s_x, z_x, w, s_w, z_w, s_y, z_y, bias = (arrays.get(name) for name in conv.input)
    assert x is None and s_x == model[0].quant_act_scale().detach().numpy() and z_x == 0
    assert w.dtype == np.int8 and np.array_equal(w, model[1].int_weight().numpy())
    assert s_w == model[1].quant_weight_scale().detach().numpy() and (z_w, z_w.dtype) == (0, np.int8)
    assert s_y == model[2].quant_act_scale().detach().numpy() and (z_y, z_y.dtype) == (0, np.uint8)
    assert bias.dtype == np.int32 and np.array_equal(bias, model[1].int_bias().numpy())
    assert attribute(conv, "pads") == [1, 1, 1, 1] and attribute(conv, "strides") == [2, 2]
    assert [int(arrays[name]) for name in node_named(proto, "2.act_quant.clip").input[1:]] == [0, 15]


@pytest.mark.parametrize("shape", [(6, 8), (2, 5, 8)])
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_linear_layer_without_bias_is_one_operator(shape, per_channel):
    weight = quant.Int8WeightPerChannelFloat if per_channel else quant.Int8WeightPerTensorFloat
    first = QuantIdentity(return_quant_tensor=True)
    layer = QuantLinear(8, 5, bias=False, weight_quant=weight, output_quant=quant.Int8ActPerTensorFloat)
    model = calibrated(nn.Sequential(first, layer), *shape)
    x = torch.randn(shape)
    proto = export_onnx_qop(model, input_t=x)
    if per_channel and len(shape) > 2:  # onnxruntime reads a scale per column of matrices only
        expected = ["QuantizeLinear", "MatMulInteger", "Cast", "Mul", "QuantizeLinear", "DequantizeLinear"]
    else:
        expected = ["QuantizeLinear", "QLinearMatMul", "DequantizeLinear"]
    assert op_types(proto) == expected
    exact(model, proto, x)


def test_relu_before_a_quantizer_with_a_zero_point_or_a_sign():
    for act in (quant.ShiftedUint8ActPerTensorFloat, quant.Int8ActPerTensorFloat):
        model = calibrated(
            nn.Sequential(
                QuantIdentity(return_quant_tensor=True),
                QuantLinear(8, 5, bias_quant=quant.Int32Bias),
                nn.ReLU(),
                QuantIdentity(act),
            ),
            *(16, 8),
        )
        x = torch.randn(16, 8)
        proto = export_onnx_qop(model, input_t=x)
        assert "Relu" not in op_types(proto) and "MatMulInteger" in op_types(proto)
        exact(model, proto, x)


def test_quant_tensors_at_the_border_are_codes():
    class Net(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.fc = QuantLinear(8, 5, bias_quant=quant.Int32Bias)
            self.act = QuantIdentity(act, return_quant_tensor=True)

        def forward(self, x):
            return self.act(self.fc(x))

    codes = torch.randint(-128, 128, (6, 8)).float()
    x = QuantTensor(codes * 0.05, 0.05, 0.0, 8.0, True)
    for act, dtype in ((quant.Int8ActPerTensorFloat, 3), (quant.ShiftedUint8ActPerTensorFloat, 2)):
        model = Net(act)
        model.train()(x)
        model.eval()
        proto = export_onnx_qop(model, input_t=x)
        assert proto.graph.input[0].type.tensor_type.elem_type == 3
        assert proto.graph.output[0].type.tensor_type.elem_type == dtype
        if dtype == 3:
            expected = ["MatMulInteger", "Add", "Cast", "Mul", "QuantizeLinear"]
            assert op_types(proto) == expected
        exact(model, proto, x)
    # A signed input beside an unsigned output: the input keeps its type.
    model = calibrated(nn.Sequential(QuantConv2d(1, 2, 3, bias=False), QuantReLU(return_quant_tensor=True)), 2, 1, 5, 5)
    x = QuantTensor(torch.randint(-128, 128, (2, 1, 5, 5)).float() * 0.1, 0.1, 0.0, 8.0, True)
    proto = export_onnx_qop(model, input_t=x)
    assert op_types(proto) == ["DequantizeLinear", "QuantizeLinear", "QLinearConv"]
    assert proto.graph.input[0].type.tensor_type.elem_type == 3
    exact(model, proto, x)


def test_signed_codes_beside_unsigned_ones_come_out_signed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp = QuantIdentity(quant.Uint8ActPerTensorFloat, return_quant_tensor=True)
            self.conv = QuantConv2d(1, 2, 3, bias=False, output_quant=quant.Int8ActPerTensorFloat)
            self.conv.return_quant_tensor = True

        def forward(self, x):
            return self.conv(self.inp(x))

    model = calibrated(Net(), 2, 1, 5, 5)
    x = torch.randn(2, 1, 5, 5)
    proto = export_onnx_qop(model, input_t=x)
    assert proto.graph.output[0].type.tensor_type.elem_type == 3
    exact(model, proto, x)


def test_signed_codes_all_along():
    conv = QuantConv2d(1, 2, 3, bias_quant=quant.Int32Bias, output_quant=quant.Int8ActPerTensorFloat)
    model = calibrated(nn.Sequential(QuantIdentity(return_quant_tensor=True), conv), 2, 1, 5, 5)
    x = torch.randn(2, 1, 5, 5)
    proto = export_onnx_qop(model, input_t=x)
    zero_point = initializers(proto)[node_named(proto, "1").input[2]]
    assert (zero_point, zero_point.dtype) == (128, np.uint8), "onnxruntime has no kernel for signed data on some CPUs"
    exact(model, proto, x)


def test_what_has_no_integer_form_stays_float():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), QuantIdentity(return_quant_tensor=True), nn.MaxPool2d(2), nn.Sigmoid()
    )
    model = calibrated(model, 4, 1, 6, 6)
    x = torch.randn(4, 1, 6, 6)
    proto = export_onnx_qop(model, input_t=x)
    assert op_types(proto)[0] == "Conv" and op_types(proto)[-2:] == ["MaxPool", "Sigmoid"]
    assert verify(model, proto, x).diverged == 0


def layers(first=None, weight=quant.Int8WeightPerTensorFloat, bias=quant.Int32Bias, out=quant.Int8ActPerTensorFloat):
    first = QuantIdentity(return_quant_tensor=True) if first is None else first
    return nn.Sequential(first, QuantLinear(8, 4, weight_quant=weight, bias_quant=bias, output_quant=out))


class Int12(quant.Int8ActPerTensorFloat):
    bit_width = 12


class Wide(quant.Int8WeightPerTensorFloat):
    bit_width = 10


REFUSED = {
    "no output quantizer": (layers(out=None), "E28 .*'1'.*an output of the model.*output_quant="),
    "no input quantizer": (layers(nn.Identity(), bias=None), "E28 .*'1'.*input that is not quantized.*QuantIdentity"),
    "a float bias": (layers(bias=None), "E22 .*'1'.*float bias.*Int32Bias"),
    "a bias of its own scale": (
        layers(bias=quant.Int8BiasPerTensorFloatInternalScaling),
        "E22 .*'1'.*not input scale times weight scale.*Int32Bias",
    ),
    "wide activations": (layers(out=Int12), "E11 .*'1'.*bit width 12.*1 to 8 bits"),
    "wide weights": (layers(weight=Wide), "E11 .*'1'.*bit width 10.*weight_quant.*1 to 8 bits"),
    "rounding down": (
        layers(QuantIdentity(float_to_int_impl_type="floor", return_quant_tensor=True)),
        "E27 .*'0'.*rounding FLOOR.*'qonnx'",
    ),
    "binary activations": (
        layers(QuantIdentity(quant.SignedBinaryActPerTensorConst, return_quant_tensor=True)),
        "E24 .*'0'.*binary codes",
    ),
    "a batch norm between": (
        nn.Sequential(QuantIdentity(return_quant_tensor=True), QuantLinear(8, 4), nn.BatchNorm1d(4), QuantReLU()),
        "E28 .*'1'.*BatchNormalization of '2' reads the product",
    ),
    "an activation scale per channel": (
        nn.Sequential(
            QuantIdentity(scaling_per_output_channel=True, per_channel_broadcastable_shape=(1, 8)), nn.Sigmoid()
        ),
        r"E12 .*'0'.*activation scale of shape \(1, 8\).*one scale per tensor",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_layer_and_leave_everything_alone(case, tmp_path):
    model, text = REFUSED[case]
    if "output" not in case:
        model = calibrated(model, 4, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ExportError, match=text) as caught:
        StdQOpONNXManager.export(model, input_shape=(4, 8), export_path=tmp_path / "model.onnx")
    assert "[qop]" in str(caught.value) and "fix: " in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [v.code for v in check(model, "qop", input_shape=(4, 8)) if not v.is_warning]
