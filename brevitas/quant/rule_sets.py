"""Named lists of rules, which model specs use as ``preset``.

>>> 'int8' in rule_sets()
True
>>> remove = register_rule_set('weights4', [{'type': 'Linear', 'weight': {'bit_width': 4}}])
>>> remove()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from brevitas.errors import QuantConfigError, SpecError
from brevitas.quant.registry import load_plugins
from brevitas.utils.located import LocatedList, SpecLocation, as_located, did_you_mean
from injector import SourceLocation, caller_location

__all__ = ["register_rule_set", "rule_set", "rule_sets"]

_sets: dict[str, LocatedList] = {}


def register_rule_set(name: str, rules: Sequence[Mapping[str, Any]]) -> Callable[[], None]:
    """Let model specs use ``rules`` under ``name``: ``preset: name``.

    Unlike the rules of a model spec, a single rule of a set may match nothing in a model; not so the whole set.

    Returns:
        A function that removes the name again.

    Raises:
        QuantConfigError: the name exists, or the rules are no list of mappings.
    """
    return _register(name, rules, caller_location())


def _register(name: str, rules: Sequence[Mapping[str, Any]], place: SourceLocation) -> Callable[[], None]:
    if name in _sets:
        raise QuantConfigError(f"register_rule_set: there is a rule set '{name}' already")
    if not isinstance(rules, list | tuple) or not all(isinstance(rule, Mapping) for rule in rules):
        raise QuantConfigError(f"register_rule_set({name!r}): expected a list of rules, found {rules!r}")
    _sets[name] = as_located(rules, place, f"rule set {name}")

    def remove() -> None:
        del _sets[name]

    return remove


def rule_sets() -> tuple[str, ...]:
    """Names of the rule sets."""
    load_plugins()
    return tuple(_sets)


def rule_set(name: Any, place: SpecLocation) -> LocatedList:
    """The rules of a set; ``place`` is where a spec names it.

    Raises:
        SpecError: there is no such set; the message has the nearest names.
    """
    known = rule_sets()
    if not isinstance(name, str) or name not in known:
        raise SpecError(f"{place}: there is no rule set {name!r}{did_you_mean(name, known, 'rule sets')}")
    return _sets[name]


#: Layers that multiply by a weight. An embedding multiplies nothing: quantizing its table is a decision of its own.
_MULTIPLYING = ["Linear", *(f"{conv}{n}d" for conv in ("Conv", "ConvTranspose") for n in (1, 2, 3))]


def _int(weight: str, act: str, unsigned_act: str) -> list[dict[str, Any]]:
    """Weights of linear layers and convolutions, the outputs of activations, and what an identity passes on."""
    return [
        {"type": _MULTIPLYING, "weight": weight},
        {"type": ["ReLU", "Sigmoid"], "act": unsigned_act},
        {"type": ["Identity", "Tanh"], "act": act},
    ]


_HERE = SourceLocation(__file__, 1)
_register("int8", _int("Int8WeightPerTensorFloat", "Int8ActPerTensorFloat", "Uint8ActPerTensorFloat"), _HERE)
_register(
    "int8_per_channel", _int("Int8WeightPerChannelFloat", "Int8ActPerTensorFloat", "Uint8ActPerTensorFloat"), _HERE
)
_register(
    "int8_fixed_point",
    _int("Int8WeightPerTensorFixedPoint", "Int8ActPerTensorFixedPoint", "Uint8ActPerTensorFixedPoint"),
    _HERE,
)
