"""Strictness: a declaration without meaning is refused when the layer is built, by an error that says the remedy.

>>> from brevitas.quant import Int8WeightPerTensorFloat
>>> from brevitas.quant.strict import Site, resolve_quantizer
>>> site = Site('QuantLinear', 'weight_quant', 'weight')
>>> resolve_quantizer(Int8WeightPerTensorFloat.let(bit_widht=4), site, {})
Traceback (most recent call last):
...
brevitas.errors.UnknownOptionError: QuantLinear, weight_quant=Int8WeightPerTensorFloat: unknown option 'bit_widht'...

The rules are S1 to S6 of the vocabulary: unknown name, name without effect, illegal value, contradiction, missing name,
wrong role.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from brevitas.errors import BrevitasError, QuantConfigError, UnknownOptionError
from brevitas.inject.enum import QuantType, ScalingPerOutputType
from brevitas.quant.directives import ALIASES, DIRECTIVES, Directive
from injector import (
    Declaration,
    DependencyError,
    Resolution,
    SourceLocation,
    UnknownAttributeError,
    declarations,
    override,
    readable_names,
    resolve_many,
    suggest,
)

__all__ = ["Site", "check_role", "is_quantizer", "resolve_quantizer"]

#: Attributes that the proxies read, besides ``tensor_quant``.
_READ_BY_PROXY = {
    "weight": ("signed", "narrow_range"),
    "act": ("signed", "narrow_range", "act_impl", "passthrough_act"),
    "bias": ("signed", "narrow_range", "requires_input_scale", "requires_input_bit_width"),
}
_SUPPLIED = frozenset(
    {"module", "tracked_parameter_list", "act_impl", "passthrough_act", "proxy_class", "tensor_quant"}
)
_SHAPE_HINTS = frozenset(
    {"per_channel_broadcastable_shape", "scaling_stats_permute_dims", "zero_point_stats_permute_dims"}
)


@dataclass(frozen=True)
class Site:
    """Where a quantizer is used: class of the layer, its argument, the role, and the line that built the layer.

    ``prefix`` is that of the layer's keywords for this quantizer, ``'weight_'`` for ``weight_bit_width``; ``keywords``
    are the directives that were given that way.
    """

    layer: str
    argument: str
    role: str
    location: SourceLocation | None = None
    prefix: str = ""
    keywords: frozenset[str] = frozenset()

    def __str__(self) -> str:
        where = f" ({self.location})" if self.location else ""
        return f"{self.layer}{where}, {self.argument}"

    def written(self, name: str) -> str:
        """The name as the user wrote it: with the layer's prefix if it was a keyword of the layer."""
        return self.prefix + name if name in self.keywords else name


def is_quantizer(obj: object) -> bool:
    """Whether ``obj`` is a declaration: an injector class."""
    return inspect.isclass(obj) and hasattr(obj, "let")


def _table(quantizer: type) -> Mapping[str, Declaration]:
    return declarations(quantizer)


def _in_library(owner: type) -> bool:
    return owner.__module__.partition(".")[0] == "brevitas"


def _is_explicit(declaration: Declaration) -> bool:
    """Layer keyword, ``let``, or attribute in the body of a user's class that has a solver among its bases."""
    if declaration.origin == "let":
        return True
    return not _in_library(declaration.owner) and "_role" in _table(declaration.owner)


def _shown(obj: object) -> str:
    if inspect.isclass(obj):
        return obj.__name__
    if isinstance(obj, Enum):
        return obj.name
    text = str(obj) if not isinstance(obj, str) else repr(obj)
    return text if len(text) < 80 else text[:77] + "..."


def _fail(
    kind: type[QuantConfigError], site: Site, quantizer: type, text: str, *where: Declaration
) -> QuantConfigError:
    places = " and ".join(f"'{site.written(d.name)}' at {d.location}" for d in where)
    message = f"{site}={quantizer.__name__}: {text}"
    return kind(f"{message}\n  written: {places}" if places else message)


