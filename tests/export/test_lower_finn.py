"""The FINN form on graphs written by hand: nodes, constants and annotations; executed by the qonnx package."""

import numpy as np
import onnx
import pytest
from canonical_graphs import Builder, lowered
from export_networks import attribute, initializers, node_named, op_types

from brevitas.export import graph as g
from brevitas.export.targets.finn import TARGET
from brevitas.export.verification.runtimes import open_session

FINN = "finn.custom_op.general"


def annotations(proto):
    return {a.tensor_name: a.quant_parameter_tensor_names for a in proto.graph.quantization_annotation}


def datatypes(proto):
    found = annotations(proto)
    assert all(len(pairs) == 1 and pairs[0].key == "finn_datatype" for pairs in found.values())
    return {name: pairs[0].value for name, pairs in found.items()}


def run(proto, **inputs):
    arrays = {name: np.asarray(x, np.float32) for name, x in inputs.items()}
    return open_session("qonnx", proto)(arrays)


def test_a_signed_quantizer_counts_thresholds_adds_its_least_code_and_scales():
    b = Builder()
    proto = lowered(b.model({"x": (2, 3)}, [b.quant("x", "a.act", (2, 3), 0.5, bits=3)]), TARGET)
    assert [(n.op_type, n.domain) for n in proto.graph.node] == [("MultiThreshold", FINN), ("Add", ""), ("Mul", "")]
    assert attribute(proto.graph.node[0], "out_dtype") == b"INT3"
    assert attribute(proto.graph.node[0], "data_layout") == b"NCHW"
    after = np.nextafter(np.float32(-1.75), np.float32(0)), np.nextafter(np.float32(0.25), np.float32(1))
    thresholds = initializers(proto)["a.act_threshold"]
    assert thresholds.shape == (3, 7)
    # Codes -3 to 3 of step 0.5: halfway between two codes is the even one.
    expected = [after[0], -1.25, np.nextafter(np.float32(-0.75), np.float32(0)), -0.25, after[1], 0.75]
    expected.append(np.nextafter(np.float32(1.25), np.float32(2)))
    assert np.array_equal(thresholds, np.tile(np.float32(expected), (3, 1)))
    assert initializers(proto)["a.act_min"] == -4 and initializers(proto)["a.act_scale"] == 0.5
    assert datatypes(proto) == {"a.act_quant.offset.out": "INT3"}
    x = np.float32([[-1.75, -1.25, -0.75], [-0.25, 0.25, 9.0]])
    assert run(proto, x=x)["a.act.out"].tolist() == [[-2, -1, -1], [0, 0, 1.5]]


def test_an_unsigned_quantizer_absorbs_the_relu_before_it():
    b = Builder()
    b.node("Relu", ["x"], "relu", (2, 3, 4, 4))
    proto = lowered(
        b.model({"x": (2, 3, 4, 4)}, [b.quant("relu", "a.act", (2, 3, 4, 4), 0.5, 2, signed=False)]), TARGET
    )
    assert op_types(proto) == ["MultiThreshold", "Mul"]
    assert proto.graph.node[0].input[0] == "x"
    assert attribute(proto.graph.node[0], "out_dtype") == b"UINT2"
    assert attribute(proto.graph.node[0], "data_layout") == b"NCHW"
    assert initializers(proto)["a.act_threshold"].shape == (3, 3)
    assert datatypes(proto) == {"a.act_quant.out": "UINT2"}


def test_a_relu_that_something_else_reads_stays():
    b = Builder()
    b.node("Relu", ["x"], "relu", (2, 3))
    a = b.quant("relu", "a.act", (2, 3), 0.5, 2, signed=False)
    b.node("Add", ["relu", a], "sum", (2, 3))
    assert op_types(lowered(b.model({"x": (2, 3)}, ["sum"]), TARGET)) == ["Relu", "MultiThreshold", "Mul", "Add"]


def test_a_relu_before_a_signed_quantizer_stays():
    b = Builder()
    b.node("Relu", ["x"], "relu", (2, 3))
    proto = lowered(b.model({"x": (2, 3)}, [b.quant("relu", "a.act", (2, 3), 0.5, 3)]), TARGET)
    assert op_types(proto) == ["Relu", "MultiThreshold", "Add", "Mul"]


