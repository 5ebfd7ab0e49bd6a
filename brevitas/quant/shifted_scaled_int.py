"""Presets with a zero point: unsigned integers whose range follows the data, real 0 always a code.

>>> from brevitas.quant.shifted_scaled_int import ShiftedUint8WeightPerTensorFloat
>>> ShiftedUint8WeightPerTensorFloat.signed
False
"""

from brevitas.quant.base import (
    MinMaxStatsScaling,
    ParamFromRuntimePercentileIntervalScaling,
    PerChannelFloatScaling8bit,
    PerTensorFloatScaling8bit,
    PerTensorPoTScaling8bit,
    ShiftedMinUintQuant,
    ShiftedParamFromPercentileUintQuant,
)
from brevitas.quant.solver import ActQuantSolver, WeightQuantSolver

__all__ = [
    "ShiftedUint8ActPerTensorFixedPoint",
    "ShiftedUint8ActPerTensorFloat",
    "ShiftedUint8WeightPerChannelFloat",
    "ShiftedUint8WeightPerTensorFloat",
]


class ShiftedUint8WeightPerTensorFloat(
    ShiftedMinUintQuant, MinMaxStatsScaling, PerTensorFloatScaling8bit, WeightQuantSolver
):
    """Weights in [0, 255]; with lo = min(W, 0): scale = (max(W, 0) - lo) / 255, zero point = round(-lo / scale)."""


class ShiftedUint8WeightPerChannelFloat(
    ShiftedMinUintQuant, MinMaxStatsScaling, PerChannelFloatScaling8bit, WeightQuantSolver
):
    """As ``ShiftedUint8WeightPerTensorFloat``, with a scale and zero point per output channel."""


class ShiftedUint8ActPerTensorFloat(
    ShiftedParamFromPercentileUintQuant,
    ParamFromRuntimePercentileIntervalScaling,
    PerTensorFloatScaling8bit,
    ActQuantSolver,
):
    """Activations in [0, 255]; scale and zero point learned from the same percentile interval, 0 always inside."""


class ShiftedUint8ActPerTensorFixedPoint(
    ShiftedParamFromPercentileUintQuant,
    ParamFromRuntimePercentileIntervalScaling,
    PerTensorPoTScaling8bit,
    ActQuantSolver,
):
    """As ``ShiftedUint8ActPerTensorFloat``, with a power-of-two scale."""
