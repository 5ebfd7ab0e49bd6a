"""Networks on disk: what is written is read back, and what is no network is refused."""

import json

import numpy as np
import pytest
from integer_graphs import ConvNet

from brevitas.errors import ExportError
from brevitas.export import IntegerNetwork, to_integer
from brevitas.export.integer.storage import smallest


@pytest.fixture(scope="module")
def made():
    return ConvNet(np.random.default_rng(3), group=2, zero=1, out_zero=-2)


@pytest.fixture
def net(made):
    return to_integer(made.graph())


@pytest.mark.parametrize("form", ["thresholds", "multiplier"])
@pytest.mark.parametrize("name", ["net.npz", "net.json", "net"])
def test_round_trip(made, form, name, tmp_path):
    net = to_integer(made.graph(), requantize=form)
    net.save(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.json", "net.npz"]
    read = IntegerNetwork.load(tmp_path / name)
    assert read.tensors == net.tensors and read.deviations == net.deviations and str(read) == str(net)
    assert [s.op for s in read.steps] == [s.op for s in net.steps]
    x = np.random.default_rng(0).normal(0, 1, (4, made.channels, *made.size)).astype(np.float32)
    ours, theirs = net.run(x), read.run(x)
    for field in ("codes", "values"):
        (a,), (b,) = (getattr(r, field).values() for r in (ours, theirs))
        assert a.dtype == b.dtype and np.array_equal(a, b)


def test_the_manifest_says_what_is_where(net, tmp_path):
    net.save(tmp_path / "net")
    manifest = json.loads((tmp_path / "net.json").read_text())
    assert (manifest["format"], manifest["version"]) == ("brevitas.integer", 1)
    assert manifest["arrays"]["file"] == "net.npz"
    assert [s["op"] for s in manifest["steps"]] == ["conv", "threshold"]
    assert manifest["steps"][1]["quantizer"] == "second_quant"
    with np.load(tmp_path / "net.npz", allow_pickle=False) as arrays:
        weight = arrays[manifest["steps"][0]["arrays"]["weight"]]
    assert weight.dtype == np.int8 and np.array_equal(weight, net.steps[0].arrays["weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="onnx"), "no manifest of format"),
        (lambda m: m.update(version=2), "version 2; this library reads version 1"),
        (lambda m: m["steps"][0].update(op="sin"), "damaged.*unknown operation 'sin'.*conv"),
        (lambda m: m["steps"][0]["arrays"].update(weight="nowhere"), "damaged.*nowhere"),
        (lambda m: m["steps"][0].update(output="elsewhere"), "damaged.*elsewhere.*not described"),
        (lambda m: m.pop("outputs"), "damaged.*outputs"),
        (lambda m: m["arrays"].update(sha256="0"), "not the file that net.json describes"),
    ],
)
def test_damage_is_named(net, tmp_path, change, message):
    net.save(tmp_path / "net")
    manifest = json.loads((tmp_path / "net.json").read_text())
    change(manifest)
    (tmp_path / "net.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match=message):
        IntegerNetwork.load(tmp_path / "net")


def test_nothing_is_unpickled(net, tmp_path):
    import hashlib

    net.save(tmp_path / "net")
    np.savez(tmp_path / "net.npz", **{"0/scale": np.asarray([{}], dtype=object)})
    manifest = json.loads((tmp_path / "net.json").read_text())
    manifest["arrays"]["sha256"] = hashlib.sha256((tmp_path / "net.npz").read_bytes()).hexdigest()
    (tmp_path / "net.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match="damaged.*allow_pickle"):
        IntegerNetwork.load(tmp_path / "net")


def test_files_that_are_something_else(net, tmp_path):
    with pytest.raises(FileNotFoundError):
        IntegerNetwork.load(tmp_path / "nothing")
    (tmp_path / "text.json").write_text("no json")
    with pytest.raises(ExportError, match="text.json is no JSON"):
        IntegerNetwork.load(tmp_path / "text")
    with pytest.raises(FileNotFoundError):
        net.save(tmp_path / "nowhere" / "net")


def test_smallest():
    assert smallest(np.array([], np.int64)).dtype == np.int8
    assert smallest(np.array([-129])).dtype == np.int16 and smallest(np.array([2**15])).dtype == np.int32
    assert smallest(np.array([1.5], np.float32)).dtype == np.float32
