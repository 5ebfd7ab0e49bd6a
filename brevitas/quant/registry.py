"""Names that declarations may use: the values of enum directives, and presets. Both can be added to.

>>> from brevitas.core.stats import AbsMax
>>> from brevitas.quant.registry import register, choices
>>> remove = register('scaling_stats_op', 'MY_MAX', AbsMax)
>>> 'MY_MAX' in choices('scaling_stats_op', 'weight')
True
>>> remove()

A package of your own registers what it adds in an entry point of the group ``brevitas.quant``, which names a function
without arguments; it is called when a name is met that is not known yet.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from brevitas.errors import QuantConfigError
from injector import suggest

__all__ = [
    "ENTRY_POINTS",
    "Choices",
    "choices",
    "legal_names",
    "meanings",
    "preset",
    "presets",
    "register",
    "register_preset",
    "registered_classes",
]

#: Group of the entry points that register more names.
ENTRY_POINTS = "brevitas.quant"

_all_choices: list[Choices] = []
_library_presets: dict[str, type] = {}
_presets: dict[str, type] = {}
_plugins_loaded = False


def load_plugins() -> bool:
    """Call what other packages register, once. Whether anything was called.

    Raises:
        QuantConfigError: an entry point that fails; the message names its package, and the others are called first.
    """
    global _plugins_loaded
    if _plugins_loaded:
        return False
    _plugins_loaded = True
    found = entry_points(group=ENTRY_POINTS)
    failed: dict[EntryPoint, Exception] = {}
    for point in found:
        try:
            point.load()()
        except Exception as error:
            failed[point] = error
    for point, cause in failed.items():
        package = point.dist.name if point.dist else "an unknown package"
        raise QuantConfigError(
            f"the entry point '{point.name} = {point.value}' (group {ENTRY_POINTS}) of {package} failed with "
            f"{type(cause).__name__}: {cause}; update or uninstall {package}"
        ) from cause
    return bool(found)


class Choices:
    """The values of one enum directive for some roles, and the module class that each stands for.

    ``None`` stands for no module at all, as for ``quant_type=FP``. ``unavailable`` are members that the vocabulary has
    and these roles do not, with the reason.
    """

    def __init__(
        self,
        directive: str,
        enum: type[Enum],
        classes: Mapping[Enum, type | None],
        roles: Iterable[str],
        unavailable: Mapping[Enum, str] | None = None,
    ) -> None:
        self.directive = directive
        self.enum = enum
        self.roles = frozenset(roles)
        self._classes: dict[str, type | None] = {member.name: cls for member, cls in classes.items()}
        self._unavailable = {member.name: why for member, why in (unavailable or {}).items()}
        _all_choices.append(self)

    @property
    def names(self) -> tuple[str, ...]:
        """The legal names, registered ones last."""
        return tuple(self._classes)

    @property
    def classes(self) -> tuple[type, ...]:
        """The module classes that the names stand for."""
        return tuple(cls for cls in self._classes.values() if cls is not None)

    def name_of(self, written: Any) -> str:
        """The legal name that a declaration's value stands for; members and strings, in any case.

        Raises:
            QuantConfigError: there is none, or it has no meaning for these roles.
        """
        name = str(written).upper() if isinstance(written, str | Enum) else ""
        if name in self._classes or (load_plugins() and name in self._classes):
            return name
        legal = ", ".join(self.names)
        if name in self._unavailable:
            raise QuantConfigError(
                f"{self.directive} = {name} cannot be used here: {self._unavailable[name]} The choices are {legal}"
            )
        near = suggest(str(written).upper(), self.names)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        raise QuantConfigError(f"{self.directive} = {written!r} is not one of {legal}{hint}")

    def solve(self, written: Any) -> type | None:
        """The module class that a declaration's value stands for."""
        return self._classes[self.name_of(written)]

    def add(self, name: str, module_class: type) -> None:
        """Let ``name`` stand for ``module_class``."""
        self._classes[name] = module_class

    def remove(self, name: str) -> None:
        """Forget a name that was added."""
        del self._classes[name]


def _choices_of(directive: str, roles: Iterable[str] | None) -> list[Choices]:
    found = [c for c in _all_choices if c.directive == directive]
    if not found:
        known = sorted({c.directive for c in _all_choices})
        near = suggest(directive, known)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        raise QuantConfigError(
            f"{directive!r} is no directive whose values can be registered; these are {', '.join(known)}{hint}"
        )
    if roles is None:
        return found
    wanted = set(roles)
    chosen = [c for c in found if c.roles & wanted]
    missing = wanted - {role for c in chosen for role in c.roles}
    if missing:
        known_roles = sorted({role for c in found for role in c.roles})
        raise QuantConfigError(
            f"{directive!r} has no role {', '.join(sorted(missing))}; it has {', '.join(known_roles)}"
        )
    return chosen


