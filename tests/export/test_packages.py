"""Importing brevitas.export needs torch alone; what is missing is named when it is needed."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# Each test is a fresh interpreter.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

BLOCK = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition('.')[0] in {blocked} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def run_without(blocked, code):
    program = BLOCK.format(blocked=blocked) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_without_onnx_everything_imports_and_an_export_names_the_command():
    result = run_without(
        {"onnx", "onnx_ir", "onnxscript", "onnxruntime", "qonnx", "rich"},
        """
        import torch, brevitas.onnx
        from brevitas.export import *
        from brevitas.export.onnx.generic.manager import BrevitasONNXManager
        print(list_targets(), get_target("qdq").title, str(VerifyReport([])) != "")
        try:
            StdONNXManager.export(torch.nn.Linear(2, 2), (1, 2))
        except ImportError as error:
            print(type(error).__name__, isinstance(error, ExportError), error)
        """,
    )
    assert result.returncode == 0, result.stderr
    assert "'qdq', 'qonnx', 'qop', 'torch']" in result.stdout
    assert "True a package is missing:" in result.stdout
    assert "E06 [qdq]" in result.stdout and "pip install onnx onnx_ir onnxscript" in result.stdout


@pytest.mark.parametrize(("target", "package"), [("qdq", "onnxruntime"), ("qonnx", "qonnx")])
def test_without_its_runtime_verify_names_the_package(target, package):
    result = run_without(
        {package},
        f"""
        import torch
        from brevitas.export import ExportError, capture, lower, verify
        model = torch.nn.Linear(2, 2)
        proto = lower(capture(model, [torch.zeros(1, 2)]), "{target}")
        try:
            verify(model, proto, torch.zeros(1, 2))
        except ExportError as error:
            print(error)
        """,
    )
    assert result.returncode == 0, result.stderr
    assert "E06" in result.stdout and f"pip install {package}" in result.stdout
