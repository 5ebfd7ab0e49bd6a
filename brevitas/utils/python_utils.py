"""Small helpers that know nothing of torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import Enum
from typing import Any

__all__ = ["AutoName", "patch"]


class AutoName(str, Enum):  # noqa: UP042 - StrEnum would print the value, and compares case
    """String enum whose values are the member names, compared without regard to case.

    >>> from enum import auto
    >>> class Colour(AutoName):
    ...     RED = auto()
    >>> Colour.RED == 'red', str(Colour.RED)
    (True, 'RED')
    """

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[Any]) -> str:
        return name

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Enum):
            return self is other
        return isinstance(other, str) and self.value.upper() == other.upper()

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.value.upper())

    def __str__(self) -> str:
        return self.name


@contextlib.contextmanager
def patch(obj: Any, attr: str, value: Any) -> Iterator[Any]:
    """Set ``obj.attr`` to ``value`` for the duration of a ``with`` block, then restore it.

    >>> import types
    >>> o = types.SimpleNamespace(a=1)
    >>> with patch(o, 'a', 2):
    ...     o.a
    2
    >>> o.a
    1
    """
    old = getattr(obj, attr)
    setattr(obj, attr, value)
    try:
        yield obj
    finally:
        setattr(obj, attr, old)
