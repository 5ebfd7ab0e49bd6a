"""The JSON schema of specs, generated from the registries of directives, presets and rule sets.

``python docs/generate`` renews the published one, docs/schema/brevitas-spec-1.json. Editors that know YAML
schemas complete and check a spec that starts with ``# yaml-language-server: $schema=<path or URL of it>``.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from brevitas.quant.directives import DIRECTIVES, Directive
from brevitas.quant.model_spec import ROLES, WHERE
from brevitas.quant.registry import legal_names, presets
from brevitas.quant.rule_sets import rule_sets
from brevitas.quant.spec_check import legal_option_names, role_of
from brevitas.quant.spec_values import TAGS
from brevitas.quant.spec_version import VERSION

__all__ = ["json_schema"]

_REFERENCE = {"type": "string", "pattern": r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$", "description": "package.module:Name"}
_NUMBERS = (-0.5, 0.25, 1.5, 60.5)


def json_schema() -> dict[str, Any]:
    """The schema (JSON Schema 2020-12) of model specs and of quantizers as data, in this version of the format.

    >>> from brevitas.quant import json_schema
    >>> json_schema()['$defs']['directives']['properties']['bit_width']['anyOf'][0]
    {'type': 'integer', 'minimum': 1, 'maximum': 32}

    It is generated from what is registered now, presets and names of other packages included. A schema cannot say
    everything: which directive has an effect is known only when a layer is built.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"brevitas-spec-{VERSION}.json",
        "title": f"Specs of brevitas, version {VERSION}: a quantizer, or the quantizers of a model",
        "type": "object",
        "if": {"required": ["base"]},
        "then": {"$ref": "#/$defs/quantizer", "required": ["version"]},
        "else": {"$ref": "#/$defs/model"},
        "$defs": {
            "model": _model(),
            "rule": _rule(),
            "quantizer": _quantizer(None),
            **{f"{role}_quantizer": _quantizer(role) for role in dict.fromkeys(ROLES.values())},
            "directives": {
                "properties": {d.name: _directive(d) for d in DIRECTIVES.values() if not d.check(object())},
            },
            "reference": _REFERENCE,
            "tagged": _tagged(),
        },
    }


def _model() -> dict[str, Any]:
    name = {"enum": list(rule_sets())}
    return {
        "properties": {
            "version": {"const": VERSION},
            "preset": {"anyOf": [name, {"type": "array", "items": name}], "description": "rule sets; later ones win"},
            "rules": {
                "type": "array",
                "items": {"$ref": "#/$defs/rule"},
                "description": "applied from top to bottom; a later rule overrides an earlier one key by key",
            },
        },
        "required": ["version"],
        "anyOf": [{"required": ["rules"]}, {"required": ["preset"]}],
        "additionalProperties": False,
    }


def _one_or_many(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "array", "items": schema}], "description": description}


def _rule() -> dict[str, Any]:
    roles = {
        role: {
            "anyOf": [{"type": "null"}, {"$ref": f"#/$defs/{kind}_quantizer"}],
            "description": f"quantizer of the {role}",
        }
        for role, kind in ROLES.items()
    }
    where = "; ".join(f"{name}: {meaning}" for name, meaning in WHERE.items())
    return {
        "type": "object",
        "properties": {
            "match": {"type": "string", "description": "qualified name, glob (* ** ? {a,b}), or re: and an expression"},
            "type": _one_or_many({"type": "string"}, "names of layer classes; subclasses are included"),
            "where": _one_or_many({"enum": list(WHERE)}, where),
            "keep": {"const": "float", "description": "leave the layer without quantizers"},
            **roles,
            "layer": {
                "type": "object",
                "description": "options of the layer",
                "properties": {
                    "return_quant_tensor": {"type": ["boolean", "null"]},
                },
            },
        },
        "additionalProperties": False,
        "oneOf": [
            {"required": ["keep"]},
            {"anyOf": [{"required": [key]} for key in (*ROLES, "layer")]},
        ],
    }


