"""An export leaves model and disk as they were, whatever happens; exports do not disturb each other."""

import copy
import os
import threading

import onnx
import pytest
import torch
from export_networks import IMAGE, Composed, calibrated, lenet
from torch import nn

from brevitas.errors import ExportError
from brevitas.export import QONNXManager, StdONNXManager, export_qonnx, verify
from brevitas.export.manager import write_atomically
from brevitas.export.tracing.watch import redirected
from brevitas.nn import QuantIdentity, QuantLinear
from brevitas.quant_tensor import QuantTensor


def snapshot(model):
    return {
        "training": [m.training for m in model.modules()],
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "objects": [id(p) for p in (*model.parameters(), *model.buffers())],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "attributes": [sorted(m.__dict__) for m in model.modules()],
        "hooks": [list(m._forward_hooks) for m in model.modules()],
        "forwards": [m.__dict__.get("forward") for m in model.modules()],
        "requantize": QuantTensor.requantize,
    }


def assert_same(before, after):
    assert before.keys() == after.keys()
    for key in before:
        if key == "state":
            assert before[key].keys() == after[key].keys()
            assert all(torch.equal(v, after[key][k]) for k, v in before[key].items())
        elif key == "grads":
            assert all(
                (a is None) == (b is None) and (a is None or torch.equal(a, b)) for a, b in zip(before[key], after[key])
            )
        else:
            assert before[key] == after[key], key


@pytest.fixture
def busy_model():
    """A model in the middle of something: mixed training flags, gradients, a hook, frozen parameters."""
    model = lenet("IntBias, per channel")
    model.train()
    model.conv2.eval()
    model.fc1.weight.requires_grad_(False)
    model(torch.randn(4, *IMAGE[1:])).sum().backward()
    model.conv1.register_forward_hook(lambda *args: None)
    return model


def test_a_successful_export_leaves_the_model_as_found(busy_model):
    before = snapshot(busy_model)
    proto = StdONNXManager.export(busy_model, IMAGE)
    verify(busy_model, proto, torch.randn(IMAGE))
    assert_same(before, snapshot(busy_model))


def test_a_failed_export_leaves_model_and_disk_as_found(busy_model, tmp_path):
    busy_model.relu1.act_quant.fused_activation_quant_proxy.tensor_quant.int_quant.float_to_int_impl = (
        torch.nn.Identity()
    )
    before = snapshot(busy_model)
    path = tmp_path / "model.onnx"
    path.write_text("what was there before")
    with pytest.raises(ExportError, match=r"E24.*relu1.*grid"):
        StdONNXManager.export(busy_model, IMAGE, path)
    assert_same(before, snapshot(busy_model))
    assert path.read_text() == "what was there before"
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_an_error_inside_the_model_leaves_it_as_found():
    class Failing(nn.Module):
        def forward(self, x):
            raise ArithmeticError("the model's own error")

    model = nn.Sequential(QuantIdentity(return_quant_tensor=True), Failing())
    before = snapshot(model)
    with pytest.raises(ExportError, match="Failing .1.*the model.s own error") as caught:
        QONNXManager.export(model, (2, 2))
    assert isinstance(caught.value.__cause__, ArithmeticError)
    assert_same(before, snapshot(model))


def test_all_violations_are_reported_and_nothing_is_written(tmp_path):
    model = calibrated(
        Composed(
            lambda m, x: m.b(m.a(x)),
            a=QuantIdentity(float_to_int_impl_type="floor"),
            b=QuantIdentity(float_to_int_impl_type="ceil", bit_width=12),
        ),
        (2, 3),
    )
    with pytest.raises(ExportError) as caught:
        StdONNXManager.export(model, (1, 3), tmp_path / "m.onnx", opset_version=13)
    found = [(v.code, v.layer) for v in caught.value.violations]
    assert sorted(found) == [("E11", "b"), ("E27", "a"), ("E27", "b")]
    assert not list(tmp_path.iterdir())


