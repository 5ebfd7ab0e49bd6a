"""From rules to what each layer gets: later rules override earlier ones key by key, and none may be without effect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from brevitas.errors import SpecError, UnknownOptionError
from brevitas.graph.selectors import Layer, Layers
from brevitas.quant.directives import DIRECTIVES
from brevitas.quant.model_spec import ROLES, Rule
from brevitas.utils.located import LocatedMapping, SpecLocation, did_you_mean

__all__ = ["Entry", "LayerSettings", "RoleSettings", "settings_of"]


@dataclass(frozen=True)
class Entry:
    """One key, with the place where it was written and the rule that it comes from; ``None`` for a keyword argument."""

    value: Any
    place: SpecLocation
    rule: Rule | None


@dataclass
class RoleSettings:
    """What a layer gets for one role: nothing (``off``), or ``base`` and directives, or ``share``."""

    off: Entry | None = None
    keys: dict[str, Entry] = field(default_factory=dict)

    @property
    def place(self) -> SpecLocation:
        """Where it was decided: the base if there is one."""
        entry = self.off or self.keys.get("base") or next(iter(self.keys.values()))
        return entry.place

    @property
    def mapping(self) -> LocatedMapping:
        """What rules say, as a spec whose keys know their places."""
        mapping = LocatedMapping(self.place)
        for key, entry in self.keys.items():
            if entry.rule is not None:
                mapping.put(key, entry.value, entry.place)
        return mapping

    @property
    def keywords(self) -> dict[str, Entry]:
        """What keyword arguments say: objects, not data."""
        return {key: entry for key, entry in self.keys.items() if entry.rule is None}

    @property
    def plain(self) -> dict[str, Any] | None:
        """What rules say, without places; ``None`` if off."""
        return None if self.off is not None else dict(self.mapping)

    def rules(self) -> Iterable[Rule | None]:
        """The rules whose words stand."""
        return (entry.rule for entry in ([self.off] if self.off else self.keys.values()))

    def update(self, value: LocatedMapping | None, rule: Rule, place: SpecLocation) -> None:
        """Apply what a later rule says."""
        if value is None:
            self.off, self.keys = Entry(None, _of_rule(place, rule), rule), {}
            return
        self.off = None
        if ("share" in value) != ("share" in self.keys):
            self.keys = {}
        for key, item in value.items():
            self.keys[key] = Entry(item, _of_rule(value.place(key), rule), rule)


def _of_rule(place: SpecLocation, rule: Rule) -> SpecLocation:
    """The place with the name of the rule, for messages and ``explain``; places in Python data have it."""
    return place if place.key else replace(place, key=str(rule))


@dataclass(eq=False)
class LayerSettings:
    """What a layer gets."""

    layer: Layer
    keep: Rule | None = None
    roles: dict[str, RoleSettings] = field(default_factory=dict)
    options: dict[str, Entry] = field(default_factory=dict)
    last: Rule | None = None

    def rules(self) -> set[Rule | None]:
        """The rules of which something stands."""
        if self.keep is not None:
            return {self.keep}
        found = {rule for role in self.roles.values() for rule in role.rules()}
        return found | {entry.rule for entry in self.options.values()}

    def update(self, rule: Rule) -> None:
        """Apply a later rule."""
        self.last = rule
        if rule.keep:
            self.keep, self.roles, self.options = rule, {}, {}
            return
        self.keep = None
        offered = self.layer.converter.roles if self.layer.converter is not None else rule.roles
        for role, value in rule.roles.items():
            if role in offered:
                self.roles.setdefault(role, RoleSettings()).update(value, rule, rule.places[role])
        for key, value in rule.layer.items():
            self.options[key] = Entry(value, rule.layer.place(key), rule)


def settings_of(
    layers: Layers, rules: list[Rule], overrides: Mapping[str, Any], caller: SpecLocation
) -> list[LayerSettings]:
    """What each layer that a rule is about gets, in the order of the model.

    Raises:
        SpecError: a rule that matches nothing, or of which nothing stands in the end; one parameter in two layers that
            get different quantizers; a layer that cannot be converted.
        UnknownOptionError: a keyword argument that no quantizer takes.
    """
    found: dict[Layer, LayerSettings] = {}
    used: set[str] = set()
    for rule in rules:
        try:
            selected = layers.selected(rule)
        except SpecError:
            if rule.preset is None:
                raise
            # A rule set is made for many models; only a set of which nothing fits is a mistake.
            continue
        used.add(rule.preset or "")
        for layer in selected:
            found.setdefault(layer, LayerSettings(layer)).update(rule)
    _refuse_unused_presets(rules, used)
    _refuse_overridden(rules, found.values())
    for settings in found.values():
        _refuse_unconvertible(settings)
    _refuse_divided_parameters(found.values())
    _apply_overrides(found.values(), overrides, caller)
    return sorted(found.values(), key=lambda settings: settings.layer.position)


def _refuse_unused_presets(rules: list[Rule], used: set[str]) -> None:
    for rule in rules:
        if rule.preset is not None and rule.preset not in used:
            raise SpecError(f"{rule.location}: no rule of the preset '{rule.preset}' matches a layer of the model")


def _refuse_overridden(rules: list[Rule], settings: Iterable[LayerSettings]) -> None:
    settings = list(settings)
    standing = set().union(*(each.rules() for each in settings))
    for rule in rules:
        if rule.preset is None and rule not in standing:
            later = [r for r in rules[rules.index(rule) + 1 :] if r in standing]
            by = " and ".join(f"{r} at {r.location}" for r in later[:3])
            raise SpecError(f"{rule.location}: {rule} has no effect: later rules override all that it says, {by}")


def _refuse_unconvertible(settings: LayerSettings) -> None:
    layer, rule = settings.layer, settings.last
    if settings.keep is not None or rule is None:
        return
    if layer.converter is None:
        raise SpecError(
            f"{rule.location}: {rule}: there is no quantized form of {layer}; exclude it, keep it by a rule "
            f"{{match: {layer.name!r}, keep: float}}, or add one with brevitas.graph.register_converter"
        )
    method = layer.overrides
    if method is not None:
        raise SpecError(
            f"{rule.location}: {rule}: {layer} overrides '{method}' of {layer.converter.float.__name__}, so a "
            f"{layer.converter.quantized.__name__} would compute something else; add a quantized form of "
            f"{type(layer.module).__name__} with brevitas.graph.register_converter, or keep it by a rule "
            f"{{match: {layer.name!r}, keep: float}}"
        )


def _refuse_divided_parameters(settings: Iterable[LayerSettings]) -> None:
    """One parameter in two layers must get one quantizer, or the layers would compute with different values of it."""
    seen: dict[tuple[nn.Parameter, str], LayerSettings] = {}
    for each in settings:
        for role in ("weight", "bias"):
            parameter = getattr(each.layer.module, role, None)
            if not isinstance(parameter, nn.Parameter) or role not in each.roles:
                continue
            first = seen.setdefault((parameter, role), each)
            one, other = first.roles[role], each.roles[role]
            if first is not each and one.plain != other.plain and not _shares(one, first, other, each, role):
                raise SpecError(
                    f"{other.place}: {first.layer} and {each.layer} share one parameter '{role}', and rules give it "
                    f"different quantizers: {_words(one)} at {one.place} and {_words(other)} at {other.place}; give "
                    "both the same"
                )


def _shares(one: RoleSettings, first: LayerSettings, other: RoleSettings, second: LayerSettings, role: str) -> bool:
    targets = {f"{name}.{role}_quant" for name in (*first.layer.names, *second.layer.names)}
    return any("share" in each.keys and each.keys["share"].value in targets for each in (one, other))


def _words(role: RoleSettings) -> str:
    plain = role.plain
    return "null" if plain is None else ", ".join(f"{key}: {value}" for key, value in plain.items())


def _apply_overrides(settings: Iterable[LayerSettings], overrides: Mapping[str, Any], caller: SpecLocation) -> None:
    settings = list(settings)
    for option, value in overrides.items():
        role = max((r for r in ROLES if option.startswith(f"{r}_")), key=len, default="")
        directive = option.removeprefix(f"{role}_")
        if role not in ROLES or not directive:
            candidates = [
                f"{r}_{d.name}" for r, kind in ROLES.items() for d in DIRECTIVES.values() if kind in d.role_names
            ]
            near = did_you_mean(option, ["example_inputs", "inplace", *candidates])
            hint = near if near.startswith("; did") else ""
            raise UnknownOptionError(
                f"{caller}: option '{option}' of apply_spec starts with none of "
                f"{', '.join(r + '_' for r in ROLES)}{hint}"
            )
        if value is None:
            continue
        targets = [s.roles[role] for s in settings if role in s.roles and s.roles[role].off is None]
        targets = [t for t in targets if "share" not in t.keys]
        if not targets:
            raise SpecError(
                f"{caller}: option '{option}' has no effect: no rule gives a layer a quantizer for '{role}'"
            )
        for target in targets:
            target.keys[directive] = Entry(value, caller, None)
