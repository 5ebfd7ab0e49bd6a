"""Where something was written: file and line, found while a class body runs and without reading any source.

>>> SourceLocation("quantizers.py", 12)
SourceLocation(file='quantizers.py', line=12)
>>> print(SourceLocation("quantizers.py", 12))
quantizers.py:12
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

__all__ = ["RecordingNamespace", "SourceLocation", "caller_location"]

# A declaration made through a layer's keyword belongs to the line that called the layer, not to the library's own call.
LIBRARY_PACKAGES = ("injector", "brevitas")


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """A line of a file, as Python's own tracebacks name it."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def frame_location(frame: FrameType) -> SourceLocation:
    """The line that `frame` is at."""
    return SourceLocation(frame.f_code.co_filename, frame.f_lineno)


def caller_location(packages: Sequence[str] = LIBRARY_PACKAGES) -> SourceLocation:
    """The line of the nearest caller whose module is in none of `packages`.

    >>> type(caller_location())
    <class 'injector.locations.SourceLocation'>

    A call made while a module of these packages is being imported belongs to that module, not to who imported it.
    """
    frame: FrameType | None = sys._getframe(1)
    inner = frame
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in packages:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                break
            return frame_location(frame)
        inner, frame = frame, frame.f_back
    assert inner is not None
    return frame_location(inner)


class RecordingNamespace(dict[str, Any]):
    """The namespace of an injector's class body: a dict that notes the line of each assignment.

    `location` is the line of the class statement, `lines` the line at which each name was last assigned.
    """

    def __init__(self, location: SourceLocation) -> None:
        super().__init__()
        self.location = location
        self.lines: dict[str, SourceLocation] = {}

    def __setitem__(self, name: str, obj: Any) -> None:
        self.lines[name] = frame_location(sys._getframe(1))
        super().__setitem__(name, obj)
