"""What both pages need: quantizers completed and resolved, verdicts in words, markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from ref_exports import Verdict, layer_with

from brevitas.errors import QuantConfigError
from brevitas.export import list_targets
from brevitas.quant.directives import DIRECTIVES
from brevitas.quant.site import Site
from brevitas.quant.strict import resolve_quantizer
from injector import Record, declarations

NOTE = "<!-- Written by docs/generate from the registries of brevitas.quant; run `make docs` to renew it. -->\n\n"

_Built = TypeVar("_Built")


def role_of(quantizer: type) -> str:
    """The role of a quantizer, from its solver."""
    return str(declarations(quantizer)["_role"].obj)


def completed(quantizer: type, build: Callable[[Any], _Built]) -> tuple[_Built, list[str]]:
    """What `build` makes of a quantizer, with the example of each directive that must be declared; and their names.

    Raises QuantConfigError for anything else that is wrong.
    """
    added: list[str] = []
    while True:
        try:
            return build(quantizer), added
        except QuantConfigError as error:
            found = re.search(r"'?(\w+)'? is required", str(error))
            name = found.group(1) if found else ""
            example = DIRECTIVES[name].example if name in DIRECTIVES else ""
            if not example or name in added:
                raise
            added.append(name)
            quantizer = quantizer.let(**{name: eval(example.partition("=")[2], {})})  # type: ignore[attr-defined]  # noqa: S307


def records_of(quantizer: type) -> Mapping[str, Record]:
    """Every resolved value of a quantizer, in a tiny layer where its role has one."""
    role = role_of(quantizer)
    layer = layer_with(role, quantizer)
    if layer is not None:
        return getattr(layer, f"{role}_quant").resolution().records
    return resolve_quantizer(quantizer, Site("a layer", f"{role}_quant", role), {}).records


@cache
def targets() -> tuple[str, ...]:
    """Keys of the targets that exist."""
    return tuple(list_targets())


def told(verdict: Verdict | None) -> str:
    """A verdict in words: the targets that take it, and why the others do not."""
    if verdict is None:
        return ""
    refused: dict[str, list[str]] = {}
    for target, violation in verdict.refuses.items():
        found = re.sub(r" in \w+$", "", violation.found)
        if violation.code == "E04":
            found = found.partition(": ")[0]  # What follows is what torch said.
        refused.setdefault(f"{violation.code}: {found}", []).append(target)
    why = [f"not {', '.join(targets)} ({reason})" for reason, targets in refused.items()]
    return "; ".join([", ".join(verdict.takes), *why] if verdict.takes else why)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n\n"


def worded(text: str) -> str:
    """A text of the vocabulary with the names of options as code."""
    return re.sub(r"(?<![`\w])[a-z]+_\w+(?![`\w])", r"`\g<0>`", text)


def sentence(doc: str | None) -> str:
    """The first sentence of a docstring, as markdown."""
    text = " ".join((doc or "").split("\n\n")[0].split()).replace("``", "`")
    text = re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", text)
    return re.split(r"(?<=\.)\s", text)[0].rstrip(".")
