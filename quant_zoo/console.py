"""What a long-running example says: bars in a terminal, plain lines when its output goes to a file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from quant_zoo.training import Step

__all__ = ["Narrator"]

PIPED_WIDTH = 110


class Narrator:
    """Tells what happens, on ``console`` or on standard output.

    >>> narrator = Narrator()
    >>> with narrator.phase("training", 2) as step:
    ...     step(Step(1, 2, 1, 0.5))
    ...     step(Step(2, 2, 1, 0.25))
    training...
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        if not self.console.is_terminal:
            self.console.width = PIPED_WIDTH

    def say(self, text: str = "") -> None:
        """A line of text; rich markup is drawn in a terminal and left out elsewhere."""
        self.console.print(text)

    @contextmanager
    def phase(self, title: str, total: int | None = None) -> Iterator[Callable[[Step], None]]:
        """A stretch of work with ``total`` steps, or with an unknown number; reports its duration at the end."""
        started = time.perf_counter()
        last: list[Step] = []
        if self.console.is_terminal:
            columns = (TextColumn("  {task.description:<34}"), BarColumn(28), TextColumn("{task.fields[note]:<14}"))
            with Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True) as progress:
                task = progress.add_task(title, total=total, note="")

                def draw(step: Step) -> None:
                    last[:] = [step]
                    progress.update(task, completed=step.number, total=step.total, note=_note(step))

                yield draw
        else:
            yield lambda step: last.__setitem__(slice(None), [step])
        seconds = time.perf_counter() - started
        note = _note(last[0]) if last else ""
        self.console.print(f"  {title:<34} {note:<14} {seconds:6.1f} s".rstrip())


def _note(step: Step) -> str:
    return "" if step.loss != step.loss else f"loss {step.loss:.3f}"
