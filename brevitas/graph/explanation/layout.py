"""A layered layout: consumers to the right of what they consume, few crossings, deterministic.

>>> plan = layered({'a': (40.0, 20.0), 'b': (40.0, 20.0), 'sum': (50.0, 20.0)}, [('a', 'sum'), ('b', 'sum')])
>>> [plan.boxes[name].x for name in ('a', 'b', 'sum')]
[0.0, 0.0, 110.0]
>>> plan.boxes['sum'].y == (plan.boxes['a'].y + plan.boxes['b'].y) / 2
True

The steps are those of Sugiyama, Tagawa and Toda (1981): ranks by longest path, edges that span ranks cut into steps,
orders by barycentres, then coordinates by least squares under the least distance (isotonic regression).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Box", "Plan", "Wire", "layered"]

# A place in a column: a node, or where the wires of a node pass by.
_Place = tuple[str, int]

_LANE = 6.0


@dataclass(frozen=True)
class Box:
    """Left, top, width and height of a node."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Wire:
    """One step of the edges from ``source`` to ``targets``; ``arrives`` where it ends at a node."""

    source: str
    targets: tuple[str, ...]
    start: tuple[float, float]
    end: tuple[float, float]
    arrives: bool


@dataclass(frozen=True)
class Plan:
    """Boxes by name, wires, and the size of the whole."""

    boxes: dict[str, Box]
    wires: tuple[Wire, ...]
    width: float
    height: float


def layered(
    sizes: Mapping[str, tuple[float, float]],
    edges: Sequence[tuple[str, str]],
    gap_x: float = 70.0,
    gap_y: float = 12.0,
) -> Plan:
    """Place nodes of given (width, height); each edge is (consumed, consumer).

    Raises:
        ValueError: the edges contain a circle, or a name that has no size.
    """
    ranks = _ranks(sizes, edges)
    columns, steps = _columns(sizes, edges, ranks)
    _order(columns, steps)
    heights = {place: sizes[place[0]][1] if ranks[place[0]] == place[1] else _LANE for c in columns for place in c}
    middles = _middles(columns, steps, heights, gap_y)
    return _plan(sizes, ranks, columns, steps, heights, middles, edges, gap_x)