def test_the_file_equals_what_is_returned(tmp_path):
    path = tmp_path / "model.onnx"
    proto = export_qonnx(nn.Sequential(QuantIdentity()), (1, 2), str(path))
    assert onnx.load(path) == proto
    assert os.listdir(tmp_path) == ["model.onnx"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_folder_that_is_not_there_leaves_no_file(tmp_path):
    path = tmp_path / "absent" / "m.onnx"
    with pytest.raises(FileNotFoundError) as caught:
        export_qonnx(nn.Sequential(QuantIdentity()), (1, 2), path)
    assert caught.value.filename == str(path) and "folder" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_a_file_is_known_before_anything_is_computed(tmp_path):
    class Never(nn.Module):
        def forward(self, x):
            raise AssertionError

    for path, error in ((tmp_path, IsADirectoryError), (tmp_path / "absent" / "m.onnx", FileNotFoundError)):
        with pytest.raises(error, match=str(path)):
            export_qonnx(Never(), (1, 2), path)
    with pytest.raises(TypeError):
        export_qonnx(Never(), (1, 2), 5)


def test_a_file_that_cannot_be_made_is_named_as_the_caller_named_it(monkeypatch, tmp_path):
    path = tmp_path / "m.onnx"

    def refuse(file, *args):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("brevitas.export.manager.os.open", refuse)
    with pytest.raises(PermissionError) as caught:
        write_atomically(path, b"x")
    assert caught.value.filename == str(path)


def test_nothing_is_written_without_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export_qonnx(nn.Sequential(QuantIdentity()), (1, 2))
    assert not list(tmp_path.iterdir())


def test_the_file_does_not_follow_later_training():
    model = nn.Sequential(nn.Linear(2, 2), QuantLinear(2, 2))
    proto = export_qonnx(model, (1, 2))
    before = proto.SerializeToString()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert proto.SerializeToString() == before


@pytest.mark.slow
def test_exports_of_several_threads():
    models = [
        calibrated(Composed(lambda m, x: m.fc(m.act(x)), act=QuantIdentity(bit_width=b), fc=QuantLinear(6, 4)), (8, 6))
        for b in (2, 4, 8)
    ]
    alone = [StdONNXManager.export(m, (5, 6)).SerializeToString(deterministic=True) for m in models]
    together = [None] * len(models)
    reports = [None] * len(models)

    def export(i):
        proto = StdONNXManager.export(models[i], (5, 6))
        together[i] = proto.SerializeToString(deterministic=True)
        reports[i] = verify(models[i], proto, torch.randn(5, 6))

    threads = [threading.Thread(target=export, args=(i,)) for i in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    assert all(report.ok for report in reports)


def test_requantizing_functions_are_redirected_in_one_thread_alone():
    x = QuantTensor(torch.tensor([0.5, 1.0]), scale=0.5, zero_point=0.0, bit_width=4, signed=True)
    seen = []
    elsewhere = []

    def other_thread():
        elsewhere.append(x.clamp(0, 0.6).value.tolist())

    with redirected(lambda grid, value, original: seen.append(value.tolist()) or original(grid, value)):
        x.clamp(0, 0.6)
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
    x.clamp(0, 0.9)
    assert seen == [[0.5, pytest.approx(0.6)]] and elsewhere == [[0.5, 0.5]]


def test_an_export_inside_a_forward():
    inner = calibrated(nn.Sequential(QuantIdentity()), (2, 2))
    inside = []

    class Exporting(nn.Module):
        def forward(self, x):
            if not torch.compiler.is_compiling() and not inside:
                inside.append(export_qonnx(inner, (1, 2)))
            return x

    proto = export_qonnx(nn.Sequential(Exporting(), QuantIdentity()), (1, 2))
    assert [n.op_type for n in inside[0].graph.node] == [n.op_type for n in proto.graph.node] == ["Quant"]


def test_a_model_that_was_exported_can_be_copied_and_trained():
    model = lenet("float bias")
    StdONNXManager.export(model, IMAGE)
    other = copy.deepcopy(model).train()
    other(torch.randn(2, *IMAGE[1:])).sum().backward()
    assert all(p.grad is not None for p in other.parameters() if p.requires_grad)
