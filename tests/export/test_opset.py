"""Which opsets a graph may declare."""

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
from canonical_graphs import Builder
from onnx import helper

from brevitas.export.lowering.opset import opset_violations, set_opset


def graph(*nodes, opset=20):
    b = Builder()
    b.constant("axes", [1], np.int64)
    b.constant("shape", [-1], np.int64)
    for i, (op_type, inputs, attributes) in enumerate(nodes):
        b.node(op_type, inputs, f"y{i}", (2, 3) if op_type != "Reshape" else (6,), **attributes)
    return b.model({"x": (2, 3)}, [f"y{len(nodes) - 1}"], opset)


RELU = ("Relu", ["x"], {})


@pytest.mark.parametrize("wanted", [13, 17, 20, 21, 25])
def test_operators_that_changed_in_types_alone_are_valid_in_every_opset(wanted):
    model = graph(RELU, ("Reshape", ["y0", "shape"], {}))
    assert opset_violations(model, wanted, "qdq", 13) == []
    set_opset(model, wanted)
    assert model.graph.opset_imports[""] == wanted
    assert model.ir_version == helper.find_min_ir_version_for([helper.make_opsetid("", wanted)])


def test_an_operator_that_did_not_exist():
    model = graph(("Gelu", ["x"], {}))
    (found,) = opset_violations(model, 17, "qdq", 13)
    assert "Gelu does not exist" in found.found and "20" in found.required


def test_an_attribute_that_did_not_exist_is_dropped_at_its_default_and_refused_otherwise():
    default = graph(("Reshape", ["x", "shape"], {"allowzero": 0}))
    assert opset_violations(default, 13, "qdq", 13) == []
    set_opset(default, 13)
    assert "allowzero" not in default.graph[0].attributes
    other = graph(("Reshape", ["x", "shape"], {"allowzero": 1}))
    (found,) = opset_violations(other, 13, "qdq", 13)
    assert "allowzero" in found.found


def test_limits_name_the_range():
    newest = onnx.defs.onnx_opset_version()
    for wanted in (12, newest + 1):
        (found,) = opset_violations(graph(RELU), wanted, "qdq", 13)
        assert found.code == "E05" and f"from 13 to {newest}" in found.required


@pytest.mark.parametrize("op_type", ["ReduceMean", "ReduceMax", "ReduceL2"])
def test_axes_of_reductions_are_an_attribute_in_older_opsets(op_type):
    b = Builder()
    b.node(op_type, ["x", b.constant("axes", [2, 3], np.int64)], "y", (2, 3), keepdims=0)
    model = b.model({"x": (2, 3, 4, 4)}, ["y"])
    assert opset_violations(model, 13, "qdq", 13) == []
    before = run_reference(ir.to_proto(model))
    set_opset(model, 13)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    (node,) = proto.graph.node
    assert list(node.input) == ["x"] and not proto.graph.initializer
    assert {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} == {"axes": [2, 3], "keepdims": 0}
    assert np.array_equal(run_reference(proto), before)


def test_axes_that_are_computed_need_the_newer_opset():
    b = Builder()
    b.node("ReduceMean", ["x", "axes"], "y", (2, 3), keepdims=0)
    (found,) = opset_violations(b.model({"x": (2, 3, 4, 4), "axes": (2,)}, ["y"]), 13, "qdq", 13)
    assert found.code == "E05" and "ReduceMean takes 1 inputs" in found.found and "'y'" in found.found
    assert "opset 18" in found.required and found.layer == "y"


@pytest.mark.parametrize(("size", "legal"), [(4, True), (5, False)])
def test_equal_parts_need_no_number_in_older_opsets(size, legal):
    b = Builder()
    b.node("Split", ["x"], "y", (2, 2), axis=1, num_outputs=2)
    b.nodes[-1].output.append("z")
    b.shapes["z"] = (2, size - 2)
    model = b.model({"x": (2, size)}, ["y", "z"])
    found = opset_violations(model, 13, "qdq", 13)
    assert (found == []) is legal
    if legal:
        set_opset(model, 13)
        proto = ir.to_proto(model)
        onnx.checker.check_model(proto, full_check=True)
        assert [a.name for a in proto.graph.node[0].attribute] == ["axis"]


def run_reference(proto):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    return onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x})[0]
