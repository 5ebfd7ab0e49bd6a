"""An explanation as a page: the drawings, and below each the same values as a table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from brevitas.graph.explanation.drawing import draw, heading_of
from brevitas.graph.explanation.facts import Fact, Part, brief

__all__ = ["page"]

_COLUMNS = ("Name", "Value", "Set by", "Overrides", "Read by")


def page(parts: Sequence[Part]) -> str:
    """A whole HTML document without any reference to another file."""
    style = files("brevitas.graph.explanation").joinpath("page.css").read_text(encoding="utf-8")
    title = heading_of(parts[0]) if len(parts) == 1 else f"{len(parts)} quantizers"
    alone = len(parts) == 1
    sections = "".join(_section(part, index, alone) for index, part in enumerate(parts))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>\n{style}</style>\n</head>\n'
        f"<body>\n<main>\n<h1>{escape(title)}</h1>\n"
        "<p>Where every value comes from. A line leads from a value to what was made from it; what the layer calls "
        "stands on the right. Point at a box to follow its lines.</p>\n"
        f"{_contents(parts)}{sections}</main>\n</body>\n</html>\n"
    )


def _contents(parts: Sequence[Part]) -> str:
    if len(parts) < 2:
        return ""
    links = "".join(f'<li><a href="#part{i}">{escape(heading_of(part))}</a></li>\n' for i, part in enumerate(parts))
    return f'<nav aria-label="Quantizers">\n<ul>\n{links}</ul>\n</nav>\n'


def _section(part: Part, index: int, alone: bool) -> str:
    heading = "" if alone else f'<h2 id="part{index}">{escape(heading_of(part))}</h2>\n'
    rows = "".join(_row(fact) for fact in part.facts)
    drawing = f'<div class="scroll" tabindex="0">\n{draw([part], f"p{index}n")}</div>\n' if part.resolved else ""
    columns = "".join(f'<th scope="col">{name}</th>' for name in _COLUMNS)
    return (
        f"<section>\n{heading}{drawing}"
        f'<div class="scroll plain" tabindex="0">\n<table>\n<thead><tr>{columns}'
        f"</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n</section>\n"
    )


def _row(fact: Fact) -> str:
    place = escape(fact.setter)
    if fact.location:
        place += f'<br><code title="{escape(str(fact.location))}">{escape(brief(fact.location))}</code>'
    overrode = "<br>".join(f"<del>{escape(was.value)}</del> of {escape(was.setter)}" for was in fact.overrode)
    defaults = "".join(f"<br>{escape(name)} = {escape(value)} by default" for name, value in fact.defaults)
    return (
        f'<tr><th scope="row">{escape(fact.name)}</th><td class="v">{escape(fact.value)}{defaults}</td><td>{place}</td>'
        f"<td>{overrode}</td><td>{escape(', '.join(fact.readers))}</td></tr>\n"
    )