def _quantizer(role: str | None) -> dict[str, Any]:
    """The name of a base, or a mapping; for the presets of the library the legal names of options are known."""
    names = [name for name, cls in presets().items() if role is None or role_of(cls) == role]
    base = {"anyOf": [{"enum": names}, {"$ref": "#/$defs/reference"}]}
    options = {
        "type": "object",
        "properties": {"base": {"anyOf": [base, {"type": "array", "items": base, "minItems": 1}]}},
        "allOf": [{"$ref": "#/$defs/directives"}],
        "if": {"properties": {"base": {"enum": names}}, "required": ["base"]},
        "then": {"propertyNames": {"enum": ["base", "version", *legal_option_names(names)]}},
    }
    if role is None:
        return {**options, "required": ["base"]}
    shared = {
        "type": "object",
        "properties": {
            "share": {"type": "string", "description": "path of another layer's quantizer, conv1.weight_quant"}
        },
        "required": ["share"],
        "additionalProperties": False,
    }
    named = {"anyOf": [base, {"type": "array", "items": base, "minItems": 1}]}
    return {"anyOf": [named, shared, {**options, "not": {"required": ["share"]}}]}


def _tagged() -> dict[str, Any]:
    """What YAML has no form for, and nested quantizers."""
    return {
        "type": "object",
        "anyOf": [{"required": [tag], "description": meaning} for tag, meaning in TAGS.items()]
        + [{"required": ["base"]}],
    }


def _directive(directive: Directive) -> dict[str, Any]:
    """What a directive may be. Its ``check`` is the definition; here stands as much of it as a schema can say."""
    when = f" Read when {directive.read_when}." if directive.read_when else ""
    return {
        "description": f"{directive.effect}. Roles: {', '.join(directive.role_names)}. "
        f"Default: {directive.default}.{when}",
        "anyOf": [*_alternatives(directive), {"$ref": "#/$defs/tagged"}],
    }


def _alternatives(directive: Directive) -> list[dict[str, Any]]:
    check = directive.check
    if directive.enum is not None:
        names = legal_names(directive.name) or tuple(member.name for member in directive.enum)
        return [{"enum": [spelt for name in names if check(name) for spelt in (name, name.lower())]}]
    found: list[dict[str, Any]] = []
    if check(None):
        found.append({"type": "null"})
    if check(nn.Identity):
        found.append({"$ref": "#/$defs/reference"})
    if check(True):
        found.append({"type": "boolean"})
    if any(check(number) for number in _NUMBERS):
        found.append({"type": "number", **_bounds(directive)})
    else:
        found += _whole_numbers(directive)
    for kind, shapes in (("integer", ((1,), (0,), (1, 0))), ("string", (("0",), ("00",)))):
        if any(check(shape) for shape in shapes):
            found.append({"type": "array", "items": {"type": kind}})
    if check("text") and not found:
        found.append({"type": "string"})
    return found or [{}]


def _whole_numbers(directive: Directive) -> list[dict[str, Any]]:
    """The range of the legal integers, if there are any."""
    check = directive.check
    inside = next((n for n in (*range(1, 65), 0, -1) if check(n)), None)
    if inside is None:
        return []
    ends = {}
    for name, sign in (("minimum", -1), ("maximum", 1)):
        if check(sign * 2**40):
            continue
        low, high = 0, 2**41
        # The legal numbers are in one piece, so its end is found by halving.
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if check(inside + sign * middle) else (low, middle)
        ends[name] = inside + sign * low
    return [{"type": "integer", **ends}]


def _bounds(directive: Directive) -> dict[str, Any]:
    """The ends of the legal numbers, found where the check changes its answer."""
    check, step, bounds = directive.check, 1e-9, {}
    for end in (0, 1):
        if check(end + step) and not check(end - step):
            bounds["minimum" if check(end) else "exclusiveMinimum"] = end
    for end in (1, 50, 100):
        if check(end - step) and not check(end + step):
            bounds["maximum" if check(end) else "exclusiveMaximum"] = end
    return bounds
