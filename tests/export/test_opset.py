"""Which opsets a graph may declare."""

import numpy as np
import onnx
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


def test_an_input_that_was_an_attribute_before_is_named_with_its_node():
    model = graph(RELU, ("ReduceMean", ["y0", "axes"], {"keepdims": 1}))
    (found,) = opset_violations(model, 13, "qdq", 13)
    assert found.code == "E05" and "ReduceMean" in found.found and "'y1'" in found.found
    assert "opset 18" in found.required and found.layer == "y1"


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
