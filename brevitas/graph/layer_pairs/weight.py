"""Converters of the layers with a weight."""

from __future__ import annotations

from typing import Any

from torch import nn

from brevitas.graph.converters import register_converter
from brevitas.nn import QuantConv2d, QuantLinear


@register_converter(nn.Conv2d, QuantConv2d)
def _conv2d(layer: Any) -> dict[str, Any]:
    same = getattr(layer, "padding_type", "standard") == "same"
    return {
        "in_channels": layer.in_channels,
        "out_channels": layer.out_channels,
        "kernel_size": layer.kernel_size,
        "stride": layer.stride,
        "padding": "same" if same else layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
        "bias": layer.bias is not None,
        "padding_mode": layer.padding_mode,
    }


@register_converter(nn.Linear, QuantLinear)
def _linear(layer: Any) -> dict[str, Any]:
    return {"in_features": layer.in_features, "out_features": layer.out_features, "bias": layer.bias is not None}
