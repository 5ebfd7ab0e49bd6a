"""Injector classes and pickle: by name where that finds the class again, else by its bases and its own declarations.

>>> import pickle
>>> from injector import Injector
>>> pickle.loads(pickle.dumps(Injector.let(bit_width=4))).bit_width
4

`copy.copy` and `copy.deepcopy` return an injector class itself, as they do for every class.
"""

from __future__ import annotations

from typing import Any

from injector._declarations import find_declared, is_importable, not_importable_text, value
from injector.errors import InjectorPicklingError
from injector.injector import InjectorType, fill_table, make_injector
from injector.locations import SourceLocation
from injector.tables import Origin, class_info


def reduce_injector(injector: InjectorType) -> str | tuple[Any, ...]:
    """How pickle stores an injector class; `injector` registers it with `copyreg`.

    Raises `InjectorPicklingError` for a class not importable by name with a `@value` that is not importable either.
    """
    info = class_info(injector)
    if is_importable(injector):
        return find_declared, (injector.__module__, injector.__qualname__)
    for name, declaration in info.own.items():
        if isinstance(declaration.obj, value) and not is_importable(declaration.obj):
            raise InjectorPicklingError(
                f"cannot pickle injector '{injector.__name__}' ({info.location}): its @value '{name}' "
                f"({declaration}) is the {not_importable_text(declaration.obj)}"
            )
    special = {name: injector.__dict__.get(name) for name in ("__module__", "__qualname__", "__doc__")}
    special["__qualname__"] = injector.__qualname__
    shell = (injector.__name__, injector.__bases__, special, info.location, info.origin, info.parent)
    # The declarations are stored after the class, which may stand in a circle with them: a layer holds a quantizer, in
    # which `let(module=layer)` holds the layer.
    state = (
        {name: declaration.obj for name, declaration in info.own.items()},
        {name: declaration.location for name, declaration in info.own.items()},
    )
    return _make_shell, shell, state, None, None, _fill


def _make_shell(
    name: str,
    bases: tuple[type, ...],
    special: dict[str, Any],
    location: SourceLocation,
    origin: Origin,
    parent: type | None,
) -> InjectorType:
    return make_injector(name, bases, special, location, {}, origin=origin, parent=parent)


def _fill(injector: InjectorType, state: tuple[dict[str, Any], dict[str, SourceLocation]]) -> None:
    fill_table(injector, *state)
