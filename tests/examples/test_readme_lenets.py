"""The table of LeNets and targets as a person gets it, cell by cell, and that a wrong cell does not pass."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "readme_lenets.py"
TARGETS = ("FINN", "QONNX", "QDQ", "QOp", "torch", "DPUv1", "DPUv2")
EXPORTED = "exported"
# Every cell: exported, or every code of the refusal.
TABLE = {
    "weights only, 3 bits": (*[EXPORTED] * 3, "E22 E28", "E28", *["E11 E14 E22 E28"] * 2),
    "4-bit activations, 3-bit weights, 8-bit biases": (*[EXPORTED] * 3, "E28", "E13 E28", *["E14 E28"] * 2),
    "the same, logits quantized": (*[EXPORTED] * 4, "E13", *["E14"] * 2),
    "mixed float-integer, shifted unsigned weights, quantized bias": (
        *("E21", EXPORTED, EXPORTED, EXPORTED, "E13"),
        *["E11 E14 E21 E28"] * 2,
    ),
    "mixed, signed weights, 7-bit activations, float bias": (
        *("E21", EXPORTED, EXPORTED, "E22", EXPORTED),
        *["E14 E21 E22 E28"] * 2,
    ),
    "fixed point": ("E22", EXPORTED, EXPORTED, "E22", "E13", EXPORTED, EXPORTED),
}
FORMATS = {
    "finn": "onnx",
    "qonnx": "onnx",
    "qdq": "onnx",
    "qop": "onnx",
    "torch": "pt",
    "dpuv1": "onnx",
    "dpuv2": "onnx",
}


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def example(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=600)


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    return importlib.import_module(name)


@pytest.fixture
def lenets(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("readme_lenets", monkeypatch)


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("lenet_targets", monkeypatch)


def cells_of(stdout: str) -> tuple[dict[str, tuple[list[str], ...]], dict[str, str]]:
    """Lines of every cell, and the accuracy of every LeNet: columns end where their titles end."""
    lines = stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.split()[-7:] == list(TARGETS))
    head = lines[start]
    begin = head.index("trained") - 1
    ends = [begin, *(re.search(rf"\b{title}\b", head).end() for title in ("trained", *TARGETS))]
    found, accuracies, title, columns = {}, {}, [], [[] for _ in ends[1:]]
    for line in lines[start + 2 :]:
        if line.strip():
            title.append(line[:begin].strip())
            for column, left, right in zip(columns, ends, ends[1:], strict=False):
                if text := line[left:right].strip():
                    column.append(text)
        elif title:
            name = " ".join(filter(None, title))
            found[name], accuracies[name] = tuple(columns[1:]), columns[0][0]
            title, columns = [], [[] for _ in ends[1:]]
            if len(found) == len(TABLE):
                break
    return found, accuracies


@pytest.mark.slow
def test_every_cell_is_as_declared(tmp_path):
    result = example("--quick", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "" and not any(tmp_path.iterdir())
    assert "\x1b" not in result.stdout and max(map(len, result.stdout.splitlines())) <= 110
    found, accuracies = cells_of(result.stdout)
    assert list(found) == list(TABLE)
    for name, expected in TABLE.items():
        for target, cell, wanted in zip(TARGETS, found[name], expected, strict=True):
            if wanted != EXPORTED:
                assert cell[0] == "refused" and " ".join(cell[1:]) == wanted, (name, target)
                continue
            integers, ties = (int(re.match(r"[\d,]+", text).group().replace(",", "")) for text in cell[:2])
            assert integers > 60_000 and ties <= 1e-3 * integers, (name, target)
            if target.startswith("DPU"):
                assert cell[2] == "as QDQ"
            else:  # of 100 digits, one or two may have two logits a tie apart
                assert abs(percent(cell[2]) - percent(accuracies[name])) <= 2, (name, target)
    words = " ".join(result.stdout.split())
    assert re.search(r"QuantLinear 'fc1': the input of shape \(1, 400\) .* in_features=256", words)
    assert all(f"  {code} " in result.stdout for code in ("E11", "E13", "E14", "E21", "E22", "E28"))


def percent(text: str) -> float:
    return float(text.removesuffix(" %"))


@pytest.mark.slow
def test_a_cell_that_is_not_as_declared_is_an_error(lenets, monkeypatch, capsys):
    refused = {"finn": ["E21"], "qop": ["E22"], "qdq": ["E11"]}  # of which FINN's is E22, QDQ takes it, torch does not
    monkeypatch.setattr(lenets, "LENETS", {"fixed": lenets.Declared("fixed point", lenets.FixedPointLeNet, refused)})
    assert lenets.main(["--quick", "--samples", "10"]) == 1
    said = capsys.readouterr()
    problems = [line for line in said.err.splitlines() if line.startswith("fixed on ")]
    assert len(problems) == 3
    assert problems[0].startswith("fixed on FINN: refused, but not with all of E21: ")
    assert problems[1] == "fixed on QDQ: exported, and not refused with E11"
    assert problems[2].startswith("fixed on torch: refused: ")
    assert said.out.count("declared") >= 3 and "E13 [torch]" in said.err


@pytest.fixture(scope="module")
def fixed():
    """A calibrated fixed-point LeNet, images, and its files."""
    from brevitas.export import capture, lower

    with pytest.MonkeyPatch.context() as patch:
        model = load("readme_lenets", patch).FixedPointLeNet()
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model(images)
    graph = capture(model.eval(), [images])
    return model, images, {target: lower(graph, target) for target in ("qdq", "dpuv1", "dpuv2")}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["dpuv1", "dpuv2"])
def test_a_dpu_file_with_a_wrong_number_is_seen(targets, fixed, target):
    model, _, files = fixed

    def problems(change) -> list[str]:
        file, cell = onnx.ModelProto.FromString(files[target].SerializeToString()), targets.Cell()
        change(file)
        targets.compare_with_attributes(cell, model, file, files["qdq"])
        assert cell.compared > 60_000
        return cell.problems

    def another_weight(file):
        weight = next(i for i in file.graph.initializer if i.name == "fc1.weight_codes")
        array = onnx.numpy_helper.to_array(weight).copy()
        array[0, 0] += 1
        weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))

    def another_position(name, index):
        def change(file):
            node = next(n for n in file.graph.node if n.name == name)
            next(a for a in node.attribute if a.name == f"vai_quant_{index}").ints[1] += 1

        return change

    assert problems(lambda file: None) == []
    assert [p.partition(" is ")[0] for p in problems(another_weight)] == ["fc1: weight"]
    assert [p.partition(" is ")[0] for p in problems(another_position("conv2", "biases"))] == [
        "conv2: vai_quant_biases"
    ]
    assert [p.partition(" is ")[0] for p in problems(another_position("MaxPool", "out"))] == ["MaxPool: vai_quant_out"]


@pytest.mark.slow
def test_a_scale_that_qdq_does_not_have_is_seen(targets, fixed):
    model, _, files = fixed
    qdq, cell = onnx.ModelProto.FromString(files["qdq"].SerializeToString()), targets.Cell()
    scale = next(i for i in qdq.graph.initializer if i.name == "conv1.bias_scale")
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * 2, scale.name))
    targets.compare_with_attributes(cell, model, files["dpuv1"], qdq)
    assert [p.partition(" is ")[0] for p in cell.problems] == ["conv1: bias scale as QDQ"]


@pytest.mark.slow
def test_a_finn_file_with_a_wrong_threshold_is_seen(lenets, targets):
    from brevitas.export import capture, lower

    torch.manual_seed(0)
    model = lenets.LowPrecisionLeNet()
    images = torch.randn(4, 3, 32, 32)
    model(images)
    file = lower(capture(model.eval(), [images]), "finn")

    def problems() -> list[str]:
        cell = targets.Cell()
        tensors = targets.executed("finn", file, images, 4)
        targets.compare_with_reference(cell, model, file, images, tensors)
        assert cell.compared == 4 * (3 * 32 * 32 + 6 * 28 * 28 + 16 * 10 * 10 + 120 + 84 + 10)
        return cell.problems

    assert problems() == []
    node = next(n for n in file.graph.node if n.name == "relu4.act_quant")
    thresholds = next(i for i in file.graph.initializer if i.name == node.input[1])
    array = onnx.numpy_helper.to_array(thresholds)
    thresholds.CopyFrom(onnx.numpy_helper.from_array(np.float32(array * 1.05), thresholds.name))
    assert [p.partition(":")[0] for p in problems()] == ["output", "relu4.act_quant"]


@pytest.mark.slow
def test_the_managers_write_what_the_table_has(lenets, fixed, tmp_path):
    from quant_zoo.console import Narrator

    lenets.write({"fixed": fixed[0]}, tmp_path, Narrator())
    assert {p.name for p in tmp_path.iterdir()} == {f"fixed_{t}.onnx" for t in ("qonnx", "qdq", "dpuv1", "dpuv2")}
    assert {p.name for p in tmp_path.iterdir()} == {
        f"fixed_{t}.{ending}" for t, ending in FORMATS.items() if t not in lenets.LENETS["fixed"].refused
    }


def test_digits_are_padded_and_evenly_chosen(lenets):
    import quant_zoo

    digits = quant_zoo.mnist_digits()
    wide = lenets.padded(digits)
    assert wide.test_images.shape == (1000, 3, 32, 32)
    black, white = (float(f(wide.test_images)) for f in (torch.min, torch.max))
    assert (round(black, 3), round(white, 3)) == (-0.424, 2.821)
    inner = wide.test_images[:, :, 2:-2, 2:-2] * 0.3081 + 0.1307
    assert torch.allclose(inner, digits.test_images.expand(-1, 3, -1, -1), atol=1e-6)
    some = lenets.chosen(wide, lenets.parse(["--samples", "20", "--quick"]))
    assert some.test_labels.bincount().tolist() == [2] * 10 and some.train_labels.bincount().tolist() == [80] * 10
    assert len(lenets.chosen(wide, lenets.parse(["--samples", "5000"])).test_labels) == 1000


def test_help_explains_the_options(tmp_path):
    result = example("--help", cwd=tmp_path)
    assert result.returncode == 0
    for option in ("--epochs", "--samples", "--quick", "--out", "--seed", "--threads"):
        assert option in result.stdout


@pytest.mark.parametrize("option", ["--epochs", "--samples"])
@pytest.mark.parametrize("number", ["-1", "0", "1.5", "many"])
def test_what_is_no_number_is_refused(lenets, option, number, capsys):
    with pytest.raises(SystemExit):
        lenets.parse([option, number])
    assert f"'{number}' is not a whole number above 0" in capsys.readouterr().err


def test_an_output_folder_below_a_file_is_one_line_before_training(lenets, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert lenets.main(["--out", str(tmp_path / "file" / "out")]) == 1
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1 and str(tmp_path / "file") in said.err and said.out == ""


@pytest.mark.slow
def test_an_interruption_is_one_line(tmp_path):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-u", str(EXAMPLE), "--out", "out"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), **pipes)
    try:
        while not process.stdout.readline().startswith("Digits"):
            assert process.poll() is None
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1 and stderr.strip() == "interrupted"
    assert not any((tmp_path / "out").iterdir())