def _did_you_mean(name: str, candidates: list[str]) -> str:
    near = suggest(name, candidates)
    return f"Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def check_role(quantizer: type, site: Site) -> None:
    """S6: a quantizer whose solver is of another role than the argument it was passed to."""
    declaration = _table(quantizer).get("_role")
    if declaration is not None and declaration.obj != site.role:
        argument = {"weight": "weight_quant", "bias": "bias_quant"}.get(
            declaration.obj, "act_quant, input_quant or output_quant"
        )
        raise QuantConfigError(
            f"{site}={quantizer.__name__}: this is a quantizer of role '{declaration.obj}', and {site.argument} needs "
            "one of role "
            f"'{site.role}'. Pass it as {argument}, or choose a {site.role} quantizer."
        )


def _known_names(quantizer: type) -> frozenset[str]:
    """Names that mean something: in the vocabulary, read by a declaration, or declared by the library."""
    by_library = {
        name
        for name, declaration in _table(quantizer).items()
        if any(_in_library(d.owner) and d.origin != "let" for d in (declaration, *declaration.overrode))
    }
    return frozenset(DIRECTIVES) | readable_names(quantizer) | by_library | _SUPPLIED


def _unknown_option(name: str, quantizer: type, site: Site) -> UnknownOptionError:
    """S1: a name that nothing reads."""
    declaration = _table(quantizer)[name]
    foreign_roles = {n for n, d in DIRECTIVES.items() if site.role not in d.role_names}
    known = sorted(n for n in _known_names(quantizer) - foreign_roles if not n.startswith("_"))
    written = site.written(name)
    hint = _did_you_mean(written, [site.written(k) if name not in site.keywords else site.prefix + k for k in known])
    error = _fail(
        UnknownOptionError,
        site,
        quantizer,
        f"unknown option '{written}' = {_shown(declaration.obj)}: nothing reads it. {hint}".rstrip(),
        declaration,
    )
    assert isinstance(error, UnknownOptionError)
    return error


def _check_directive_role(
    name: str, declaration: Declaration, quantizer: type, site: Site, readable: frozenset[str]
) -> None:
    """The part of S2 that is about roles."""
    directive = DIRECTIVES.get(name)
    if (
        directive is not None
        and site.role not in directive.role_names
        and name not in readable
        and _is_explicit(declaration)
    ):
        raise _fail(
            QuantConfigError,
            site,
            quantizer,
            f"'{site.written(name)}' has no effect because it belongs to quantizers of role "
            f"{' or '.join(directive.role_names)}, "
            f"not '{site.role}'",
            declaration,
        )


def _check_value(directive: Directive, obj: object, declaration: Declaration, quantizer: type, site: Site) -> None:
    """S3: a value outside what the directive may be."""
    if directive.check(obj):
        return
    hint = ""
    if directive.enum is not None and isinstance(obj, str):
        near = suggest(obj.upper(), [m.name for m in directive.enum])
        hint = f" Did you mean {near[0]!r}?" if near else ""
    raise _fail(
        QuantConfigError,
        site,
        quantizer,
        f"'{site.written(directive.name)}' = {_shown(obj)} is not legal: expected {directive.expected}.{hint}",
        declaration,
    )


def _apply_aliases(quantizer: type, site: Site) -> type:
    """Declare the name that is read where another name of it was written; S4 where both were, with different values."""
    table = _table(quantizer)
    overrides: dict[str, tuple[object, Declaration]] = {}
    for alias, canonical in ALIASES.items():
        written = table.get(alias)
        if written is None or _in_library(written.owner) and written.origin != "let":
            continue
        obj = written.obj
        if alias == "scaling_per_output_type" and written.kind == "object":
            _check_value(DIRECTIVES[alias], obj, written, quantizer, site)
            if str(obj).upper() == ScalingPerOutputType.GROUP.name:
                raise _fail(
                    QuantConfigError,
                    site,
                    quantizer,
                    "'scaling_per_output_type' = GROUP is not available yet; use TENSOR or CHANNEL",
                    written,
                )
            obj = str(obj).upper() == ScalingPerOutputType.CHANNEL.name
        other, other_declaration = overrides.get(canonical, (None, None))
        if other_declaration is None:
            other_declaration = table.get(canonical)
            other = other_declaration.obj if other_declaration is not None and _is_explicit(other_declaration) else None
        if other is not None and other_declaration is not None and other != obj:
            raise _fail(
                QuantConfigError,
                site,
                quantizer,
                f"'{site.written(alias)}' = {_shown(written.obj)} and '{site.written(other_declaration.name)}' = "
                f"{_shown(other_declaration.obj)} are two names of one option and contradict each other; keep one",
                written,
                other_declaration,
            )
        overrides[canonical] = (obj, written)
    for canonical, (obj, written) in overrides.items():
        quantizer = override(quantizer, {canonical: obj}, location=written.location)
    return quantizer


