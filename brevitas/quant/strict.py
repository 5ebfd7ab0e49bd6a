"""Strictness: a declaration without meaning is refused when the layer is built, by an error that says the remedy.

>>> from brevitas.quant import Int8WeightPerTensorFloat
>>> from brevitas.quant.strict import Site, resolve_quantizer
>>> site = Site('QuantLinear', 'weight_quant', 'weight')
>>> resolve_quantizer(Int8WeightPerTensorFloat.let(bit_widht=4), site, {})
Traceback (most recent call last):
...
brevitas.errors.UnknownOptionError: QuantLinear, weight_quant=Int8WeightPerTensorFloat: unknown option 'bit_widht'...

The rules are S1 to S6 of the vocabulary: unknown name, name without effect, illegal value, contradiction, missing name,
wrong role. What depends on the declaration alone is checked once a class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from brevitas.errors import BrevitasError, QuantConfigError
from brevitas.quant.directives import DIRECTIVES
from brevitas.quant.rules import (
    apply_aliases,
    check_contradictions,
    check_directive_role,
    check_effect,
    check_role,
    check_value,
    known_names,
    unknown_option,
)
from brevitas.quant.site import Site, in_library, is_explicit, refusal
from injector import (
    DependencyError,
    Resolution,
    UnknownAttributeError,
    declarations,
    override,
    readable_names,
    resolve_many,
)

__all__ = ["Site", "resolve_quantizer", "resolve_values"]

#: Attributes that the proxies read, besides ``tensor_quant``.
_READ_BY_PROXY = {
    "weight": ("signed", "narrow_range"),
    "act": ("signed", "narrow_range", "act_impl", "passthrough_act"),
    "bias": ("signed", "narrow_range", "requires_input_scale", "requires_input_bit_width"),
    "trunc": ("narrow_range",),
    "clamp": ("signed", "narrow_range"),
}


@dataclass
class _Checked:
    """What a declaration that passed the static rules is like.

    ``foreign``: names declared outside the library. ``unknown``: those of them that nothing reads as far as can be
    seen without building. ``explicit``: names that must have an effect. ``wanted``: names that the proxy needs.
    ``off``: what they resolve to where that is the same for every layer, because quantization is off.
    """

    foreign: tuple[str, ...]
    unknown: tuple[str, ...]
    explicit: tuple[str, ...]
    wanted: tuple[str, ...]
    off: dict[str, Any] | None = field(default=None)


# The values must not refer to the class they describe, or it would live for ever.
_passed: WeakKeyDictionary[type, dict[str, _Checked]] = WeakKeyDictionary()


def _check(quantizer: type, site: Site) -> _Checked:
    """The static rules, for a declaration whose aliases are resolved."""
    by_role = _passed.setdefault(quantizer, {})
    if site.role in by_role:
        return by_role[site.role]
    table = declarations(quantizer)
    foreign = {
        n: d for n, d in table.items() if not n.startswith("_") and (d.origin == "let" or not in_library(d.owner))
    }
    unknown: list[str] = []
    if foreign:
        known, readable = known_names(quantizer), readable_names(quantizer)
        unknown = [name for name in foreign if name not in known]
        for name, declaration in foreign.items():
            check_directive_role(name, declaration, quantizer, site, readable)
            if name in DIRECTIVES and declaration.kind == "object":
                check_value(DIRECTIVES[name], declaration.obj, declaration, quantizer, site)
        check_contradictions(quantizer, site)
    if "tensor_quant" not in table:
        raise refusal(
            QuantConfigError,
            site,
            quantizer,
            "it declares no tensor_quant and has no solver among its bases; derive it from a preset, add a solver as "
            "the last base, or declare tensor_quant",
        )
    wanted = ("tensor_quant", *(n for n in _READ_BY_PROXY.get(site.role, ()) if n in table))
    explicit = tuple(n for n, d in foreign.items() if is_explicit(d))
    by_role[site.role] = _Checked(tuple(foreign), tuple(unknown), explicit, wanted)
    return by_role[site.role]


def _translate(error: DependencyError, quantizer: type, site: Site) -> QuantConfigError:
    """An injector error in terms of the layer: S5 for a missing directive, a module's refusal, or the plain text."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, BrevitasError):
            return refusal(QuantConfigError, site, quantizer, str(cause))
        cause = cause.__cause__
    missing = DIRECTIVES.get(error.path[-1]) if error.path else None
    if isinstance(error, UnknownAttributeError) and missing is not None:
        when = f" ({missing.read_when})" if missing.read_when else ""
        example = f", for example `{missing.example}`" if missing.example else f": {missing.expected}"
        keyword = f"; as a keyword of the layer: {site.prefix}{missing.name}" if site.keywords else ""
        return refusal(
            QuantConfigError,
            site,
            quantizer,
            f"'{missing.name}' is required{when}: {missing.effect}. Declare it{example}{keyword}\n  needed by: {error}",
        )
    return refusal(QuantConfigError, site, quantizer, str(error))


def resolve_quantizer(quantizer: type, site: Site, supplied: Mapping[str, object]) -> Resolution:
    """Check a declaration and resolve what a proxy needs of it.

    Args:
        quantizer: the declaration.
        site: where it is used.
        supplied: values that the layer supplies, ``module`` and ``tracked_parameter_list``.

    Returns:
        A resolution whose ``values`` holds ``tensor_quant`` and the attributes that the proxy reads.

    Raises:
        UnknownOptionError: a name that nothing reads.
        QuantConfigError: any other rule is broken, or a part of the quantizer refuses its arguments.
    """
    check_role(quantizer, site)
    quantizer = apply_aliases(quantizer, site)
    checked = _check(quantizer, site)
    bound = override(quantizer, dict(supplied)) if supplied else quantizer
    try:
        resolution = resolve_many(bound, checked.wanted)
        resolution.values  # noqa: B018 - builds them
    except DependencyError as error:
        if checked.unknown:
            # Most likely the missing name, misspelt.
            raise unknown_option(checked.unknown[0], quantizer, site) from error
        raise _translate(error, quantizer, site) from error
    if checked.foreign:
        _check_resolved(resolution, checked, quantizer, site)
    return resolution


def _check_resolved(resolution: Resolution, checked: _Checked, quantizer: type, site: Site) -> None:
    """What shows only once the quantizer is built."""
    records = resolution.records
    for name in checked.unknown:
        # A class that a @value returned may read what nothing reads statically.
        if name not in records:
            raise unknown_option(name, quantizer, site)
    for name in checked.foreign:
        record = records.get(name)
        if record is not None and name in DIRECTIVES and record.declaration.kind in ("value", "link"):
            check_value(DIRECTIVES[name], record.value, record.declaration, quantizer, site)
    if checked.explicit:
        check_effect(quantizer, site, resolution)


def resolve_values(quantizer: type, site: Site, supplied: Mapping[str, object]) -> dict[str, Any]:
    """As :func:`resolve_quantizer`, only the values; a quantizer that is off is resolved once."""
    known = _passed.get(quantizer, {}).get(site.role)
    if known is not None and known.off is not None:
        return known.off
    resolution = resolve_quantizer(quantizer, site, supplied)
    values = resolution.values
    known = _passed.get(quantizer, {}).get(site.role)
    same_for_all = all(v is None or isinstance(v, bool) for v in values.values())
    if known is not None and same_for_all and not supplied.keys() & resolution.records.keys():
        known.off = values
    return values
