"""The QDQ lowering on graphs written by hand; integers as onnxruntime computes them against the formula."""

import numpy as np
import onnx
import onnxruntime
import pytest
from canonical_graphs import Builder, lowered
from export_networks import attribute, initializers, node_named, op_types

from brevitas.export import graph as g
from brevitas.export.lowering.integer import storage_type
from brevitas.export.targets.qdq import TARGET


def run(proto, **feeds):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def activation(shape=(4, 3), opset=None, **kwargs):
    b = Builder()
    return lowered(b.model({"x": shape}, [b.quant("x", "a.act", shape, **kwargs)]), TARGET, opset)


def fake_quantized(x, scale, zero_point, low, high):
    codes = np.clip(np.rint(x / np.float32(scale) + np.float32(zero_point)), low, high)
    return ((codes - np.float32(zero_point)) * np.float32(scale)).astype(np.float32)


@pytest.mark.parametrize(
    ("bits", "signed", "dtype"),
    [(1, False, "uint8"), (8, True, "int8"), (9, False, "uint16"), (16, True, "int16"), (17, True, "int32")],
)
def test_storage_types(bits, signed, dtype):
    assert storage_type(bits, signed) == np.dtype(dtype)


CASES = [
    # bits, signed, narrow, zero point, expected operators, least and greatest code
    (8, True, False, 0, ["QuantizeLinear", "DequantizeLinear"], -128, 127),
    (8, True, True, 0, ["QuantizeLinear", "Clip", "DequantizeLinear"], -127, 127),
    (8, False, False, 3, ["QuantizeLinear", "DequantizeLinear"], 0, 255),
    (4, True, False, 0, ["QuantizeLinear", "Clip", "DequantizeLinear"], -8, 7),
    (4, False, True, 5, ["QuantizeLinear", "Clip", "DequantizeLinear"], 0, 14),
    (1, False, False, 0, ["QuantizeLinear", "Clip", "DequantizeLinear"], 0, 1),
    (16, True, False, 0, ["QuantizeLinear", "DequantizeLinear"], -(2**15), 2**15 - 1),
    (12, False, False, 7, ["Clip", "QuantizeLinear", "DequantizeLinear"], 0, 4095),
    (10, True, True, 0, ["Clip", "QuantizeLinear", "DequantizeLinear"], -511, 511),
]


@pytest.mark.parametrize(("bits", "signed", "narrow", "zero_point", "operators", "low", "high"), CASES)
def test_activations(bits, signed, narrow, zero_point, operators, low, high):
    scale = 3.0 / (high - low)
    proto = activation((64, 8), scale=scale, bits=bits, signed=signed, narrow=narrow, zero_point=zero_point)
    assert op_types(proto) == operators
    assert proto.opset_import[0].version == (21 if bits > 8 else 20)
    x = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32) * 3
    assert np.array_equal(run(proto, x=x)[0], fake_quantized(x, scale, zero_point, low, high))


def test_names_of_nodes_and_constants():
    proto = activation(scale=0.5, bits=4)
    assert [n.name for n in proto.graph.node] == [f"a.act_quant.{p}" for p in ("quantize", "clip", "dequantize")]
    found = initializers(proto)
    assert set(found) == {"a.act_scale", "a.act_zero_point", "a.act_min", "a.act_max"}
    assert found["a.act_scale"].shape == () and found["a.act_scale"].dtype == np.float32
    assert found["a.act_zero_point"].dtype == found["a.act_min"].dtype == np.int8
    assert [i.domain for i in proto.opset_import] == [""]


@pytest.mark.parametrize("bits", [4, 8, 12, 16])
def test_a_scale_per_channel_has_its_dimension_as_axis(bits):
    scale = (np.arange(1, 4, dtype=np.float32) / 2 ** (bits - 2)).reshape(1, 3, 1)
    zero_point = np.asarray([0, 1, -2], np.float32).reshape(1, 3, 1)
    proto = activation((5, 3, 2), scale=scale, zero_point=zero_point, bits=bits)
    for op_type in ("QuantizeLinear", "DequantizeLinear"):
        node = next(n for n in proto.graph.node if n.op_type == op_type)
        assert attribute(node, "axis") == 1
    found = initializers(proto)
    assert found["a.act_scale"].shape == found["a.act_zero_point"].shape == (3,)
    x = np.random.default_rng(1).normal(size=(5, 3, 2)).astype(np.float32) * 8
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    assert np.array_equal(run(proto, x=x)[0], fake_quantized(x, scale, zero_point, low, high))


