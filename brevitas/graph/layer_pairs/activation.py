"""Converters of the activation layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from brevitas.graph.converters import register_converter
from brevitas.nn import QuantIdentity, QuantReLU


@register_converter(nn.ReLU, QuantReLU)
def _relu(layer: Any) -> dict[str, Any]:
    return {}


@register_converter(nn.Identity, QuantIdentity)
def _identity(layer: Any) -> dict[str, Any]:
    return {}
