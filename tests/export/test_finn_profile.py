"""``consumer='finn'``: each rule of FINN's front end, refused where broken, accepted in the form that it takes."""

import numpy as np
import pytest
from canonical_graphs import Builder, lowered
from export_networks import attribute, initializers, node_named, op_types
from torch import nn

from brevitas.errors import ExportError
from brevitas.export import QONNXManager, check
from brevitas.export import graph as g
from brevitas.export.targets.qonnx import TARGET
from brevitas.export.verification.runtimes import open_session
from brevitas.nn import QuantIdentity


def found(builder, inputs, outputs, consumer="finn"):
    return TARGET.check(builder.model(inputs, outputs), {"consumer": consumer})


def lower(builder, inputs, outputs):
    return lowered(builder.model(inputs, outputs), TARGET, consumer="finn")


def one(builder, inputs, outputs, code, text, layer="a"):
    """The one violation, which the dialect itself does not have."""
    (violation,) = found(builder, inputs, outputs)
    assert violation.code == code and text in str(violation) and violation.layer == layer
    assert "for consumer 'finn'" in violation.required and violation.fix
    assert found(builder, inputs, outputs, consumer=None) == []


def run(proto, **inputs):
    return open_session("qonnx", proto)({k: np.asarray(v, np.float32) for k, v in inputs.items()})


@pytest.mark.parametrize("role", ["act", "weight"])
def test_zero_points(role):
    for zero_point, legal in ((0.0, True), (3.0, False)):
        b = Builder()
        if role == "act":
            y = b.quant("x", "a.act", (4, 3), 0.5, zero_point=zero_point)
        else:
            w = b.weight("a.weight", [[1, 2, 3]], 0.5, zero_point=zero_point)
            y = b.node("Gemm", ["x", w, b.constant("bias", [0.0])], "y", (4, 1), transB=1)
        if legal:
            assert found(b, {"x": (4, 3)}, [y]) == []
        else:
            one(b, {"x": (4, 3)}, [y], "E21", "zero point [3.0]")


SIGNEDNESS = [
    # before, signed, narrow, legal
    ("Relu", True, False, False),
    ("Relu", False, True, False),
    ("Relu", False, False, True),
    ("Selu", False, False, True),
    ("Selu", True, False, True),
    ("Sigmoid", False, False, False),
    ("Sigmoid", True, False, True),
    (None, False, False, False),
    (None, True, True, True),
]


@pytest.mark.parametrize(("before", "signed", "narrow", "legal"), SIGNEDNESS)
def test_codes_are_unsigned_after_relu_and_signed_elsewhere(before, signed, narrow, legal):
    b = Builder()
    x = "x" if before is None else b.node(before, ["x"], "before", (4, 3))
    y = b.quant(x, "a.act", (4, 3), 0.5, signed=signed, narrow=narrow)
    if legal:
        assert found(b, {"x": (4, 3)}, [y]) == []
    else:
        text = "after a ReLU" if before == "Relu" else f"unsigned codes after {before or 'the model'}"
        one(b, {"x": (4, 3)}, [y], "E13", text)


@pytest.mark.parametrize(("bits", "legal"), [(8, True), (9, False)])
def test_wide_activations_are_warned_of(bits, legal):
    b = Builder()
    y = b.quant("x", "a.act", (4, 3), 0.5, bits=bits)
    if legal:
        assert found(b, {"x": (4, 3)}, [y]) == []
    else:
        one(b, {"x": (4, 3)}, [y], "W31", "bit width 9")
        assert found(b, {"x": (4, 3)}, [y])[0].is_warning