def _plain(table: Mapping[str, Declaration], name: str) -> Any:
    declaration = table.get(name)
    return declaration.obj if declaration is not None and declaration.kind == "object" else None


def _check_contradictions(quantizer: type, site: Site) -> None:
    """S4, and the lower limits of S3 that depend on two directives."""
    table = _table(quantizer)
    width, signed, narrow = _plain(table, "bit_width"), _plain(table, "signed"), _plain(table, "narrow_range")
    kind = _plain(table, "quant_type")
    fixed = {"BINARY": 1, "TERNARY": 2}.get(str(kind).upper())
    explicit = {n: d for n, d in table.items() if _is_explicit(d)}

    def refuse(text: str, *names: str) -> QuantConfigError:
        return _fail(QuantConfigError, site, quantizer, text, *(table[n] for n in names if n in table))

    if width is not None and fixed is not None and width != fixed and "bit_width" in explicit:
        raise refuse(f"a {_member(kind)} quantizer has bit_width {fixed}, not {width}", "quant_type", "bit_width")
    if width is not None and _member(kind) is QuantType.INT:
        least = 2 if signed or narrow else 1
        if width < least:
            sort = "signed" if signed else "unsigned narrow"
            raise refuse(
                f"'{site.written('bit_width')}' = {width} is not legal: {sort} integers need at least {least} bits; "
                "for one signed bit use quant_type = 'binary'",
                "bit_width",
            )
    low, high = _plain(table, "min_val"), _plain(table, "max_val")
    if low is not None and high is not None and low >= high:
        raise refuse(f"min_val = {low} is not below max_val = {high}", "min_val", "max_val")
    if low is not None and signed is False and low < 0:
        raise refuse(f"min_val = {low} is negative, and unsigned codes have no negative values", "min_val", "signed")
    if "scaling_init" in explicit and "scaling_const" in explicit:
        raise refuse(
            "scaling_init and scaling_const both give the initial threshold; keep one", "scaling_init", "scaling_const"
        )
    if (
        site.role == "bias"
        and _plain(table, "requires_input_bit_width") is True
        and _plain(table, "requires_input_scale") is False
    ):
        raise refuse(
            "requires_input_bit_width = True needs requires_input_scale = True: an accumulator's width means nothing "
            "without its scale",
            "requires_input_bit_width",
            "requires_input_scale",
        )


def _member(written: object) -> QuantType | None:
    name = str(written).upper()
    return QuantType[name] if written is not None and name in QuantType.__members__ else None


def _check_effect(quantizer: type, site: Site, resolution: Resolution) -> None:
    """S2: an explicit name that nothing read."""
    table = _table(quantizer)
    off = resolution.values["tensor_quant"] is None
    # What only the proxy asks for has no effect while there is no quantizer.
    read = {name for name, record in resolution.records.items() if record.asked_by or not off}
    read |= {ALIASES[name] for name in read if name in ALIASES}
    for name, declaration in table.items():
        if (
            name.startswith("_")
            or name in read
            or name in _SUPPLIED
            or name in ALIASES
            or not _is_explicit(declaration)
        ):
            continue
        kind = _member(_plain(table, "quant_type"))
        if name == "bit_width" and kind in (QuantType.BINARY, QuantType.TERNARY):
            continue
        if name in _SHAPE_HINTS and _plain(table, "scaling_per_output_channel") is False:
            continue
        raise _fail(
            QuantConfigError,
            site,
            quantizer,
            f"'{site.written(name)}' = {_shown(declaration.obj)} has no effect because {_reason(name, table, read)}",
            declaration,
        )


