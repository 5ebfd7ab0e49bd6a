"""The spec of a model, read and checked as far as that needs no model: rules, each with selectors and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from brevitas.errors import SpecError
from brevitas.quant.rule_sets import rule_set
from brevitas.quant.spec import quantizer_from
from brevitas.quant.spec_check import check_value
from brevitas.quant.spec_values import decode
from brevitas.quant.spec_version import VERSION, migrated
from brevitas.utils.located import (
    LocatedList,
    LocatedMapping,
    SpecLocation,
    as_located,
    did_you_mean,
    path_of,
    read_text,
    read_yaml,
)
from injector import SourceLocation

__all__ = ["MODEL_KEYS", "ROLES", "RULE_KEYS", "SELECTORS", "WHERE", "Rule", "read_model_spec", "rules_of"]

#: Settings of a rule that are quantizers, each with the role that the quantizer must have.
ROLES = {
    "weight": "weight",
    "bias": "bias",
    "input": "act",
    "output": "act",
    "act": "act",
    "io": "act",
    "gate_acc": "act",
    "sigmoid": "act",
    "tanh": "act",
    "cell_state": "act",
    "in_proj_input": "act",
    "in_proj_weight": "weight",
    "in_proj_bias": "bias",
    "q_scaled": "act",
    "k_transposed": "act",
    "v": "act",
    "softmax_input": "act",
    "attn_output_weights": "act",
    "out_proj_input": "act",
    "out_proj_weight": "weight",
    "out_proj_bias": "bias",
    "out_proj_output": "act",
    "trunc": "trunc",
    "clamp": "clamp",
}
SELECTORS = ("match", "type", "where")
RULE_KEYS = (*SELECTORS, "keep", *ROLES, "layer")
MODEL_KEYS = ("version", "preset", "rules", "steps")

#: Names that ``where`` may have.
WHERE = {
    "first": "the first layer that the other selectors leave",
    "last": "the last layer that the other selectors leave",
    "depthwise": "convolutions in which each group has one input channel",
    "pointwise": "convolutions with a kernel of size 1",
    "bias": "layers with a bias",
    "no_bias": "layers with a weight and no bias",
}


@dataclass(frozen=True, eq=False)
class Rule:
    """One rule. A role that is ``None`` is switched off; else it maps ``base`` and directives, or ``share``."""

    location: SpecLocation
    name: str
    match: str | None
    types: tuple[str, ...]
    where: tuple[str, ...]
    keep: bool
    roles: Mapping[str, LocatedMapping | None]
    layer: LocatedMapping
    places: Mapping[str, SpecLocation] = field(default_factory=dict)
    preset: str | None = None

    def __str__(self) -> str:
        chosen = {"match": self.match, "type": ", ".join(self.types), "where": ", ".join(self.where)}
        words = ", ".join(f"{key}: {value}" for key, value in chosen.items() if value)
        return f"{self.name} ({words})" if words else self.name


def read_model_spec(spec: Any, caller: SourceLocation) -> LocatedMapping:
    """The located, current document of a dict, YAML text or path.

    Raises:
        SpecError: no YAML, no mapping, or another version.
    """
    path = path_of(spec)
    if path is not None:
        return migrated(read_yaml(path), required=True)
    document = read_text(spec, "<text>") if isinstance(spec, str) else as_located(spec, caller)
    if not isinstance(document, LocatedMapping):
        raise SpecError(
            f"{SpecLocation(caller.file, caller.line)}: expected a mapping, YAML text or a path, found {document!r}"
        )
    return migrated(document)


def rules_of(document: LocatedMapping) -> list[Rule]:
    """The rules of a document, those of its presets first.

    Raises:
        SpecError: an unknown key, an illegal value, a preset that does not exist, ``steps``.
    """
    for key in document:
        if key not in MODEL_KEYS:
            raise SpecError(f"{document.where(key)}: unknown key '{key}'{did_you_mean(key, MODEL_KEYS)}")
    if "steps" in document:
        raise SpecError(
            f"{document.where('steps')}: 'steps' is reserved for methods that work on a trained model, and there are "
            "none yet; remove it, and call what you need on the model that apply_spec returns"
        )
    if "rules" not in document and "preset" not in document:
        raise SpecError(f"{document.where()}: a model spec needs 'rules' or 'preset', version {VERSION}")
    found: list[Rule] = []
    for name, place in _items(document, "preset") if "preset" in document else ():
        rules = rule_set(name, place)
        found += [
            _rule(rule, rules.places[i], f"rule {i + 1} of preset '{name}'", name) for i, rule in enumerate(rules)
        ]
    rules = document.get("rules", LocatedList(document.location))
    if not isinstance(rules, LocatedList):
        raise SpecError(f"{document.where('rules')}: 'rules' is {_shown(rules)}; expected a list of rules")
    return found + [_rule(rule, rules.places[i], f"rules[{i}]", None) for i, rule in enumerate(rules)]


def _items(mapping: LocatedMapping, key: str) -> list[tuple[Any, SpecLocation]]:
    """The items of a list, or the one thing that stands in its place."""
    value = mapping[key]
    if isinstance(value, LocatedList):
        return list(zip(value, value.places, strict=True))
    return [(value, mapping.place(key))]


def _shown(value: object) -> str:
    return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)


def _rule(rule: Any, place: SpecLocation, name: str, preset: str | None) -> Rule:
    if not isinstance(rule, LocatedMapping):
        raise SpecError(f"{place}: {name} is {_shown(rule)}; expected a mapping with selectors and settings")
    for key in rule:
        if key not in RULE_KEYS:
            raise SpecError(f"{rule.where(key)}: {name} has the unknown key '{key}'{did_you_mean(key, RULE_KEYS)}")
    settings = [key for key in rule if key not in SELECTORS]
    if not settings:
        raise SpecError(f"{place}: {name} does nothing: it needs one of keep, {', '.join(ROLES)}, layer")
    if "keep" in rule:
        if rule["keep"] != "float":
            raise SpecError(f"{rule.where('keep')}: 'keep' is {_shown(rule['keep'])}; the only legal value is float")
        if len(settings) > 1:
            other = next(key for key in settings if key != "keep")
            raise SpecError(f"{rule.where(other)}: {name} has 'keep: float', and '{other}' contradicts it; remove one")
    return Rule(
        location=place,
        name=name,
        match=_match(rule) if "match" in rule else None,
        types=tuple(_text(rule, "type", item, at) for item, at in _items(rule, "type")) if "type" in rule else (),
        where=tuple(_where(item, at) for item, at in _items(rule, "where")) if "where" in rule else (),
        keep="keep" in rule,
        roles={key: _quantizer(rule, key) for key in settings if key in ROLES},
        layer=_layer(rule),
        places=dict(rule.places),  # type: ignore[arg-type]
        preset=preset,
    )


def _text(rule: LocatedMapping, key: str, value: Any, place: SpecLocation) -> str:
    if not isinstance(value, str) or not value:
        raise SpecError(f"{place}: '{key}' is {_shown(value)}; expected a text")
    return value


def _match(rule: LocatedMapping) -> str:
    value = rule["match"]
    if not isinstance(value, str):
        raise SpecError(f"{rule.where('match')}: 'match' is {_shown(value)}; expected a name, a glob or re:...")
    return value


def _where(value: Any, place: SpecLocation) -> str:
    if value not in WHERE:
        raise SpecError(f"{place}: 'where' is {_shown(value)}{did_you_mean(value, WHERE)}")
    return value


def _layer(rule: LocatedMapping) -> LocatedMapping:
    value = rule.get("layer", LocatedMapping(rule.location))
    if not isinstance(value, LocatedMapping):
        raise SpecError(
            f"{rule.where('layer')}: 'layer' is {_shown(value)}; expected a mapping, {{return_quant_tensor: true}}"
        )
    returns = value.get("return_quant_tensor", False)
    if returns is not None and not isinstance(returns, bool):
        raise SpecError(
            f"{value.where('return_quant_tensor')}: 'return_quant_tensor' is {returns!r}; expected true or false, or "
            "null for a layer that follows its input"
        )
    return value


def _quantizer(rule: LocatedMapping, role: str) -> LocatedMapping | None:
    """A checked role: ``None``, or a mapping; the name of a preset is its ``base``."""
    value, place = rule[role], rule.place(role)
    if value is None:
        return None
    if isinstance(value, str | LocatedList):
        named = LocatedMapping(place)
        named.put("base", value, place)
        value = named
    if not isinstance(value, LocatedMapping):
        raise SpecError(
            f"{place}: '{role}' is {_shown(value)}; expected null, the name of a preset, or a mapping with base and "
            "directives"
        )
    if not value:
        raise SpecError(f"{place}: '{role}' is an empty mapping, which says nothing; name a preset, or null for none")
    if "share" in value:
        return _share(value)
    if "base" in value:
        quantizer_from(value, place, ROLES[role])
    else:
        for name, item in value.items():
            if not (isinstance(item, LocatedMapping) and "base" in item):
                check_value(name, decode(name, item, value.place(name)), value.place(name))
    return value


def _share(value: LocatedMapping) -> LocatedMapping:
    if len(value) > 1:
        other = next(key for key in value if key != "share")
        raise SpecError(
            f"{value.where(other)}: a shared quantizer is that of another layer, and '{other}' cannot change it"
        )
    _text(value, "share", value["share"], value.place("share"))
    return value
