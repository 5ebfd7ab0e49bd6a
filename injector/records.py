"""What a resolution leaves behind: for each name its value, where it was declared, what that overrode and who asked.

>>> from injector import Injector, value
>>> class Int8(Injector):
...     bit_width = 8
...     @value
...     def levels(bit_width):
...         return 2**bit_width
>>> result = resolve(Int8.let(bit_width=4), "levels")
>>> result.value
16
>>> record = result.records["bit_width"]
>>> record.value, record.asked_by, record.declaration.origin
(4, ('levels',), 'let')
>>> [declaration.obj for declaration in record.declaration.overrode]
[8]
"""

from __future__ import annotations

import enum
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from injector._declarations import link_levels, link_steps, value_function
from injector.errors import DependencyError
from injector.resolver import SELF, Run, Scope, as_value, build_many
from injector.signatures import constructor_plan, function_plan
from injector.tables import Declaration, Table, class_info, is_injector

__all__ = ["Record", "Resolution", "declarations", "explain", "readable_names", "resolve", "resolve_many"]


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One resolved name. `asked_by` are the names that consumed it, in order; empty where only the request did.

    `defaults` are the constructor's optional parameters that no attribute gave, with the default that was used.
    """

    name: str
    value: Any
    declaration: Declaration
    asked_by: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)


class Resolution:
    """The outcome of `resolve` or `resolve_many`."""

    def __init__(self, injector: type, names: tuple[str, ...], run: Run) -> None:
        self.injector = injector
        self.names = names
        self._run = run

    @cached_property
    def values(self) -> dict[str, Any]:
        """The value of each requested name."""
        return {name: as_value(self._run.root.values[name]) for name in self.names}

    @property
    def value(self) -> Any:
        """The value of the one name that was requested."""
        if len(self.names) != 1:
            raise DependencyError(f"{len(self.names)} names were resolved of '{self.injector.__name__}'; read .values")
        return self.values[self.names[0]]

    @cached_property
    def records(self) -> Mapping[str, Record]:
        """A record for each name that was read, in the order in which they were built: what is needed comes first.

        A name inside a nested injector is `sub.name`, one outside the resolved injector `(this << 1).name`.
        """
        asked: dict[str, dict[str, None]] = {}
        for asker_scope, asker, scope, name in self._run.edges:
            asked.setdefault(scope.prefix + name, {})[asker_scope.prefix + asker] = None
        return MappingProxyType(
            {
                key: Record(
                    key,
                    as_value(scope.values[name]),
                    scope.table[name],
                    tuple(asked.get(key, ())),
                    self._defaults(scope, name),
                )
                for scope, name in self._run.built
                for key in [scope.prefix + name]
            }
        )

    def _defaults(self, scope: Scope, name: str) -> Mapping[str, Any]:
        cls = self._run.called.get((scope, name))
        if cls is None:
            return {}
        plan = constructor_plan(cls).parameters
        unread = (each for each in plan if each.optional and each.name not in scope.table and each.name != SELF)
        return {each.name: each.default for each in unread}

    def __repr__(self) -> str:
        return f"<Resolution of {', '.join(self.names)} on {self.injector.__name__}>"


def resolve(injector: type, name: str) -> Resolution:
    """Build one attribute and keep how it came about; reading the attribute gives the same value without that."""
    return resolve_many(injector, (name,))


def resolve_many(injector: type, names: Iterable[str]) -> Resolution:
    """Build several attributes in one resolution: what two of them need is built once and shared."""
    _check_injector(injector)
    wanted = tuple(names)
    return Resolution(injector, wanted, build_many(injector, wanted))


def declarations(injector: type) -> Mapping[str, Declaration]:
    """The flat table of an injector, with what it inherits. Builds nothing.

    >>> from injector import Injector
    >>> [(each.name, each.kind) for each in declarations(Injector.let(bit_width=8)).values()]
    [('bit_width', 'object')]
    """
    _check_injector(injector)
    return MappingProxyType(class_info(injector).table)


def readable_names(injector: type) -> frozenset[str]:
    """Every name that some declaration of the injector reads, as far as that shows without building anything.

    >>> from injector import Injector, this, value
    >>> class Example(Injector):
    ...     alias = this.bit_width
    ...     @value
    ...     def levels(bit_width, signed=True): ...
    >>> sorted(readable_names(Example))
    ['bit_width', 'signed']

    These are the parameters of declared classes and of `@value` functions, the first names of links, and what nested
    injectors read of this one through `this << 1`. What a class returned by a `@value` reads shows only in the records
    of a resolution.
    """
    _check_injector(injector)
    return frozenset(name for level, name in _reads(class_info(injector).table) if level == 0)


def _reads(table: Table) -> set[tuple[int, str]]:
    """Pairs of how many levels up, and which name there, for everything that the table reads."""
    reads: set[tuple[int, str]] = set()
    for declaration in table.values():
        if declaration.kind == "class":
            reads.update((0, parameter.name) for parameter in constructor_plan(declaration.obj).parameters)
        elif declaration.kind == "value":
            function = value_function(declaration.obj)
            assert function is not None
            reads.update((0, parameter.name) for parameter in function_plan(function).parameters)
        elif declaration.kind == "link":
            steps = link_steps(declaration.obj)
            level = link_levels(steps)
            reads.add((level, steps[level][1]))
        elif declaration.kind == "injector":
            reads.update((level - 1, name) for level, name in _reads(class_info(declaration.obj).table) if level)
    reads.discard((0, "__self__"))
    return reads


def explain(subject: Resolution | type, name: str | None = None) -> str:
    """A text with one line a name: its value, where it was set, what that overrode, and who asked for it.

    >>> from injector import Injector, SourceLocation, override
    >>> Int8 = override(Injector, {"bit_width": 8}, SourceLocation("preset.py", 3))
    >>> Int4 = override(Int8, {"bit_width": 4}, SourceLocation("mine.py", 9))
    >>> print(explain(Int4, "bit_width"))
    bit_width = 4  [set by let on Injector, mine.py:9; overrides 8 of let on Injector, preset.py:3]

    For an injector without a name it lists the declarations and builds nothing; with a name it resolves that. For a
    `Resolution` the name picks one line.
    """
    if isinstance(subject, Resolution):
        records = subject.records
        if name is not None:
            if name not in records:
                return f"{name} was not read by {subject.injector.__name__}.{', '.join(subject.names)}"
            return _record_line(records[name])
        return "\n".join(_record_line(record) for record in records.values())
    _check_injector(subject)
    if name is not None:
        return explain(resolve(subject, name))
    return "\n".join(_line(name, declared.obj, declared) for name, declared in class_info(subject).table.items())


def _record_line(record: Record) -> str:
    asked = f"; read by {', '.join(record.asked_by)}" if record.asked_by else ""
    left = ", ".join(f"{name} = {short(default)}" for name, default in record.defaults.items())
    return _line(record.name, record.value, record.declaration, asked + (f"; by default {left}" if left else ""))


def _line(name: str, shown: object, declaration: Declaration, asked: str = "") -> str:
    verb = "set by" if declaration.origin == "let" else "set in"
    overrode = "".join(f"; overrides {short(each.obj)} of {each}" for each in declaration.overrode)
    return f"{name} = {short(shown)}  [{verb} {declaration}{overrode}{asked}]"


def short(obj: object) -> str:
    """One short line for an object: a class and an enum member by name, anything else by a shortened repr."""
    if isinstance(obj, type):
        return obj.__name__
    if isinstance(obj, enum.Enum):
        return f"{type(obj).__name__}.{obj.name}"
    text = " ".join(_repr.repr(obj).split())
    return text if len(text) <= 80 else text[:77] + "..."


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80
_repr.maxlevel = 3


def _check_injector(injector: object) -> None:
    if not is_injector(injector):
        raise DependencyError(f"{injector!r} is no injector class")
