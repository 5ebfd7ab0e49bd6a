"""Which export targets take a quantizer: many tiny layers in one model, captured once, checked by every target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from brevitas.export import ExportError, Violation, capture, get_target, list_targets
from brevitas.nn import QuantConv2d, QuantIdentity
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat

__all__ = ["SHAPE", "Verdict", "layer_with", "verdicts"]

#: Input of every layer: the channels of `per_channel_broadcastable_shape = (1, 64, 1, 1)`, the vocabulary's example.
SHAPE = (1, 64, 4, 4)


@dataclass
class Verdict:
    """Targets that take a quantizer, and for the others the first thing that they miss."""

    takes: list[str] = field(default_factory=list)
    refuses: dict[str, Violation] = field(default_factory=dict)


def layer_with(role: str, quantizer: type) -> nn.Module | None:
    """A tiny layer around a quantizer; ``None`` for a role that no layer has yet."""
    if role == "weight":
        return QuantConv2d(SHAPE[1], 4, 3, bias=False, weight_quant=quantizer)
    if role == "bias":
        return QuantConv2d(SHAPE[1], 4, 3, bias=True, weight_quant=Int8WeightPerTensorFloat, bias_quant=quantizer)
    if role == "act":
        return QuantIdentity(act_quant=quantizer)
    return None


class _Bench(nn.Module):
    """Layers side by side; those with weights read a quantized input."""

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

    Raises:
        ExportError: a violation that belongs to none of the layers.
    """
    targets = list_targets()
    found = {name: Verdict() for name in layers}
    rest = dict(layers)
    while rest:
        bench = _Bench(rest)
        sample = torch.linspace(-1.0, 1.0, SHAPE[1] * SHAPE[2] * SHAPE[3]).reshape(SHAPE)
        with torch.no_grad():
            bench.train()(sample)
        bench.eval()
        try:
            graph = capture(bench, (sample,), target=targets[0])
        except ExportError as error:
            refused = {_key(v): v for v in getattr(error, "violations", ()) if _key(v) in rest}
            if not refused:
                raise
            for name, violation in refused.items():
                found[name].refuses = dict.fromkeys(targets, violation)
                del rest[name]
            continue
        for target in targets:
            _judge(get_target(target).check(graph, _options(target)), target, rest, found)
        break
    return found


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
