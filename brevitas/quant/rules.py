"""The rules S1 to S4 and S6 of the vocabulary, each as a function that refuses what breaks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brevitas.core.zero_point import ZeroZeroPoint
from brevitas.errors import QuantConfigError, UnknownOptionError
from brevitas.inject.enum import QuantType, ScalingPerOutputType, StatsOp
from brevitas.quant.directives import ALIASES, DIRECTIVES, Directive
from brevitas.quant.site import Site, did_you_mean, in_library, is_explicit, refusal, shown
from injector import Declaration, Injector, Resolution, declarations, override, readable_names, suggest

__all__ = [
    "SUPPLIED",
    "apply_aliases",
    "check_contradictions",
    "check_directive_role",
    "check_effect",
    "check_role",
    "check_value",
    "known_names",
    "unknown_option",
]

#: Names that a layer or proxy supplies or reads, so that they always mean something.
SUPPLIED = frozenset({"module", "tracked_parameter_list", "act_impl", "passthrough_act", "proxy_class", "tensor_quant"})
_SHAPE_HINTS = frozenset(
    {"per_channel_broadcastable_shape", "scaling_stats_permute_dims", "zero_point_stats_permute_dims"}
)


def check_role(quantizer: type, site: Site) -> None:
    """S6: a quantizer whose solver is of another role than the argument it was passed to."""
    declaration = declarations(quantizer).get("_role")
    if declaration is None:
        return
    roles = sorted({d.obj for d in (declaration, *declaration.overrode)})
    if len(roles) > 1:
        raise QuantConfigError(
            f"{site}={quantizer.__name__}: its bases are quantizers of the roles "
            f"{' and '.join(repr(r) for r in roles)}; derive it from bases of one role"
        )
    if declaration.obj != site.role:
        argument = {"weight": "weight_quant", "bias": "bias_quant"}.get(
            declaration.obj, "act_quant, input_quant or output_quant"
        )
        raise QuantConfigError(
            f"{site}={quantizer.__name__}: this is a quantizer of role '{declaration.obj}', and {site.argument} needs "
            f"one of role '{site.role}'. Pass it as {argument}, or choose a quantizer of role '{site.role}'."
        )


def known_names(quantizer: type) -> frozenset[str]:
    """Names that mean something: in the vocabulary, read by a declaration, or declared by the library."""
    by_library = {
        name
        for name, declaration in declarations(quantizer).items()
        if any(in_library(d.owner) and d.origin != "let" for d in (declaration, *declaration.overrode))
    }
    return frozenset(DIRECTIVES) | readable_names(quantizer) | by_library | replaced_reads(quantizer) | SUPPLIED


def replaced_reads(quantizer: type) -> frozenset[str]:
    """Names that a user's ``@value`` or class read until a more derived class replaced it: left over on purpose."""
    replaced = {
        f"_replaced_{index}": old.obj
        for index, old in enumerate(
            old
            for declaration in declarations(quantizer).values()
            for old in declaration.overrode
            if old.kind in ("class", "value", "link") and not in_library(old.owner)
        )
    }
    return readable_names(override(Injector, replaced)) if replaced else frozenset()


def unknown_option(name: str, quantizer: type, site: Site) -> UnknownOptionError:
    """S1: a name that nothing reads."""
    declaration = declarations(quantizer)[name]
    foreign_roles = {n for n, d in DIRECTIVES.items() if site.role not in d.role_names}
    known = sorted(n for n in known_names(quantizer) - foreign_roles if not n.startswith("_"))
    written = site.written(name)
    if name in site.keywords:
        hint = did_you_mean(written, [*site.layer_arguments(), *(site.prefix + k for k in known)])
    else:
        hint = did_you_mean(written, known)
    error = refusal(
        UnknownOptionError,
        site,
        quantizer,
        f"unknown option '{written}' = {shown(declaration.obj)}: nothing reads it. {hint}".rstrip(),
        declaration,
    )
    assert isinstance(error, UnknownOptionError)
    return error


