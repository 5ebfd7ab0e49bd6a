"""The page of options: every directive, its values, what they stand for and which targets export them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ref_common import NOTE, completed, role_of, sentence, table, targets, told, worded
from ref_exports import Verdict, layer_with, verdicts
from torch import nn

from brevitas.errors import QuantConfigError
from brevitas.export import get_target
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat
from brevitas.quant.directives import ALIASES, DIRECTIVES, Directive
from brevitas.quant.registry import meanings, presets

#: Widths that are tried: targets differ in how many bits they have.
TRIED = (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 24, 32)


@dataclass(frozen=True)
class Trial:
    """A directive set to a value in a preset of a role."""

    directive: str
    value: Any
    role: str

    @property
    def key(self) -> str:
        """A name that a module may have."""
        return re.sub(r"\W", "_", f"{self.directive}__{self.value}__{self.role}")


def values_of(directive: Directive) -> tuple[Any, ...]:
    """Values to try: members, both bools, some bit widths; nothing for what the layer sets."""
    if directive.enum is not None:
        return tuple(m.name for m in directive.enum)
    if directive.default.startswith("set by") or directive.name in ALIASES:
        return ()
    if directive.expected == "True or False":
        return (True, False)
    return TRIED if directive.name == "bit_width" else ()


def layer_for(trial: Trial) -> nn.Module | None:
    """A layer with the first preset of the role in which the value has an effect."""
    # The names that a layer uses by default come first.
    known = {p.__name__: p for p in (Int8WeightPerTensorFloat, Int8ActPerTensorFloat, *presets().values())}
    for quantizer in known.values():
        if role_of(quantizer) == trial.role:
            try:
                changed = quantizer.let(**{trial.directive: trial.value})  # type: ignore[attr-defined]
                layer, _ = completed(changed, lambda q: layer_with(trial.role, q))
            except QuantConfigError:
                continue
            return layer
    return None


def try_values() -> dict[Trial, Verdict]:
    """What the targets say of each value of each directive, for weights and activations."""
    trials = [
        Trial(directive.name, value, role)
        for directive in DIRECTIVES.values()
        for value in values_of(directive)
        for role in ("weight", "act")
        if role in directive.role_names
    ]
    layers = {trial: layer_for(trial) for trial in trials}
    found = verdicts({trial.key: layer for trial, layer in layers.items() if layer is not None})
    return {trial: found[trial.key] for trial in trials if trial.key in found}


def member_docs(enum: type[Enum]) -> dict[str, str]:
    """Text of each member, from the lines `NAME: text` of the enum's docstring."""
    lines = re.findall(r"^\s*([A-Z_0-9]+): (.+)$", inspect.getdoc(enum) or "", re.MULTILINE)
    return {name: text.rstrip(".").replace("``", "`") for name, text in lines}


def _class_column(directive: Directive, name: str) -> str:
    """What a value stands for, said once where it is the same in every role."""
    by_class: dict[str, list[str]] = {}
    for role in directive.role_names:
        try:
            meaning = meanings(directive.name, role).get(name)
        except QuantConfigError:
            continue
        if isinstance(meaning, str):
            by_class.setdefault(f"no: {meaning.rstrip('.')}", []).append(role)
        elif meaning is not None:
            by_class.setdefault(f"`{meaning.__name__}`", []).append(role)
    if len(by_class) == 1:
        return next(iter(by_class))
    return "; ".join(f"{', '.join(roles)}: {what}" for what, roles in by_class.items())


def _said(directive: Directive, value: Any, said: Mapping[Trial, Verdict]) -> str:
    by_text: dict[str, list[str]] = {}
    for role in ("weight", "act"):
        text = told(said.get(Trial(directive.name, value, role)))
        if text:
            by_text.setdefault(text, []).append(role)
    if len(by_text) == 1:
        return next(iter(by_text))
    return "; ".join(f"{', '.join(roles)}: {text}" for text, roles in by_text.items())


def _value_table(directive: Directive, said: Mapping[Trial, Verdict]) -> str:
    values = values_of(directive)
    if not any(_said(directive, value, said) for value in values) and directive.enum is None:
        return ""
    if directive.enum is None:
        merged: list[tuple[list[str], str]] = []
        for value in values:
            text = _said(directive, value, said)
            if merged and merged[-1][1] == text:
                merged[-1][0].append(f"`{value}`")
            elif text:
                merged.append(([f"`{value}`"], text))
        return table(("Value tried", "Exported by"), ((", ".join(v), text) for v, text in merged))
    docs = member_docs(directive.enum)
    rows = []
    for name in dict.fromkeys([*values, *_registered(directive)]):
        if directive.check(name):
            what = docs.get(name) or sentence(_documented(directive, name))
            rows.append((f"`{name}`", what, _class_column(directive, name), _said(directive, name, said)))
    return table(("Value", "Meaning", "Module", "Exported by"), rows)


def _registered(directive: Directive) -> list[str]:
    names = []
    for role in directive.role_names:
        try:
            names += meanings(directive.name, role)
        except QuantConfigError:
            continue
    return names


def _documented(directive: Directive, name: str) -> str | None:
    for role in directive.role_names:
        meaning = meanings(directive.name, role).get(name)
        if inspect.isclass(meaning):
            return meaning.__doc__
    return None


def options_page(said: Mapping[Trial, Verdict]) -> str:
    """docs/reference/options.md."""
    known = "; ".join(f"`{key}` = {get_target(key).title}" for key in targets())
    out = [
        NOTE,
        "# Options\n\n",
        "Every name that a quantizer may declare: in the body of a class, in `let`, or as a keyword of a layer, with "
        "the prefix of the argument (`weight_bit_width=4`). Members of enums may be written as strings, in any case. "
        "What a layer does not know, or what has no effect in it, is an error.\n\n",
        "*Exported by* was found by checking a tiny layer for each value, with the options that an export has by "
        f"default; targets: {known}. Nothing stands where no preset by itself gives the value an effect.\n\n",
        table(
            ("Option", "Roles", "Default", "Effect"),
            (
                (f"[`{d.name}`](#{d.name})", ", ".join(d.role_names), worded(d.default), worded(d.effect))
                for d in DIRECTIVES.values()
            ),
        ),
    ]
    for directive in DIRECTIVES.values():
        out.append(_option(directive, said))
    return "".join(out).rstrip() + "\n"


def _option(directive: Directive, said: Mapping[Trial, Verdict]) -> str:
    rows = [("Legal values", worded(directive.expected)), ("Default", worded(directive.default))]
    rows.append(("Roles", ", ".join(directive.role_names)))
    if directive.read_when:
        rows.append(("Has an effect if", worded(directive.read_when)))
    if directive.decided_by:
        rows.append(
            ("Decided by", ", ".join(f"[`{n}`](#{n})" if n in DIRECTIVES else f"`{n}`" for n in directive.decided_by))
        )
    if directive.example:
        rows.append(("Example", f"`{directive.example}`"))
    effect = worded(directive.effect)
    effect = effect[0].upper() + effect[1:]
    return f"## `{directive.name}`\n\n{effect}.\n\n{table(('', ''), rows)}{_value_table(directive, said)}"
