import pytest
import torch
from export_networks import Composed
from torch import nn

from brevitas.errors import ExportError
from brevitas.export import QONNXManager, StdONNXManager, StdQCDQONNXManager, check
from brevitas.quant_tensor import QuantTensor

LINEAR = nn.Linear(3, 2)


def lines_of(code, call, *args, **kwargs):
    with pytest.raises(ExportError) as caught:
        call(*args, **kwargs)
    return [line for line in str(caught.value).splitlines() if line.strip().startswith(code)]


@pytest.mark.parametrize("manager", [QONNXManager, StdONNXManager, StdQCDQONNXManager])
def test_exactly_one_of_input_shape_and_input_t(manager):
    (neither,) = lines_of("E01", manager.export, LINEAR)
    assert "neither input_shape nor input_t" in neither
    (both,) = lines_of("E01", manager.export, LINEAR, (1, 3), input_t=torch.zeros(1, 3))
    assert "both input_shape and input_t" in both


@pytest.mark.parametrize("shape", [3, (1, 0), (1, -2), (1, 2.0), "13", [(1, 3), (1, 3)], (True, 3)])
def test_input_shape_is_a_tuple_of_positive_integers(shape):
    (line,) = lines_of("E01", StdONNXManager.export, LINEAR, shape)
    assert repr(shape) in line


def test_a_tensor_in_the_place_of_the_shape_is_told_where_it_belongs():
    (line,) = lines_of("E01", StdONNXManager.export, LINEAR, torch.zeros(100, 3))
    assert "a Tensor as input_shape" in line and line.endswith("pass input_t=")


@pytest.mark.parametrize("input_t", [3.0, "x", {"input": 1}, (torch.zeros(1), None)])
def test_input_t_holds_tensors(input_t):
    (line,) = lines_of("E01", StdONNXManager.export, LINEAR, input_t=input_t)
    assert "Tensor" in line


@pytest.mark.parametrize(
    ("keyword", "nearest"),
    [("opset_verson", "opset_version"), ("dynamic_axis", "dynamic_axes"), ("inputnames", "input_names")],
)
def test_an_unknown_keyword_names_the_nearest_ones(keyword, nearest):
    (line,) = lines_of("E02", StdONNXManager.export, LINEAR, (1, 3), **{keyword: None})
    assert repr(keyword) in line and nearest in line.partition("fix:")[2]


def test_keywords_of_another_target_are_unknown():
    (line,) = lines_of("E02", QONNXManager.export, LINEAR, (1, 3), export_weight_q_node=True)
    assert "export_weight_q_node" in line


@pytest.mark.parametrize(
    "keywords",
    [
        {"opset_version": "20"},
        {"opset_version": True},
        {"verbose": 1},
        {"export_weight_q_node": "yes"},
        {"input_names": "x"},
        {"input_names": ["x", "y"]},
        {"output_names": ["y", "y"]},
        {"dynamic_axes": [0]},
        {"dynamic_axes": {"inptu": [0]}},
        {"dynamic_axes": {"input": [1]}},
        {"dynamic_axes": {"input": "batch"}},
    ],
)
def test_wrong_values_of_keywords(keywords):
    (line,) = lines_of("E02", StdONNXManager.export, LINEAR, (1, 3), **keywords)
    assert next(iter(keywords)) in line


def test_all_wrong_arguments_are_reported_at_once():
    with pytest.raises(ExportError) as caught:
        StdONNXManager.export(LINEAR, nonsense=1, opset_version="x", verbose="no")
    assert [v.code for v in caught.value.violations] == ["E01", "E02", "E02", "E02"]


def test_an_unknown_format_is_refused_by_name():
    (line,) = lines_of("E02", StdONNXManager.export, LINEAR, (1, 3), export_format="qpo")
    assert "'qpo'" in line and "'qdq', 'qop'" in line


def test_an_invalid_quant_tensor_is_refused_with_its_fields():
    off_grid = QuantTensor(torch.tensor([[0.3, 0.0, 0.0]]), scale=0.25, zero_point=0.0, bit_width=8, signed=True)
    (line,) = lines_of("E03", StdONNXManager.export, LINEAR, input_t=off_grid)
    assert "model input 0" in line and "0.25" in line and "8" in line


def test_other_data_types_than_float32_are_refused():
    (line,) = lines_of("E13", StdONNXManager.export, LINEAR, input_t=torch.zeros(1, 3, dtype=torch.float64))
    assert "float64" in line and "float32" in line
    model = Composed(lambda s, x: s.inner(x), inner=nn.Sequential(nn.Linear(3, 2).half()))
    (line,) = lines_of("E13", StdONNXManager.export, model, (1, 3))
    assert "Linear 'inner.0'" in line and "float16" in line


def test_only_modules_are_exported():
    with pytest.raises(TypeError, match=r"torch.nn.Module.*function"):
        StdONNXManager.export(lambda x: x, (1, 3))


def test_check_returns_what_export_raises():
    found = check(LINEAR, "qdq", nonsense=1)
    assert [v.code for v in found] == ["E01", "E02"]
    (line,) = lines_of("E04", check, LINEAR, "qdqq", (1, 3))
    assert "'qdq'" in line and "qonnx" in line
