"""The errors of the injector, and the search for nearest names that their messages use.

>>> suggest("bit_widht", ["bit_width", "signed", "min_bit_width"])
['bit_width', 'min_bit_width']
"""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Iterable

__all__ = [
    "DependencyError",
    "FrozenInjectorError",
    "InjectorPicklingError",
    "UnknownAttributeError",
    "nearest",
    "suggest",
]


class DependencyError(Exception):
    """An injector is declared in a way that has no meaning, or an attribute of it cannot be built.

    `injector` is the name of the injector class, and `path` names the attributes that were being built, outermost
    first; both are empty where an error has nothing to do with one resolution.
    """

    injector: str = ""
    path: tuple[str, ...] = ()


class UnknownAttributeError(DependencyError, AttributeError):
    """A name that no declaration gives. Also an `AttributeError`, so that `hasattr` and `getattr` defaults work."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        # Python fills `name` and `obj` of a bare AttributeError and prints its own "Did you mean" after ours.
        self.name = ""


class FrozenInjectorError(DependencyError, AttributeError):
    """An attribute of an injector class was assigned or deleted."""


class InjectorPicklingError(DependencyError, pickle.PicklingError):
    """An injector holds something that another process could not find again."""


def suggest(name: str, candidates: Iterable[str], n: int = 3) -> list[str]:
    """Up to `n` names among `candidates` that are nearest to `name`, nearest first.

    >>> suggest("signde", ["signed", "bit_width"])
    ['signed']
    >>> suggest("Bit_Width", ["bit_width"])
    ['bit_width']
    >>> suggest("zzz", ["signed", "bit_width"])
    []

    Case does not count. Names that share no more than half of their characters are left out.
    """
    by_lower: dict[str, str] = {}
    for candidate in sorted(candidates):
        by_lower.setdefault(candidate.lower(), candidate)
    return [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=n, cutoff=0.55)]


def nearest(name: str, candidates: Iterable[str]) -> str:
    """The end of a message: `"; nearest: 'a', 'b'"`, or nothing where no name is near."""
    names = suggest(name, candidates)
    return "; nearest: " + ", ".join(repr(match) for match in names) if names else ""
