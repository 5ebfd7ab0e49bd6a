"""The QONNX form on graphs written by hand, executed by the qonnx package."""

import numpy as np
import pytest
from canonical_graphs import Builder, lowered
from export_networks import attribute, op_types

from brevitas.export import graph as g
from brevitas.export.targets.qonnx import TARGET
from brevitas.export.verification.runtimes import open_session

ROUNDINGS = {"ROUND": np.rint, "CEIL": np.ceil, "FLOOR": np.floor, "DOWN": np.trunc}


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(
    ("bits", "signed", "narrow", "zero_point"),
    [(8, True, False, 0), (4, True, True, 0), (3, False, False, 2), (2, False, True, 0), (1, False, False, 0)],
)
def test_the_reader_computes_our_integers(rounding, bits, signed, narrow, zero_point):
    b = Builder()
    y = b.quant("x", "a.act", (50, 4), 0.25, bits, signed, narrow, zero_point, rounding)
    proto = lowered(b.model({"x": (50, 4)}, [y]), TARGET)
    assert {(i.domain, i.version) for i in proto.opset_import} == {("", 20), (g.DOMAIN, 2)}
    low, high = g.integer_range(bits, signed, narrow)
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32) * 2
    x[0] = [0.125, 0.375, -0.125, -0.375]  # ties
    codes = np.clip(ROUNDINGS[rounding](x / np.float32(0.25) + zero_point), low, high)
    found = open_session("qonnx", proto)({"x": x})["a.act.out"]
    assert np.array_equal(found, ((codes - zero_point) * 0.25).astype(np.float32))


def test_gemm_without_bias_becomes_matmul_of_the_transposed_quantized_weight():
    b = Builder()
    w = b.weight("fc.weight", [[1, 2, 3], [-4, 5, -6]], 0.5)
    b.node("Gemm", ["x", w], "fc", (4, 2), transB=1, alpha=1.0, beta=1.0)
    b.node("Relu", ["fc"], "relu", (4, 2))
    proto = lowered(b.model({"x": (4, 3)}, ["relu"]), TARGET)
    assert op_types(proto) == ["Quant", "Transpose", "MatMul", "Relu"]
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    expected = np.maximum(x @ np.asarray([[1, 2, 3], [-4, 5, -6]], np.float32).T * 0.5, 0)
    assert np.array_equal(open_session("qonnx", proto)({"x": x})["relu"], expected)


def test_a_gemm_that_is_an_output_keeps_its_name():
    b = Builder()
    w = b.weight("fc.weight", [[1, 2]], 0.5)
    b.node("Gemm", ["x", w], "fc", (4, 1), transB=1)
    proto = lowered(b.model({"x": (4, 2)}, ["fc"]), TARGET)
    assert [o.name for o in proto.graph.output] == ["fc"]
    assert [n.name for n in proto.graph.node] == ["fc.weight_quant", "fc.Transpose", "fc.MatMul"]


def test_gemm_with_bias_stays():
    b = Builder()
    w = b.weight("fc.weight", [[1, 2]], 0.5)
    b.node("Gemm", ["x", w, b.constant("fc.bias", [0.5])], "fc", (4, 1), transB=1)
    proto = lowered(b.model({"x": (4, 2)}, ["fc"]), TARGET)
    assert op_types(proto) == ["Quant", "Gemm"]
    assert attribute(proto.graph.node[0], "rounding_mode") == b"ROUND"


def test_another_rounding_mode_is_refused():
    b = Builder()
    model = b.model({"x": (2,)}, [b.quant("x", "a.act", (2,), 0.5, rounding="DPU")])
    (found,) = TARGET.check(model, {})
    assert found.code == "E27" and "DPU" in found.found
