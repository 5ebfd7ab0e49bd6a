"""A table as plain text.

>>> print(table(['name', 'size'], [['conv', '12'], ['fully.connected', '3']], right_from=1, width=15, shrink={0: 4}))
name       size
conv         12
full…cted     3
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["table"]

_GAP = "  "


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right_from: int,
    shrink: Mapping[int, int],
    width: int = 120,
) -> str:
    """Aligned columns, at most ``width`` characters in a line.

    Args:
        head: title of each column.
        rows: cells of each row.
        right_from: first column that is aligned to the right, as numbers are.
        shrink: columns whose cells may lose their middle where a line would be longer, each with its least width; the
            first one shrinks first.
        width: of a line.
    """
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for column, least in shrink.items():
        surplus = sum(widths) + len(_GAP) * (len(widths) - 1) - width
        widths[column] = min(widths[column], max(least, widths[column] - max(surplus, 0)))
    return "\n".join(_line(line, widths, right_from) for line in lines)


def _line(cells: list[str], widths: list[int], right_from: int) -> str:
    shown = [_shortened(cell, width) for cell, width in zip(cells, widths, strict=True)]
    padded = [
        cell.rjust(width) if column >= right_from else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(shown, widths, strict=True))
    ]
    return _GAP.join(padded).rstrip()


def _shortened(cell: str, width: int) -> str:
    if len(cell) <= width:
        return cell
    kept = width - 1
    return f"{cell[: (kept + 1) // 2]}…{cell[len(cell) - kept // 2 :]}"
