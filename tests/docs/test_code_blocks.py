"""Whatever the documentation shows as code runs: blocks of README.md and docs/, and the examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PACKAGES = ("injector", "brevitas", "quant_zoo")
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """First line number and text of each python block."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, match.start(1)) + 1, match.group(1)) for match in FENCE.finditer(text)]


def run_blocks(page: Path, blocks: list[tuple[int, str]]) -> dict[str, object]:
    """Run the blocks of a page in order in one namespace, as a reader would who pastes them one after the other."""
    namespace: dict[str, object] = {"__name__": f"page_{page.stem}"}
    for line, block in blocks:
        # Blank lines in front make line numbers in a traceback those of the page.
        exec(compile("\n" * (line - 1) + block, str(page), "exec", dont_inherit=True), namespace)
    return namespace


def modules() -> Iterator[str]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks(page, python_blocks(page))


def test_readme_has_an_example() -> None:
    assert python_blocks(ROOT / "README.md")


@pytest.mark.parametrize("name", list(modules()))
def test_examples_in_docstrings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
    result = doctest.testmod(module, optionflags=flags, report=True)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples failed; see the captured output"
