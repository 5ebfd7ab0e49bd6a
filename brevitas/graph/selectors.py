"""Which layers of a model a rule is about: names, types and places.

>>> bool(name_pattern('features.**').fullmatch('features.0.conv')), bool(name_pattern('conv?').fullmatch('conv12'))
(True, False)
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any

import torch
from torch import nn

from brevitas.errors import SpecError
from brevitas.graph.converters import Converter, converter_of, overridden_method
from brevitas.proxy.quant_proxy import QuantProxyFromInjector
from brevitas.quant.model_spec import Rule
from brevitas.utils.located import did_you_mean

__all__ = ["Layer", "Layers", "name_pattern"]


@dataclass(frozen=True, eq=False)
class Layer:
    """One module of a model, with every name that it has there."""

    module: nn.Module
    names: tuple[str, ...]
    position: int
    converter: Converter | None

    @property
    def name(self) -> str:
        """The first name, and for the model itself its class."""
        return self.names[0] or type(self.module).__name__

    @property
    def is_quantized(self) -> bool:
        """Whether it is of the quantized class of its converter."""
        return self.converter is not None and isinstance(self.module, self.converter.quantized)

    @property
    def is_leaf(self) -> bool:
        """Whether it has no modules inside, those of quantizers aside."""
        inside = (child for child in self.module.children() if not isinstance(child, QuantProxyFromInjector))
        return self.converter is not None or next(inside, None) is None

    @property
    def overrides(self) -> str | None:
        """Method by which it computes otherwise than the class that has a converter."""
        return overridden_method(self.module)

    def __str__(self) -> str:
        return f"{type(self.module).__name__} '{self.name}'"


def name_pattern(pattern: str) -> re.Pattern[str]:
    """A glob over qualified names: ``*`` within one part, ``**`` any number of parts, ``?``, ``{a,b}``; or ``re:``.

    Raises:
        ValueError: a brace that is not closed, or an illegal regular expression.
    """
    if pattern.startswith("re:"):
        try:
            return re.compile(pattern.removeprefix("re:"))
        except re.error as error:
            raise ValueError(f"this is no regular expression: {error}") from error
    return re.compile(_glob(pattern))


def _glob(pattern: str) -> str:
    out, i = "", 0
    while i < len(pattern):
        rest = pattern[i:]
        if rest == ".**":
            # 'features.**' is everything below features, and features itself.
            return out + r"(?:\..*)?"
        if rest.startswith("**.") and (i == 0 or pattern[i - 1] == "."):
            out, i = out + r"(?:.*\.)?", i + 3
        elif rest.startswith("**"):
            out, i = out + ".*", i + 2
        elif rest[0] == "{":
            end = pattern.find("}", i)
            if end < 0:
                raise ValueError(f"the brace at character {i + 1} is not closed")
            out += "(?:" + "|".join(_glob(part) for part in pattern[i + 1 : end].split(",")) + ")"
            i = end + 1
        else:
            out, i = out + {"*": "[^.]*", "?": "[^.]"}.get(rest[0], re.escape(rest[0])), i + 1
    return out


class Layers:
    """The modules of a model that rules can be about: all but the insides of layers and quantizers."""

    def __init__(self, model: nn.Module, example_inputs: Any = None) -> None:
        self.model = model
        self._example_inputs = example_inputs
        names: dict[nn.Module, list[str]] = {}
        inside: list[str] = []
        for name, module in model.named_modules(remove_duplicate=False):
            if any(name.startswith(prefix) for prefix in inside):
                continue
            if isinstance(module, QuantProxyFromInjector):
                inside.append(f"{name}.")
                continue
            names.setdefault(module, []).append(name)
            if converter_of(module) is not None and name:
                inside.append(f"{name}.")
            elif converter_of(module) is not None:
                break
        self.all = [
            Layer(module, tuple(found), position, converter_of(module))
            for position, (module, found) in enumerate(names.items())
        ]

    @cached_property
    def calls(self) -> Mapping[nn.Module, tuple[float, float]]:
        """For each module the moments of its first and last call; of its registration where no inputs were given."""
        if self._example_inputs is None:
            return {layer.module: (layer.position, layer.position) for layer in self.all}
        return _call_order(self.model, self._example_inputs)

    def selected(self, rule: Rule) -> list[Layer]:
        """The layers that a rule is about.

        Raises:
            SpecError: a selector leaves none; the message has the nearest candidates.
        """
        found = self._matching(rule, self.all)
        if rule.types:
            found = self._of_type(rule, found)
        found = [layer for layer in found if _concerns(rule, layer)] or self._refuse_roles(rule, found)
        for where in sorted(rule.where, key=lambda word: word in ("first", "last")):
            found = self._at(where, found)
            if not found:
                raise _nothing(rule, "where", f"no layer that it selects is '{where}'")
        for role in rule.roles:
            if not any(layer.converter is None or role in layer.converter.roles for layer in found):
                self._refuse_roles(rule, found, role)
        return found

    def _matching(self, rule: Rule, layers: list[Layer]) -> list[Layer]:
        if rule.match is None:
            return layers
        exact = [layer for layer in layers if rule.match in layer.names]
        if exact:
            return exact
        try:
            pattern = name_pattern(rule.match)
        except ValueError as error:
            raise SpecError(f"{rule.places['match']}: 'match' = {rule.match!r}: {error}") from error
        found = [layer for layer in layers if any(pattern.fullmatch(name) for name in layer.names)]
        if not found:
            names = [name for layer in layers if layer.converter is not None for name in layer.names]
            raise _nothing(rule, "match", f"no layer matches '{rule.match}'", did_you_mean(rule.match, names, "layers"))
        return found

    def _of_type(self, rule: Rule, layers: list[Layer]) -> list[Layer]:
        found = [layer for layer in layers if any(_is_a(layer.module, wanted) for wanted in rule.types)]
        for wanted in rule.types:
            if not found or not (_is_torch_type(wanted) or any(_is_a(layer.module, wanted) for layer in self.all)):
                known = dict.fromkeys(cls.__name__ for layer in layers for cls in _classes(layer.module))
                near = did_you_mean(wanted, known, "types")
                raise _nothing(rule, "type", f"no layer that it selects is a '{wanted}'", near)
        return found

    def _at(self, where: str, layers: list[Layer]) -> list[Layer]:
        if where not in ("first", "last"):
            return [layer for layer in layers if _PLACES[where](layer.module)]
        called = [layer for layer in layers if layer.module in self.calls]
        if not called:
            return []
        if where == "first":
            return [min(called, key=lambda layer: self.calls[layer.module][0])]
        return [max(called, key=lambda layer: self.calls[layer.module][1])]

    def _refuse_roles(self, rule: Rule, layers: list[Layer], role: str | None = None) -> list[Layer]:
        wanted = role or next(iter(rule.roles), None)
        offered = {r for layer in layers if layer.converter is not None for r in layer.converter.roles}
        shown = ", ".join(str(layer) for layer in layers[:3]) + (", ..." if len(layers) > 3 else "")
        if wanted is None:
            key = "keep" if rule.keep else "layer"
            hint = f"; write '{layers[0].name}.**' for what is inside" if not layers[0].is_leaf else ""
            raise _nothing(rule, key, f"'{key}' concerns layers that can be quantized, and it selects {shown}{hint}")
        near = f"; they have {', '.join(sorted(offered))}" if offered else ""
        raise _nothing(rule, wanted, f"none of the layers that it selects has a quantizer '{wanted}': {shown}{near}")


def _nothing(rule: Rule, key: str, text: str, hint: str = "") -> SpecError:
    return SpecError(f"{rule.places.get(key, rule.location)}: {rule} matches nothing: {text}{hint}")


def _concerns(rule: Rule, layer: Layer) -> bool:
    """Whether a rule says anything about a layer that it matches; what it names explicitly is not passed over."""
    if rule.keep:
        return layer.is_leaf
    if layer.converter is not None:
        return bool(rule.layer) or any(role in layer.converter.roles for role in rule.roles)
    named = bool(rule.types) or rule.match in layer.names
    return named and layer.is_leaf


def _classes(module: nn.Module) -> list[type]:
    return [cls for cls in type(module).__mro__ if cls is not object and issubclass(cls, nn.Module)]


def _is_torch_type(wanted: str) -> bool:
    """Whether a name is that of a layer of torch, which a model may have or not; so it is not misspelt."""
    return inspect.isclass(getattr(nn, wanted.removeprefix("torch.").removeprefix("nn."), None))


def _is_a(module: nn.Module, wanted: str) -> bool:
    """Whether a name is that of one of the classes of a module, alone or with (part of) its module's name."""
    for cls in _classes(module):
        full = f"{cls.__module__}.{cls.__qualname__}"
        if wanted in (cls.__name__, cls.__qualname__, full, f"{cls.__module__}:{cls.__qualname__}"):
            return True
        if cls.__module__.startswith("torch.nn.") and wanted in (f"nn.{cls.__name__}", f"torch.nn.{cls.__name__}"):
            return True
    return False


