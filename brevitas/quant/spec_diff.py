"""How two quantizers, or two model specs, differ, in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brevitas.errors import QuantConfigError
from brevitas.quant.directives import DIRECTIVES
from brevitas.quant.model_spec import ROLES, SELECTORS, read_model_spec
from brevitas.quant.site import is_quantizer, shown
from brevitas.quant.spec import same_declaration
from brevitas.quant.spec_check import role_of
from injector import Declaration, caller_location, declarations

__all__ = ["diff"]


def diff(a: Any, b: Any) -> str:
    """What differs between two quantizer classes, or between two model specs, one line each.

    >>> from brevitas.quant import Int8WeightPerTensorFloat, Int8WeightPerChannelFloat, diff
    >>> print(diff(Int8WeightPerTensorFloat, Int8WeightPerChannelFloat.let(bit_width=4)))
    Int8WeightPerTensorFloat (a) and Int8WeightPerChannelFloat (b) differ in 2 options:
      bit_width, number of bits of a code: 8 in a (PerTensorFloatScaling8bit, ...), 4 in b (let on ...)
      scaling_per_output_channel, one scale per output channel: False in a (...), True in b (...)

    Args:
        a, b: two quantizer classes; or two model specs, each a dict such as ``spec_of(model)``, YAML text or a path.

    Quantizers are compared as they are declared; rules of model specs by their selectors, in any order.

    Raises:
        QuantConfigError: one of each, or something else.
    """
    if is_quantizer(a) and is_quantizer(b):
        return _diff_quantizers(a, b)
    for subject in (a, b):
        if not isinstance(subject, Mapping | str | Path):
            raise QuantConfigError(
                f"diff: expected two quantizer classes or two model specs, got {shown(a)} and {shown(b)}; of "
                "models, pass spec_of(model)"
            )
    caller = caller_location()
    return _diff_models(read_model_spec(a, caller), read_model_spec(b, caller))


def _diff_quantizers(a: type, b: type) -> str:
    names = f"{a.__name__} (a) and {b.__name__} (b)"
    ours, theirs = declarations(a), declarations(b)
    lines = []
    if role_of(a) != role_of(b):
        lines.append(f"role: {role_of(a) or 'none'} in a, {role_of(b) or 'none'} in b")
        # Solvers of two roles differ in all that they do: only what is declared as a value says something.
        compared = [name for name in DIRECTIVES if _is_plain(ours.get(name)) or _is_plain(theirs.get(name))]
    else:
        compared = [n for n in (*DIRECTIVES, *sorted({*ours, *theirs} - {*DIRECTIVES})) if n in ours or n in theirs]
    for name in compared:
        one, other = ours.get(name), theirs.get(name)
        if name.startswith("_") or (one is not None and other is not None and same_declaration(one, other)):
            continue
        effect = f", {DIRECTIVES[name].effect}" if name in DIRECTIVES else ""
        lines.append(f"{name}{effect}: {_described(one)} in a{_place(one)}, {_described(other)} in b{_place(other)}")
    if not lines:
        return f"{names} declare the same"
    return f"{names} differ in {_count(lines, 'option')}:\n" + "\n".join(f"  {line}" for line in lines)


def _is_plain(declaration: Declaration | None) -> bool:
    return declaration is not None and declaration.kind in ("object", "class", "class_object")


def _count(lines: list[str], noun: str) -> str:
    return f"{len(lines)} {noun}{'' if len(lines) == 1 else 's'}"


def _described(declaration: Declaration | None) -> str:
    if declaration is None:
        return "not declared"
    if declaration.kind == "value":
        return "computed"
    if declaration.kind == "link":
        return f"the same as {repr(declaration.obj).removeprefix('this.')}"
    return shown(declaration.obj)


def _place(declaration: Declaration | None) -> str:
    return f" ({declaration})" if declaration is not None else ""


def _diff_models(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    lines = []
    for key in ("version", "preset"):
        if a.get(key) != b.get(key):
            lines.append(f"{key}: {_data(a.get(key, _ABSENT))} in a, {_data(b.get(key, _ABSENT))} in b")
    ours, theirs = _by_selectors(a), _by_selectors(b)
    for selectors in dict.fromkeys((*ours, *theirs)):
        if selectors not in theirs:
            lines.append(f"{selectors}: only in a, {_data(_settings(ours[selectors]))}")
        elif selectors not in ours:
            lines.append(f"{selectors}: only in b, {_data(_settings(theirs[selectors]))}")
        else:
            lines += _diff_rules(selectors, _settings(ours[selectors]), _settings(theirs[selectors]))
    common = [s for s in ours if s in theirs]
    # Rules of single layers do not meet, so their order says nothing.
    if common != [s for s in theirs if s in ours] and not all(_is_of_one_layer(ours[s]) for s in common):
        lines.append("the rules that both have stand in another order, and later rules override earlier ones")
    if not lines:
        return "the two specs say the same"
    return f"the two specs differ in {_count(lines, 'place')}:\n" + "\n".join(f"  {line}" for line in lines)


def _by_selectors(spec: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for rule in spec.get("rules") or ():
        chosen = {key: rule[key] for key in SELECTORS if key in rule}
        # What a rule of spec_of is about is a layer: its name says it best.
        name = (
            f"layer '{chosen['match']}'" if list(chosen) == ["match"] else f"rule {_data(chosen) or 'for all layers'}"
        )
        found[name if name not in found else f"{name}, number {len(found) + 1}"] = rule
    return found


def _is_of_one_layer(rule: Mapping[str, Any]) -> bool:
    match = rule.get("match")
    return isinstance(match, str) and not match.startswith("re:") and not any(c in match for c in "*?{")


def _settings(rule: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in rule.items() if key not in SELECTORS}


def _diff_rules(where: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    lines = []
    for key in dict.fromkeys((*a, *b)):
        one, other = _keys(key, a), _keys(key, b)
        for name in dict.fromkeys((*one, *other)):
            left, right = one.get(name, _ABSENT), other.get(name, _ABSENT)
            if repr(left) != repr(right):
                option = f"{where}, {key}" + (f" {name}" if name else "")
                lines.append(f"{option}: {_data(left)} in a, {_data(right)} in b")
    return lines


_ABSENT = object()


def _keys(key: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A setting by its parts: a preset's name is the ``base`` of a mapping; what is off has no parts."""
    if key not in settings:
        return {}
    value = settings[key]
    if isinstance(value, Mapping):
        return dict(value)
    return {"base": value} if key in ROLES and isinstance(value, str) else {"": value}


def _data(value: Any) -> str:
    if value is _ABSENT:
        return "not given"
    if value is None:
        return "off"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_data(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(_data(item) for item in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)
