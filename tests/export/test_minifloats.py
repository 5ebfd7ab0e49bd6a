"""Minifloats: ``FloatQuant`` in QONNX, 8-bit float types in QDQ, refused elsewhere; executed and compared."""

import functools

import numpy as np
import onnx
import pytest
import torch
from export_networks import attribute, initializers, node_named, op_types
from test_untouched import assert_same, snapshot
from torch import nn

from brevitas import quant
from brevitas.errors import ExportError
from brevitas.export import FINNManager, QONNXManager, StdONNXManager, capture, check, lower, to_integer, verify
from brevitas.export.minifloat import FloatFormat
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU

FORMATS = [(width, family) for family in ("OCP", "FNUZ", "") for width in ("e4m3", "e5m2")]
FLOAT8 = [(width, family) for width, family in FORMATS if family]
TYPES = {
    ("e4m3", "OCP"): onnx.TensorProto.FLOAT8E4M3FN,
    ("e5m2", "OCP"): onnx.TensorProto.FLOAT8E5M2,
    ("e4m3", "FNUZ"): onnx.TensorProto.FLOAT8E4M3FNUZ,
    ("e5m2", "FNUZ"): onnx.TensorProto.FLOAT8E5M2FNUZ,
}


def preset(width, family, end):
    return getattr(quant, f"Fp8{width}{family}{end}")


@functools.cache
def captured(width, family, saturating=True):
    model, x = network(width, family, **({} if saturating else {"saturating": False}))
    return model, x, capture(model, [x], batch_names=["batch"])


def network(width, family, **options):
    """Three layers, and inputs that reach from below the least number of the format to beyond its largest."""
    torch.manual_seed(5)
    act = preset(width, family, "ActPerTensorFloat")
    model = nn.Sequential(
        QuantIdentity(act, **options),
        QuantLinear(8, 6, weight_quant=preset(width, family, "WeightPerChannelFloat")),
        QuantReLU(act),
        QuantLinear(6, 3, weight_quant=preset(width, family, "WeightPerTensorFloat")),
    )
    model.train()(torch.randn(64, 8) * 3)
    x = torch.randn(64, 8) * 3
    x[:4] *= 100
    x[4:8] *= 1e-5
    return model.eval(), x


@pytest.mark.parametrize("saturating", [True, False])
@pytest.mark.parametrize(("width", "family"), FORMATS)
def test_the_reader_of_qonnx_gives_the_model_s_numbers(width, family, saturating):
    model, x, graph = captured(width, family, saturating)
    x = x if saturating else x[4:]  # how infinities and NaN go on is the reader's own affair
    proto = lower(graph, "qonnx")
    report = verify(model, proto, x)
    assert report.diverged == 0 and report.ties <= 1, str(report)
    assert report.equal > 60 * 14
    nodes = [n for n in proto.graph.node if n.op_type == "FloatQuant"]
    assert len(nodes) == 4 and all(len(n.input) == 6 for n in nodes)
    expected = {"has_inf", "has_nan", "has_subnormal", "saturation", "rounding_mode"}
    assert all({a.name for a in n.attribute} == expected for n in nodes)
    assert attribute(nodes[0], "saturation") == int(saturating) and attribute(nodes[0], "has_subnormal") == 1


def test_the_constants_of_a_node_are_those_of_the_format():
    model, _, graph = captured("e4m3", "OCP")
    proto = lower(graph, "qonnx")
    node, constants = node_named(proto, "0.act_quant"), initializers(proto)
    scale, *format_ = (constants[name] for name in node.input[1:])
    assert scale.shape == () and scale == model[0].act_quant.scale().detach().numpy()
    assert [float(n) for n in format_] == [4.0, 3.0, 7.0, 448.0]
    assert (attribute(node, "has_inf"), attribute(node, "has_nan")) == (0, 1)
    weight = node_named(proto, "1.weight_quant")
    assert constants[weight.input[1]].shape == (6, 1)
    assert np.array_equal(constants[weight.input[0]], model[1].quant_weight().detach().numpy())


@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime-optimized", "reference"])
@pytest.mark.parametrize(("width", "family"), FLOAT8)
def test_eight_bit_float_types_give_the_model_s_numbers(width, family, runtime):
    model, x, graph = captured(width, family)
    proto = lower(graph, "qdq")
    report = verify(model, proto, x, runtime=runtime)
    assert report.diverged == 0 and report.ties <= 1, str(report)
    zeros = [i for i in proto.graph.initializer if i.name.endswith("zero_point")]
    assert len(zeros) == 4 and all(i.data_type == TYPES[width, family] for i in zeros)
    assert op_types(proto).count("QuantizeLinear") == 2 and op_types(proto).count("DequantizeLinear") == 4
    stored = next(i for i in proto.graph.initializer if i.name == "1.weight_codes")
    assert stored.data_type == TYPES[width, family]
    assert attribute(node_named(proto, "1.weight_quant.dequantize"), "axis") == 0


def test_no_relu_stands_before_an_eight_bit_float():
    """onnxruntime's optimizer would drop it."""
    proto = lower(captured("e4m3", "OCP")[-1], "qdq")
    assert "Relu" not in op_types(proto) and op_types(proto).count("Max") == 1


