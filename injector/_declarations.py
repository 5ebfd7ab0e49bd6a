"""Everything that is taken from the package `dependencies`: what users write in a class body, and how it is told apart.

No other module imports `dependencies`. Its resolver and its metaclass are not used: they rewrite the class that they
resolve, and know neither a `@value` that returns a class nor where anything was written.

>>> this.scaling.shape[0]
this.scaling.shape[0]
>>> (this << 2).bit_width
(this << 2).bit_width
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dependencies
from dependencies.exceptions import DependencyError as _ForeignError

from injector.errors import DependencyError

__all__ = [
    "PARENT",
    "Link",
    "foreign_form",
    "is_link",
    "link_levels",
    "link_steps",
    "own_form",
    "this",
    "value",
    "value_function",
]

PARENT = "__parent__"

_ForeignLink: Any = type(dependencies.this)
_foreign_injector_type: Any = type(dependencies.Injector)


class value(dependencies.value):
    """Decorate a function whose result is the value of the attribute; its arguments are attributes, found by name.

    >>> from injector import Injector
    >>> class Widths(Injector):
    ...     channels = 3
    ...     @value
    ...     def bit_width(channels):
    ...         return 8 if channels == 3 else 4
    >>> Widths.bit_width
    8

    A class that the function returns is built like a declared class, `this.x` is followed, an injector class becomes a
    nested injector. A class or a method in place of the function is a `DependencyError`.
    """

    __function__: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        if not callable(function):
            raise DependencyError(f"@value decorates a function, not {function!r}; write a plain value without @value")
        try:
            super().__init__(function)
        except _ForeignError as error:
            raise DependencyError(f"{error}: {function!r}. Declare the class itself, or return it") from error

    def __repr__(self) -> str:
        return f"<value {getattr(self.__function__, '__qualname__', self.__function__)}>"


class Link(_ForeignLink):
    """What `this.x` is: a path to follow inside the injector. Unlike its base it can be copied, pickled and read."""

    __expression__: tuple[tuple[str, Any], ...]

    def __getattr__(self, name: str) -> Link:
        if name.startswith("__") and name.endswith("__"):
            # Protocols such as copy and pickle probe for hooks; a link must not answer with another link.
            raise AttributeError(name)
        return Link(super().__getattr__(name).__expression__)

    def __getitem__(self, item: Any) -> Link:
        return Link(super().__getitem__(item).__expression__)

    def __lshift__(self, levels: int) -> Link:
        return Link(super().__lshift__(levels).__expression__)

    def __repr__(self) -> str:
        return expression_text(self.__expression__)


this = Link(())


def expression_text(expression: tuple[tuple[str, Any], ...]) -> str:
    """The link as it is written in source."""
    levels = link_levels(expression)
    text = f"(this << {levels})" if levels else "this"
    for kind, symbol in expression[levels:]:
        text += f".{symbol}" if kind == "." else f"[{symbol!r}]"
    return text


def is_link(obj: object) -> bool:
    """Whether `obj` was made from `this`."""
    return isinstance(obj, _ForeignLink)


def link_steps(link: Any) -> tuple[tuple[str, Any], ...]:
    """The steps of a link, each ('.', name) or ('[]', key), where ('.', '__parent__') leads one level up.

    Raises `DependencyError` for a link that does not start with the name of an attribute.
    """
    expression: tuple[tuple[str, Any], ...] = link.__expression__
    upwards = link_levels(expression)
    steps = expression[upwards:]
    if not steps or steps[0][0] != "." or (".", PARENT) in steps:
        raise DependencyError(
            f"is {expression_text(expression)}, which names no attribute to start from; "
            f"write `this.name` or `(this << 1).name`"
        )
    return expression


def link_levels(expression: tuple[tuple[str, Any], ...]) -> int:
    """How many levels up a link starts."""
    return next((n for n, step in enumerate(expression) if step != (".", PARENT)), len(expression))


def value_function(obj: object) -> Callable[..., Any] | None:
    """The function that `@value` decorates; None if `obj` is no `@value`."""
    return obj.__function__ if isinstance(obj, dependencies.value) else None


def foreign_form(obj: object) -> str | None:
    """Name of a form of the package `dependencies` that this injector does not take, with what to write instead."""
    if isinstance(obj, dependencies.operation):
        return "an `operation`; use a `@value` that returns the function"
    if isinstance(obj, dependencies.Package):
        return "a `Package`; import what is needed and declare it"
    if isinstance(obj, _foreign_injector_type):
        return "a class derived from `dependencies.Injector`; derive it from `injector.Injector`"
    return None


def own_form(obj: Any) -> Any:
    """`obj`, where it is a `value` or link that was imported from `dependencies` itself, in the form of this module."""
    if isinstance(obj, dependencies.value) and not isinstance(obj, value):
        return value(obj.__function__)
    if isinstance(obj, _ForeignLink) and not isinstance(obj, Link):
        return Link(obj.__expression__)
    return obj
