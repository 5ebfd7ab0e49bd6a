"""What can be said about the names and values of a quantizer before there is a layer."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from torch import nn

import brevitas.core
from brevitas.errors import SpecError
from brevitas.inject import this
from brevitas.inject import value as value_decorator
from brevitas.quant.directives import DIRECTIVES
from brevitas.quant.registry import presets, registered_classes
from brevitas.quant.rules import known_names
from brevitas.quant.site import in_library, is_quantizer, shown
from brevitas.utils.located import SpecLocation, did_you_mean
from injector import declarations, suggest

__all__ = ["check_names", "check_value", "legal_option_names", "role_of"]

_Link = type(this)


def role_of(quantizer: type) -> str | None:
    """The role that the solver of a quantizer has; ``None`` without a solver.

    >>> from brevitas.quant import Int8WeightPerTensorFloat
    >>> role_of(Int8WeightPerTensorFloat)
    'weight'
    """
    declaration = declarations(quantizer).get("_role")
    return declaration.obj if declaration is not None else None


def check_value(name: str, obj: Any, place: SpecLocation) -> None:
    """Refuse a value that the directive ``name`` cannot have.

    Raises:
        SpecError: with what is legal and what is nearest.
    """
    directive = DIRECTIVES.get(name)
    if directive is None or isinstance(obj, value_decorator | _Link) or is_quantizer(obj) or directive.check(obj):
        return
    hint = ""
    if directive.enum is not None and isinstance(obj, str):
        near = suggest(obj.upper(), [m.name for m in directive.enum])
        hint = f"; did you mean {near[0]!r}?" if near else ""
    elif isinstance(obj, str) and "class" in directive.expected:
        found = core_classes()
        near = suggest(obj, found)
        hint = "; it is written as package.module:Class" + (f", for example {found[near[0]]}" if near else "")
    raise SpecError(f"{place}: '{name}' = {shown(obj)} is not legal: expected {directive.expected}{hint}")


def check_names(quantizer: type, base: type, places: Mapping[str, SpecLocation]) -> None:
    """Refuse names of ``places`` that nothing can read.

    Where the base has a ``@value`` of a user, that may return a class which reads any name, so the names are checked
    when a layer is built.

    Raises:
        SpecError: with the nearest names.
    """
    undecided = [name for name in places if name not in DIRECTIVES and not name.startswith("_")]
    if not undecided or any(d.kind == "value" and not in_library(d.owner) for d in declarations(quantizer).values()):
        return
    known = known_names(base) | known_names(quantizer) | _constructor_names()
    role = role_of(base)
    foreign = {n for n, d in DIRECTIVES.items() if role is not None and role not in d.role_names}
    for name in undecided:
        if name not in known:
            legal = sorted(n for n in known - foreign if not n.startswith("_"))
            near = did_you_mean(name, legal)
            hint = near if near.startswith("; did") else ""
            raise SpecError(f"{places[name]}: unknown option '{name}' of {base.__name__}: nothing reads it{hint}")


def legal_option_names(preset_names: Iterable[str]) -> list[str]:
    """Names that some of these presets can declare with a meaning; directives first."""
    known = presets()
    names = set(_constructor_names())
    for preset in preset_names:
        names |= known_names(known[preset])
    return [*(n for n in DIRECTIVES if n in names), *sorted(n for n in names - {*DIRECTIVES} if not n.startswith("_"))]


@cache
def core_classes() -> dict[str, str]:
    """Module classes of the library by name, each with its reference."""
    found = {}
    for module in pkgutil.walk_packages(brevitas.core.__path__, "brevitas.core."):
        for name, cls in vars(importlib.import_module(module.name)).items():
            if inspect.isclass(cls) and issubclass(cls, nn.Module) and cls.__module__ == module.name:
                found[name] = f"{module.name}:{name}"
    return found


@cache
def _names_of_core() -> frozenset[str]:
    classes = [getattr(importlib.import_module(r.partition(":")[0]), n) for n, r in core_classes().items()]
    return frozenset(name for cls in classes for name in _parameters(cls))


def _constructor_names() -> frozenset[str]:
    """Parameters of every module class that a solver may choose."""
    return _names_of_core() | {name for cls in registered_classes() for name in _parameters(cls)}


def _parameters(cls: type) -> list[str]:
    return [p.name for p in inspect.signature(cls.__init__).parameters.values() if p.name != "self"]  # type: ignore[misc]
