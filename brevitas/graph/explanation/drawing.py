"""An explanation as a drawing: one SVG that needs nothing else, light or dark as the page, with text to select."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files

from brevitas.graph.explanation.facts import Fact, Part, brief
from brevitas.graph.explanation.layout import Box, Wire, layered

__all__ = ["ORIGINS", "draw", "heading_of", "stylesheet"]

#: What the colours say: who set a value.
ORIGINS = {
    "yours": "your class",
    "keyword": "keyword of the layer",
    "layer": "given by the layer",
    "preset": "preset or fragment",
    "solver": "solver",
}

_MARGIN = 28.0
_HEAD = 74.0
_FOOT = 44.0
_EM = 0.602  # width of a letter of the monospaced font, in its size
_LONGEST = 38


@cache
def stylesheet() -> str:
    """The style of the drawing."""
    return files("brevitas.graph.explanation").joinpath("drawing.css").read_text(encoding="utf-8")


@dataclass(frozen=True)
class _Line:
    text: str
    css: str
    size: float
    was: str = ""

    @property
    def width(self) -> float:
        return (len(self.text) + (len(self.was) + 1 if self.was else 0)) * self.size * _EM


def _clip(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _caption(fact: Fact) -> str:
    """Who set it and where; a long name gives way, the place does not."""
    place = f", {brief(fact.location)}" if fact.location else ""
    room = max(_LONGEST + 4 - len(place), 8)
    setter = fact.setter.partition(" of ")[0] if fact.origin == "keyword" else fact.setter
    return (setter if len(setter) <= room else setter[: room - 1] + "…") + place


def _lines(fact: Fact) -> list[_Line]:
    was = _clip(fact.replaced) if fact.replaced is not None and len(fact.replaced) < 20 else ""
    return [
        _Line(_clip(fact.name), "name", 12),
        _Line(_clip(fact.value), "value", 12, was),
        _Line(_caption(fact), "by", 10.5),
        *(_Line(_clip(f"{name} = {value} by default"), "by", 10.5) for name, value in fact.defaults),
    ]


def _size(fact: Fact) -> tuple[float, float]:
    lines = _lines(fact)
    return round(max(line.width for line in lines) + 26), 16.0 + sum(_leading(line) for line in lines)


def _leading(line: _Line) -> float:
    return line.size * 1.3


def _n(x: float) -> str:
    """A coordinate, short."""
    return f"{x:.1f}".rstrip("0").rstrip(".")


def draw(parts: Sequence[Part], prefix: str = "bx") -> str:
    """One SVG with a drawing for each part, one below the other; ids start with ``prefix``."""
    bodies, width, y = [], 0.0, 0.0
    for index, part in enumerate(parts):
        body, part_width, part_height = _draw_part(part, f"{prefix}{index}", y)
        bodies.append(body)
        width, y = max(width, part_width), y + part_height
    title = "; ".join(heading_of(part) for part in parts)
    described = (
        "Each box is a value of the quantizer, with who set it and where. Lines lead from a value to those that were "
        "made from it; what the layer calls stands on the right."
    )
    hover = "".join(_hover(part, f"{prefix}{index}") for index, part in enumerate(parts))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="bx" viewBox="0 0 {_n(width)} {_n(y)}" width="{_n(width)}" '
        f'height="{_n(y)}" role="group" aria-labelledby="{prefix}-title {prefix}-desc">\n'
        f'<title id="{prefix}-title">{escape(title)}</title>\n<desc id="{prefix}-desc">{escape(described)}</desc>\n'
        f"<style>\n{stylesheet()}{hover}</style>\n"
        f'<rect class="paper" width="{_n(width)}" height="{_n(y)}"/>\n' + "".join(bodies) + "</svg>\n"
    )


def heading_of(part: Part) -> str:
    """What a part is about, short: its place and its quantizer."""
    where, _, quantizer = part.title.rpartition("=")
    argument = where.rpartition(", ")[2]
    return f"{part.path or argument} = {quantizer}" if where else part.title


def _hover(part: Part, prefix: str) -> str:
    """Rules that light the wires of the box under the pointer, or of the one that has the focus."""
    rules = (
        f".bx:has(#{prefix}-{i}:hover) .{prefix}-{i}, .bx:has(#{prefix}-{i}:focus) .{prefix}-{i} "
        "{ stroke: var(--ink); stroke-width: 1.75; }\n"
        for i in range(len(part.facts))
    )
    return "".join(rules)


def _draw_part(part: Part, prefix: str, top: float) -> tuple[str, float, float]:
    """SVG, width and height of one part."""
    facts = {fact.name: fact for fact in part.facts}
    edges = [(fact.name, reader) for fact in part.facts for reader in fact.readers if reader in facts]
    linked = {name for edge in edges for name in edge} or set(list(facts)[:1])
    loose = [fact for fact in part.facts if fact.name not in linked]
    sizes = {name: _size(fact) for name, fact in facts.items() if name in linked}
    plan = layered(sizes, edges)
    boxes, width, height = dict(plan.boxes), plan.width, plan.height
    # What the layer reads itself, and nothing is made from, stands in a row below.
    x, y = 0.0, height + 26
    for fact in loose:
        box_width, box_height = _size(fact)
        if x and x + box_width > width:
            x, y = 0.0, height + 14
        boxes[fact.name] = Box(x, y, box_width, box_height)
        x, width, height = x + box_width + 18, max(width, x + box_width), max(height, y + box_height)
    ids = {name: f"{prefix}-{index}" for index, name in enumerate(facts)}
    width = max(width + 2 * _MARGIN, 720.0)
    origins = [origin for origin in ORIGINS if any(fact.origin == origin for fact in part.facts)]
    out = [f'<g transform="translate(0 {_n(top)})">\n', _heading(part)]
    out.append(f'<g transform="translate({_n(_MARGIN)} {_n(_HEAD)})">\n')
    out += [_wire(wire, ids) for wire in plan.wires]
    out.append('<g role="list">\n')
    out += [_node(facts[name], boxes[name], ids[name]) for name in facts]
    out.append("</g>\n</g>\n")
    out.append(_key(origins, _HEAD + height + 30))
    out.append("</g>\n")
    return "".join(out), width, _HEAD + height + _FOOT + 14


def _heading(part: Part) -> str:
    layer = part.title.partition(" (")[0]
    where = f"{layer}, built at {brief(part.where)}" if part.where else layer
    return (
        f'<text class="head" x="{_n(_MARGIN)}" y="36">{escape(heading_of(part))}</text>\n'
        f'<text class="sub" x="{_n(_MARGIN)}" y="56">{escape(where)}</text>\n'
    )


def _wire(wire: Wire, ids: dict[str, str]) -> str:
    (x0, y0), (x1, y1) = wire.start, wire.end
    css = " ".join([ids[wire.source], *(ids[target] for target in wire.targets)])
    stop = x1 - 6 if wire.arrives else x1
    bend = min(max((stop - x0) / 2, 12.0), 60.0)
    curve = (
        f"M{_n(x0)} {_n(y0)}H{_n(stop)}"
        if abs(y0 - y1) < 0.05
        else f"M{_n(x0)} {_n(y0)}C{_n(x0 + bend)} {_n(y0)} {_n(stop - bend)} {_n(y1)} {_n(stop)} {_n(y1)}"
    )
    tip = f'<path class="tip {css}" d="M{_n(x1)} {_n(y1)}l-7 -3.5v7z"/>\n' if wire.arrives else ""
    return f'<path class="wire {css}" d="{curve}"/>\n{tip}'


def _node(fact: Fact, box: Box, name: str) -> str:
    out = [
        f'<g class="node of-{fact.origin}" id="{name}" role="listitem" tabindex="0" '
        f'transform="translate({_n(box.x)} {_n(box.y)})">\n'
        f"<title>{escape(_tooltip(fact))}</title>\n"
        f'<rect class="box" width="{_n(box.width)}" height="{_n(box.height)}" rx="6"/>\n'
        f'<rect class="{fact.origin}" x="0.5" y="7" width="4" height="{_n(box.height - 14)}" rx="2"/>\n'
    ]
    y = 8.0
    for line in _lines(fact):
        y += _leading(line)
        was = f' <tspan class="was">{escape(line.was)}</tspan>' if line.was else ""
        out.append(f'<text class="{line.css}" x="14" y="{_n(y - 4)}">{escape(line.text)}{was}</text>\n')
    out.append("</g>\n")
    return "".join(out)


def _tooltip(fact: Fact) -> str:
    lines = [f"{fact.name} = {fact.value}", f"{ORIGINS[fact.origin]}: {fact.setter}"]
    if fact.location:
        lines.append(str(fact.location))
    lines += [f"overrides {was}" for was in fact.overrode]
    if fact.readers:
        lines.append(f"read by {', '.join(fact.readers)}")
    lines += [f"by default {name} = {value}" for name, value in fact.defaults]
    return "\n".join(lines)


def _key(origins: Sequence[str], y: float) -> str:
    out, x = [], _MARGIN
    for origin in origins:
        out.append(f'<rect class="{origin}" x="{_n(x)}" y="{_n(y - 10)}" width="4" height="12" rx="2"/>\n')
        out.append(f'<text class="key" x="{_n(x + 11)}" y="{_n(y)}">{ORIGINS[origin]}</text>\n')
        x += 11 + len(ORIGINS[origin]) * 6.6 + 26
    return "".join(out)