@pytest.mark.parametrize(("limit", "kept"), [(0.9, True), (1.25, True), (1.5, False), (2.0, False)])
def test_a_clip_is_absorbed_where_no_threshold_lies_beyond_it(limit, kept):
    b = Builder()
    b.node("Clip", ["x", b.constant("low", 0.0), b.constant("high", limit)], "clip", (2, 3))
    model = b.model({"x": (2, 3)}, [b.quant("clip", "a.act", (2, 3), 0.5, 2, signed=False, rounding="DOWN")])
    proto = lowered(model, TARGET)
    assert initializers(proto)["a.act_threshold"][0].tolist() == [0.5, 1.0, 1.5]
    assert ("Clip" in op_types(proto)) is kept
    x = np.linspace(-1, 3, 6).reshape(2, 3).astype(np.float32)
    expected = np.clip(np.trunc(np.clip(x, 0, np.float32(limit)) / 0.5), 0, 3) * 0.5
    assert np.array_equal(run(proto, x=x)["a.act.out"], expected.astype(np.float32))


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_binary_codes_are_one_threshold(scale):
    b = Builder()
    y = b.bipolar("x", "a.act", (2, 3), scale)
    proto = lowered(b.model({"x": (2, 3)}, [y]), TARGET)
    assert op_types(proto) == (["MultiThreshold"] if scale == 1 else ["MultiThreshold", "Mul"])
    node = proto.graph.node[0]
    assert attribute(node, "out_dtype") == b"BIPOLAR"
    assert (attribute(node, "out_scale"), attribute(node, "out_bias")) == (2.0, -1.0)
    assert initializers(proto)["a.act_threshold"].tolist() == [[0.0]]
    x = [[0.0, -0.0, 1e-40], [-1e-40, 3.0, -3.0]]
    assert run(proto, x=x)["a.act.out"].tolist() == [[scale, scale, scale], [-scale, scale, -scale]]


def test_a_scale_per_channel_gives_rows_of_thresholds():
    b = Builder()
    scale = np.float32([0.5, 2.0]).reshape(1, 2, 1, 1)
    proto = lowered(b.model({"x": (1, 2, 1, 3)}, [b.quant("x", "a.act", (1, 2, 1, 3), scale, 2, signed=False)]), TARGET)
    rows = initializers(proto)["a.act_threshold"]
    assert rows.shape == (2, 3) and np.array_equal(rows[0] * 4, rows[1])
    assert initializers(proto)["a.act_scale"].shape == (1, 2, 1, 1)
    x = np.float32([[[[0.3, 0.9, 1.6]], [[0.3, 2.9, 9.0]]]])
    assert run(proto, x=x)["a.act.out"].tolist() == [[[[0.5, 1.0, 1.5]], [[0.0, 2.0, 6.0]]]]


def linear(b, bias=None, scale=0.5, x="x"):
    w = b.weight("fc.weight", [[1, 2, 3], [-4, 5, -6]], scale, bits=4)
    operands = [x, w] + ([] if bias is None else [bias])
    return b.node("Gemm", operands, "fc", (4, 2), transB=1)


def test_linear_without_bias():
    b = Builder()
    linear(b, scale=np.float32([[0.5], [0.25]]))
    proto = lowered(b.model({"x": (4, 3)}, ["fc"]), TARGET)
    assert op_types(proto) == ["MatMul", "Mul"]
    constants = initializers(proto)
    assert constants["fc.weight"].tolist() == [[1, -4], [2, 5], [3, -6]] and constants["fc.weight"].dtype == np.float32
    assert constants["fc.scale"].tolist() == [[0.5, 0.25]]
    assert datatypes(proto) == {"fc.weight": "INT4"}
    x = np.arange(12).reshape(4, 3)
    expected = x @ np.float32([[1, 2, 3], [-4, 5, -6]]).T * [0.5, 0.25]
    assert np.array_equal(run(proto, x=x)["fc"], expected)


