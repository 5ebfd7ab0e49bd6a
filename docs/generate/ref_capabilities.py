"""Which layer exports to which target with which quantizers: every cell is built, captured, and exported or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import brevitas.nn as qnn
from brevitas import quant
from brevitas.errors import ExportError
from brevitas.export import PytorchQuantManager, capture, get_target, list_targets, lower

__all__ = ["KINDS", "LAYERS", "Cell", "capabilities_page", "cells", "examine", "row_of"]


@dataclass(frozen=True)
class Kind:
    """Quantizers of one kind: of weights, of activations and inputs, of accumulators."""

    weight: type | None
    act: type
    unsigned: type
    trunc: type = quant.RoundTo8bit


class Weight4(quant.Int8WeightPerTensorFloat):
    bit_width = 4


class Act4(quant.Int8ActPerTensorFloat):
    bit_width = 4


class Unsigned4(quant.Uint8ActPerTensorFloat):
    bit_width = 4


SHIFTED = quant.ShiftedUint8ActPerTensorFloat
KINDS = {
    "8 bits": Kind(quant.Int8WeightPerTensorFloat, quant.Int8ActPerTensorFloat, quant.Uint8ActPerTensorFloat),
    "4 bits": Kind(Weight4, Act4, Unsigned4),
    "per channel": Kind(quant.Int8WeightPerChannelFloat, quant.Int8ActPerTensorFloat, quant.Uint8ActPerTensorFloat),
    "zero points": Kind(quant.ShiftedUint8WeightPerTensorFloat, SHIFTED, SHIFTED),
    "fixed point": Kind(
        quant.Int8WeightPerTensorFixedPoint, quant.Int8ActPerTensorFixedPoint, quant.Uint8ActPerTensorFixedPoint
    ),
    "binary": Kind(
        quant.SignedBinaryWeightPerTensorConst,
        quant.SignedBinaryActPerTensorConst,
        quant.SignedBinaryActPerTensorConst,
    ),
    "fp8": Kind(
        quant.Fp8e4m3OCPWeightPerTensorFloat, quant.Fp8e4m3OCPActPerTensorFloat, quant.Fp8e4m3OCPActPerTensorFloat
    ),
}

IMAGE, VECTOR, SEQUENCE = (2, 4, 8, 8), (2, 8), (2, 4, 8)


class Around(nn.Module):
    """A layer between a quantized input and, where it has none of its own, a quantized output."""

    def __init__(self, kind: Kind, layer: nn.Module, operands: int = 0, then: nn.Module | None = None) -> None:
        super().__init__()
        self.first = qnn.QuantIdentity(kind.unsigned, return_quant_tensor=_has_codes(kind))
        self.layer, self.operands = layer, operands
        self.then = nn.Identity() if then is None else then

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        if self.operands == 1:
            return self.then(self.layer([x, x]))
        y = self.layer(*[x] * max(self.operands, 1))
        return self.then(y[0] if isinstance(y, tuple) else y)


def _has_codes(kind: Kind) -> bool:
    return kind is not KINDS["fp8"]


Build = Callable[[Kind], nn.Module]


def _weight(make: Callable[..., nn.Module], *args: Any, **options: Any) -> Build:
    def build(kind: Kind) -> nn.Module:
        layer = make(*args, bias=False, weight_quant=kind.weight, output_quant=kind.unsigned, **options)
        return Around(kind, layer)

    return build


def _act(make: Callable[..., nn.Module], **options: Any) -> Build:
    return lambda kind: Around(kind, make(kind.act, **options))


def _unsigned(make: Callable[..., nn.Module]) -> Build:
    return lambda kind: Around(kind, make(kind.unsigned))


def _then(make: Callable[[Kind], nn.Module], operands: int = 0) -> Build:
    def build(kind: Kind) -> nn.Module:
        return Around(kind, make(kind), operands, qnn.QuantIdentity(kind.unsigned))

    return build


def _embedding(kind: Kind) -> nn.Module:
    return nn.Sequential(qnn.QuantEmbedding(6, 8, weight_quant=kind.weight))


def _attention(kind: Kind) -> nn.Module:
    return Around(kind, qnn.QuantMultiheadAttention(8, 2, packed_in_proj=True), 3)


ALL = tuple(KINDS)
UNWEIGHTED = tuple(name for name in KINDS if name != "per channel")
SOME = ("8 bits", "zero points", "fixed point")
ONE = ("8 bits",)

#: Layer -> (shape of its input, what makes it, kinds of quantizers).
LAYERS: dict[str, tuple[tuple[int, ...], Build, tuple[str, ...]]] = {
    "QuantLinear": (VECTOR, _weight(qnn.QuantLinear, 8, 4), ALL),
    "QuantConv1d": (SEQUENCE, _weight(qnn.QuantConv1d, 4, 6, 3), ALL),
    "QuantConv2d": (IMAGE, _weight(qnn.QuantConv2d, 4, 6, 3), ALL),
    "QuantConv2d, depthwise": (IMAGE, _weight(qnn.QuantConv2d, 4, 4, 3, groups=4), SOME),
    "QuantConv3d": ((2, 2, 4, 4, 4), _weight(qnn.QuantConv3d, 2, 3, 3), SOME),
    "QuantConvTranspose2d": (IMAGE, _weight(qnn.QuantConvTranspose2d, 4, 6, 3), (*SOME, "per channel")),
    "QuantScaleBias": (IMAGE, _weight(qnn.QuantScaleBias, 4), SOME),
    "QuantEmbedding": ((2, 5), _embedding, ("8 bits", "4 bits", "binary")),
    "QuantReLU": (IMAGE, _unsigned(qnn.QuantReLU), UNWEIGHTED),
    "QuantIdentity": (IMAGE, _act(qnn.QuantIdentity), UNWEIGHTED),
    "QuantSigmoid": (IMAGE, _unsigned(qnn.QuantSigmoid), ("8 bits", "4 bits")),
    "QuantTanh": (IMAGE, _act(qnn.QuantTanh), ("8 bits", "4 bits")),
    "QuantHardTanh": (IMAGE, lambda k: Around(k, qnn.QuantHardTanh(min_val=-1.0, max_val=1.0)), ONE),
    "QuantEltwiseAdd": (
        IMAGE,
        lambda k: Around(k, qnn.QuantEltwiseAdd(None, k.act, return_quant_tensor=True), 2),
        SOME,
    ),
    "QuantCat": (IMAGE, lambda k: Around(k, qnn.QuantCat(None, k.act, return_quant_tensor=True), 1), SOME),
    "QuantAvgPool2d": (IMAGE, _then(lambda k: qnn.QuantAvgPool2d(2, trunc_quant=k.trunc)), SOME),
    "QuantAdaptiveAvgPool2d": (IMAGE, _then(lambda k: qnn.QuantAdaptiveAvgPool2d(1, trunc_quant=k.trunc)), SOME),
    "QuantMaxPool2d": (IMAGE, lambda k: Around(k, qnn.QuantMaxPool2d(2)), SOME),
    "QuantUpsample": (IMAGE, lambda k: Around(k, qnn.QuantUpsample(scale_factor=2)), SOME),
    "QuantUpsamplingBilinear2d": (IMAGE, lambda k: Around(k, qnn.QuantUpsamplingBilinear2d(scale_factor=2)), ONE),
    "QuantDropout": (IMAGE, lambda k: Around(k, qnn.QuantDropout(0.5)), ONE),
    "QuantRNN": (SEQUENCE, lambda k: Around(k, qnn.QuantRNN(8, 4, batch_first=True)), ONE),
    "QuantLSTM": (SEQUENCE, lambda k: Around(k, qnn.QuantLSTM(8, 4, batch_first=True)), ONE),
    "QuantGRU": (SEQUENCE, lambda k: Around(k, qnn.QuantGRU(8, 4, batch_first=True)), ONE),
    "QuantMultiheadAttention": ((4, 2, 8), _attention, ONE),
}


@dataclass
class Cell:
    """What each target makes of one layer with one kind of quantizers: ``yes``, or the codes of what it refuses."""

    layer: str
    kind: str
    verdicts: dict[str, str] = field(default_factory=dict)


def cells() -> Iterator[tuple[str, str]]:
    """Every layer and kind of the table."""
    for layer, (_, _, kinds) in LAYERS.items():
        for kind in kinds:
            yield layer, kind


def model_of(layer: str, kind: str) -> tuple[nn.Module, Tensor]:
    """The model of a cell, calibrated, and an input."""
    shape, build, _ = LAYERS[layer]
    torch.manual_seed(0)
    x = torch.randint(0, 6, shape) if layer == "QuantEmbedding" else torch.randn(shape)
    model = build(KINDS[kind])
    with torch.no_grad():
        model.train()(x)
    return model.eval(), x


def examine(layer: str, kind: str) -> Cell:
    """Export a cell to every target."""
    model, x = model_of(layer, kind)
    cell = Cell(layer, kind)
    try:
        graph = capture(model, [x])
    except ExportError as error:
        refused = _codes(getattr(error, "violations", ()))
        cell.verdicts = dict.fromkeys(list_targets(), refused)
        return cell
    for target in list_targets():
        found = get_target(target).check(graph, {"opset_version": None, **get_target(target).options})
        errors = [v for v in found if not v.is_warning]
        cell.verdicts[target] = _codes(errors)
        if not errors:
            if target == "torch":
                PytorchQuantManager.export(model, input_t=x)
            else:
                lower(graph, target)
            cell.verdicts[target] = "yes"
    return cell


def _codes(violations: Any) -> str:
    return " ".join(sorted({v.code for v in violations}))


def row_of(cell: Cell) -> str:
    """A cell as a row of the table."""
    return f"| {cell.layer} | {cell.kind} | {' | '.join(cell.verdicts[t] for t in list_targets())} |"


def capabilities_page() -> str:
    """The table as a page."""
    targets = list_targets()
    lines = [
        "# What exports to where",
        "",
        "Every cell was built, calibrated, and exported or refused when this page was made. `yes`: the target takes",
        "the layer between quantizers of that kind; else the codes of the rules that it breaks, which",
        "`check(model, target)` explains with layer path and remedy. Layers stand between a quantized input and a",
        "quantized output, without a bias.",
        "",
        f"| layer | quantizers | {' | '.join(f'`{t}`' for t in targets)} |",
        f"|---|---|{'---|' * len(targets)}",
    ]
    lines += [row_of(examine(layer, kind)) for layer, kind in cells()]
    return "\n".join(lines) + "\n"