def check_directive_role(
    name: str, declaration: Declaration, quantizer: type, site: Site, readable: frozenset[str]
) -> None:
    """The part of S2 that is about roles."""
    directive = DIRECTIVES.get(name)
    if (
        directive is not None
        and site.role not in directive.role_names
        and name not in readable
        and is_explicit(declaration)
    ):
        raise refusal(
            QuantConfigError,
            site,
            quantizer,
            f"'{site.written(name)}' has no effect because it belongs to quantizers of role "
            f"{' or '.join(directive.role_names)}, "
            f"not '{site.role}'",
            declaration,
        )


def check_value(directive: Directive, obj: object, declaration: Declaration, quantizer: type, site: Site) -> None:
    """S3: a value outside what the directive may be."""
    if directive.check(obj):
        return
    hint = ""
    if directive.enum is not None and isinstance(obj, str):
        near = suggest(obj.upper(), [m.name for m in directive.enum])
        hint = f" Did you mean {near[0]!r}?" if near else ""
    raise refusal(
        QuantConfigError,
        site,
        quantizer,
        f"'{site.written(directive.name)}' = {shown(obj)} is not legal: expected {directive.expected}.{hint}",
        declaration,
    )


def apply_aliases(quantizer: type, site: Site) -> type:
    """Declare the name that is read where another name of it was written; S4 where both were, with different values."""
    table = declarations(quantizer)
    overrides: dict[str, tuple[object, Declaration]] = {}
    for alias, canonical in ALIASES.items():
        written = table.get(alias)
        if written is None or in_library(written.owner) and written.origin != "let":
            continue
        obj = written.obj
        other, other_declaration = overrides.get(canonical, (None, None))
        if other_declaration is None:
            other_declaration = table.get(canonical)
            other = other_declaration.obj if other_declaration is not None and is_explicit(other_declaration) else None
        if other is not None and other_declaration is not None and other != obj:
            raise refusal(
                QuantConfigError,
                site,
                quantizer,
                f"'{site.written(alias)}' = {shown(written.obj)} and '{site.written(other_declaration.name)}' = "
                f"{shown(other_declaration.obj)} are two names of one option and contradict each other; keep one",
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


def check_contradictions(quantizer: type, site: Site) -> None:
    """S4, and the lower limits of S3 that depend on two directives."""
    table = declarations(quantizer)
    width, signed, narrow = _plain(table, "bit_width"), _plain(table, "signed"), _plain(table, "narrow_range")
    kind = _plain(table, "quant_type")
    fixed = {"BINARY": 1, "TERNARY": 2}.get(str(kind).upper())
    explicit = {n: d for n, d in table.items() if is_explicit(d)}

    def refuse(text: str, *names: str) -> QuantConfigError:
        return refusal(QuantConfigError, site, quantizer, text, *(table[n] for n in names if n in table))

    zero_point = table.get("zero_point_impl")
    if zero_point is not None and zero_point.kind == "class" and zero_point.obj is not ZeroZeroPoint:
        what = f"zero_point_impl = {shown(zero_point.obj)}"
        if fixed is not None:
            raise refuse(
                f"{what} needs integers, and a {_member(kind)} quantizer has none", "quant_type", "zero_point_impl"
            )
        grouped = str(_plain(table, "scaling_per_output_type")).upper() == ScalingPerOutputType.GROUP.name
        if grouped and site.role == "act":
            raise refuse(
                f"{what} is learned, and the groups of an activation are scaled anew at each call; use a symmetric "
                "quantizer",
                "scaling_per_output_type",
                "zero_point_impl",
            )
        if str(_plain(table, "scaling_stats_op")).upper() == StatsOp.MAX_AVE.name:
            raise refuse(
                f"{what} takes the low end of the whole range, and scaling_stats_op = MAX_AVE averages over channels; "
                "use MIN_MAX",
                "scaling_stats_op",
                "zero_point_impl",
            )
    statistic = table.get("scaling_stats_impl")
    if statistic is not None and statistic.kind == "class" and "scaling_stats_op" in explicit:
        raise refuse(
            f"'{site.written('scaling_stats_op')}' = {shown(table['scaling_stats_op'].obj)} has no effect because "
            f"scaling_stats_impl = {shown(statistic.obj)}, declared directly, replaces the statistic that it would "
            "choose",
            "scaling_stats_op",
            "scaling_stats_impl",
        )
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
    if low is None and high is not None and signed is False and high <= 0:
        raise refuse(
            f"max_val = {high} is not positive, and unsigned codes have no negative values", "max_val", "signed"
        )
    if low is not None and signed is False and low < 0:
        raise refuse(f"min_val = {low} is negative, and unsigned codes have no negative values", "min_val", "signed")
    if "scaling_per_output_type" in explicit and "scaling_per_output_channel" in explicit:
        per_channel = str(_plain(table, "scaling_per_output_type")).upper() == ScalingPerOutputType.CHANNEL.name
        if per_channel is not _plain(table, "scaling_per_output_channel"):
            raise refuse(
                f"scaling_per_output_type = {shown(table['scaling_per_output_type'].obj)} and "
                f"scaling_per_output_channel = {shown(table['scaling_per_output_channel'].obj)} contradict each other; "
                "keep one",
                "scaling_per_output_type",
                "scaling_per_output_channel",
            )
    widths = [_plain(table, n) for n in ("bit_width", "exponent_bit_width", "mantissa_bit_width")]
    if all(isinstance(w, int) for w in widths) and widths[0] != 1 + widths[1] + widths[2]:
        raise refuse(
            f"bit_width = {widths[0]} is not 1 + exponent_bit_width + mantissa_bit_width = 1 + {widths[1]} + "
            f"{widths[2]}",
            "bit_width",
            "exponent_bit_width",
            "mantissa_bit_width",
        )
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


def check_effect(quantizer: type, site: Site, resolution: Resolution) -> None:
    """S2: an explicit name that nothing read."""
    table = declarations(quantizer)
    off = resolution.values["tensor_quant"] is None
    # What only the proxy asks for has no effect while there is no quantizer.
    read = {name for name, record in resolution.records.items() if record.asked_by or not off}
    read |= {ALIASES[name] for name in read if name in ALIASES}
    if "scaling_per_output_type" in read and is_explicit(table.get("scaling_per_output_type")):
        read.add("scaling_per_output_channel")  # says the same, or would have been refused
    if "exponent_bit_width" in read:
        read.add("bit_width")  # their sum was checked
    read |= replaced_reads(quantizer)
    for name, declaration in table.items():
        if name.startswith("_") or name in read or name in SUPPLIED or name in ALIASES or not is_explicit(declaration):
            continue
        kind = _member(_plain(table, "quant_type"))
        if name == "bit_width" and kind in (QuantType.BINARY, QuantType.TERNARY):
            continue
        if name in _SHAPE_HINTS and _says_per_tensor(table):
            continue
        raise refusal(
            QuantConfigError,
            site,
            quantizer,
            f"'{site.written(name)}' = {shown(declaration.obj)} has no effect because {_reason(name, table, read)}",
            declaration,
        )


def _says_per_tensor(table: Mapping[str, Declaration]) -> bool:
    """Whether the user, not the preset, wants one scale for the tensor; a shape for more is then no mistake."""
    said = table.get("scaling_per_output_channel")
    return said is not None and said.obj is False and (said.origin == "let" or not in_library(said.owner))


def _reason(name: str, table: Mapping[str, Declaration], read: set[str]) -> str:
    directive = DIRECTIVES.get(name)
    if directive is not None:
        # The directive that was read last on the way to the missing one is the one that decided.
        for decider in sorted(directive.decided_by, key=lambda d: d not in read):
            declaration = table.get(decider)
            if declaration is not None and decider in read:
                now = f"{decider} is {shown(declaration.obj)} (set at {declaration.location})"
                if decider == "quant_type" and _member(declaration.obj) is QuantType.FP:
                    return f"{now}, so nothing is quantized"
                return f"{now}; it is read only when {directive.read_when}"
    direct = [
        n for n, d in table.items() if is_explicit(d) and n not in DIRECTIVES and not n.startswith("_") and n in read
    ]
    if direct:
        return f"{' and '.join(direct)}, declared directly, replaces what would read it"
    return "nothing that this quantizer resolves to reads it"