def test_linear_with_a_float_bias_adds_it_in_units_of_the_weight():
    b = Builder()
    linear(b, b.constant("fc.bias", [1.0, 3.0]), scale=np.float32([[0.5], [0.25]]))
    proto = lowered(b.model({"x": (4, 3)}, ["fc"]), TARGET)
    assert op_types(proto) == ["MatMul", "Add", "Mul"]
    assert initializers(proto)["fc.bias"].tolist() == [[2.0, 12.0]]


def quantized_bias(b, codes, scale, bits=8):
    return b.weight("fc.bias", codes, scale, bits, role="bias")


def test_a_bias_on_the_accumulator_grid_makes_the_layer_integer():
    b = Builder()
    x = b.quant("x", "a.act", (4, 3), 0.25, bits=4)
    linear(b, quantized_bias(b, [10, -20], 0.125), x=x)
    proto = lowered(b.model({"x": (4, 3)}, ["fc"]), TARGET)
    # The quantizer's Mul and the layer's Div cancel: codes reach MatMul as they are.
    assert op_types(proto) == ["MultiThreshold", "Add", "MatMul", "Add", "Mul"]
    matmul = node_named(proto, "fc")
    assert list(matmul.input) == ["a.act_quant.offset.out", "fc.weight"]
    assert initializers(proto)["fc.bias"].tolist() == [[10.0, -20.0]]
    assert initializers(proto)["fc.scale"] == 0.125
    # 8 * (4 + 5 + 6) and 7 * 5 + 8 * 10, plus the bias: -125..112 and -127..95
    found = datatypes(proto)
    assert found["fc.weight"] == "INT4" and found["fc.bias"] == "INT8"
    assert found["fc.out"] == "INT8" and found["fc.bias.out"] == "INT9"


def test_integer_data_without_bias_stays_integer():
    b = Builder()
    linear(b, scale=np.float32([[0.5], [0.25]]), x=b.quant("x", "a.act", (4, 3), 0.1, bits=4, signed=False))
    proto = lowered(b.model({"x": (4, 3)}, ["fc"]), TARGET)
    assert op_types(proto) == ["MultiThreshold", "MatMul", "Mul"]
    product = np.float32(0.1) * np.float32([[0.5, 0.25]])
    assert np.array_equal(initializers(proto)["fc.scale"], product)
    x = np.random.default_rng(0).uniform(-1, 2, (4, 3)).astype(np.float32)
    codes = np.clip(np.rint(x / np.float32(0.1)), 0, 15)
    accumulator = (codes @ np.float32([[1, 2, 3], [-4, 5, -6]]).T).astype(np.float32)
    assert np.array_equal(run(proto, x=x)["fc"], accumulator * product)
    assert datatypes(proto)["fc.out"] == "INT9"  # -150..90


def test_integer_data_with_a_float_bias_keep_their_scale():
    b = Builder()
    x = b.quant("x", "a.act", (4, 3), 0.1, bits=4, signed=False)
    linear(b, b.constant("fc.bias", [1.0, 3.0]), x=x)
    proto = lowered(b.model({"x": (4, 3)}, ["fc"]), TARGET)
    assert op_types(proto) == ["MultiThreshold", "Mul", "MatMul", "Add", "Mul"]
    assert initializers(proto)["fc.scale"] == 0.5 and "fc.out" not in datatypes(proto)


def test_codes_pass_pooling_and_reshaping_to_where_they_are_needed():
    b = Builder()
    x = b.quant("x", "a.act", (2, 3, 2, 2), 0.1, bits=4, signed=False)
    b.node("MaxPool", [x], "pool", (2, 3, 1, 1), kernel_shape=[2, 2])
    b.node("Flatten", ["pool"], "flat", (2, 3))
    w = b.weight("fc.weight", [[1, 2, 3]], 0.5, bits=4)
    b.node("Gemm", ["flat", w, quantized_bias(b, [7], 0.05)], "fc", (2, 1), transB=1)
    proto = lowered(b.model({"x": (2, 3, 2, 2)}, ["fc"]), TARGET)
    assert op_types(proto) == ["MultiThreshold", "MaxPool", "Flatten", "MatMul", "Add", "Mul"]
    assert [n.name for n in proto.graph.node] == ["a.act_quant", "pool", "flat", "fc", "fc.bias", "fc.dequantize"]
    assert datatypes(proto)["flat"] == "UINT4"


