"""Injector classes and pickle: by name where that finds the class again, else by its bases and its own declarations.

>>> import pickle
>>> from injector import Injector
>>> pickle.loads(pickle.dumps(Injector.let(bit_width=4))).bit_width
4

`copy.copy` and `copy.deepcopy` return an injector class itself, as they do for every class.
"""

from __future__ import annotations

import copyreg
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from injector._declarations import Link, value, value_function
from injector.errors import InjectorPicklingError
from injector.injector import InjectorType, fill_table, make_injector
from injector.locations import SourceLocation
from injector.tables import Origin, class_info

__all__ = ["load_declared", "load_link", "load_value", "register_reducers"]


def register_reducers() -> None:
    """Tell `pickle`, and `copy` for links and values, how to store what injectors are made of."""
    copyreg.pickle(InjectorType, _reduce_injector)
    copyreg.pickle(value, _reduce_value)
    copyreg.pickle(Link, _reduce_link)


def _reduce_injector(injector: InjectorType) -> str | tuple[Any, ...]:
    """By name, or as (bases, own declarations); raises for a `@value` among these that is not importable."""
    info = class_info(injector)
    module, qualname = injector.__module__, injector.__qualname__
    if _finds(module, qualname, lambda found: found is injector):
        # Python's own way of storing a class; but in another injector it would build the attribute of that name.
        return qualname if "." not in qualname else (load_declared, (module, qualname))
    for name, declaration in info.own.items():
        if isinstance(declaration.obj, value) and not _is_importable(declaration.obj):
            raise InjectorPicklingError(
                f"cannot pickle injector '{injector.__name__}' ({info.location}): its @value '{name}' "
                f"({declaration}) is the {_not_importable(declaration.obj)}"
            )
    special = {"__module__": module, "__qualname__": qualname, "__doc__": injector.__doc__}
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


def _reduce_value(declared: value) -> tuple[Any, ...]:
    if not _is_importable(declared):
        raise InjectorPicklingError(f"cannot pickle the @value {_not_importable(declared)}")
    return load_value, _path(declared)


def _reduce_link(link: Link) -> tuple[Any, ...]:
    return load_link, (link.__expression__,)


def load_link(expression: tuple[tuple[str, Any], ...]) -> Link:
    """The link that was pickled as these steps."""
    return Link(expression)


def load_value(module: str, qualname: str) -> value:
    """The `@value` that was pickled under this name of its function."""
    found = load_declared(module, qualname)
    return found if isinstance(found, value) else value(found)


def load_declared(module: str, qualname: str) -> Any:
    """What stands under a qualified name, where a step into an injector takes the declaration and builds nothing.

    Raises `ImportError` or `AttributeError` where there is no such name.
    """
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = found.__declared_object__(part) if isinstance(found, InjectorType) else getattr(found, part)
    return found


def _finds(module: str, qualname: str, is_it: Callable[[Any], bool]) -> bool:
    """Whether another process that has the same modules can find something by this name."""
    if not module or "<" in qualname:
        return False
    try:
        return is_it(load_declared(module, qualname))
    except (ImportError, AttributeError):
        return False


def _path(declared: value) -> tuple[str, str]:
    """Module and qualified name under which the function of a `@value` says that it can be found."""
    function = declared.__function__
    return getattr(function, "__module__", None) or "", getattr(function, "__qualname__", None) or repr(function)


def _is_importable(declared: value) -> bool:
    """Under that name may stand the function, or a `@value` of it: module-level functions are decorated or not."""
    function = declared.__function__
    return _finds(*_path(declared), lambda found: found is function or value_function(found) is function)


def _not_importable(declared: value) -> str:
    """Names the function of a `@value` that is not importable, where it is, and the remedy."""
    module, qualname = _path(declared)
    code = getattr(inspect.unwrap(declared.__function__), "__code__", None)
    where = SourceLocation(code.co_filename, code.co_firstlineno) if code else "no source"
    return (
        f"function '{qualname}' of module '{module}' ({where}): it cannot be imported by that name; "
        f"define it at module level, alone or in the body of a class"
    )
