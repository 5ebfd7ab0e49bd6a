"""Imports point one way: a package imports only from packages to its left."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Packages, lowest first, with all that each may import of the project. Presets and their solvers share a package.
FOUNDATION = (
    "brevitas.errors",
    "brevitas.config",
    "brevitas.jit",
    "brevitas.utils",
    "brevitas.inject",
    "brevitas._version",
)
ROAD = (
    "brevitas.function",
    "brevitas.core",
    "brevitas.quant.registry",
    "brevitas.quant.solver",
    "brevitas.quant",
    "brevitas.quant_tensor",
    "brevitas.proxy",
    "brevitas.nn",
    "brevitas.loss",
    "brevitas.graph",
    "brevitas.export",
    "brevitas.cli",
)
# Second names of what lies elsewhere: they stand where their target stands.
ALIASES = {"brevitas.onnx": "brevitas.export", "brevitas.inject.defaults": "brevitas.quant"}
ON_TOP = ("quant_zoo", "examples", "benchmarks")


def source_files() -> list[Path]:
    folders = ("injector", "brevitas", *ON_TOP)
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a file imports; ``from a import b`` gives ``a.b``."""
    package = list(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package[: len(package) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def room(name: str) -> str | None:
    """The package of ROAD or FOUNDATION that a module belongs to, the longest that matches."""
    for alias, target in ALIASES.items():
        if name == alias or name.startswith(alias + "."):
            return target
    rooms = [r for r in (*ROAD, *FOUNDATION) if name == r or name.startswith(r + ".")]
    return max(rooms, key=len) if rooms else None


def may_import(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    if importer in FOUNDATION:
        return imported in FOUNDATION
    if imported in FOUNDATION:
        return True
    if importer == "brevitas.quant_tensor":
        return imported == "brevitas.function"
    return ROAD.index(imported) < ROAD.index(importer)


FORBIDDEN_EXAMPLES = [
    ("brevitas.function", "brevitas.core"),
    ("brevitas.quant.solver", "brevitas.quant"),
    ("brevitas.quant_tensor", "brevitas.core"),
    ("brevitas.nn", "brevitas.export"),
    ("brevitas.errors", "brevitas.nn"),
]


@pytest.mark.parametrize(("importer", "imported"), FORBIDDEN_EXAMPLES)
def test_the_rule_refuses(importer: str, imported: str) -> None:
    assert not may_import(importer, imported)


def test_the_injector_knows_nothing_of_the_library() -> None:
    wrong = [
        f"{path}:{line} imports {name}"
        for path in sorted((ROOT / "injector").rglob("*.py"))
        for line, name in imported_names(path)
        if name.split(".")[0] in ("torch", "numpy", "brevitas", "quant_zoo")
    ]
    assert not wrong, "\n".join(wrong)


def test_imports_of_the_library_point_one_way() -> None:
    wrong = []
    for path in sorted((ROOT / "brevitas").rglob("*.py")):
        importer = room(module_name(path))
        for line, name in imported_names(path):
            if name.split(".")[0] in ON_TOP:
                wrong.append(f"{path}:{line} imports {name}")
            imported = room(name)
            if importer and imported and not may_import(importer, imported):
                wrong.append(f"{path}:{line}: {importer} imports {imported}")
    assert not wrong, "\n".join(wrong)


def test_every_module_of_the_library_has_its_place() -> None:
    homeless = [
        name
        for path in sorted((ROOT / "brevitas").rglob("*.py"))
        if room(name := module_name(path)) is None and name not in ("brevitas", "brevitas.__main__")
    ]
    assert not homeless


def test_what_sits_on_top_imports_only_public_names() -> None:
    wrong = [
        f"{path}:{line} imports {name}"
        for folder in ON_TOP
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, name in imported_names(path)
        if name.split(".")[0] in ("brevitas", "injector") and any(part.startswith("_") for part in name.split("."))
    ]
    assert not wrong, "\n".join(wrong)


def test_there_is_something_to_check() -> None:
    assert len(source_files()) > 20
