"""Presets with a float scale: symmetric integers for weights, activations and biases.

>>> from brevitas.quant.scaled_int import Int8WeightPerTensorFloat
>>> class Int4PerChannel(Int8WeightPerTensorFloat):
...     bit_width = 4
...     scaling_per_output_channel = True
"""

from typing import Any

from brevitas.core.stats import AbsMax
from brevitas.inject import value
from brevitas.inject.enum import FloatToIntImplType
from brevitas.quant.base import (
    IntQuant,
    IntTrunc,
    MaxStatsScaling,
    NarrowIntQuant,
    ParamFromRuntimePercentileScaling,
    ParamMinMaxInitScaling,
    PerChannelFloatScaling8bit,
    PerTensorFloatScaling8bit,
    UintQuant,
    WeightPerTensorFloatDecoupledL2Param,
)
from brevitas.quant.solver import ActQuantSolver, BiasQuantSolver, TruncQuantSolver, WeightQuantSolver

__all__ = [
    "Int16Bias",
    "Int24Bias",
    "Int32Bias",
    "Int8ActPerTensorFloat",
    "Int8ActPerTensorFloatMinMaxInit",
    "Int4WeightPerTensorFloatDecoupled",
    "Int8Bias",
    "Int8BiasPerTensorFloatInternalScaling",
    "Int8WeightPerChannelFloat",
    "Int8WeightPerChannelFloatDecoupled",
    "Int8WeightPerTensorFloat",
    "IntBias",
    "RoundTo8bit",
    "TruncTo8bit",
    "Uint8ActPerTensorFloat",
    "Uint8ActPerTensorFloatMaxInit",
]


class Int8WeightPerTensorFloat(NarrowIntQuant, MaxStatsScaling, PerTensorFloatScaling8bit, WeightQuantSolver):
    """Weights in [-127, 127]; scale = max abs W / 127."""


class Int8WeightPerChannelFloat(NarrowIntQuant, MaxStatsScaling, PerChannelFloatScaling8bit, WeightQuantSolver):
    """Weights in [-127, 127]; per output channel, scale = max abs W / 127."""


class Int8ActPerTensorFloat(IntQuant, ParamFromRuntimePercentileScaling, PerTensorFloatScaling8bit, ActQuantSolver):
    """Activations in [-128, 127]; scale = t / 128, t learned from the 99.999th percentile of abs x."""


class Uint8ActPerTensorFloat(UintQuant, ParamFromRuntimePercentileScaling, PerTensorFloatScaling8bit, ActQuantSolver):
    """Activations in [0, 255]; scale = t / 255, t learned from the 99.999th percentile of abs x."""


class Int8ActPerTensorFloatMinMaxInit(IntQuant, ParamMinMaxInitScaling, PerTensorFloatScaling8bit, ActQuantSolver):
    """Activations in [-128, 127]; scale = t / 128, t learned from the declared max(abs(min_val), abs(max_val))."""


class Uint8ActPerTensorFloatMaxInit(UintQuant, ParamMinMaxInitScaling, PerTensorFloatScaling8bit, ActQuantSolver):
    """Activations in [0, 255]; scale = t / 255, t learned from max_val, which must be declared."""

    min_val: Any = 0.0


class IntBias(IntQuant, BiasQuantSolver):
    """A bias on the accumulator's grid, scale = s_in * s_w, and of its width unless ``bit_width`` is declared."""

    requires_input_scale: Any = True

    @value
    def requires_input_bit_width(__self__: Any) -> Any:
        return "bit_width" not in __self__


class Int8Bias(IntBias):
    """An 8-bit bias on the accumulator's grid, scale = s_in * s_w."""

    bit_width: Any = 8


class Int16Bias(IntBias):
    """A 16-bit bias on the accumulator's grid, scale = s_in * s_w."""

    bit_width: Any = 16


class Int24Bias(IntBias):
    """A 24-bit bias on the accumulator's grid, scale = s_in * s_w."""

    bit_width: Any = 24


class Int32Bias(IntBias):
    """A 32-bit bias on the accumulator's grid, scale = s_in * s_w."""

    bit_width: Any = 32


class Int8BiasPerTensorFloatInternalScaling(IntQuant, MaxStatsScaling, PerTensorFloatScaling8bit, BiasQuantSolver):
    """A bias in [-128, 127] with a scale of its own, max abs b / 128."""

    requires_input_scale: Any = False
    requires_input_bit_width: Any = False


class Int4WeightPerTensorFloatDecoupled(WeightPerTensorFloatDecoupledL2Param, WeightQuantSolver):
    """Weights in [-7, 7]; rounded with a scale from the L2 norm of channel maxima, returned with a learned one."""

    bit_width: Any = 4


class Int8WeightPerChannelFloatDecoupled(WeightPerTensorFloatDecoupledL2Param, WeightQuantSolver):
    """Weights in [-127, 127]; per output channel, rounded with max abs W / 127, returned with a learned scale."""

    bit_width: Any = 8
    scaling_per_output_channel: Any = True
    scaling_stats_impl: Any = AbsMax


class TruncTo8bit(IntTrunc, TruncQuantSolver):
    """Keep the 8 most significant bits, rounding down; scale = s_in * 2^removed."""

    bit_width: Any = 8


class RoundTo8bit(TruncTo8bit):
    """Keep the 8 most significant bits, rounding half to even; scale = s_in * 2^removed."""

    float_to_int_impl_type: Any = FloatToIntImplType.ROUND