def test_a_scale_that_varies_with_one_zero_point_is_expanded():
    proto = activation((2, 3), scale=np.asarray([[0.1, 0.2, 0.3]], np.float32), zero_point=3.0, signed=False)
    assert initializers(proto)["a.act_zero_point"].tolist() == [3, 3, 3]


WEIGHT = np.asarray([[1, -2, 3], [-127, 0, 127]])


def linear(bias_scale=None, weight_scale=0.5, bias_bits=32, weight_bits=8, opset=None, **options):
    b = Builder()
    x = b.quant("x", "inp.act", (4, 3), 0.25)
    w = b.weight("fc.weight", WEIGHT, weight_scale, weight_bits, narrow=True)
    inputs = [x, w]
    if bias_scale is not None:
        inputs.append(b.weight("fc.bias", [100, -7], bias_scale, bias_bits, role="bias"))
    b.node("Gemm", inputs, "fc", (4, 2), transB=1)
    return lowered(b.model({"x": (4, 3)}, ["fc"]), TARGET, opset, **options)


def test_weights_are_integer_initializers():
    proto = linear()
    assert op_types(proto) == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Gemm"]
    found = initializers(proto)
    assert found["fc.weight_codes"].dtype == np.int8 and np.array_equal(found["fc.weight_codes"], WEIGHT)
    assert "fc.weight" not in found and not [n for n in found if n.endswith("bit_width")]
    x = np.asarray([[1.0, 0.5, -0.25]] * 4, np.float32)
    assert np.array_equal(run(proto, x=x)[0][0], (x[0] @ (WEIGHT * np.float32(0.5)).T).astype(np.float32))


def test_per_channel_weights_have_axis_0():
    proto = linear(weight_scale=np.asarray([[0.5], [0.25]], np.float32))
    node = node_named(proto, "fc.weight_quant")
    assert attribute(node, "axis") == 0 and initializers(proto)["fc.weight_scale"].shape == (2,)


@pytest.mark.parametrize(
    ("scale", "bits", "dtype"),
    [(0.125, 32, np.int32), (0.125, 8, np.int32), (0.1, 8, np.int8), (0.1, 16, np.int32)],
)
def test_biases_on_the_accumulator_grid_are_int32_others_the_smallest_type(scale, bits, dtype):
    # input scale 0.25 times weight scale 0.5 is 0.125
    proto = linear(bias_scale=scale, bias_bits=bits)
    found = initializers(proto)["fc.bias_codes"]
    assert found.dtype == dtype and found.tolist() == [100, -7]
    node = node_named(proto, "fc.bias_quant")
    assert len(node.input) == 3 and initializers(proto)[node.input[2]].dtype == dtype


def test_a_bias_per_channel():
    proto = linear(
        weight_scale=np.asarray([[0.5], [0.25]], np.float32), bias_scale=np.asarray([0.125, 0.0625], np.float32)
    )
    assert attribute(node_named(proto, "fc.bias_quant"), "axis") == 0
    assert initializers(proto)["fc.bias_codes"].dtype == np.int32


def test_a_transposed_weight_is_stored_as_it_is_multiplied():
    b = Builder()
    x = b.quant("x", "inp.act", (4, 5, 3), 0.25)
    w = b.weight("fc.weight", WEIGHT, np.asarray([[0.5], [0.25]], np.float32), narrow=True)
    b.node("Transpose", [w], "fc.Transpose", (3, 2), perm=[1, 0])
    b.node("MatMul", [x, "fc.Transpose"], "fc.MatMul", (4, 5, 2))
    proto = lowered(b.model({"x": (4, 5, 3)}, ["fc.MatMul"]), TARGET)
    assert op_types(proto) == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul"]
    found = initializers(proto)
    assert np.array_equal(found["fc.weight_codes"], WEIGHT.T)
    assert attribute(proto.graph.node[2], "axis") == 1
    x = np.full((4, 5, 3), 0.25, np.float32)
    expected = x @ (WEIGHT * np.asarray([[0.5], [0.25]], np.float32)).T
    assert np.array_equal(run(proto, x=x)[0], expected)


def test_weights_as_float_initializers_with_a_quantize_node():
    proto = linear(export_weight_q_node=True)
    assert op_types(proto) == ["QuantizeLinear", "DequantizeLinear"] + [
        "QuantizeLinear",
        "Clip",
        "DequantizeLinear",
        "Gemm",
    ]
    assert initializers(proto)["fc.weight"].dtype == np.float32
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    assert np.array_equal(run(proto, x=x)[0], run(linear(), x=x)[0])


