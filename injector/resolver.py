"""Building an attribute: what it needs is found by name, each once a resolution, and the injector is never changed."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from injector._declarations import PARENT, is_link, link_steps, value_function
from injector.copy_rules import copied
from injector.errors import DependencyError, UnknownAttributeError, nearest
from injector.signatures import Plan, constructor_plan, function_plan
from injector.tables import Declaration, Table, class_info, is_injector

__all__ = ["Run", "Scope", "as_value", "build_many", "build_one"]

SELF = "__self__"

# A resolution that starts inside another one of the same attribute (through `__self__`, or a constructor that reads an
# injector) is legal, but so many within one another have no end.
_REENTRY_LIMIT = 16

_active = threading.local()


class Scope:
    """One injector during one resolution: what was built of it so far."""

    __slots__ = ("active", "injector", "parent", "prefix", "table", "values", "_bound")

    def __init__(self, injector: type, prefix: str = "", parent: Scope | None = None, levels_up: int = 0) -> None:
        info = class_info(injector)
        self.injector = injector
        self.table: Table = info.table
        self.prefix = prefix
        self.values: dict[str, Any] = {}
        self.active: set[str] = set()
        self.parent = parent
        self._bound: type | None = injector if parent is None else None
        if parent is None and info.parent is not None:
            self.parent = Scope(info.parent, f"(this << {levels_up + 1}).", levels_up=levels_up + 1)

    @property
    def bound(self) -> type:
        """The injector class as a consumer receives it: a nested one that knows its parent."""
        if self._bound is None:
            assert self.parent is not None
            self._bound = self.injector.__bound_to__(self.parent.bound)  # type: ignore[attr-defined]
        return self._bound


class Run:
    """One resolution. `built` and `edges` say afterwards what was built, in order, and who asked for it.

    `called` holds the class whose constructor gave a value, where one did.
    """

    __slots__ = ("built", "called", "edges", "path", "root")

    def __init__(self, injector: type) -> None:
        self.root = Scope(injector)
        self.path: list[tuple[Scope, str]] = []
        self.built: list[tuple[Scope, str]] = []
        self.called: dict[tuple[Scope, str], type] = {}
        self.edges: list[tuple[Scope, str, Scope, str]] = []

    def request(self, name: str) -> Any:
        """Build an attribute of the root injector for the caller."""
        stack: list[tuple[int, str]] = _active.__dict__.setdefault("stack", [])
        key = (id(self.root.table), name)
        if len(stack) >= _REENTRY_LIMIT and stack.count(key) >= _REENTRY_LIMIT:
            names = [each[1] for each in stack[len(stack) - 1 - stack[::-1].index(key) :]]
            raise self._error(
                DependencyError,
                f"needs in a circle: {' -> '.join([*names, name])}; it is read again each time it is being built, "
                f"through `{SELF}` or by code that reads the injector",
                name,
            )
        stack.append(key)
        try:
            return as_value(self.build(self.root, name))
        finally:
            stack.pop()

    def build(self, scope: Scope, name: str) -> Any:
        """The value of an attribute, or a `Scope` where it is a nested injector."""
        values = scope.values
        if name in values:
            return values[name]
        declaration = scope.table.get(name)
        if declaration is None:
            self._unknown(scope, name)
        if name in scope.active:
            self._circle(scope, name)
        scope.active.add(name)
        self.path.append((scope, name))
        kind = declaration.kind
        result: Any
        if kind == "object":
            result = self._copied(declaration)
        elif kind == "class":
            result = self._construct(scope, declaration, declaration.obj)
        elif kind == "value":
            result = self._evaluate(scope, declaration)
        elif kind == "link":
            result = self._follow(scope, declaration, declaration.obj)
        elif kind == "injector":
            result = Scope(declaration.obj, f"{scope.prefix}{name}.", scope)
        else:
            result = declaration.obj
        self.path.pop()
        scope.active.discard(name)
        values[name] = result
        self.built.append((scope, name))
        return result

    def _copied(self, declaration: Declaration) -> Any:
        try:
            return copied(declaration.name, declaration.obj)
        except Exception as error:
            raise self._error(
                DependencyError, f"{self._blame(declaration)}: copying it raised {type(error).__name__}: {error}"
            ) from error

    def _construct(self, scope: Scope, declaration: Declaration, cls: type) -> Any:
        try:
            plan = constructor_plan(cls)
        except DependencyError as error:
            raise self._error(DependencyError, f"{self._blame(declaration)}: {error}") from error
        self.called[scope, declaration.name] = cls
        return self._call(scope, declaration, cls, plan)

    def _evaluate(self, scope: Scope, declaration: Declaration) -> Any:
        function = value_function(declaration.obj)
        assert function is not None
        result = self._call(scope, declaration, function, function_plan(function))
        if is_link(result):
            return self._follow(scope, declaration, result)
        name = declaration.name
        if inspect.isclass(result):
            if name.endswith("_class"):
                return result
            if is_injector(result):
                return Scope(result, f"{scope.prefix}{name}.", scope)
            return self._construct(scope, declaration, result)
        if name.endswith("_class"):
            self._not_a_class(declaration, result)
        return result

    def _call(self, scope: Scope, declaration: Declaration, target: Callable[..., Any], plan: Plan) -> Any:
        name, table, edges = declaration.name, scope.table, self.edges
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for parameter in plan.parameters:
            wanted = parameter.name
            if wanted in table or (wanted != SELF and not parameter.optional):
                argument = self.build(scope, wanted)
                edges.append((scope, name, scope, wanted))
                if type(argument) is Scope:
                    argument = argument.bound
            elif wanted == SELF:
                argument = scope.bound
            elif parameter.positional:
                argument = parameter.default
            else:
                continue
            if parameter.positional:
                args.append(argument)
            else:
                kwargs[wanted] = argument
        try:
            return target(*args, **kwargs)
        except DependencyError as error:
            # Raised on purpose, by a solver's check or by a resolution within this one: its class says what is wrong.
            note = f"while building {self._where()}: {self._blame(declaration)}"
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
            if not error.path:
                error.injector, error.path = self.root.injector.__name__, self._names()
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            called = f"{'class' if inspect.isclass(target) else '@value'} {getattr(target, '__qualname__', target)}"
            raise self._error(DependencyError, f"{self._blame(declaration)}: {called} raised {what}") from error

    def _follow(self, scope: Scope, declaration: Declaration, link: Any) -> Any:
        current: Any = scope
        try:
            steps = link_steps(link)
        except DependencyError as error:
            raise self._error(DependencyError, f"{self._blame(declaration)} {error}") from error
        for kind, symbol in steps:
            if type(current) is Scope and kind == ".":
                if symbol == PARENT:
                    if current.parent is None:
                        raise self._error(
                            DependencyError,
                            f"{self._blame(declaration)}: {link!r} goes up further than injectors are nested; "
                            f"'{current.injector.__name__}' is not inside another one",
                        )
                    current = current.parent
                else:
                    target = current
                    current = self.build(target, symbol)
                    self.edges.append((scope, declaration.name, target, symbol))
                continue
            try:
                current = getattr(as_value(current), symbol) if kind == "." else as_value(current)[symbol]
            except DependencyError:
                raise
            except Exception as error:
                raise self._error(
                    DependencyError,
                    f"{self._blame(declaration)}: following {link!r} raised {type(error).__name__}: {error}",
                ) from error
        if declaration.name.endswith("_class") and not inspect.isclass(as_value(current)):
            self._not_a_class(declaration, current)
        return current

    def _names(self) -> tuple[str, ...]:
        return tuple(scope.prefix + name for scope, name in self.path)

    def _where(self) -> str:
        return f"{self.root.injector.__name__}: {' -> '.join(self._names())}"

    def _blame(self, declaration: Declaration) -> str:
        return f"'{declaration.name}' ({declaration})"

    def _error(self, error_type: type[DependencyError], text: str, name: str | None = None) -> DependencyError:
        """An error whose message names the injector, its place in a file, and the attributes being built."""
        injector = self.root.injector
        names = self._names() if name is None else (*self._names(), name)
        located = f"injector '{injector.__name__}' ({class_info(injector).location})"
        error = error_type(f"{located}, attribute {' -> '.join(names)}: {text}")
        error.injector, error.path = injector.__name__, names
        return error

    def _unknown(self, scope: Scope, name: str) -> NoReturn:
        asked = ""
        if self.path:
            asker_scope, asker = self.path[-1]
            asked = f", which {self._blame(asker_scope.table[asker])} needs"
        owner = scope.injector.__name__
        hint = nearest(name, scope.table)
        raise self._error(UnknownAttributeError, f"'{owner}' declares no '{name}'{asked}{hint}", scope.prefix + name)

    def _circle(self, scope: Scope, name: str) -> NoReturn:
        names = self._names()
        start = self.path.index((scope, name))
        circle = " -> ".join([*names[start:], names[start]])
        where = "; ".join(self._blame(owner.table[each]) for owner, each in self.path[start:])
        raise self._error(DependencyError, f"needs in a circle: {circle}; {where}", scope.prefix + name)

    def _not_a_class(self, declaration: Declaration, result: object) -> NoReturn:
        raise self._error(
            DependencyError,
            f"{self._blame(declaration)} gave {result!r}; a name that ends in '_class' stands for a class",
        )


def as_value(built: Any) -> Any:
    """What `Run.build` returned, as a consumer receives it."""
    return built.bound if type(built) is Scope else built


def build_one(injector: type, name: str) -> Any:
    """The value of one attribute, without keeping how it came about."""
    return Run(injector).request(name)


def build_many(injector: type, names: Sequence[str]) -> Run:
    """A resolution of several attributes that share what they need."""
    run = Run(injector)
    for name in names:
        run.request(name)
    return run