def _ranks(sizes: Mapping[str, tuple[float, float]], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Distance of each node from the last column: one more than the largest of its consumers."""
    consumers: dict[str, list[str]] = {name: [] for name in sizes}
    for source, target in edges:
        if source not in sizes or target not in sizes:
            raise ValueError(f"edge {source!r} -> {target!r} names a node without a size")
        consumers[source].append(target)
    ranks: dict[str, int] = {}

    def rank(name: str, path: tuple[str, ...]) -> int:
        if name in path:
            raise ValueError(f"the edges contain a circle: {' -> '.join([*path, name])}")
        if name not in ranks:
            ranks[name] = 1 + max((rank(each, (*path, name)) for each in consumers[name]), default=-1)
        return ranks[name]

    for name in sizes:
        rank(name, ())
    return ranks


def _columns(
    sizes: Mapping[str, tuple[float, float]], edges: Sequence[tuple[str, str]], ranks: dict[str, int]
) -> tuple[list[list[_Place]], list[tuple[_Place, _Place]]]:
    """Columns from rank 0 on, and the steps between neighbouring ones; edges of one node share the way they pass."""
    columns: list[list[_Place]] = [[] for _ in range(max(ranks.values(), default=0) + 1)]
    steps: dict[tuple[_Place, _Place], None] = {}
    for name in sizes:
        columns[ranks[name]].append((name, ranks[name]))
    for source, target in edges:
        way = [(source, rank) for rank in range(ranks[source], ranks[target], -1)]
        for place in way[1:]:
            if place not in columns[place[1]]:
                columns[place[1]].append(place)
        for step in zip(way, [*way[1:], (target, ranks[target])], strict=True):
            steps[step] = None
    return columns, list(steps)


def _neighbours(
    steps: Sequence[tuple[_Place, _Place]],
) -> tuple[dict[_Place, list[_Place]], dict[_Place, list[_Place]]]:
    """Of each place those to its left, and those to its right."""
    left: dict[_Place, list[_Place]] = {}
    right: dict[_Place, list[_Place]] = {}
    for a, b in steps:
        right.setdefault(a, []).append(b)
        left.setdefault(b, []).append(a)
    return left, right


def _crossings(columns: Sequence[Sequence[_Place]], steps: Sequence[tuple[_Place, _Place]]) -> int:
    at = {place: index for column in columns for index, place in enumerate(column)}
    total = 0
    for index, (a, b) in enumerate(steps):
        for c, d in steps[index + 1 :]:
            if a[1] == c[1] and (at[a] - at[c]) * (at[b] - at[d]) < 0:
                total += 1
    return total


def _order(columns: list[list[_Place]], steps: Sequence[tuple[_Place, _Place]], sweeps: int = 12) -> None:
    """Sort each column, in place, by the mean place of its neighbours, to and fro; the best order seen stays."""
    left, right = _neighbours(steps)
    best, fewest = [list(column) for column in columns], _crossings(columns, steps)
    for sweep in range(sweeps):
        outwards = sweep % 2 == 0
        for index in range(1, len(columns)) if outwards else range(len(columns) - 2, -1, -1):
            other = columns[index - 1 if outwards else index + 1]
            at = {place: (i + 0.5) / len(other) for i, place in enumerate(other)}
            near = right if outwards else left
            own = {place: (i + 0.5) / len(columns[index]) for i, place in enumerate(columns[index])}
            wanted = {
                place: sum(at[n] for n in near[place]) / len(near[place]) if near.get(place) else own[place]
                for place in columns[index]
            }
            columns[index].sort(key=lambda place: wanted[place])  # noqa: B023 - used at once
        _exchange(columns, left, right)
        crossings = _crossings(columns, steps)
        if crossings < fewest:
            best, fewest = [list(column) for column in columns], crossings
    columns[:] = best


def _exchange(
    columns: list[list[_Place]], left: Mapping[_Place, list[_Place]], right: Mapping[_Place, list[_Place]]
) -> None:
    """Exchange neighbours of a column, in place, for as long as that takes crossings away."""
    at = {place: index for column in columns for index, place in enumerate(column)}

    def crossings(above: _Place, below: _Place) -> int:
        return sum(at[a] > at[b] for side in (left, right) for a in side.get(above, ()) for b in side.get(below, ()))

    for _ in range(8):
        better = False
        for column in columns:
            for i in range(len(column) - 1):
                a, b = column[i], column[i + 1]
                if crossings(b, a) < crossings(a, b):
                    column[i], column[i + 1] = b, a
                    at[a], at[b] = i + 1, i
                    better = True
        if not better:
            return


def _middles(
    columns: Sequence[Sequence[_Place]],
    steps: Sequence[tuple[_Place, _Place]],
    heights: Mapping[_Place, float],
    gap: float,
) -> dict[_Place, float]:
    """Vertical middle of each place: near its neighbours, in order, with room between."""
    left, right = _neighbours(steps)
    middles: dict[_Place, float] = {}
    for column in columns:
        total = sum(heights[place] for place in column) + gap * (len(column) - 1)
        y = -total / 2
        for place in column:
            middles[place] = y + heights[place] / 2
            y += heights[place] + gap
    for turn in range(16):
        outwards = turn % 2 == 0
        for column in columns if outwards else reversed(columns):
            wanted = []
            for place in column:
                near = (right if outwards else left).get(place) or (left if outwards else right).get(place)
                wanted.append(sum(middles[n] for n in near) / len(near) if near else middles[place])
            # Where wires only pass by, they should run straight: that counts more than where a box stands.
            weights = [4.0 if heights[place] == _LANE else 1.0 for place in column]
            apart = [0.0] + [(heights[a] + heights[b]) / 2 + gap for a, b in zip(column, column[1:], strict=False)]
            for place, y in zip(column, _spread(wanted, apart, weights), strict=True):
                middles[place] = y
    return middles


def _spread(wanted: Sequence[float], apart: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Values nearest to ``wanted`` of which each is at least ``apart`` above the one before it."""
    offsets = [sum(apart[: i + 1]) for i in range(len(apart))]
    blocks: list[tuple[float, float, int]] = []  # mean, weight, count
    for value, offset, weight in zip(wanted, offsets, weights, strict=True):
        mean, total, count = value - offset, weight, 1
        while blocks and blocks[-1][0] > mean:
            before, before_weight, before_count = blocks.pop()
            mean = (mean * total + before * before_weight) / (total + before_weight)
            total, count = total + before_weight, count + before_count
        blocks.append((mean, total, count))
    means = [mean for mean, _, count in blocks for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def _plan(
    sizes: Mapping[str, tuple[float, float]],
    ranks: Mapping[str, int],
    columns: Sequence[Sequence[_Place]],
    steps: Sequence[tuple[_Place, _Place]],
    heights: Mapping[_Place, float],
    middles: Mapping[_Place, float],
    edges: Sequence[tuple[str, str]],
    gap_x: float,
) -> Plan:
    top = min((middles[p] - heights[p] / 2 for c in columns for p in c), default=0.0)
    bottom = max((middles[p] + heights[p] / 2 for c in columns for p in c), default=0.0)
    lefts: list[float] = []
    widths: list[float] = []
    x = 0.0
    for column in reversed(columns):
        width = max((sizes[name][0] for name, rank in column if ranks[name] == rank), default=0.0)
        lefts.append(x)
        widths.append(width)
        x += width + gap_x
    lefts.reverse()
    widths.reverse()
    boxes = {
        name: Box(lefts[rank], middles[name, rank] - heights[name, rank] / 2 - top, widths[rank], heights[name, rank])
        for name, rank in ranks.items()
    }
    left, _ = _neighbours(steps)
    wires = []
    for a, b in steps:
        reached = tuple(t for s, t in edges if s == a[0] and ranks[t] <= b[1])
        arrives = ranks[b[0]] == b[1] and b[0] != a[0]
        if arrives:
            reached = (b[0],)
        # Wires that end at one box end one below the other, in the order in which they come.
        arriving = sorted(left[b], key=lambda place: middles[place])
        step = min(9.0, (heights[b] - 12) / max(len(arriving) - 1, 1)) if arrives else 0.0
        offset = (arriving.index(a) - (len(arriving) - 1) / 2) * step
        start_x = lefts[a[1]] + widths[a[1]]
        start = (start_x, middles[a] - top)
        wires.append(Wire(a[0], reached, start, (lefts[b[1]], middles[b] - top + offset), arrives))
        if not arrives:
            across = (lefts[b[1]] + widths[b[1]], middles[b] - top)
            wires.append(Wire(a[0], reached, (lefts[b[1]], middles[b] - top), across, False))
    unique = tuple(dict.fromkeys(wires))
    return Plan(boxes, unique, max(x - gap_x, 0.0), bottom - top)