WEIGHTS = {
    "Conv, out": ("Conv", (3, 2, 1, 1), (3, 1, 1, 1), True),
    "Conv, in": ("Conv", (3, 2, 1, 1), (1, 2, 1, 1), False),
    "ConvTranspose, out": ("ConvTranspose", (2, 3, 1, 1), (1, 3, 1, 1), True),
    "ConvTranspose, in": ("ConvTranspose", (2, 3, 1, 1), (2, 1, 1, 1), False),
    "Gemm, out": ("Gemm", (3, 2), (3, 1), True),
    "Gemm, in": ("Gemm", (3, 2), (1, 2), False),
    "MatMul, out": ("MatMul", (2, 3), (1, 3), True),
    "MatMul, in": ("MatMul", (2, 3), (2, 1), False),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_scales_of_weights_are_one_or_one_an_output_channel(name):
    op_type, shape, scale_shape, legal = WEIGHTS[name]
    b = Builder()
    scale = np.linspace(0.5, 1, int(np.prod(scale_shape)), dtype=np.float32).reshape(scale_shape)
    w = b.weight("a.weight", np.ones(shape), scale)
    operands = ["x", w] + ([b.constant("bias", np.zeros(3))] if op_type == "Gemm" else [])
    attributes = {"transB": 1} if op_type == "Gemm" else {}
    x, y = ((1, 2, 4, 4), (1, 3, 4, 4)) if len(shape) == 4 else ((4, 2), (4, 3))
    b.node(op_type, operands, "y", y, **attributes)
    if legal:
        assert found(b, {"x": x}, ["y"]) == []
    else:
        one(b, {"x": x}, ["y"], "E12", "a scale of shape")


def test_a_weight_that_two_layers_read_is_quantized_for_each():
    b = Builder()
    w = b.weight("a.weight", [[1, 2], [3, 4]], 0.5)
    for y in ("first", "second"):
        b.node("Gemm", ["x", w], y, (4, 2), transB=1)
    proto = lower(b, {"x": (4, 2)}, ["first", "second"])
    quants = [n for n in proto.graph.node if n.op_type == "Quant"]
    assert len(quants) == 2 and len({n.output[0] for n in quants}) == 2 and len({n.name for n in quants}) == 2
    readers = [i for n in proto.graph.node for i in n.input]
    assert all(readers.count(n.output[0]) == 1 for n in quants)
    x = np.arange(8).reshape(4, 2)
    result = run(proto, x=x)
    assert np.array_equal(result["first"], x @ np.float32([[1, 3], [2, 4]]) * 0.5)
    assert np.array_equal(result["first"], result["second"])


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_binary_activations_have_scale_1_and_a_mul(scale):
    b = Builder()
    y = b.bipolar(b.quant("x", "b.act", (4, 3), 0.5), "a.act", (4, 3), scale)
    proto = lower(b, {"x": (4, 3)}, [y])
    assert op_types(proto) == ["Quant", "BipolarQuant"] + (["Mul"] if scale != 1 else [])
    assert initializers(proto)[node_named(proto, "a.act_quant").input[1]] == 1.0
    x = np.float32([[-1, 0, 1]] * 4)
    assert np.array_equal(run(proto, x=x)[y], np.where(x >= 0, scale, -scale).astype(np.float32))


def test_a_network_of_binary_quantizers_alone():
    b = Builder()
    w = b.bipolar(b.constant("a.weight", [[0.5, -0.5]]), "a.weight", (1, 2), 0.5, role="weight")
    b.node("Gemm", ["x", w, b.constant("bias", [0.0])], "y", (4, 1), transB=1)
    one(b, {"x": (4, 2)}, ["y"], "E24", "binary codes, as in every quantizer")
    b = Builder()
    x = b.quant("x", "b.act", (4, 2), 0.5)
    w = b.bipolar(b.constant("a.weight", [[0.5, -0.5]]), "a.weight", (1, 2), 0.5, role="weight")
    b.node("Gemm", [x, w, b.constant("bias", [0.0])], "y", (4, 1), transB=1)
    assert found(b, {"x": (4, 2)}, ["y"]) == []


@pytest.mark.parametrize(("rounding", "legal"), [("ROUND", True), ("FLOOR", False), ("CEIL", False), ("DOWN", False)])
def test_rounding_modes_of_activations(rounding, legal):
    b = Builder()
    y = b.quant("x", "a.act", (4, 3), 0.5, rounding=rounding)
    if legal:
        assert found(b, {"x": (4, 3)}, [y]) == []
    else:
        spoken = "ROUND_TO_ZERO" if rounding == "DOWN" else rounding
        one(b, {"x": (4, 3)}, [y], "E27", f"rounding {spoken}")


@pytest.mark.parametrize("shape", [(), (1,), (2,)])
def test_bias_quantizers_have_scales_and_zero_points_of_one_dimension(shape):
    b = Builder()
    w = b.weight("a.weight", [[1, 2], [3, 4]], 0.5)
    bias = b.weight("a.bias", [3, -4], np.full(shape, 0.25, np.float32), role="bias")
    b.node("Gemm", ["x", w, bias], "y", (4, 2), transB=1)
    y = b.quant("y", "c.act", (4, 2), 0.5)
    proto = lower(b, {"x": (4, 2)}, [y])
    node = node_named(proto, "a.bias_quant")
    assert initializers(proto)[node.input[1]].shape == (shape or (1,))
    assert initializers(proto)[node.input[2]].shape == (1,)
    x = np.arange(8).reshape(4, 2)
    expected = np.clip(np.rint((x @ [[1, 3], [2, 4]] * 0.5 + [0.75, -1.0]) / 0.5), -128, 127) * 0.5
    assert np.array_equal(run(proto, x=x)[y], expected)


@pytest.mark.parametrize("quantized_after", [True, False])
def test_a_bias_with_nothing_quantized_after_it_is_a_float_constant(quantized_after):
    b = Builder()
    w = b.weight("a.weight", [[1, 2], [3, 4]], 0.5)
    b.node("Gemm", ["x", w, b.weight("a.bias", [3, -4], 0.25, role="bias")], "y", (4, 2), transB=1)
    y = b.node("Relu", ["y"], "relu", (4, 2))
    y = b.quant(y, "c.act", (4, 2), 0.5, signed=False) if quantized_after else y
    proto = lower(b, {"x": (4, 2)}, [y])
    gemm = node_named(proto, "y")
    assert (gemm.input[2] in initializers(proto)) is not quantized_after
    if not quantized_after:
        assert initializers(proto)[gemm.input[2]].tolist() == [0.75, -1.0]


def pooled(b, rounding="FLOOR", **attributes):
    x = b.quant("x", "b.act", (1, 2, 4, 4), 0.5, bits=4)
    b.node("AveragePool", [x], "mean", (1, 2, 2, 2), **{"kernel_shape": [2, 2], "strides": [2, 2], **attributes})
    return b.trunc("mean", "a.trunc", (1, 2, 2, 2), 0.125, 6, 2, 4, signed=True, rounding=rounding)


def test_average_pools_are_sums_with_the_five_input_trunc():
    b = Builder()
    y = pooled(b)
    proto = lower(b, {"x": (1, 2, 4, 4)}, [y])
    assert op_types(proto) == ["Quant", "AveragePool", "Mul", "Trunc", "Mul"]
    assert {i.domain: i.version for i in proto.opset_import} == {"": 20, g.DOMAIN: 1}
    assert proto.opset_import[0].domain == ""
    window, factor = (next(n for n in proto.graph.node if n.name == f"a.trunc_quant.{end}") for end in ("sum", "scale"))
    constants = initializers(proto)
    assert constants[window.input[1]].shape == () and constants[window.input[1]] == 4.0
    assert constants[factor.input[1]] == 1.0  # 2 bits removed, windows of 4
    trunc = node_named(proto, "a.trunc_quant")
    assert [float(constants[name]) for name in trunc.input[1:]] == [0.5, 0.0, 6.0, 4.0]
    assert [a.name for a in trunc.attribute] == ["rounding_mode"] and attribute(trunc, "rounding_mode") == b"FLOOR"
    x = np.random.default_rng(0).uniform(-4, 4, (1, 2, 4, 4)).astype(np.float32)
    sums = np.clip(np.rint(x / 0.5), -8, 7).reshape(1, 2, 2, 2, 2, 2).sum((3, 5))
    assert np.array_equal(run(proto, x=x)[y], np.floor(sums / 4) * 0.5)


def test_a_pool_whose_sums_are_narrower_than_the_result_removes_nothing():
    b = Builder()
    x = b.quant("x", "b.act", (1, 2, 4, 4), 0.5, bits=2)
    b.node("AveragePool", [x], "mean", (1, 2, 2, 2), kernel_shape=[2, 2], strides=[2, 2])
    y = b.trunc("mean", "a.trunc", (1, 2, 2, 2), 0.125, 4, 0, 8, signed=True)
    proto = lower(b, {"x": (1, 2, 4, 4)}, [y])
    x = np.random.default_rng(0).uniform(-2, 2, (1, 2, 4, 4)).astype(np.float32)
    sums = np.clip(np.rint(x / 0.5), -2, 1).reshape(1, 2, 2, 2, 2, 2).sum((3, 5))
    assert np.array_equal(run(proto, x=x)[y], sums * 0.125)


def test_the_whole_dialect_has_trunc_with_six_inputs_and_version_2():
    b = Builder()
    proto = lowered(b.model({"x": (1, 2, 4, 4)}, [pooled(b)]), TARGET)
    assert op_types(proto) == ["Quant", "AveragePool", "Trunc"] and len(proto.graph.node[-1].input) == 6
    assert {i.domain: i.version for i in proto.opset_import}[g.DOMAIN] == 2


@pytest.mark.parametrize(
    ("rounding", "attributes", "text"),
    [
        ("ROUND", {}, "rounding ROUND"),
        ("CEIL", {}, "rounding CEIL"),
        ("FLOOR", {"kernel_shape": [2, 1]}, "a window of (2, 1)"),
        ("FLOOR", {"pads": [1, 1, 1, 1]}, "padding"),
        ("FLOOR", {"ceil_mode": 1}, "ceil_mode"),
    ],
)
def test_other_average_pools(rounding, attributes, text):
    b = Builder()
    one(b, {"x": (1, 2, 4, 4)}, [pooled(b, rounding, **attributes)], "E23", text)


def test_truncation_without_a_pool():
    b = Builder()
    x = b.quant("x", "b.act", (4, 2), 0.5)
    one(b, {"x": (4, 2)}, [b.trunc(x, "a.trunc", (4, 2), 0.5, 8, 4, 4, signed=True)], "E04", "no average pooling")


def test_every_attribute_of_a_convolution_is_written_out():
    b = Builder()
    w = b.weight("a.weight", np.ones((3, 2, 2, 1)), 0.5)
    b.node("Conv", ["x", w], "y", (1, 3, 3, 4), dilations=[1, 1])
    for consumer in (None, "finn"):
        proto = lowered(b.model({"x": (1, 2, 4, 4)}, ["y"]), TARGET, consumer=consumer)
        conv = node_named(proto, "y")
        names = {a.name for a in conv.attribute}
        assert names == {"kernel_shape", "strides", "pads", "dilations", "group"}
        assert list(attribute(conv, "kernel_shape")) == [2, 1] and list(attribute(conv, "pads")) == [0, 0, 0, 0]
        assert attribute(conv, "group") == 1


def test_a_gemm_that_has_no_matmul_form_gets_a_bias_of_zeros():
    b = Builder()
    w = b.weight("a.weight", [[1, 2], [3, 4]], 0.5)
    b.node("Gemm", ["x", w], "y", (4, 2), transB=1, alpha=0.5)
    proto = lowered(b.model({"x": (4, 2)}, ["y"]), TARGET)
    assert op_types(proto) == ["Quant", "Gemm"]
    assert initializers(proto)[node_named(proto, "y").input[2]].tolist() == [0.0, 0.0]
    x = np.arange(8).reshape(4, 2)
    assert np.array_equal(run(proto, x=x)["y"], x @ np.float32([[1, 3], [2, 4]]) * 0.25)


@pytest.mark.parametrize("consumer", ["FINN", "hls4ml", 3])
def test_an_unknown_consumer_is_refused_with_the_known_one(consumer):
    with pytest.raises(ExportError, match=r"E02 \[qonnx\].*consumer=.*fix: pass consumer='finn'"):
        QONNXManager.export(nn.Sequential(nn.ReLU()), (1, 2), consumer=consumer)


def test_check_and_export_take_the_consumer():
    model = nn.Sequential(QuantIdentity(float_to_int_impl_type="floor"))
    assert [v.code for v in check(model, "qonnx", (1, 2), consumer="finn")] == ["E27", "W30"]
    assert [v.code for v in check(model, "qonnx", (1, 2))] == ["W30"]
    with pytest.raises(ExportError, match="E27.*use target 'finn'"), pytest.warns(UserWarning, match="W30"):
        QONNXManager.export(model, (1, 2), consumer="finn")
    (unknown,) = check(model, "qdq", (1, 2), consumer="finn")
    assert unknown.code == "E02" and "'consumer'" in unknown.found
