"""The injector class itself: declarations are its attributes, reading one builds it.

>>> from injector import Injector
>>> class Rounding:
...     pass
>>> class IntQuant:
...     def __init__(self, bit_width, rounding):
...         self.bit_width, self.rounding = bit_width, rounding
>>> class Int8(Injector):
...     bit_width = 8
...     rounding = Rounding
...     int_quant = IntQuant
>>> Int8.int_quant.bit_width
8
>>> Int8.let(bit_width=4).int_quant.bit_width
4
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar, cast

from injector.cycles import find_cycle
from injector.errors import DependencyError, FrozenInjectorError, UnknownAttributeError
from injector.locations import RecordingNamespace, SourceLocation, caller_location
from injector.resolver import build_one
from injector.tables import ClassInfo, Declaration, Origin, class_info, declare, is_injector, merge

__all__ = ["Injector", "InjectorType", "make_injector", "override"]

# Set by Python itself in a class body; they describe the class and declare nothing.
_CLASS_ATTRIBUTES = frozenset(
    f"__{name}__"
    for name in (
        *("module", "qualname", "doc", "annotations", "annotate", "annotate_func", "conditional_annotations"),
        *("classcell", "classdictcell", "firstlineno", "static_attributes", "orig_bases", "type_params", "weakref"),
    )
)
_CAN_CLOSE_A_CIRCLE = {"class", "link", "injector"}


_Class = TypeVar("_Class", bound=type)


class InjectorType(type):
    """Metaclass of injectors. Its own names all have double underscores, so that they never hide a declaration."""

    @classmethod
    def __prepare__(mcls, name: str, bases: tuple[type, ...], /, **keywords: Any) -> RecordingNamespace:
        return RecordingNamespace(caller_location(("injector", "types")))

    def __new__(mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], /) -> InjectorType:
        """A class statement, or `type(...)` with an injector among the bases."""
        if isinstance(namespace, RecordingNamespace):
            location, locations = namespace.location, namespace.lines
        else:
            location, locations = caller_location(), {}
        return make_injector(name, bases, namespace, location, locations)

    def mro(cls) -> list[type]:
        """Python's order where there is one, else that of the bases from left to right: tables do not depend on it."""
        try:
            return super().mro()
        except TypeError:
            order = dict.fromkeys(each for base in cls.__bases__ for each in base.__mro__ if each is not object)
            return [cls, *order, object]

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise UnknownAttributeError(f"injector '{cls.__name__}' has no attribute '{name}'")
        return build_one(cls, name)

    def __setattr__(cls, name: str, obj: Any) -> None:
        raise FrozenInjectorError(
            f"cannot assign '{name}' on injector '{cls.__name__}' ({class_info(cls).location}): injectors never "
            f"change; `{cls.__name__}.let({name}=...)` makes a subclass with the new value"
        )

    def __delattr__(cls, name: str) -> None:
        raise FrozenInjectorError(
            f"cannot delete '{name}' from injector '{cls.__name__}' ({class_info(cls).location}): injectors never "
            f"change; `{cls.__name__}.let({name}=...)` makes a subclass with another value"
        )

    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: an injector has no instances."""
        raise DependencyError(
            f"cannot instantiate injector '{cls.__name__}' ({class_info(cls).location}): an injector is used as a "
            f"class; read an attribute, `{cls.__name__}.name`, or make a subclass, `{cls.__name__}.let(name=...)`"
        )

    def __contains__(cls, name: object) -> bool:
        return name in class_info(cls).table

    def __dir__(cls) -> list[str]:
        return sorted(class_info(cls).table)

    def __and__(cls, other: Any) -> InjectorType:
        if not is_injector(other):
            return NotImplemented
        bases = (cls,) if other is cls else (cls, other)
        return make_injector(cls.__name__, bases, _identity(cls), caller_location(), {})

    def let(cls: _Class, /, **overrides: Any) -> _Class:
        """A subclass of the same name with these attributes declared; the declarations belong to the caller's line.

        >>> Injector.let(bit_width=8).let(bit_width=4).bit_width
        4
        """
        return override(cls, overrides, caller_location())

    def __bound_to__(cls, parent: type) -> InjectorType:
        """The nested injector `cls` as `parent` sees it: `this << 1` inside it leads to `parent`."""
        return make_injector(cls.__name__, (cls,), _identity(cls), class_info(cls).location, {}, parent=parent)

    def __declared_object__(cls, name: str) -> Any:
        """The object as it was declared, not built. Raises `AttributeError` where there is no declaration."""
        try:
            return class_info(cls).table[name].obj
        except KeyError:
            raise AttributeError(name) from None


def _identity(cls: type) -> dict[str, Any]:
    """What a class made from `cls` at run time takes over: it goes by the same name."""
    return {"__module__": cls.__module__, "__qualname__": cls.__qualname__}


def make_injector(
    name: str,
    bases: tuple[type, ...],
    namespace: Mapping[str, Any],
    location: SourceLocation,
    locations: Mapping[str, SourceLocation],
    *,
    origin: Origin = "body",
    parent: type | None = None,
) -> InjectorType:
    """Make an injector class: every one, from a class body or at run time, is made here.

    `locations` gives the line of single declarations; `location`, that of the class, stands for the others.
    """
    for base in bases:
        if not is_injector(base):
            raise DependencyError(
                f"injector '{name}' ({location}) has the base '{base.__name__}', which is no injector; "
                f"its bases must derive from Injector. A plain class can be an attribute"
            )
    if len(set(bases)) < len(bases):
        named = ", ".join(base.__name__ for base in bases)
        raise DependencyError(f"injector '{name}' ({location}) names a base twice: {named}")
    if parent is None:
        parent = next((class_info(base).parent for base in bases if class_info(base).parent), None)
    info = ClassInfo(location, origin, {}, {}, parent)
    special = {key: obj for key, obj in namespace.items() if key in _CLASS_ATTRIBUTES}
    objects = {key: obj for key, obj in namespace.items() if key not in _CLASS_ATTRIBUTES}
    created = type.__new__(InjectorType, name, bases, {**special, "__injector__": info})
    fill_table(created, objects, locations)
    return created


def fill_table(injector: type, objects: Mapping[str, Any], locations: Mapping[str, SourceLocation]) -> None:
    """Second half of making a class: its declarations. Raises `DependencyError` for illegal ones and for circles."""
    info = class_info(injector)
    info.own = declare(injector, objects, locations, info)
    info.table = merge([class_info(base).table for base in injector.__bases__ if is_injector(base)], info.own)
    if len(injector.__bases__) > 1 or any(each.kind in _CAN_CLOSE_A_CIRCLE for each in info.own.values()):
        cycle = find_cycle(info.table)
        if cycle is not None:
            where = "; ".join(_describe(info.table[name]) for name in cycle[:-1] if name in info.table)
            error = DependencyError(
                f"injector '{injector.__name__}' ({info.location}) needs in a circle: {' -> '.join(cycle)} ({where}); "
                f"declare one of them without the others"
            )
            error.injector, error.path = injector.__name__, tuple(cycle)
            raise error


def _describe(declaration: Declaration) -> str:
    what = repr(declaration.obj) if declaration.kind == "link" else f"class {declaration.obj.__name__}"
    return f"{declaration.name} = {what}, {declaration}"


def override(
    injector: _Class,
    overrides: Mapping[str, Any],
    location: SourceLocation | Mapping[str, SourceLocation] | None = None,
) -> _Class:
    """A subclass of `injector` like that of `let`, whose declarations belong to `location`.

    >>> from injector import declarations
    >>> Narrow = override(Injector, {"bit_width": 4}, SourceLocation("recipe.yaml", 7))
    >>> print(declarations(Narrow)["bit_width"].location)
    recipe.yaml:7

    `location` is one place for all names, or one for each name; the caller's line stands for what is not given.
    """
    if not is_injector(injector):
        raise DependencyError(f"{injector!r} is no injector, so it has nothing to override")
    single = location if isinstance(location, SourceLocation) else caller_location()
    locations = location if isinstance(location, Mapping) else {}
    for name in overrides:
        if name in _CLASS_ATTRIBUTES:
            raise DependencyError(
                f"cannot declare '{name}' on injector '{injector.__name__}': Python reserves the name"
            )
    made = make_injector(
        injector.__name__, (injector,), {**_identity(injector), **overrides}, single, locations, origin="let"
    )
    return cast(_Class, made)


class Injector(metaclass=InjectorType):
    """Base of all injectors. A class attribute declares what stands under its name; reading it builds it.

    >>> class Quantizer(Injector):
    ...     bit_width = 8
    >>> Quantizer.bit_width, 'bit_width' in Quantizer, dir(Quantizer)
    (8, True, ['bit_width'])

    Classes are built with the attributes that their constructors name. Nothing is kept between two readings.
    """
