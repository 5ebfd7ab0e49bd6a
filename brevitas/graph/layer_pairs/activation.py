"""Converters of the activation layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from brevitas.errors import QuantConfigError
from brevitas.graph.converters import register_converter
from brevitas.nn import QuantHardTanh, QuantIdentity, QuantReLU, QuantSigmoid, QuantTanh


@register_converter(nn.ReLU, QuantReLU)
@register_converter(nn.Sigmoid, QuantSigmoid)
@register_converter(nn.Tanh, QuantTanh)
@register_converter(nn.Identity, QuantIdentity)
def _no_arguments(layer: Any) -> dict[str, Any]:
    return {}


@register_converter(nn.Hardtanh, QuantHardTanh)
def _hardtanh(layer: Any) -> dict[str, Any]:
    if not isinstance(layer, QuantHardTanh) and layer.min_val != -layer.max_val:
        raise QuantConfigError(
            f"its limits are {layer.min_val} and {layer.max_val}, and a QuantHardTanh clamps by the range of its "
            "quantizer, which is symmetric; keep the layer in float, or replace it by a ReLU or an Identity"
        )
    return {"min_val": layer.min_val, "max_val": layer.max_val}
