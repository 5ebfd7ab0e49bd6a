"""Which attributes a constructor or a `@value` function asks for. Read once for each callable, and kept weakly.

>>> class Scaling:
...     def __init__(self, shape, init=1.0): ...
>>> [(parameter.name, parameter.optional) for parameter in constructor_plan(Scaling).parameters]
[('shape', False), ('init', True)]
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from injector.errors import DependencyError

__all__ = ["Parameter", "Plan", "constructor_plan", "function_plan"]

_EMPTY = inspect.Parameter.empty
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument that is found by name. A positional-only one is passed by position, with its default if need be."""

    name: str
    optional: bool
    positional: bool = False
    default: Any = _EMPTY


@dataclass(frozen=True, slots=True)
class Plan:
    """The arguments of one callable, in order."""

    parameters: tuple[Parameter, ...] = ()


_plans: weakref.WeakKeyDictionary[Any, Plan] = weakref.WeakKeyDictionary()


def constructor_plan(cls: type) -> Plan:
    """What the constructor of `cls` asks for.

    The constructor is the first `__init__` in the method resolution order. `object`'s, or an inherited one that takes
    only variable arguments, asks for nothing. Raises `DependencyError` for variable arguments otherwise, and for a
    default that is a class where the name does not end in `_class` (or the other way round).
    """
    plan = _plans.get(cls)
    if plan is None:
        plan = _plans[cls] = _read_constructor(cls)
    return plan


def function_plan(function: Callable[..., Any]) -> Plan:
    """What a `@value` function asks for. Raises like `constructor_plan`, and for a method."""
    try:
        plan = _plans.get(function)
    except TypeError:  # A callable that is not hashable or has no weak references is read each time.
        return _read_function(function)
    if plan is None:
        plan = _plans[function] = _read_function(function)
    return plan


def _read_constructor(cls: type) -> Plan:
    owners = [base for base in cls.__mro__ if "__init__" in base.__dict__]
    if owners[0] is object:
        return Plan()
    constructor = owners[0].__dict__["__init__"]
    parameters = list(_signature(constructor, f"the constructor of class '{cls.__qualname__}'").values())[1:]
    if parameters and all(parameter.kind in _VARIABLE for parameter in parameters):
        # TorchScript's metaclass wraps an inherited constructor and stores the wrapper in the class itself.
        unwrapped = inspect.unwrap(constructor)
        inherited = [inspect.unwrap(base.__dict__["__init__"]) for base in owners[1:]]
        if owners[0] is not cls or any(unwrapped is other for other in inherited):
            return Plan()
    return _plan(parameters, f"the constructor of class '{cls.__qualname__}'")


def _read_function(function: Callable[..., Any]) -> Plan:
    what = f"the @value function '{getattr(function, '__qualname__', function)}'"
    parameters = _signature(function, what)
    if "self" in parameters:
        raise DependencyError(
            f"{what} has a parameter 'self': @value cannot decorate a method; name the attributes it reads"
        )
    return _plan(parameters.values(), what)


def _signature(target: Callable[..., Any], what: str) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(target).parameters)
    except (TypeError, ValueError) as error:
        raise DependencyError(f"{what} has no readable signature: {error}; wrap it in a @value") from error


def _plan(parameters: Iterable[inspect.Parameter], what: str) -> Plan:
    result = []
    for parameter in parameters:
        if parameter.kind in _VARIABLE:
            stars = "*" if parameter.kind is inspect.Parameter.VAR_POSITIONAL else "**"
            raise DependencyError(
                f"{what} has variable arguments '{stars}{parameter.name}', which cannot be found by name; "
                f"name its parameters, or build the object in a @value and return it"
            )
        optional = parameter.default is not _EMPTY
        if optional and inspect.isclass(parameter.default) != parameter.name.endswith("_class"):
            advice = (
                "a parameter whose name ends in '_class' needs a class as default"
                if parameter.name.endswith("_class")
                else f"name it '{parameter.name}_class', or take an object as default"
            )
            raise DependencyError(
                f"{what}: parameter '{parameter.name}' has the default {parameter.default!r}; {advice}"
            )
        positional = parameter.kind is inspect.Parameter.POSITIONAL_ONLY
        result.append(Parameter(parameter.name, optional, positional, parameter.default))
    return Plan(tuple(result))
