"""Read off a quantized model what a report says of it, through the getters that every quantized layer has."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from brevitas.errors import QuantMetadataError
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from quant_zoo.report.results import ActivationResult, LayerResult

__all__ = ["activation_results", "float_size_bits", "layer_results", "quantized_size_bits"]

FLOAT_BITS = 32
LATENT_BINS_PER_CODE = 12


def layer_results(model: nn.Module) -> list[LayerResult]:
    """Histograms, ranges and scales of every layer with quantized weights, in order of registration."""
    return [_layer_result(name, layer) for name, layer in _weight_layers(model)]


def activation_results(model: nn.Module) -> list[ActivationResult]:
    """Width, range and scale of every activation quantizer with one scale."""
    found = []
    for name, layer in model.named_modules():
        if isinstance(layer, (QuantIdentity, QuantReLU)) and layer.is_act_quant_enabled:
            lowest, highest, bits = _code_range(
                _known(layer.quant_act_bit_width()), layer.is_quant_act_signed, layer.is_quant_act_narrow_range
            )
            found.append(ActivationResult(name, bits, lowest, highest, _known(layer.quant_act_scale()).item()))
    return found


def float_size_bits(model: nn.Module) -> int:
    """Bits of all parameters, 32 each."""
    return FLOAT_BITS * sum(parameter.numel() for parameter in model.parameters())


def quantized_size_bits(model: nn.Module) -> int:
    """Bits that a deployed model stores: weights and biases at their width, and 32 for every scale."""
    bits = FLOAT_BITS * len(activation_results(model))
    for _, layer in _weight_layers(model):
        bits += layer.weight.numel() * round(_known(layer.quant_weight_bit_width()).item())
        bits += FLOAT_BITS * _known(layer.quant_weight_scale()).numel()
        if layer.bias is not None:
            width = _known(layer.quant_bias_bit_width()).item() if layer.is_bias_quant_enabled else FLOAT_BITS
            bits += layer.bias.numel() * round(width)
    return bits


def _weight_layers(model: nn.Module) -> Iterator[tuple[str, QuantConv2d | QuantLinear]]:
    for name, layer in model.named_modules():
        if isinstance(layer, (QuantConv2d, QuantLinear)) and layer.is_weight_quant_enabled:
            yield name, layer


def _known(quantity: Tensor | None) -> Tensor:
    """What a getter knows once the model has run in eval mode."""
    if quantity is None:
        raise QuantMetadataError("a scale or bit width is not known yet: run the model once in eval mode")
    return quantity


def _layer_result(name: str, layer: QuantConv2d | QuantLinear) -> LayerResult:
    lowest, highest, bits = _code_range(
        _known(layer.quant_weight_bit_width()), layer.is_quant_weight_signed, layer.is_quant_weight_narrow_range
    )
    with torch.no_grad():
        codes, scale = layer.int_weight(), _known(layer.quant_weight_scale())
        latent = (layer.weight / scale).clamp(lowest - 0.5, highest + 0.5)
        bins = LATENT_BINS_PER_CODE * (highest - lowest + 1)
        return LayerResult(
            name=name,
            bit_width=bits,
            lowest=lowest,
            highest=highest,
            counts=(codes.flatten().long() - lowest).bincount(minlength=highest - lowest + 1).tolist(),
            latent_counts=[int(n) for n in torch.histc(latent, bins, lowest - 0.5, highest + 0.5)],
            scales=scale.flatten().tolist(),
        )


def _code_range(bit_width: Tensor, signed: bool, narrow: bool) -> tuple[int, int, int]:
    bits = round(bit_width.item())
    lowest = -(2 ** (bits - 1)) if signed else 0
    highest = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    # A narrow range gives up the lowest signed code, or the highest unsigned one.
    return (lowest + narrow, highest, bits) if signed else (lowest, highest - narrow, bits)
