"""Fragments: small sets of directives that presets are put together from.

>>> from brevitas.quant.base import NarrowIntQuant, MaxStatsScaling, PerTensorFloatScaling8bit
>>> from brevitas.quant.solver import WeightQuantSolver
>>> class MyWeightQuant(NarrowIntQuant, MaxStatsScaling, PerTensorFloatScaling8bit, WeightQuantSolver):
...     bit_width = 5

A fragment has no solver, so it resolves to nothing by itself.
"""

from typing import Any

from brevitas.core.stats import NegativeMinOrZero, NegativePercentileOrZero
from brevitas.core.zero_point import MinUintZeroPoint, ParameterFromRuntimeMinZeroPoint, ZeroZeroPoint
from brevitas.inject import ExtendedInjector
from brevitas.inject.enum import (
    BitWidthImplType,
    FloatToIntImplType,
    QuantType,
    RestrictValueType,
    ScalingImplType,
    StatsOp,
)

__all__ = [
    "IntQuant",
    "MaxStatsScaling",
    "MinMaxStatsScaling",
    "NarrowIntQuant",
    "ParamFromRuntimeMinMaxScaling",
    "ParamFromRuntimePercentileIntervalScaling",
    "ParamFromRuntimePercentileScaling",
    "ParamMinMaxInitScaling",
    "PerChannelFloatScaling8bit",
    "PerChannelPoTScaling8bit",
    "PerTensorFloatScaling8bit",
    "PerTensorPoTScaling8bit",
    "ShiftedMinUintQuant",
    "ShiftedParamFromPercentileUintQuant",
    "ShiftedRuntimeMinToUintQuant",
    "UintQuant",
]


class _Integer(ExtendedInjector):
    quant_type: Any = QuantType.INT
    bit_width_impl_type: Any = BitWidthImplType.CONST
    float_to_int_impl_type: Any = FloatToIntImplType.ROUND


class IntQuant(_Integer):
    """Signed integers, [-2^(b-1), 2^(b-1)-1]; zero point 0."""

    signed: Any = True
    narrow_range: Any = False
    zero_point_impl: Any = ZeroZeroPoint


class NarrowIntQuant(_Integer):
    """Signed integers, symmetric range [-(2^(b-1)-1), 2^(b-1)-1]; zero point 0."""

    signed: Any = True
    narrow_range: Any = True
    zero_point_impl: Any = ZeroZeroPoint


class UintQuant(_Integer):
    """Unsigned integers, [0, 2^b-1]; zero point 0."""

    signed: Any = False
    narrow_range: Any = False
    zero_point_impl: Any = ZeroZeroPoint


class ShiftedMinUintQuant(_Integer):
    """Unsigned integers; the zero point comes from the minimum of the tracked parameters."""

    signed: Any = False
    narrow_range: Any = False
    zero_point_impl: Any = MinUintZeroPoint


class ShiftedRuntimeMinToUintQuant(_Integer):
    """Unsigned integers; the zero point is learned, first estimated from the minimum of the inputs."""

    signed: Any = False
    narrow_range: Any = False
    zero_point_impl: Any = ParameterFromRuntimeMinZeroPoint
    zero_point_stats_impl: Any = NegativeMinOrZero


class ShiftedParamFromPercentileUintQuant(_Integer):
    """Unsigned integers; the zero point is learned, first estimated from the low percentile of the inputs."""

    signed: Any = False
    narrow_range: Any = False
    zero_point_impl: Any = ParameterFromRuntimeMinZeroPoint
    zero_point_stats_impl: Any = NegativePercentileOrZero
    low_percentile_q: Any = 0.001


class MaxStatsScaling(ExtendedInjector):
    """The threshold is the largest absolute value, at every step."""

    scaling_impl_type: Any = ScalingImplType.STATS
    scaling_stats_op: Any = StatsOp.MAX


class MinMaxStatsScaling(ExtendedInjector):
    """The threshold is the length of the range, 0 included, at every step."""

    scaling_impl_type: Any = ScalingImplType.STATS
    scaling_stats_op: Any = StatsOp.MIN_MAX


class ParamFromRuntimePercentileScaling(ExtendedInjector):
    """The threshold is learned, first estimated as a percentile of the absolute inputs over 300 training calls."""

    scaling_impl_type: Any = ScalingImplType.PARAMETER_FROM_STATS
    scaling_stats_op: Any = StatsOp.PERCENTILE
    percentile_q: Any = 99.999
    collect_stats_steps: Any = 300


class ParamFromRuntimeMinMaxScaling(ExtendedInjector):
    """The threshold is learned, first estimated as the length of the input range over 300 training calls."""

    scaling_impl_type: Any = ScalingImplType.PARAMETER_FROM_STATS
    scaling_stats_op: Any = StatsOp.MIN_MAX
    collect_stats_steps: Any = 300


class ParamFromRuntimePercentileIntervalScaling(ExtendedInjector):
    """The threshold is learned, first estimated as the distance of two percentiles over 300 training calls."""

    scaling_impl_type: Any = ScalingImplType.PARAMETER_FROM_STATS
    scaling_stats_op: Any = StatsOp.PERCENTILE_INTERVAL
    low_percentile_q: Any = 0.001
    percentile_q: Any = 99.999
    collect_stats_steps: Any = 300


class ParamMinMaxInitScaling(ExtendedInjector):
    """The threshold is learned from an initial value declared as ``min_val`` and ``max_val``."""

    scaling_impl_type: Any = ScalingImplType.PARAMETER


class PerTensorFloatScaling8bit(ExtendedInjector):
    """8 bits, one float scale."""

    bit_width: Any = 8
    scaling_per_output_channel: Any = False
    restrict_scaling_type: Any = RestrictValueType.FP


class PerChannelFloatScaling8bit(ExtendedInjector):
    """8 bits, one float scale per output channel."""

    bit_width: Any = 8
    scaling_per_output_channel: Any = True
    restrict_scaling_type: Any = RestrictValueType.FP


class PerTensorPoTScaling8bit(ExtendedInjector):
    """8 bits, one power-of-two scale; the threshold is rounded up."""

    bit_width: Any = 8
    scaling_per_output_channel: Any = False
    restrict_scaling_type: Any = RestrictValueType.POWER_OF_TWO
    restrict_value_float_to_int_impl_type: Any = FloatToIntImplType.CEIL


class PerChannelPoTScaling8bit(ExtendedInjector):
    """8 bits, one power-of-two scale per output channel; the thresholds are rounded up."""

    bit_width: Any = 8
    scaling_per_output_channel: Any = True
    restrict_scaling_type: Any = RestrictValueType.POWER_OF_TWO
    restrict_value_float_to_int_impl_type: Any = FloatToIntImplType.CEIL