def _reason(name: str, table: Mapping[str, Declaration], read: set[str]) -> str:
    directive = DIRECTIVES.get(name)
    if directive is not None:
        # The directive that was read last on the way to the missing one is the one that decided.
        for decider in sorted(directive.decided_by, key=lambda d: d not in read):
            declaration = table.get(decider)
            if declaration is not None and decider in read:
                now = f"{decider} is {_shown(declaration.obj)} (set at {declaration.location})"
                if decider == "quant_type" and _member(declaration.obj) is QuantType.FP:
                    return f"{now}, so nothing is quantized"
                return f"{now}; it is read only when {directive.read_when}"
    direct = [
        n for n, d in table.items() if _is_explicit(d) and n not in DIRECTIVES and not n.startswith("_") and n in read
    ]
    if direct:
        return f"{' and '.join(direct)}, declared directly, replaces what would read it"
    return "nothing that this quantizer resolves to reads it"


def _translate(error: DependencyError, quantizer: type, site: Site) -> QuantConfigError:
    """An injector error in terms of the layer: S5 for a missing directive, a module's refusal, or the plain text."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, BrevitasError):
            return _fail(QuantConfigError, site, quantizer, str(cause))
        cause = cause.__cause__
    missing = DIRECTIVES.get(error.path[-1]) if error.path else None
    if isinstance(error, UnknownAttributeError) and missing is not None:
        when = f" ({missing.read_when})" if missing.read_when else ""
        example = f", for example `{missing.example}`" if missing.example else f": {missing.expected}"
        return _fail(
            QuantConfigError,
            site,
            quantizer,
            f"'{missing.name}' is required{when}: {missing.effect}. Declare it{example}\n  needed by: {error}",
        )
    return _fail(QuantConfigError, site, quantizer, str(error))


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
    quantizer = _apply_aliases(quantizer, site)
    foreign = {
        n: d
        for n, d in _table(quantizer).items()
        if not n.startswith("_") and (d.origin == "let" or not _in_library(d.owner))
    }
    unknown: list[str] = []
    if foreign:
        known, readable = _known_names(quantizer), readable_names(quantizer)
        unknown = [name for name in foreign if name not in known]
        for name, declaration in foreign.items():
            _check_directive_role(name, declaration, quantizer, site, readable)
            if name in DIRECTIVES and declaration.kind == "object":
                _check_value(DIRECTIVES[name], declaration.obj, declaration, quantizer, site)
    _check_contradictions(quantizer, site)
    bound = override(quantizer, dict(supplied)) if supplied else quantizer
    table = _table(quantizer)
    names = ["tensor_quant", *(n for n in _READ_BY_PROXY.get(site.role, ()) if n in table)]
    if "tensor_quant" not in table:
        raise _fail(
            QuantConfigError,
            site,
            quantizer,
            "it declares no tensor_quant and has no solver among its bases; derive it from a preset, add a solver as "
            "the last base, "
            "or declare tensor_quant",
        )
    try:
        resolution = resolve_many(bound, names)
    except DependencyError as error:
        if unknown:
            # Most likely the missing name, misspelt.
            raise _unknown_option(unknown[0], quantizer, site) from error
        raise _translate(error, quantizer, site) from error
    for name in unknown:
        # A class that a @value returned may read what nothing reads statically.
        if name not in resolution.records:
            raise _unknown_option(name, quantizer, site)
    for name in foreign:
        record = resolution.records.get(name)
        if record is not None and name in DIRECTIVES and record.declaration.kind in ("value", "link"):
            _check_value(DIRECTIVES[name], record.value, record.declaration, quantizer, site)
    _check_effect(quantizer, site, resolution)
    return resolution
