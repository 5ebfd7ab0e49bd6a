"""The flat table of an injector: name to declaration, merged from its bases, with what each declaration overrode."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from injector._declarations import foreign_form, is_link, link_steps, own_form, value_function
from injector.errors import DependencyError
from injector.locations import SourceLocation
from injector.signatures import constructor_plan, function_plan

__all__ = ["ClassInfo", "Declaration", "Kind", "Origin", "Table", "class_info", "declare", "is_injector", "merge"]

Kind = Literal["class", "class_object", "value", "link", "injector", "object"]
Origin = Literal["body", "let"]


@dataclass(frozen=True, slots=True, eq=False)
class Declaration:
    """One name of an injector, and where it comes from.

    `obj` is the object as it was written; `kind` says what resolving does with it: a `class` is built, a `class_object`
    (name ending in `_class`) is the value itself, a `value` is called, a `link` followed, an `injector` nested, and any
    other `object` is the value. `owner` is the injector class that declared it, `origin` whether in a class body or by
    `let`, and `overrode` holds what it hides in this injector, nearest first.
    """

    name: str
    obj: Any
    kind: Kind
    owner: type
    location: SourceLocation
    origin: Origin = "body"
    overrode: tuple[Declaration, ...] = ()

    @property
    def owner_name(self) -> str:
        """Name of the class that declared it."""
        return self.owner.__name__

    def __str__(self) -> str:
        where = f"{self.owner_name}, {self.location}"
        return f"let on {where}" if self.origin == "let" else where


Table = dict[str, Declaration]


@dataclass(slots=True)
class ClassInfo:
    """What an injector class knows of itself. Written once, while the class is made."""

    location: SourceLocation
    origin: Origin
    own: Mapping[str, Declaration]
    table: Table
    parent: type | None = None


def class_info(injector: type) -> ClassInfo:
    """The record that the metaclass keeps for `injector`."""
    info: ClassInfo = injector.__dict__["__injector__"]
    return info


def is_injector(obj: object) -> bool:
    """Whether `obj` is an injector class.

    >>> from injector import Injector
    >>> is_injector(Injector.let(a=1)), is_injector(int), is_injector("text")
    (True, False, False)
    """
    return isinstance(obj, type) and "__injector__" in obj.__dict__


def classify(name: str, obj: Any) -> Kind:
    """What resolving the name will do. Raises `DependencyError` for what may not be declared under it."""
    foreign = foreign_form(obj)
    if foreign is not None:
        raise DependencyError(f"is {foreign}")
    if inspect.isclass(obj):
        if name.endswith("_class"):
            return "class_object"
        if is_injector(obj):
            return "injector"
        constructor_plan(obj)
        return "class"
    if is_link(obj):
        link_steps(obj)
        return "link"
    function = value_function(obj)
    if function is not None:
        function_plan(function)
        return "value"
    if name.endswith("_class"):
        raise DependencyError(
            f"is {obj!r}, which is no class; a name that ends in '_class' stands for a class that is not built"
        )
    return "object"


_RESERVED = {
    "let": "`let` makes the subclass with other values: write `{injector}.let(name=...)` and choose another name here",
    "mro": "every class has a method of that name; choose another name",
}


def declare(
    owner: type, objects: Mapping[str, Any], locations: Mapping[str, SourceLocation], info: ClassInfo
) -> dict[str, Declaration]:
    """The declarations that a body or a call of `let` makes for `owner`. Raises `DependencyError` for illegal ones."""
    own: dict[str, Declaration] = {}
    for name, obj in objects.items():
        location = locations.get(name, info.location)
        try:
            if name.startswith("__") and name.endswith("__"):
                raise DependencyError("has a name that Python reserves; choose one without the double underscores")
            if name in _RESERVED:
                raise DependencyError("cannot be declared: " + _RESERVED[name].format(injector=owner.__name__))
            kind = classify(name, obj)
        except DependencyError as error:
            located = DependencyError(f"attribute '{name}' of injector '{owner.__name__}' ({location}): {error}")
            located.injector, located.path = owner.__name__, (name,)
            raise located from error.__cause__
        own[name] = Declaration(name, own_form(obj), kind, owner, location, info.origin)
    return own


def merge(bases: Iterable[Table], own: Mapping[str, Declaration]) -> Table:
    """The flat table of a class: the left-most of `bases` wins, and `own` wins over all of them."""
    table: Table = {}
    for base in bases:
        if not table:
            table = dict(base)
            continue
        for name, declaration in base.items():
            winner = table.get(name)
            table[name] = declaration if winner is None else _override(winner, declaration)
    for name, declaration in own.items():
        hidden = table.get(name)
        table[name] = declaration if hidden is None else _override(declaration, hidden)
    return table


def _override(winner: Declaration, hidden: Declaration) -> Declaration:
    """`winner` with `hidden`, and what that hid, added to what it overrode; each declaration is named once."""
    known = {winner.owner, *(declaration.owner for declaration in winner.overrode)}
    added = tuple(each for each in (hidden, *hidden.overrode) if each.owner not in known)
    return replace(winner, overrode=winner.overrode + added) if added else winner