def test_formats_that_onnx_has_no_type_for_are_refused_in_qdq():
    model, x = network("e4m3", "")
    before = snapshot(model)
    with pytest.raises(ExportError) as caught:
        StdONNXManager.export(model, input_t=x)
    found = caught.value.violations
    assert [(v.code, v.layer) for v in found] == [("E24", str(i)) for i in range(4)]
    assert "e4m3 (bias 7, largest 480)" in found[0].found and "Fp8e4m3OCP" in found[0].fix
    assert "use target 'qonnx'" in found[0].fix
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("target", ["finn", "qop", "dpuv1", "dpuv2"])
def test_other_targets_refuse_minifloats_by_quantizer(target):
    model, x, graph = captured("e4m3", "OCP")
    with pytest.raises(ExportError) as caught:
        lower(graph, target)
    found = [v for v in caught.value.violations if v.code == "E24"]
    assert [(v.layer, v.quantizer) for v in found] == [
        *(("0", "0.act_quant"), ("1", "1.weight_quant")),
        *(("2", "2.act_quant"), ("3", "3.weight_quant")),
    ]
    assert all("minifloat" in v.found and "integer preset" in v.fix for v in found)


def test_minifloats_have_no_integers():
    model, x, graph = captured("e4m3", "OCP")
    with pytest.raises(ExportError) as caught:
        to_integer(graph)
    found = [v for v in caught.value.violations if v.code == "E24"]
    assert [v.quantizer for v in found] == [f"{i}.{role}_quant" for i, role in enumerate(("act", "weight") * 2)]


def test_the_error_of_a_manager_names_a_target_that_takes_minifloats():
    model, x, _ = captured("e4m3", "OCP")
    with pytest.raises(ExportError, match="E24 .*QuantIdentity '0'.*minifloat.*'qonnx'"):
        FINNManager.export(model, input_t=x)


def test_finn_s_front_end_refuses_minifloats():
    with pytest.raises(ExportError) as caught:
        lower(captured("e4m3", "OCP")[-1], "qonnx", consumer="finn")
    found = caught.value.violations
    assert {v.code for v in found} == {"E24"} and "consumer 'finn'" in found[0].required


def test_older_opsets_have_no_eight_bit_floats():
    model, x, graph = captured("e4m3", "OCP")
    with pytest.raises(ExportError, match="E05 .*opset 18.*fix: pass opset_version=19"):
        lower(graph, "qdq", opset_version=18)
    proto = lower(graph, "qdq", opset_version=19)
    assert verify(model, proto, x).diverged == 0


def test_other_roundings():
    model, x = network("e4m3", "OCP", float_to_int_impl_type="floor")
    assert [v.code for v in check(model, "qdq", input_t=x)] == ["E27"]
    proto = QONNXManager.export(model, input_t=x)
    assert attribute(node_named(proto, "0.act_quant"), "rounding_mode") == b"FLOOR"
    report = verify(model, proto, x)
    assert report.diverged == 0, str(report)


@pytest.mark.parametrize("manager", [QONNXManager, StdONNXManager])
def test_scales_of_groups_are_refused(manager):
    model = nn.Sequential(QuantLinear(64, 3, weight_quant=quant.MXFloat8e4m3Weight)).eval()
    with pytest.raises(ExportError, match=r"E26 .*QuantLinear '0'.*minifloats with scales of groups.*PerChannelFloat"):
        manager.export(model, input_shape=(1, 64))


def test_statistics_that_were_never_collected_are_warned_of():
    model = nn.Sequential(QuantIdentity(quant.Fp8e4m3OCPActPerTensorFloat))
    assert [v.code for v in check(model, "qonnx", (1, 4))] == ["W30"]


def test_a_convolution_with_weights_alone():
    torch.manual_seed(0)
    model = nn.Sequential(QuantConv2d(2, 3, 3, weight_quant=quant.Fp8e5m2OCPWeightPerChannelFloat)).eval()
    x = torch.randn(2, 2, 5, 5)
    for manager, runtime in ((QONNXManager, "qonnx"), (StdONNXManager, "onnxruntime")):
        report = verify(model, manager.export(model, input_t=x), x, runtime=runtime)
        assert report.diverged == 0 and report.equal == 3 * 2 * 9, str(report)
        assert report.rows[-1].max_abs_difference < 1e-5


E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def test_codes_count_the_numbers_of_a_format():
    found = FloatFormat(2, 1, 1, 6.0)
    numbers = np.float32([-n for n in reversed(E2M1)] + E2M1)
    for scale in (1.0, 0.37):
        values = numbers * np.float32(scale)
        expected = [*range(-7, 1), *range(8)]
        assert found.codes(values, np.float32(scale)).tolist() == expected
        assert found.holds(values, np.float32(scale))
    assert not found.holds(np.float32([2.5]), np.float32(1)) and not found.holds(np.float32([8.0]), np.float32(1))
    beyond = found.codes(np.float32([6.0, np.inf, -np.inf]), np.float32(1))
    assert beyond[1] > beyond[0] and beyond[2] == -beyond[1]


def test_all_numbers_of_e4m3_are_in_order():
    found = FloatFormat(4, 3, 7, 448.0, has_nan=True)
    mantissas = [i / 8 for i in range(8)]
    numbers = [m * 2.0**-6 for m in mantissas]
    numbers += [(1 + m) * 2.0**e for e in range(-6, 9) for m in mantissas if (1 + m) * 2.0**e <= 448]
    assert found.codes(np.array(numbers), np.float32(1)).tolist() == list(range(len(numbers)))
    assert found.onnx_type == "FLOAT8E4M3FN" and FloatFormat(4, 3, 7, 480.0).onnx_type is None
