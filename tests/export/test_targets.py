import pytest
import torch
from export_networks import op_types
from torch import nn

from brevitas.errors import ExportError
from brevitas.export import (
    BrevitasONNXManager,
    FINNManager,
    QONNXManager,
    StdONNXManager,
    StdQCDQONNXManager,
    Target,
    Violation,
    check,
    export_brevitas_onnx,
    export_finn_onnx,
    export_onnx_qcdq,
    export_qonnx,
    export_standard_onnx,
    get_target,
    list_targets,
    register,
    unregister,
)
from brevitas.export.manager import ONNXManager


def test_the_targets_that_exist_are_listed():
    assert list_targets() == ["dpuv1", "dpuv2", "finn", "qdq", "qonnx", "qop", "torch"]
    for key in list_targets():
        assert get_target(key).key == key


@pytest.mark.parametrize("key", ["fin", "pytorch", "dpu", "qqdq", "FINN", 3])
def test_an_unknown_target_is_refused_with_those_that_exist(key):
    with pytest.raises(ExportError, match="E04") as caught:
        check(nn.Linear(2, 2), key, (1, 2))
    assert repr(key) in str(caught.value) and "finn, qdq, qonnx" in str(caught.value)


def test_managers_say_which_target_they_serve():
    assert (QONNXManager.target, QONNXManager.target_name) == ("qonnx", "brevitas")
    assert (StdONNXManager.target, StdONNXManager.target_name) == ("qdq", "StdONNX")
    assert (FINNManager.target, FINNManager.target_name) == ("finn", "FINN")
    assert (StdQCDQONNXManager.target, StdQCDQONNXManager.target_name) == ("qdq", "StdQCDQONNX")


def test_older_module_paths():
    from brevitas.export.onnx.generic.manager import BrevitasONNXManager as from_old_path
    from brevitas.onnx import export_brevitas_onnx as from_onnx
    from brevitas.onnx import export_finn_onnx as finn_from_onnx

    assert from_old_path is BrevitasONNXManager is QONNXManager
    assert from_onnx is export_brevitas_onnx and finn_from_onnx is export_finn_onnx


def test_function_aliases_export_as_their_managers():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    protos = [f(model, (1, 3)) for f in (export_qonnx, export_standard_onnx, export_onnx_qcdq, export_finn_onnx)]
    targets = [next(e.value for e in p.metadata_props if e.key == "brevitas.target") for p in protos]
    assert targets == ["qonnx", "qdq", "qdq", "finn"]
    assert all(op_types(p) == ["Gemm", "Relu"] for p in protos)
    assert export_brevitas_onnx.__doc__ and "QONNXManager" in export_brevitas_onnx.__doc__


class _NoRelu:
    """A target of a user: it refuses ReLU, and names its graphs."""

    @staticmethod
    def check(model, options):
        return [
            Violation("E04", "mine", "a Relu", "anything else", options["advice"], layer=n.name, layer_class="Relu")
            for n in model.graph
            if n.op_type == "Relu"
        ]

    @staticmethod
    def lower(model, options):
        model.graph.name = f"mine, {options['advice']}"
        return model


def test_a_user_adds_a_target_in_one_object():
    register(Target("mine", "for the test", _NoRelu.check, _NoRelu.lower, options={"advice": "use Sigmoid"}))
    try:
        manager = type("MineManager", (ONNXManager,), {"target": "mine", "target_name": "Mine"})
        assert "mine" in list_targets()
        with pytest.raises(ValueError, match="registered already"):
            register(get_target("mine"))
        proto = manager.export(nn.Sequential(nn.Linear(3, 2), nn.Sigmoid()), (1, 3), advice="x")
        assert proto.graph.name == "mine, x"
        with pytest.raises(
            ExportError, match=r"E04 \[mine\] Relu .*fix: use Sigmoid, or use target .*'qdq' or 'qonnx'"
        ):
            manager.export(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), (1, 3))
        with pytest.raises(ExportError, match="advise.*advice"):
            manager.export(nn.Linear(3, 2), (1, 3), advise="y")
    finally:
        unregister("mine")
    assert "mine" not in list_targets()
    with pytest.raises(ValueError, match="not added"):
        unregister("qdq")


def test_check_finds_what_export_raises_and_nothing_in_a_model_that_exports():
    torch.manual_seed(0)
    from brevitas.nn import QuantIdentity

    model = nn.Sequential(QuantIdentity(float_to_int_impl_type="floor"))
    codes = [v.code for v in check(model, "qdq", (1, 2))]
    assert codes == ["E27", "W30"]
    assert [v.code for v in check(model, "qonnx", (1, 2))] == ["W30"]
    with (
        pytest.raises(ExportError, match=r"QuantIdentity '0'.*FLOOR.*target 'qonnx'"),
        pytest.warns(UserWarning, match="W30"),
    ):
        StdONNXManager.export(model, (1, 2))


def test_one_capture_is_lowered_to_several_targets_and_stays_as_it_is():
    from export_networks import IMAGE, lenet

    from brevitas.export import QONNXManager, StdONNXManager, capture, lower

    model = lenet("IntBias, per channel")
    graph = capture(model, [torch.zeros(IMAGE)])
    exported = {manager.target: manager.export(model, IMAGE) for manager in (StdONNXManager, QONNXManager)}
    for target in ("qdq", "qonnx", "qdq", "qonnx"):
        assert lower(graph, target) == exported[target]
    with pytest.raises(ExportError, match="E02.*'dynamic_axes'.*capture"):
        lower(graph, "qdq", dynamic_axes={"input": [0]})
    with pytest.raises(ExportError, match="E05.*12"):
        lower(graph, "qdq", opset_version=12)
