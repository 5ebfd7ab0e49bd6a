"""docs/around-training.md: every line names tests, and they exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "around-training.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)))
# Tables whose lines are each shown by a test have this head.
LINES = [line for line in PAGE.splitlines() if re.match(r"\| (?!what |---|statistic )", line)]


@pytest.mark.parametrize(("file", "name"), NAMED, ids=lambda part: part)
def test_a_named_test_exists(file, name):
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert name.startswith("check_" if "programs" in file else "test_")


def test_every_line_is_shown_by_a_test():
    described = PAGE.partition("## Ending the collection")[0]
    lines = [line for line in LINES if line in described]
    assert len(lines) > 25
    assert [line for line in lines if not re.search(r"::\w+` \|$", line)] == []


@pytest.mark.parametrize("program", sorted({file for file, _ in NAMED if "programs" in file}))
def test_a_named_program_is_run_by_a_test(program):
    assert f'"{Path(program).stem}"' in (ROOT / "tests" / "around" / "test_ranks.py").read_text(encoding="utf-8")
