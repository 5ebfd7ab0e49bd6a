"""Converters of the layers without a weight: pools, additions, concatenations, accumulators."""

from __future__ import annotations

from typing import Any

from torch import nn

from brevitas.errors import QuantConfigError
from brevitas.graph.converters import register_converter
from brevitas.nn import (
    Cat,
    ClampQuantAccumulator,
    EltwiseAdd,
    QuantAdaptiveAvgPool2d,
    QuantAvgPool2d,
    QuantCat,
    QuantEltwiseAdd,
    TruncQuantAccumulator,
)

_UNEVEN = {"padding": 0, "ceil_mode": False, "divisor_override": None}


@register_converter(nn.AvgPool2d, QuantAvgPool2d)
def _avg_pool(layer: Any) -> dict[str, Any]:
    for name, needed in _UNEVEN.items():
        value = getattr(layer, name)
        if value != needed and value != (needed, needed):
            raise QuantConfigError(
                f"it has {name} = {value!r}, and a QuantAvgPool2d averages full windows only; pad with nn.ZeroPad2d "
                "before it, or keep it in float"
            )
    return {"kernel_size": layer.kernel_size, "stride": layer.stride}


@register_converter(nn.AdaptiveAvgPool2d, QuantAdaptiveAvgPool2d)
def _adaptive_avg_pool(layer: Any) -> dict[str, Any]:
    return {"output_size": layer.output_size}


@register_converter(EltwiseAdd, QuantEltwiseAdd)
@register_converter(Cat, QuantCat)
def _no_arguments(layer: Any) -> dict[str, Any]:
    return {}


# Without a quantizer these hand their input on: each is its own float form.
@register_converter(TruncQuantAccumulator, TruncQuantAccumulator)
@register_converter(ClampQuantAccumulator, ClampQuantAccumulator)
def _accumulator(layer: Any) -> dict[str, Any]:
    return {}