def test_a_branch_that_needs_values_keeps_its_scale_and_the_other_one_reads_codes():
    b = Builder()
    x = b.quant("x", "a.act", (4, 3), 0.1, bits=4, signed=False)
    b.node("Flatten", [x], "flat", (4, 3))
    linear(b, quantized_bias(b, [7, 1], 0.05), x="flat")
    b.node("ReduceMax", ["flat"], "most", (1, 1))
    proto = lowered(b.model({"x": (4, 3)}, ["fc", "most"]), TARGET)
    assert sorted(op_types(proto)) == sorted(
        ["MultiThreshold", "Mul", "Flatten", "Flatten", "MatMul", "Add", "Mul", "ReduceMax"]
    )
    assert node_named(proto, "fc").input[0] == node_named(proto, "flat.codes").output[0]
    x = np.random.default_rng(0).uniform(-1, 2, (4, 3)).astype(np.float32)
    codes = np.clip(np.rint(x / np.float32(0.1)), 0, 15)
    found = run(proto, x=x)
    accumulator = codes @ np.float32([[1, 2, 3], [-4, 5, -6]]).T + [7, 1]
    product = np.float32(0.1) * np.float32(0.5)
    assert np.array_equal(found["fc"], (accumulator.astype(np.float32) * product).astype(np.float32))
    assert found["most"] == np.float32(codes.max()) * np.float32(0.1)


def test_sums_of_codes_of_one_scale_are_codes():
    b = Builder()
    first = b.quant("x", "a.act", (4, 3), 0.1, bits=4)
    second = b.quant("y", "b.act", (4, 3), 0.1, bits=4)
    b.node("Add", [first, second], "sum", (4, 3))
    linear(b, quantized_bias(b, [7, 1], 0.05), x="sum")
    proto = lowered(b.model({"x": (4, 3), "y": (4, 3)}, ["fc"]), TARGET)
    assert datatypes(proto)[node_named(proto, "fc").input[0]] == "INT5"
    assert "Div" not in op_types(proto) and op_types(proto).count("Mul") == 1


def test_a_depthwise_convolution_takes_a_scale_per_channel():
    b = Builder()
    x = b.quant("x", "a.act", (1, 2, 3, 3), np.float32([0.5, 2.0]).reshape(1, 2, 1, 1), bits=4)
    w = b.weight("conv.weight", np.ones((2, 1, 1, 1)), 0.25, bits=4)
    bias = b.weight("conv.bias", [3, -3], np.float32([0.125, 0.5]), 8, role="bias")
    b.node("Conv", [x, w, bias], "conv", (1, 2, 3, 3), group=2, kernel_shape=[1, 1], auto_pad="NOTSET")
    proto = lowered(b.model({"x": (1, 2, 3, 3)}, ["conv"]), TARGET)
    assert op_types(proto) == ["MultiThreshold", "Add", "Conv", "Add", "Mul"]
    assert initializers(proto)["conv.scale"].reshape(-1).tolist() == [0.125, 0.5]
    assert {a.name for a in node_named(proto, "conv").attribute} == {"group", "kernel_shape"}
    x = np.full((1, 2, 3, 3), 1.2, np.float32)
    assert np.unique(run(proto, x=x)["conv"][0, 0]).tolist() == [(2 + 3) * 0.125]
    assert np.unique(run(proto, x=x)["conv"][0, 1]).tolist() == [(1 - 3) * 0.5]


def test_binary_weights_are_annotated_as_such():
    b = Builder()
    w = b.bipolar(b.constant("fc.weight", [[0.5, -0.5]]), "fc.weight", (1, 2), 0.5, role="weight")
    b.node("Gemm", ["x", w], "fc", (4, 1), transB=1)
    proto = lowered(b.model({"x": (4, 2)}, ["fc"]), TARGET)
    assert datatypes(proto) == {"fc.weight": "BIPOLAR"}
    assert initializers(proto)["fc.weight"].tolist() == [[1.0], [-1.0]]


