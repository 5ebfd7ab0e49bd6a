"""The PyXIR dialect: attributes and integers are the model's, and what has no fixed-point form is refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from export_networks import LeNet, attribute, initializers
from torch import nn

from brevitas import quant
from brevitas.errors import ExportError
from brevitas.export import DPUv1Manager, DPUv2Manager, export_dpuv1_onnx, export_dpuv2_onnx, verify
from brevitas.nn import (
    QuantAvgPool2d,
    QuantConv2d,
    QuantEltwiseAdd,
    QuantIdentity,
    QuantLinear,
    QuantMaxPool2d,
    QuantReLU,
)

ACT, UNSIGNED = quant.Int8ActPerTensorFixedPoint, quant.Uint8ActPerTensorFixedPoint
WEIGHT, BIAS = quant.Int8WeightPerTensorFixedPoint, quant.Int8BiasPerTensorFixedPointInternalScaling
MANAGERS = {"dpuv1": DPUv1Manager, "dpuv2": DPUv2Manager}


def identity():
    return QuantIdentity(ACT, return_quant_tensor=True)


def conv(*args, **kwargs):
    return QuantConv2d(
        *args, weight_quant=WEIGHT, bias_quant=BIAS, output_quant=ACT, return_quant_tensor=True, **kwargs
    )


def calibrated(model, *shape):
    torch.manual_seed(1)
    for _ in range(4):
        model.train()(torch.randn(shape))
    return model.eval()


def grid(scale, bits=8):
    """What the attributes say of a quantizer: its width, and minus the logarithm of its scale."""
    return [bits, -round(torch.log2(scale).item())]


def described(proto):
    """Each node: operator, and its attributes of quantization."""
    found = []
    for node in proto.graph.node:
        names = [a.name for a in node.attribute]
        listed = [n.decode() for n in attribute(node, "vai_quant")] if "vai_quant" in names else []
        assert sorted(listed) == sorted(n for n in names if n.startswith("vai_quant_")), "vai_quant lists what is there"
        found.append((node.op_type, {name.removeprefix("vai_quant_"): attribute(node, name) for name in listed}))
    return found


@pytest.mark.parametrize("target", MANAGERS)
def test_a_lenet(target):
    class Net(LeNet):
        def __init__(self):
            super().__init__(weight=WEIGHT, act=UNSIGNED, inputs=ACT, bias=BIAS)
            self.fc2 = QuantLinear(24, 10, weight_quant=WEIGHT, bias_quant=BIAS, output_quant=ACT)

    model = calibrated(Net(), 8, 1, 12, 12)
    proto = MANAGERS[target].export(model, input_shape=(1, 1, 12, 12))
    nodes = described(proto)
    padding = ["Pad"] if target == "dpuv2" else []
    expected = [*padding, "Conv", "Relu", "MaxPool", "Conv", "Relu", "MaxPool", "Reshape", "Gemm", "Relu", "Gemm"]
    assert [op for op, _ in nodes] == expected
    assert all(n.domain == ("" if n.op_type == "Reshape" else "pyxir") for n in proto.graph.node)
    first, second = (grid(layer.quant_act_scale()) for layer in (model.quant_inp, model.relu1))
    op, of_conv = nodes[len(padding)]
    assert (op, of_conv["in"], of_conv["out"]) == ("Conv", first, second)
    assert of_conv["weights"] == grid(model.conv1.quant_weight_scale())
    assert of_conv["biases"] == grid(model.conv1.quant_bias_scale())
    assert nodes[len(padding) + 1] == ("Relu", {"in": second, "out": second})
    assert nodes[len(padding) + 2] == ("MaxPool", {"in": second, "out": second})
    if padding:
        assert nodes[0] == ("Pad", {"in": first, "out": first})
        assert attribute(proto.graph.node[0], "pads") == [0, 0, 1, 1, 0, 0, 1, 1]
        assert attribute(proto.graph.node[1], "auto_pad") == b"VALID"
        assert "pads" not in [a.name for a in proto.graph.node[1].attribute]
    else:
        assert attribute(proto.graph.node[0], "pads") == [1, 1, 1, 1]
    arrays = initializers(proto)
    by_name = {n.name: n for n in proto.graph.node}
    for name in ("conv1", "conv2", "fc1", "fc2"):
        layer = getattr(model, name)
        weight, bias = (arrays[i] for i in by_name[name].input[1:])
        assert weight.dtype == np.int8 and np.array_equal(weight, layer.int_weight().numpy())
        assert np.array_equal(bias, layer.int_bias().numpy())
    gemm = by_name["fc1"]
    assert [attribute(gemm, n) for n in ("transB", "alpha", "beta")] == [1, 1.0, 1.0]
    with pytest.raises(ExportError, match=f"no program executes artifacts of target '{target}'.*'qdq'"):
        verify(model, proto, torch.randn(1, 1, 12, 12))


class Residual(nn.Module):
    """Pools, an addition, and an identity after each."""

    def __init__(self, window=2):
        super().__init__()
        self.inp, self.conv = identity(), QuantConv2d(4, 4, 3, padding=1, weight_quant=WEIGHT, bias_quant=BIAS)
        self.add = QuantEltwiseAdd(None, ACT, return_quant_tensor=True)
        self.pool, self.after = QuantAvgPool2d(window), identity()

    def forward(self, x):
        x = self.inp(x)
        return self.after(self.pool(self.add(self.inp(self.conv(x)), x)))


def test_additions_and_pools():
    model = calibrated(Residual(), 4, 4, 6, 6)
    nodes = described(export_dpuv1_onnx(model, input_shape=(1, 4, 6, 6)))
    assert [op for op, _ in nodes] == ["Conv", "Add", "AveragePool"]
    _, of_add = nodes[1]
    operand = grid(model.inp.quant_act_scale())
    assert of_add == {"in": [*operand, *operand], "out": grid(model.add.quant_output_scale())}
    assert nodes[2][1] == {"in": of_add["out"], "out": grid(model.after.quant_act_scale())}


@pytest.mark.parametrize("pool", [QuantMaxPool2d(2), nn.MaxPool2d(2)])
@pytest.mark.parametrize("between", [nn.Identity(), nn.Flatten()])
def test_a_quantizer_after_a_max_pool_is_folded_into_it(pool, between):
    after = QuantIdentity(ACT, bit_width=5, return_quant_tensor=True)
    model = calibrated(nn.Sequential(identity(), conv(2, 4, 3), pool, between, after), 4, 2, 6, 6)
    nodes = described(export_dpuv1_onnx(model, input_shape=(1, 2, 6, 6)))
    before = grid(model[1].quant_output_scale())
    assert nodes[1] == ("MaxPool", {"in": before, "out": grid(after.quant_act_scale(), 5)})
    assert [op for op, _ in nodes] == ["Conv", "MaxPool", *(["Reshape"] if isinstance(between, nn.Flatten) else [])]


def test_a_relu_between_a_max_pool_and_a_quantizer_takes_the_grid():
    model = calibrated(nn.Sequential(identity(), conv(2, 4, 3), QuantMaxPool2d(2), nn.ReLU(), identity()), 4, 2, 6, 6)
    nodes = described(export_dpuv1_onnx(model, input_shape=(1, 2, 6, 6)))
    before, after = grid(model[1].quant_output_scale()), grid(model[4].quant_act_scale())
    assert nodes[1:] == [("MaxPool", {"in": before, "out": before}), ("Relu", {"in": before, "out": after})]


def test_a_window_that_is_no_power_of_two_needs_a_quantizer_after_it():
    model = calibrated(Residual(3), 4, 4, 6, 6)
    assert [op for op, _ in described(export_dpuv1_onnx(model, input_shape=(1, 4, 6, 6)))][-1] == "AveragePool"
    model.after = nn.Identity()
    with pytest.raises(ExportError, match="E14 .*'pool'.*average over 9 values.*QuantIdentity after the pool"):
        export_dpuv1_onnx(model, input_shape=(1, 4, 6, 6))
    model.pool = QuantAvgPool2d(2)
    assert [op for op, _ in described(export_dpuv1_onnx(model, input_shape=(1, 4, 6, 6)))][-1] == "AveragePool"


def test_windows_of_one_and_of_everything():
    model = calibrated(nn.Sequential(identity(), QuantAvgPool2d(1), conv(4, 2, 1), QuantAvgPool2d(4)), 2, 4, 4, 4)
    nodes = described(export_dpuv2_onnx(model, input_shape=(1, 4, 4, 4)))
    assert [op for op, _ in nodes] == ["Conv", "GlobalAveragePool"]


def test_relu_and_max_pool_as_functions():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp, self.conv = identity(), conv(1, 2, 3)

        def forward(self, x):
            return F.max_pool2d(F.relu(self.conv(self.inp(x))), 2, padding=1)

    model = calibrated(Net(), 2, 1, 6, 6)
    out = grid(model.conv.quant_output_scale())
    nodes = described(export_dpuv2_onnx(model, input_shape=(1, 1, 6, 6)))
    assert nodes[1:] == [(op, {"in": out, "out": out}) for op in ("Relu", "Pad", "MaxPool")]


def test_same_padding():
    model = calibrated(nn.Sequential(identity(), conv(1, 2, 3, stride=2, padding_type="same")), 2, 1, 6, 6)
    proto = export_dpuv2_onnx(model, input_shape=(1, 1, 6, 6))
    assert attribute(proto.graph.node[0], "pads") == [0, 0, 0, 0, 0, 0, 1, 1]
    with pytest.raises(ExportError, match=r"E15 .*'1'.*asymmetric padding \[0, 0, 1, 1\].*pad evenly"):
        export_dpuv1_onnx(model, input_shape=(1, 1, 6, 6))
    model = calibrated(nn.Sequential(identity(), conv(1, 2, 3, padding_type="same")), 2, 1, 6, 6)
    proto = export_dpuv1_onnx(model, input_shape=(1, 1, 6, 6))
    assert attribute(proto.graph.node[0], "pads") == [1, 1, 1, 1]


def float_scale():
    layer = QuantConv2d(1, 2, 3, weight_quant=WEIGHT, bias_quant=BIAS, output_quant=quant.Int8ActPerTensorFloat)
    return nn.Sequential(identity(), layer)


class Wide(quant.Int8ActPerTensorFixedPoint):
    bit_width = 9


REFUSED = {
    "a float scale": (float_scale(), "E14 .*'1'.*scale .*, between .* and .* in output_quant.*FixedPoint"),
    "a scale per channel": (
        nn.Sequential(identity(), conv(1, 2, 3, weight_scaling_per_output_channel=True)),
        r"E12 .*'1'.*scale of shape \(2, 1, 1, 1\).*PerTensor",
    ),
    "a wide activation": (nn.Sequential(QuantIdentity(Wide, return_quant_tensor=True), conv(1, 2, 3)), "E11 .*'0'.*9"),
    "no quantized input": (nn.Sequential(conv(1, 2, 3)), "E28 .*'0'.*input that is not quantized.*input_quant="),
    "32-bit input": (nn.Sequential(conv(1, 2, 3)), "E11 .*model input 0.*float32 values, of 32 bits"),
    "no quantized output": (
        nn.Sequential(identity(), QuantConv2d(1, 2, 3, weight_quant=WEIGHT, bias_quant=BIAS)),
        "E28 .*'1'.*result is not quantized.*output_quant=",
    ),
    "float weights": (
        nn.Sequential(identity(), nn.Conv2d(1, 2, 3), identity()),
        "E28 .*Conv2d '1'.*weights that are not quantized.*Int8WeightPerTensorFixedPoint",
    ),
    "a float bias": (
        nn.Sequential(identity(), QuantConv2d(1, 2, 3, weight_quant=WEIGHT, output_quant=ACT)),
        "E22 .*'1'.*float bias.*Int8BiasPerTensorFixedPointInternalScaling",
    ),
    "a zero point": (
        nn.Sequential(QuantIdentity(quant.ShiftedUint8ActPerTensorFixedPoint, return_quant_tensor=True), conv(1, 2, 3)),
        "E21 .*'0'.*zero point",
    ),
    "another function": (nn.Sequential(identity(), conv(1, 2, 3), nn.Sigmoid(), identity()), "E04 .*'2'.*Sigmoid"),
    "rounding down": (
        nn.Sequential(QuantIdentity(ACT, float_to_int_impl_type="floor", return_quant_tensor=True), conv(1, 2, 3)),
        "E27 .*'0'.*rounding FLOOR.*ROUND or DPU rounding",
    ),
    "two quantizers": (
        nn.Sequential(identity(), conv(1, 2, 3), QuantIdentity(ACT, bit_width=4)),
        "E20 .*'2'.*switch one of them off",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_layer_and_leave_everything_alone(case, tmp_path):
    model, text = REFUSED[case]
    model = calibrated(model, 4, 1, 6, 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ExportError, match=text) as caught:
        DPUv1Manager.export(model, input_shape=(1, 1, 6, 6), export_path=tmp_path / "model.onnx")
    assert "[dpuv1]" in str(caught.value) and "fix: " in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_dilated_max_pool_with_ceil_mode():
    model = calibrated(nn.Sequential(identity(), QuantMaxPool2d(2, dilation=2, ceil_mode=True)), 2, 1, 6, 6)
    with pytest.raises(ExportError, match="E15 .*dilated max pool with ceil_mode.*ceil_mode=False"):
        export_dpuv2_onnx(model, input_shape=(1, 1, 6, 6))
    assert [op for op, _ in described(export_dpuv1_onnx(model, input_shape=(1, 1, 6, 6)))] == ["MaxPool"]


def test_relu_with_a_grid_of_its_own():
    model = calibrated(nn.Sequential(identity(), conv(1, 2, 3), QuantReLU(UNSIGNED)), 4, 1, 6, 6)
    nodes = described(export_dpuv1_onnx(model, input_shape=(1, 1, 6, 6)))
    before, after = grid(model[1].quant_output_scale()), grid(model[2].quant_act_scale())
    assert nodes[0][1]["out"] == before and nodes[1] == ("Relu", {"in": before, "out": after})
