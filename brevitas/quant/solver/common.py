"""The choices that every role shares: enum in, core module class out."""

from __future__ import annotations

from enum import Enum
from typing import Any

from brevitas.core.bit_width import BitWidthConst, BitWidthParameter, BitWidthStatefulConst
from brevitas.core.function_wrapper import CeilSte, FloorSte, RoundSte, RoundToZeroSte
from brevitas.core.quant import IntQuant
from brevitas.core.restrict_val import (
    FloatRestrictValue,
    IntRestrictValue,
    LogFloatRestrictValue,
    PowerOfTwoRestrictValue,
)
from brevitas.core.rounding import DPURoundSte, LearnedRoundSte, StochasticRoundSte
from brevitas.core.scaling import IntScaling, PowerOfTwoIntScaling
from brevitas.core.stats import (
    AbsAve,
    AbsMax,
    AbsMaxAve,
    AbsMinMax,
    AbsPercentile,
    MeanLearnedSigmaStd,
    MeanSigmaStd,
    PercentileInterval,
)
from brevitas.core.zero_point import ZeroZeroPoint
from brevitas.errors import QuantConfigError
from brevitas.inject import ExtendedInjector, this, value
from brevitas.inject.enum import (
    BitWidthImplType,
    FloatToIntImplType,
    RestrictValueType,
    ScalingImplType,
    ScalingPerOutputType,
    StatsOp,
)
from brevitas.quant.registry import Choices

__all__ = [
    "BIT_WIDTH",
    "RESTRICT",
    "ROUNDING",
    "STATS",
    "WEIGHT_ROUNDING",
    "BaseQuantSolver",
    "is_channel",
    "is_group",
    "over_channels",
]

_EVERY_ROLE = ("weight", "act", "bias", "trunc", "clamp")
_SCALED_ROLES = ("weight", "act", "bias")

RESTRICT = Choices(
    "restrict_scaling_type",
    RestrictValueType,
    {
        RestrictValueType.FP: FloatRestrictValue,
        RestrictValueType.LOG_FP: LogFloatRestrictValue,
        RestrictValueType.INT: IntRestrictValue,
        RestrictValueType.POWER_OF_TWO: PowerOfTwoRestrictValue,
    },
    _SCALED_ROLES,
)
STATS = Choices(
    "scaling_stats_op",
    StatsOp,
    {
        StatsOp.MAX: AbsMax,
        StatsOp.AVE: AbsAve,
        StatsOp.MAX_AVE: AbsMaxAve,
        StatsOp.MEAN_SIGMA_STD: MeanSigmaStd,
        StatsOp.MEAN_LEARN_SIGMA_STD: MeanLearnedSigmaStd,
        StatsOp.PERCENTILE: AbsPercentile,
        StatsOp.MIN_MAX: AbsMinMax,
        StatsOp.PERCENTILE_INTERVAL: PercentileInterval,
    },
    _SCALED_ROLES,
)
_ROUNDINGS: dict[Enum, type | None] = {
    FloatToIntImplType.ROUND: RoundSte,
    FloatToIntImplType.CEIL: CeilSte,
    FloatToIntImplType.FLOOR: FloorSte,
    FloatToIntImplType.ROUND_TO_ZERO: RoundToZeroSte,
    FloatToIntImplType.DPU: DPURoundSte,
    FloatToIntImplType.STOCHASTIC_ROUND: StochasticRoundSte,
}
ROUNDING = Choices(
    "float_to_int_impl_type",
    FloatToIntImplType,
    _ROUNDINGS,
    ("act", "bias", "trunc", "clamp"),
    {FloatToIntImplType.LEARNED_ROUND: "it has a parameter for each element of a weight."},
)
WEIGHT_ROUNDING = Choices(
    "float_to_int_impl_type",
    FloatToIntImplType,
    {**_ROUNDINGS, FloatToIntImplType.LEARNED_ROUND: LearnedRoundSte},
    ("weight",),
)
BIT_WIDTH = Choices(
    "bit_width_impl_type",
    BitWidthImplType,
    {
        BitWidthImplType.CONST: BitWidthConst,
        BitWidthImplType.PARAMETER: BitWidthParameter,
        BitWidthImplType.STATEFUL_CONST: BitWidthStatefulConst,
    },
    _EVERY_ROLE,
)


