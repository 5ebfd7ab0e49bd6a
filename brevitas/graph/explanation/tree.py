"""An explanation as a tree: below each value what it was built from."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from brevitas.graph.explanation.facts import Fact, Part, brief

__all__ = ["plain_tree", "rich_tree", "tree_text"]

_STYLES = {
    "yours": "bold cyan",
    "keyword": "bold cyan",
    "layer": "yellow",
    "preset": "green",
    "solver": "bright_black",
}


@dataclass(frozen=True)
class _Branch:
    """A line of the tree; ``fact`` is ``None`` for a heading, ``seen`` marks a value whose branch stands above.

    ``grouped`` marks a value below the heading of the class that set it.
    """

    label: str
    fact: Fact | None
    seen: bool
    children: tuple[_Branch, ...] = ()
    grouped: bool = False


def _resolved(part: Part) -> tuple[_Branch, ...]:
    inputs: dict[str, list[Fact]] = {}
    for fact in part.facts:
        for reader in fact.readers:
            inputs.setdefault(reader, []).append(fact)
    done: set[str] = set()

    def branch(fact: Fact) -> _Branch:
        if fact.name in done:
            return _Branch(fact.name, fact, True)
        done.add(fact.name)
        return _Branch(fact.name, fact, False, tuple(branch(each) for each in inputs.get(fact.name, ())))

    roots = [fact for fact in part.facts if not fact.readers]
    roots.sort(key=lambda fact: fact.name != "tensor_quant")
    return tuple(branch(fact) for fact in roots)


def _declared(part: Part) -> tuple[_Branch, ...]:
    by_setter: dict[str, list[Fact]] = {}
    for fact in sorted(part.facts, key=lambda fact: list(_STYLES).index(fact.origin)):
        by_setter.setdefault(fact.setter, []).append(fact)
    return tuple(
        _Branch(setter, None, False, tuple(_Branch(fact.name, fact, False, grouped=True) for fact in facts))
        for setter, facts in by_setter.items()
    )


def _branches(part: Part) -> tuple[_Branch, ...]:
    return _resolved(part) if part.resolved else _declared(part)


def _title(part: Part) -> str:
    return f"{part.path}: {part.title}" if part.path else part.title


def _remark(branch: _Branch) -> str:
    """What follows the value of a line."""
    fact = branch.fact
    if fact is None:
        return ""
    if branch.seen:
        return "see above"
    was = f", was {fact.replaced}" if fact.replaced is not None else ""
    defaults = "".join(f"; {name} = {value} by default" for name, value in fact.defaults)
    place = brief(fact.location) if branch.grouped and fact.location else fact.caption
    return f"{place}{was}{defaults}"


def plain_tree(parts: Sequence[Part]) -> str:
    """Without colours."""
    return "\n".join(line for part in parts for line in [_title(part), *_lines(_branches(part), "")])


def _lines(branches: Sequence[_Branch], indent: str) -> Iterator[str]:
    for index, branch in enumerate(branches):
        last = index == len(branches) - 1
        value = f" = {branch.fact.value}" if branch.fact else ""
        remark = _remark(branch)
        yield f"{indent}{'└── ' if last else '├── '}{branch.label}{value}" + (f"  ({remark})" if remark else "")
        yield from _lines(branch.children, indent + ("    " if last else "│   "))


def rich_tree(parts: Sequence[Part]) -> Any:
    """As an object that ``rich`` prints."""
    from rich.console import Group
    from rich.text import Text
    from rich.tree import Tree

    def grow(tree: Tree, branches: Sequence[_Branch]) -> None:
        for branch in branches:
            fact = branch.fact
            label = Text(branch.label, style=_STYLES[fact.origin] if fact else "bold")
            if fact is not None:
                label.append(" = ", style="default not bold")
                label.append(fact.value, style="bold default")
                if fact.replaced is not None and not branch.seen:
                    label.append(f" {fact.replaced}", style="strike bright_black not bold")
                label.append(f"  {_remark(branch)}", style="bright_black not bold")
            grow(tree.add(label), branch.children)

    trees = []
    for part in parts:
        tree = Tree(Text(_title(part), style="bold"), guide_style="bright_black")
        grow(tree, _branches(part))
        trees.append(tree)
    return Group(*trees)


def tree_text(parts: Sequence[Part], color: bool | None, width: int | None) -> str:
    """The tree as text; in colours where a terminal takes them and ``rich`` is installed, unless ``color`` says."""
    installed = importlib.util.find_spec("rich") is not None
    if color is None:
        color = installed and sys.stdout.isatty()
    if not color or not installed:
        return plain_tree(parts)
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, soft_wrap=width is None, highlight=False)
    console.print(rich_tree(parts))
    return out.getvalue().rstrip("\n")