def _is_depthwise(module: Any) -> bool:
    groups = getattr(module, "groups", 1)
    return groups > 1 and groups == module.in_channels


def _is_pointwise(module: Any) -> bool:
    kernel = getattr(module, "kernel_size", None)
    return isinstance(kernel, tuple) and all(size == 1 for size in kernel)


def _has_bias(module: Any) -> bool:
    return getattr(module, "bias", None) is not None


_PLACES = {
    "depthwise": _is_depthwise,
    "pointwise": _is_pointwise,
    "bias": _has_bias,
    "no_bias": lambda module: getattr(module, "weight", None) is not None and not _has_bias(module),
}


def _call_order(model: nn.Module, example_inputs: Any) -> dict[nn.Module, tuple[float, float]]:
    """Run a copy of the model in eval mode, so that nothing of the model itself is touched."""
    twin = copy.deepcopy(model).eval()
    originals = dict(model.named_modules())
    moments: dict[nn.Module, tuple[float, float]] = {}

    def record(module: nn.Module, *_: Any) -> None:
        original = originals[names[module]]
        moments[original] = (min(moments.get(original, (inf, 0))[0], record.now), record.now)  # type: ignore[attr-defined]
        record.now += 1  # type: ignore[attr-defined]

    record.now = 0  # type: ignore[attr-defined]
    names = {module: name for name, module in twin.named_modules()}
    for module in names:
        module.register_forward_pre_hook(record)
    with torch.no_grad(), torch.random.fork_rng():
        if isinstance(example_inputs, Mapping):
            twin(**example_inputs)
        else:
            twin(*(example_inputs if isinstance(example_inputs, tuple | list) else (example_inputs,)))
    return moments