def test_codes_that_pass_pooling_are_quantized_again_before_the_product():
    b = Builder()
    x = b.quant("x", "inp.act", (1, 1, 4, 4), 0.5, bits=4)
    b.node("MaxPool", [x], "pool", (1, 1, 2, 2), kernel_shape=[2, 2], strides=[2, 2])
    w = b.weight("conv.weight", np.ones((1, 1, 2, 2), int), 0.5)
    b.node("Conv", ["pool", w], "conv", (1, 1, 1, 1), kernel_shape=[2, 2])
    proto = lowered(b.model({"x": (1, 1, 4, 4)}, ["conv"]), TARGET)
    assert op_types(proto) == [
        *("QuantizeLinear", "Clip", "DequantizeLinear", "MaxPool"),
        *("DequantizeLinear", "QuantizeLinear", "Clip", "DequantizeLinear", "Conv"),
    ]
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4) / 4
    # pooled 1.25, 1.75, 3.25, 3.75 in steps of 0.5, ties to even: codes 2, 4, 6, 8 -> 7 (clipped)
    assert run(proto, x=x)[0].item() == pytest.approx((2 + 4 + 6 + 7) * 0.25)


def test_two_quantizers_of_one_name_share_constants():
    b = Builder()
    x = b.quant("x", "a.act", (2, 2), 0.5)
    y = b.quant(x, "a.act", (2, 2), 0.5)
    b.nodes[1].output[0], b.nodes[1].name = "second", "a.act_quant_1"
    b.shapes["second"] = (2, 2)
    proto = lowered(b.model({"x": (2, 2)}, ["second"]), TARGET)
    assert y and set(initializers(proto)) == {"a.act_scale", "a.act_zero_point"}


def violations(opset=None, role="act", **kwargs):
    b = Builder()
    shape = np.shape(kwargs.pop("codes", np.zeros((2, 3))))
    if role == "act":
        out = b.quant("x", "l.act", shape, **kwargs)
    else:
        w = b.weight("l.weight", np.zeros(shape, int), role=role, **kwargs)
        out = b.node("Add", ["x", w], "l", shape)
    return TARGET.check(b.model({"x": shape}, [out]), {"opset_version": opset})


@pytest.mark.parametrize(
    ("kwargs", "code", "words"),
    [
        ({"scale": 1, "bits": 17}, "E11", ["17", "16"]),
        ({"scale": 1, "bits": 9, "opset": 20}, "E11", ["9", "opset_version=21"]),
        ({"scale": 1, "bits": 33, "role": "bias"}, "E11", ["33", "32"]),
        ({"scale": 1, "rounding": "FLOOR"}, "E27", ["FLOOR", "qonnx"]),
        ({"scale": 1, "rounding": "DOWN"}, "E27", ["ROUND_TO_ZERO"]),
        ({"scale": np.ones((2, 3), np.float32)}, "E12", ["(2, 3)"]),
        ({"scale": 1, "zero_point": 0.5}, "E21", ["0.5"]),
        ({"scale": 1, "zero_point": -1, "signed": False}, "E21", ["-1", "0..255"]),
        ({"scale": 1, "zero_point": 2, "role": "bias"}, "E21", ["bias"]),
        ({"scale": 1, "bits": 1}, "E10", ["1"]),
        ({"scale": 1, g.UNSUPPORTED: "something odd"}, "E24", ["something odd"]),
        ({"scale": 1, g.COLLECTED: "0"}, "W30", ["never collected", "calibration"]),
    ],
)
def test_rules(kwargs, code, words):
    (found,) = violations(**kwargs)
    assert found.code == code and found.layer == "l" and found.quantizer.startswith("l.")
    assert all(word in str(found) for word in words)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"scale": 1, "bits": 16},
        {"scale": 1, "bits": 9, "opset": 21},
        {"scale": 1, "bits": 32, "role": "bias"},
        {"scale": 1, "bits": 9, "role": "bias", "opset": 13},
        {"scale": np.ones((1, 3), np.float32)},
        {"scale": 1, "zero_point": 255, "signed": False},
        {"scale": 1, "bits": 1, "signed": False},
    ],
)
def test_what_the_rules_accept(kwargs):
    assert violations(**kwargs) == []


def test_an_operator_of_an_unknown_domain_is_refused():
    b = Builder()
    b.nodes.append(onnx.helper.make_node("Magic", ["x"], ["y"], name="m", domain="my.domain"))
    b.shapes["y"] = (2,)
    (found,) = TARGET.check(b.model({"x": (2,)}, ["y"]), {})
    assert found.code == "E04" and "my.domain::Magic" in found.found
