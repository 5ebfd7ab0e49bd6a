"""Circles that are visible without building anything: links to links, and constructors that need one another."""

from __future__ import annotations

from typing import Any, NamedTuple

from injector._declarations import PARENT, link_steps
from injector.signatures import constructor_plan
from injector.tables import Declaration, Table, class_info

__all__ = ["find_cycle"]


class _Scope(NamedTuple):
    """A table and the scopes around it, innermost last; `prefix` names it in a message."""

    prefix: str
    table: Table
    parents: tuple[_Scope, ...]


_Node = tuple[str, str]  # prefix of the scope, name


def find_cycle(table: Table) -> list[str] | None:
    """The names of one circle, the first repeated at the end; None where there is none.

    A `@value` is not looked into: which of its branches is taken shows only when it runs.
    """
    scopes = {"": _Scope("", table, ())}
    done: set[_Node] = set()
    for root in _with_nested(scopes[""], scopes):
        for name in root.table:
            cycle = _search(root, name, scopes, [], done)
            if cycle is not None:
                return cycle
    return None


def _with_nested(scope: _Scope, scopes: dict[str, _Scope]) -> list[_Scope]:
    found = [scope]
    for declaration in scope.table.values():
        if declaration.kind == "injector":
            found += _with_nested(_enter(scope, declaration, scopes), scopes)
    return found


def _enter(scope: _Scope, declaration: Declaration, scopes: dict[str, _Scope]) -> _Scope:
    prefix = f"{scope.prefix}{declaration.name}."
    if prefix not in scopes:
        scopes[prefix] = _Scope(prefix, class_info(declaration.obj).table, (*scope.parents, scope))
    return scopes[prefix]


def _search(
    scope: _Scope, name: str, scopes: dict[str, _Scope], path: list[_Node], done: set[_Node]
) -> list[str] | None:
    node = (scope.prefix, name)
    if node in path:
        return ["".join(each) for each in path[path.index(node) :]] + ["".join(node)]
    if node in done:
        return None
    path.append(node)
    for target_scope, target in _edges(scope, name, scopes):
        cycle = _search(target_scope, target, scopes, path, done)
        if cycle is not None:
            return cycle
    path.pop()
    done.add(node)
    return None


def _edges(scope: _Scope, name: str, scopes: dict[str, _Scope]) -> list[tuple[_Scope, str]]:
    """The attributes that building `name` needs, as far as declarations show them."""
    declaration = scope.table[name]
    if declaration.kind == "class":
        parameters = constructor_plan(declaration.obj).parameters
        return [(scope, parameter.name) for parameter in parameters if parameter.name in scope.table]
    if declaration.kind == "link":
        target = _link_target(scope, link_steps(declaration.obj), scopes)
        return [] if target is None else [target]
    return []


def _link_target(
    scope: _Scope, expression: tuple[tuple[str, Any], ...], scopes: dict[str, _Scope]
) -> tuple[_Scope, str] | None:
    """The attribute that a link reaches first, after it has gone through parents and nested injectors."""
    for kind, symbol in expression:
        if kind != ".":
            return None
        if symbol == PARENT:
            if not scope.parents:
                return None
            scope = scope.parents[-1]
            continue
        declaration = scope.table.get(symbol)
        if declaration is None:
            return None
        if declaration.kind != "injector":
            return scope, symbol
        scope = _enter(scope, declaration, scopes)
    return None
