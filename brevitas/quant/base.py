"""Fragments: small sets of directives that presets are put together from.

>>> from brevitas.quant.base import NarrowIntQuant, MaxStatsScaling, PerTensorFloatScaling8bit
>>> from brevitas.quant.solver import WeightQuantSolver
>>> class MyWeightQuant(NarrowIntQuant, MaxStatsScaling, PerTensorFloatScaling8bit, WeightQuantSolver):
...     bit_width = 5

A fragment has no solver, so it resolves to nothing by itself.
"""

from typing import Any

from brevitas.core.function_wrapper import OverOutputChannelView, TensorClampSte
from brevitas.core.quant import ClampedBinaryQuant, DecoupledIntQuant, DecoupledRescalingIntQuant
from brevitas.core.quant.candidate import IntLowEndCandidate, IntThresholdCandidate
from brevitas.core.scaling import ParameterScaling, StatsFromParameterScaling
from brevitas.core.stats import AbsMax, AbsMaxL2, AbsMinMax, NegativeMinOrZero, NegativePercentileOrZero
from brevitas.core.stats.mse import MSE, LowEndMSE
from brevitas.core.zero_point import (
    MinUintZeroPoint,
    ParameterFromRuntimeMinZeroPoint,
    ParameterFromRuntimeZeroPoint,
    ParameterFromStatsFromParameterZeroPoint,
    ZeroZeroPoint,
)
from brevitas.inject import ExtendedInjector, value
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
    "MSEActZeroPoint",
    "MSEAsymmetricScale",
    "MSESymmetricScale",
    "MSEWeightZeroPoint",
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
    "IntTrunc",
    "PerTensorConstScaling2bit",
    "ShiftedMinUintQuant",
    "ShiftedParamFromPercentileUintQuant",
    "ShiftedRuntimeMinToUintQuant",
    "SignedBinaryClampedConst",
    "UintQuant",
    "WeightPerTensorFloatDecoupledL2Param",
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


class PerTensorConstScaling2bit(ExtendedInjector):
    """2 bits, one constant float scale, which the quantizer declares."""

    bit_width: Any = 2
    scaling_per_output_channel: Any = False
    scaling_impl_type: Any = ScalingImplType.CONST
    restrict_scaling_type: Any = RestrictValueType.FP


class SignedBinaryClampedConst(ExtendedInjector):
    """Codes -1 and +1, inputs clamped to the constant scale, which the quantizer declares."""

    tensor_quant: Any = ClampedBinaryQuant
    quant_type: Any = QuantType.BINARY
    bit_width: Any = 1
    signed: Any = True
    narrow_range: Any = True
    scaling_impl_type: Any = ScalingImplType.CONST
    restrict_scaling_type: Any = RestrictValueType.FP
    scaling_per_output_channel: Any = False


class IntTrunc(_Integer):
    """Truncation to integers, rounding down."""

    float_to_int_impl_type: Any = FloatToIntImplType.FLOOR


class WeightPerTensorFloatDecoupledL2Param(_Integer):
    """A scale to round with, from the L2 norm of the channels' maxima, and a learned one to return to the real axis."""

    tensor_quant: Any = DecoupledRescalingIntQuant
    decoupled_int_quant: Any = DecoupledIntQuant
    signed: Any = True
    narrow_range: Any = True
    zero_point_impl: Any = ZeroZeroPoint
    pre_zero_point_impl: Any = ZeroZeroPoint
    tensor_clamp_impl: Any = TensorClampSte
    scaling_per_output_channel: Any = False
    restrict_scaling_type: Any = RestrictValueType.FP
    pre_scaling_impl: Any = StatsFromParameterScaling
    scaling_impl: Any = ParameterScaling
    scaling_stats_impl: Any = AbsMaxL2
    scaling_stats_input_view_shape_impl: Any = OverOutputChannelView
    scaling_stats_input_concat_dim: Any = 1
    stats_reduce_dim: Any = 1
    affine_rescaling: Any = False

    @value
    def scaling_init(pre_scaling_impl: Any, tracked_parameter_list: Any) -> Any:
        return pre_scaling_impl(tracked_parameter_list[0]).detach()


class MSESymmetricScale(ExtendedInjector):
    """The threshold is learned, first searched for the least squared error among fractions of the largest value.

    Placed left of a preset: ``class Q(MSESymmetricScale, Int8WeightPerTensorFloat)``.
    """

    scaling_impl_type: Any = ScalingImplType.PARAMETER_FROM_STATS
    scaling_stats_impl: Any = MSE
    mse_quant_impl: Any = IntThresholdCandidate
    mse_init_op: Any = AbsMax
    mse_iters: Any = 20
    mse_search_method: Any = "grid"


class MSEAsymmetricScale(MSESymmetricScale):
    """As ``MSESymmetricScale``, for quantizers with a zero point: fractions of the length of the range."""

    mse_init_op: Any = AbsMinMax
    low_end_init_op: Any = NegativeMinOrZero


class _MSEZeroPoint(ExtendedInjector):
    zero_point_stats_impl: Any = LowEndMSE
    low_end_quant_impl: Any = IntLowEndCandidate
    low_end_init_op: Any = NegativeMinOrZero
    mse_iters: Any = 20
    mse_search_method: Any = "grid"


class MSEWeightZeroPoint(_MSEZeroPoint):
    """The zero point of a weight is learned, first searched for the least squared error."""

    zero_point_impl: Any = ParameterFromStatsFromParameterZeroPoint


class MSEActZeroPoint(_MSEZeroPoint):
    """The zero point of an activation is learned, first searched for the least squared error on each batch."""

    zero_point_impl: Any = ParameterFromRuntimeZeroPoint
