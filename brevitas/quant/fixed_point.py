"""Presets with a power-of-two scale, which hardware applies as a shift.

>>> from brevitas.quant.fixed_point import Int8WeightPerTensorFixedPoint
>>> Int8WeightPerTensorFixedPoint.restrict_scaling_type
<RestrictValueType.POWER_OF_TWO: 'POWER_OF_TWO'>
"""

from typing import Any

from brevitas.inject.enum import RestrictValueType
from brevitas.quant.base import (
    IntQuant,
    MaxStatsScaling,
    NarrowIntQuant,
    ParamFromRuntimePercentileScaling,
    ParamMinMaxInitScaling,
    PerChannelPoTScaling8bit,
    PerTensorPoTScaling8bit,
    UintQuant,
    WeightPerTensorFloatDecoupledL2Param,
)
from brevitas.quant.solver import ActQuantSolver, BiasQuantSolver, WeightQuantSolver

__all__ = [
    "Int4WeightPerTensorFixedPointDecoupled",
    "Int8ActPerTensorFixedPoint",
    "Int8ActPerTensorFixedPointMinMaxInit",
    "Int8BiasPerTensorFixedPointInternalScaling",
    "Int8WeightPerChannelFixedPoint",
    "Int8WeightPerTensorFixedPoint",
    "Uint8ActPerTensorFixedPoint",
    "Uint8ActPerTensorFixedPointMaxInit",
]


class Int8WeightPerTensorFixedPoint(NarrowIntQuant, MaxStatsScaling, PerTensorPoTScaling8bit, WeightQuantSolver):
    """Weights in [-127, 127]; scale = 2^ceil(log2 max abs W) / 128."""


class Int8WeightPerChannelFixedPoint(NarrowIntQuant, MaxStatsScaling, PerChannelPoTScaling8bit, WeightQuantSolver):
    """Weights in [-127, 127]; per output channel, scale = 2^ceil(log2 max abs W) / 128."""


class Int8ActPerTensorFixedPoint(IntQuant, ParamFromRuntimePercentileScaling, PerTensorPoTScaling8bit, ActQuantSolver):
    """Activations in [-128, 127]; scale = t / 128, t a power of two, learned in log2 from the percentile of abs x."""


class Uint8ActPerTensorFixedPoint(
    UintQuant, ParamFromRuntimePercentileScaling, PerTensorPoTScaling8bit, ActQuantSolver
):
    """Activations in [0, 255]; scale = t / 256, t a power of two, learned in log2 from the percentile of abs x."""


class Int8ActPerTensorFixedPointMinMaxInit(IntQuant, ParamMinMaxInitScaling, PerTensorPoTScaling8bit, ActQuantSolver):
    """Activations in [-128, 127]; scale = t / 128, t a power of two learned from the declared min_val and max_val."""


class Uint8ActPerTensorFixedPointMaxInit(UintQuant, ParamMinMaxInitScaling, PerTensorPoTScaling8bit, ActQuantSolver):
    """Activations in [0, 255]; scale = t / 256, t a power of two learned from the declared max_val."""

    min_val: Any = 0.0


class Int8BiasPerTensorFixedPointInternalScaling(IntQuant, MaxStatsScaling, PerTensorPoTScaling8bit, BiasQuantSolver):
    """A bias in [-128, 127] with a power-of-two scale of its own, 2^ceil(log2 max abs b) / 128."""

    requires_input_scale: Any = False
    requires_input_bit_width: Any = False


class Int4WeightPerTensorFixedPointDecoupled(WeightPerTensorFloatDecoupledL2Param, WeightQuantSolver):
    """As ``Int4WeightPerTensorFloatDecoupled``, with power-of-two scales."""

    bit_width: Any = 4
    restrict_scaling_type: Any = RestrictValueType.POWER_OF_TWO