def pooled(b, side=2, bits=4, signed=False, out_bits=4, scale=0.5, removed=None):
    area = side * side
    sum_bits = int(area * (2**bits - 1)).bit_length() if not signed else int(np.ceil(np.log2(area * 2**bits)))
    removed = sum_bits - out_bits if removed is None else removed
    x = b.quant("x", "a.act", (1, 2, 6, 6), scale, bits=bits, signed=signed)
    b.node("AveragePool", [x], "mean", (1, 2, 6 // side, 6 // side), kernel_shape=[side] * 2, strides=[side] * 2)
    return b.trunc(
        "mean", "pool.trunc", (1, 2, 6 // side, 6 // side), scale / area, sum_bits, removed, out_bits, signed=signed
    )


@pytest.mark.parametrize(("side", "bits", "signed"), [(2, 4, False), (2, 4, True), (3, 5, False), (3, 8, True)])
def test_average_pooling_shifts_the_sum_of_codes(side, bits, signed):
    b = Builder()
    proto = lowered(b.model({"x": (1, 2, 6, 6)}, [pooled(b, side, bits, signed)]), TARGET)
    assert op_types(proto)[-2:] == ["QuantAvgPool2d", "Mul"] and "AveragePool" not in op_types(proto)
    node = next(n for n in proto.graph.node if n.op_type == "QuantAvgPool2d")
    assert node.domain == FINN
    assert [attribute(node, name) for name in ("kernel", "stride", "signed", "ibits", "obits")] == [
        *(side, side),
        *(int(signed), bits, 4),
    ]
    x = np.random.default_rng(0).uniform(-9, 9, (1, 2, 6, 6)).astype(np.float32)
    low, high = g.integer_range(bits, signed, False)
    codes = np.clip(np.rint(x * 2), low, high).reshape(1, 2, 6 // side, side, 6 // side, side).sum((3, 5))
    area = side * side
    removed = (int(area * (2**bits - 1)).bit_length() if not signed else int(np.ceil(np.log2(area * 2**bits)))) - 4
    expected = np.floor(codes / 2**removed) * np.float32(0.5 / area * 2**removed)
    assert np.array_equal(run(proto, x=x)["pool.trunc.out"], expected.astype(np.float32))


def test_every_tensor_has_a_shape_and_every_integer_one_its_range():
    b = Builder()
    x = b.quant("x", "a.act", (4, 3), 0.25, bits=4)
    linear(b, quantized_bias(b, [10, -20], 0.125), x=x)
    proto = lowered(b.model({"x": (4, 3)}, ["fc"]), TARGET)
    described = {v.name: v.type.tensor_type for v in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)}
    tensors = {name for n in proto.graph.node for name in (*n.input, *n.output)}
    assert tensors <= set(described)
    assert all(t.elem_type == onnx.TensorProto.FLOAT and t.HasField("shape") for t in described.values())
    for name, array in initializers(proto).items():
        assert tuple(d.dim_value for d in described[name].shape.dim) == array.shape
        if name in datatypes(proto):
            bits = int(datatypes(proto)[name].removeprefix("INT"))
            assert -(2 ** (bits - 1)) <= array.min() and array.max() < 2 ** (bits - 1)


def test_opset_13_is_declared_unless_a_node_needs_a_newer_one():
    for op_type, inputs, expected in (("Relu", ["x"], 13), ("Gelu", ["x"], 20), ("LayerNormalization", ["x", "s"], 17)):
        b = Builder()
        b.constant("s", np.ones(3))
        b.node(op_type, inputs, "y", (2, 3))
        model = b.model({"x": (2, 3)}, ["y"])
        assert TARGET.default_opset(model, {}) == expected


def test_no_input_of_resize_is_left_out():
    """finn-base asks for the shape of every input by name."""
    b = Builder()
    x = b.quant("x", "a.act", (1, 2, 3, 3), 0.5, bits=4)
    b.node("Resize", [x, "", b.constant("scales", [1, 1, 2, 2])], "up", (1, 2, 6, 6), mode="nearest")
    proto = lowered(b.model({"x": (1, 2, 3, 3)}, ["up"]), TARGET)
    (roi,) = (initializers(proto)[n.input[1]] for n in proto.graph.node if n.op_type == "Resize")
    assert roi.shape == (0,)
