"""The package as a whole: what it imports, what it exports, and that its examples run."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import injector

FOLDER = Path(injector.__file__).parent
MODULES = ["injector", *(f"injector.{each.name}" for each in pkgutil.iter_modules(injector.__path__))]


def imported_by(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_most_modules_have_examples():
    finder = doctest.DocTestFinder()
    found = [each for name in MODULES for each in finder.find(importlib.import_module(name)) if each.examples]
    assert len(found) >= 15


def test_exports_exist_and_are_documented():
    assert sorted(injector.__all__) == injector.__all__
    for name in injector.__all__:
        assert getattr(injector, name).__doc__, name
    assert injector.__version__


def test_dependencies_is_imported_by_one_module():
    users = [
        path.name
        for path in FOLDER.glob("*.py")
        if any(name.partition(".")[0] in ("dependencies", "_dependencies") for name in imported_by(path))
    ]
    assert users == ["_declarations.py"]


def test_neither_torch_nor_brevitas_is_needed():
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['brevitas'] = sys.modules['numpy'] = None\n"
        "import injector\n"
        "class Q(injector.Injector):\n    a = 1\n"
        "print(injector.explain(Q, 'a').split('  ')[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=FOLDER.parent, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("a = 1", "")


def test_package_is_typed():
    assert (FOLDER / "py.typed").exists()
