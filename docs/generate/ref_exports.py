"""Which export targets take a quantizer: many tiny layers in one model, captured once, checked by every target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from brevitas.export import ExportError, Violation, capture, get_target, list_targets
from brevitas.nn import ClampQuantAccumulator, QuantAvgPool2d, QuantConv2d, QuantIdentity
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat

__all__ = ["SHAPE", "Verdict", "layer_with", "verdicts"]

#: Input of every layer: the channels of `per_channel_broadcastable_shape = (1, 64, 1, 1)`, the vocabulary's example.
SHAPE = (1, 64, 4, 4)


@dataclass
class Verdict:
    """Targets that take a quantizer, for the others the first thing that they miss, and whether it got that far."""

    takes: list[str] = field(default_factory=list)
    refuses: dict[str, Violation] = field(default_factory=dict)
    captured: bool = True


def layer_with(role: str, quantizer: type) -> nn.Module | None:
    """A tiny layer around a quantizer; ``None`` for a role that no layer has yet."""
    if role == "weight":
        return QuantConv2d(SHAPE[1], 4, 3, bias=False, weight_quant=quantizer)
    if role == "bias":
        return QuantConv2d(SHAPE[1], 4, 3, bias=True, weight_quant=Int8WeightPerTensorFloat, bias_quant=quantizer)
    if role == "act":
        return QuantIdentity(act_quant=quantizer)
    if role == "trunc":
        return QuantAvgPool2d(2, trunc_quant=quantizer)
    if role == "clamp":
        return ClampQuantAccumulator(quantizer)
    return None


class _Bench(nn.Module):
    """Layers side by side; all but those that quantize floats read a quantized input."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.first = QuantIdentity(act_quant=Int8ActPerTensorFloat, return_quant_tensor=True)
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        quantized = self.first(x)
        return tuple(layer(x if isinstance(layer, QuantIdentity) else quantized) for layer in self.layers.values())


def _key(violation: Violation) -> str:
    return (violation.layer or "").removeprefix("layers.").partition(".")[0]


def verdicts(layers: Mapping[str, nn.Module]) -> dict[str, Verdict]:
    """What each target says of each layer.

    A layer that cannot be captured stands for all that are made of the same modules; those are not tried.
    """
    found = {name: Verdict() for name in layers}
    kinds: dict[tuple[tuple[str, type], ...], list[str]] = {}
    for name, layer in layers.items():
        kinds.setdefault(tuple((path, type(m)) for path, m in layer.named_modules()), []).append(name)
    trial = {names[0]: Verdict() for names in kinds.values()}
    _examine({name: layers[name] for name in trial}, trial)
    for first, *others in kinds.values():
        if trial[first].captured:
            continue
        for name in (first, *others):
            found[name] = trial[first]
    _examine({name: layer for name, layer in layers.items() if found[name].captured}, found)
    return found


def _examine(layers: dict[str, nn.Module], found: dict[str, Verdict]) -> None:
    """Capture the layers together; where that fails without saying which one is to blame, each half by itself."""
    if not layers:
        return
    targets = list_targets()
    sample = torch.linspace(-1.0, 1.0, SHAPE[1] * SHAPE[2] * SHAPE[3]).reshape(SHAPE)
    bench = _Bench(layers)
    with torch.no_grad():
        bench.train()(sample)
    bench.eval()
    try:
        graph = capture(bench, (sample,), target=targets[0])
    except ExportError as error:
        violations: Sequence[Violation] = getattr(error, "violations", ())
        blamed = {_key(v): v for v in violations if _key(v) in layers}
        if not blamed and len(layers) == 1 and violations:
            blamed = dict.fromkeys(layers, violations[0])
        if blamed:
            for name, violation in blamed.items():
                found[name] = Verdict([], dict.fromkeys(targets, violation), captured=False)
            _examine({name: layer for name, layer in layers.items() if name not in blamed}, found)
        elif len(layers) > 1:
            names = list(layers)
            for half in (names[: len(names) // 2], names[len(names) // 2 :]):
                _examine({name: layers[name] for name in half}, found)
        else:
            raise
        return
    for target in targets:
        _judge(get_target(target).check(graph, _options(target)), target, layers, found)


def _options(target: str) -> dict[str, object]:
    return {"opset_version": None, **get_target(target).options}


def _judge(violations: Iterable[Violation], target: str, layers: Iterable[str], found: dict[str, Verdict]) -> None:
    errors = [v for v in violations if not v.is_warning]
    for name in layers:
        first = next((v for v in errors if _key(v) == name), None)
        if first is None:
            found[name].takes.append(target)
        else:
            found[name].refuses[target] = first