def is_group(scaling_per_output_type: Any) -> bool:
    """Whether each group of neighbours has a scale of its own."""
    return bool(scaling_per_output_type == ScalingPerOutputType.GROUP)


def is_channel(scaling_per_output_type: Any) -> bool:
    """Whether each channel has a scale of its own."""
    return bool(scaling_per_output_type == ScalingPerOutputType.CHANNEL)


def over_channels(scaling_per_output_type: Any, scaling_stats_op: Any = None) -> bool:
    """Whether statistics run over channels: with a scale per channel, and for the average of the channels' maxima.

    Raises:
        QuantConfigError: both, since the average is one threshold for all channels.
    """
    averages = scaling_stats_op is not None and STATS.name_of(scaling_stats_op) == StatsOp.MAX_AVE
    if averages and scaling_per_output_type != ScalingPerOutputType.TENSOR:
        raise QuantConfigError(
            "scaling_stats_op = MAX_AVE averages over the channels, and the scale is to be one for each "
            f"{str(scaling_per_output_type).lower()} (scaling_per_output_channel, scaling_per_output_type); use MAX, "
            "or one scale per tensor"
        )
    return averages or is_channel(scaling_per_output_type)


class BaseQuantSolver(ExtendedInjector):
    """Directives of every role to core modules."""

    int_quant: Any = IntQuant
    float_to_int_impl_type: Any = FloatToIntImplType.ROUND
    bit_width_impl_type: Any = BitWidthImplType.CONST
    restrict_scaling_type: Any = RestrictValueType.FP
    zero_point_impl: Any = ZeroZeroPoint
    group_size: Any = 32
    percentile_q: Any = 99.999
    low_percentile_q: Any = 0.001

    @value
    def float_to_int_impl(float_to_int_impl_type: Any) -> Any:
        return ROUNDING.solve(float_to_int_impl_type)

    @value
    def bit_width_impl(bit_width_impl_type: Any) -> Any:
        return BIT_WIDTH.solve(bit_width_impl_type)

    @value
    def restrict_bit_width_impl() -> Any:
        # An instance: as a class, its rounding would be wired to that of the threshold.
        return IntRestrictValue(RoundSte())

    @value
    def restrict_scaling_impl(restrict_scaling_type: Any) -> Any:
        return RESTRICT.solve(restrict_scaling_type)

    @value
    def restrict_value_float_to_int_impl_type(restrict_scaling_type: Any) -> Any:
        # CEIL for powers of two, so that the threshold never shrinks below the statistic.
        integers = RESTRICT.name_of(restrict_scaling_type) == RestrictValueType.INT
        return FloatToIntImplType.ROUND if integers else FloatToIntImplType.CEIL

    @value
    def restrict_value_float_to_int_impl(restrict_value_float_to_int_impl_type: Any) -> Any:
        return ROUNDING.solve(restrict_value_float_to_int_impl_type)

    @value
    def int_scaling_impl(restrict_scaling_type: Any) -> Any:
        powers = RESTRICT.name_of(restrict_scaling_type) == RestrictValueType.POWER_OF_TWO
        return PowerOfTwoIntScaling if powers else IntScaling

    @value
    def scaling_stats_impl(scaling_stats_op: Any) -> Any:
        return STATS.solve(scaling_stats_op)

    @value
    def high_percentile_q(percentile_q: Any) -> Any:
        return percentile_q

    @value
    def stats_output_shape(scaling_shape: Any) -> Any:
        return scaling_shape

    @value
    def scaling_per_output_type(scaling_per_output_channel: Any) -> Any:
        return ScalingPerOutputType.CHANNEL if scaling_per_output_channel else ScalingPerOutputType.TENSOR

    @value
    def stats_reduce_dim(scaling_per_output_type: Any, scaling_stats_op: Any = None) -> Any:
        # Asked for in any case, since it refuses averages over channels with a scale per group.
        channels = over_channels(scaling_per_output_type, scaling_stats_op)
        return 1 if channels or is_group(scaling_per_output_type) else None

    @value
    def affine_rescaling(scaling_impl_type: Any) -> Any:
        return scaling_impl_type == ScalingImplType.AFFINE_STATS

    zero_point_shape: Any = this.scaling_shape
    zero_point_stats_input_view_shape_impl: Any = this.scaling_stats_input_view_shape_impl