def choices(directive: str, role: str | None = None) -> tuple[str, ...]:
    """Legal names of an enum directive, for one role or for any.

    >>> choices('bit_width_impl_type')
    ('CONST', 'PARAMETER', 'STATEFUL_CONST')
    """
    found = _choices_of(directive, None if role is None else (role,))
    return tuple(dict.fromkeys(name for c in found for name in c.names))


def meanings(directive: str, role: str) -> dict[str, type | str | None]:
    """What each value of an enum directive stands for in a role: a module class, ``None`` for no module at all, or the
    reason why the role does not have the value.

    >>> meanings('restrict_scaling_type', 'weight')['FP'].__name__
    'FloatRestrictValue'

    Raises:
        QuantConfigError: no such directive, or the role does not have it.
    """
    found: dict[str, type | str | None] = {}
    for choice in _choices_of(directive, (role,)):
        found.update({**choice._classes, **choice._unavailable})
    return found


def legal_names(directive: str) -> tuple[str, ...]:
    """As :func:`choices`, with the names of other packages; nothing for a directive that has no choices."""
    load_plugins()
    return tuple(dict.fromkeys(name for c in _all_choices if c.directive == directive for name in c.names))


def registered_classes() -> tuple[type, ...]:
    """Every module class that a value of an enum directive stands for."""
    load_plugins()
    return tuple({cls: None for c in _all_choices for cls in c.classes})


def register(
    directive: str, name: str, module_class: type, *, roles: Iterable[str] | None = None
) -> Callable[[], None]:
    """Let ``name`` be a value of the enum directive ``directive``, standing for ``module_class``.

    >>> import torch
    >>> from torch import Tensor
    >>> import brevitas.jit
    >>> class AbsMedian(brevitas.jit.ScriptModule):
    ...     def __init__(self, stats_reduce_dim=None):
    ...         super().__init__()
    ...         self.stats_reduce_dim = stats_reduce_dim
    ...     def forward(self, x: Tensor) -> Tensor:
    ...         if self.stats_reduce_dim is None:
    ...             return x.abs().median()
    ...         return x.abs().median(self.stats_reduce_dim).values
    >>> remove = register('scaling_stats_op', 'ABS_MEDIAN', AbsMedian)
    >>> from brevitas.nn import QuantLinear
    >>> layer = QuantLinear(4, 2, weight_scaling_stats_op='abs_median')
    >>> remove()

    The constructor's parameters are found by name among the directives, those of your own included.

    Args:
        directive: ``'quant_type'``, ``'scaling_impl_type'``, ``'scaling_stats_op'``, ``'restrict_scaling_type'``,
            ``'float_to_int_impl_type'`` or ``'bit_width_impl_type'``.
        name: the new name; case does not count.
        module_class: the class to build.
        roles: roles that get the name (``'weight'``, ``'bias'``, ``'act'``, ...); all that have the directive if
            not given.

    Returns:
        A function that removes the name again.

    Raises:
        QuantConfigError: no such directive or role, a name that exists, or no class.
    """
    if not inspect.isclass(module_class):
        raise QuantConfigError(f"register({directive!r}, {name!r}): expected a class, got {module_class!r}")
    if not name.isidentifier():
        raise QuantConfigError(
            f"register({directive!r}, {name!r}): expected a name made of letters, digits and underscores"
        )
    upper, targets = name.upper(), _choices_of(directive, roles)
    taken = [c for c in targets if upper in c.names or upper in c.enum.__members__]
    if taken:
        raise QuantConfigError(
            f"register({directive!r}, {name!r}): the name exists; its values are {', '.join(taken[0].names)}"
        )
    for target in targets:
        target.add(upper, module_class)

    def remove() -> None:
        for target in targets:
            target.remove(upper)

    return remove


def register_preset(quantizer: type, name: str | None = None) -> type:
    """Let specs and recipes refer to a quantizer by name. Usable as a decorator.

    Raises:
        QuantConfigError: no quantizer class, or another preset has the name.
    """
    if not (inspect.isclass(quantizer) and hasattr(quantizer, "let")):
        raise QuantConfigError(f"register_preset: expected a quantizer class, got {quantizer!r}")
    name = name or quantizer.__name__
    if _presets.get(name, quantizer) is not quantizer or name in _library_presets:
        raise QuantConfigError(f"register_preset: there is a preset {name!r} already; pass name= for another")
    _presets[name] = quantizer
    return quantizer


def add_library_presets(found: Mapping[str, type]) -> None:
    """Make the library's own presets known; called once, by ``brevitas.quant``."""
    _library_presets.update(found)


def presets() -> dict[str, type]:
    """Every preset by name: those of ``brevitas.quant`` and those that were registered.

    >>> 'Int8WeightPerTensorFloat' in presets()
    True
    """
    load_plugins()
    return {**_library_presets, **_presets}


def preset(name: str) -> type:
    """The preset of that name.

    Raises:
        QuantConfigError: there is none; the message has the nearest names.
    """
    known = presets()
    if name not in known:
        near = suggest(name, known)
        hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        raise QuantConfigError(f"there is no preset {name!r}.{hint}")
    return known[name]
