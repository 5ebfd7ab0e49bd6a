"""What ``verify`` found, as rows, table, JSON and HTML."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

__all__ = ["Row", "VerifyReport"]

_HEADINGS = ("layer", "quantizer", "values", "equal", "ties", "diverged", "most steps", "remark")


@dataclass(frozen=True)
class Row:
    """One quantizer call, or one output of the model.

    ``kind`` is weight, bias, activation or output. ``total`` values were compared: ``equal`` have the same code,
    ``ties`` differ by one step at a rounding boundary, ``diverged`` differ otherwise. ``most_steps`` is the greatest
    difference in steps of the grid. Outputs that lie on no known grid have ``counted`` False and only
    ``max_abs_difference``.
    """

    layer: str
    layer_class: str
    quantizer: str
    call: int
    kind: str
    total: int
    equal: int
    ties: int = 0
    diverged: int = 0
    most_steps: float = 0.0
    max_abs_difference: float | None = None
    tie_distance: float = 0.0
    causes: dict[str, int] = field(default_factory=dict)
    counted: bool = True

    @property
    def remark(self) -> str:
        """Causes of the differences, and the float difference of outputs, in words."""
        parts = [f"{n} {cause}" for cause, n in self.causes.items()]
        if self.max_abs_difference is not None:
            parts.append(f"max abs difference {self.max_abs_difference:.3g}")
        return ", ".join(parts)

    def cells(self) -> tuple[str, ...]:
        """The row as strings, in the order of the table's headings."""
        name = self.quantizer.rpartition(".")[2] if self.kind != "output" else self.quantizer
        call = f" (call {self.call})" if self.call else ""
        numbers = [str(self.equal), str(self.ties), str(self.diverged)] if self.counted else ["-", "-", "-"]
        steps = f"{self.most_steps:.3g}" if self.counted else "-"
        return (self.layer or "(model)", name + call, str(self.total), *numbers, steps, self.remark)


@dataclass(frozen=True)
class VerifyReport:
    """Result of :func:`brevitas.export.verify`; prints as a table.

    >>> report = VerifyReport([Row('conv1', 'QuantConv2d', 'conv1.weight_quant', 0, 'weight', 9, 9)])
    >>> report.equal, report.ties, report.diverged, report.ok
    (9, 0, 0, True)
    """

    rows: Sequence[Row]
    runtime: str = ""
    mode: str = "isolated"

    @property
    def equal(self) -> int:
        """Number of equal values."""
        return sum(r.equal for r in self.rows if r.counted)

    @property
    def ties(self) -> int:
        """Number of values that differ by one step at a rounding boundary."""
        return sum(r.ties for r in self.rows if r.counted)

    @property
    def diverged(self) -> int:
        """Number of values that differ otherwise."""
        return sum(r.diverged for r in self.rows if r.counted)

    @property
    def total(self) -> int:
        """Number of values compared."""
        return self.equal + self.ties + self.diverged

    @property
    def ok(self) -> bool:
        """True where nothing diverged."""
        return self.diverged == 0

    @property
    def first_divergence(self) -> Row | None:
        """The first row, in execution order, with a diverged value; else the first with a tie; else ``None``."""
        counted = [r for r in self.rows if r.counted]
        return next((r for r in counted if r.diverged), next((r for r in counted if r.ties), None))

    @property
    def summary(self) -> str:
        """One or two lines: the counts, and the first difference."""
        lines = [
            f"verify ({self.mode}, {self.runtime}): {self.total} integers, {self.equal} equal, "
            f"{self.ties} ties of one step, {self.diverged} diverged"
        ]
        first = self.first_divergence
        if first is not None:
            what = "first divergence" if first.diverged else "first tie"
            lines.append(f"{what}: {first.layer_class} '{first.layer}', {first.quantizer}, {first.remark}")
        return "\n".join(lines)

    def __str__(self) -> str:
        """Summary and table; with ``rich`` installed a drawn one."""
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            return f"{self.summary}\n{self._plain_table()}"
        table = Table(show_edge=False, pad_edge=False)
        for i, heading in enumerate(_HEADINGS):
            table.add_column(heading, justify="right" if 2 <= i <= 6 else "left", no_wrap=i < 7)
        for row in self.rows:
            table.add_row(*row.cells())
        out = io.StringIO()
        Console(file=out, width=120, color_system=None).print(table)
        return f"{self.summary}\n{out.getvalue().rstrip()}"

    def _plain_table(self) -> str:
        lines = [_HEADINGS, *(row.cells() for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADINGS))]
        return "\n".join(
            "  ".join(
                c.rjust(w) if 2 <= i <= 6 else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def to_json(self) -> str:
        """The whole report as a JSON object: runtime, mode, equal, ties, diverged, rows."""
        return json.dumps(
            {
                "runtime": self.runtime,
                "mode": self.mode,
                "equal": self.equal,
                "ties": self.ties,
                "diverged": self.diverged,
                "rows": [asdict(row) for row in self.rows],
            },
            indent=2,
        )

    def to_html(self) -> str:
        """A self-contained HTML table; rows with differences are marked."""
        head = "".join(f"<th>{html.escape(h)}</th>" for h in _HEADINGS)
        body = []
        for row in self.rows:
            kind = "diverged" if row.diverged else "tie" if row.ties else "equal"
            body.append(f'<tr class="{kind}">' + "".join(f"<td>{html.escape(c)}</td>" for c in row.cells()) + "</tr>")
        style = (
            "table.verify{border-collapse:collapse;font:14px sans-serif}.verify td,.verify th{padding:2px 10px;"
            "text-align:right;border-bottom:1px solid #ddd}.verify td:first-child,.verify td:nth-child(2),"
            ".verify td:last-child{text-align:left}.verify .tie{background:#fff6d6}"
            ".verify .diverged{background:#ffd9d6}"
        )
        caption = html.escape(self.summary).replace("\n", "<br>")
        return (
            f'<style>{style}</style><table class="verify"><caption>{caption}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        )
