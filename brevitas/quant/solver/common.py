"""The choices that every role shares: enum in, core module class out."""

from __future__ import annotations

from enum import Enum
from typing import Any, TypeVar

from brevitas.core.bit_width import BitWidthConst, BitWidthParameter, BitWidthStatefulConst
from brevitas.core.function_wrapper import CeilSte, FloorSte, RoundSte, RoundToZeroSte
from brevitas.core.quant import BinaryQuant, IntQuant, RescalingIntQuant, TernaryQuant
from brevitas.core.restrict_val import (
    FloatRestrictValue,
    IntRestrictValue,
    LogFloatRestrictValue,
    PowerOfTwoRestrictValue,
)
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
    QuantType,
    RestrictValueType,
    ScalingImplType,
    StatsOp,
)
from injector import suggest

__all__ = ["BaseQuantSolver", "member", "refuse_member"]

E = TypeVar("E", bound=Enum)


def member(enum: type[E], directive: str, written: Any) -> E:
    """The enum member that a directive's value names; a string may be of any case.

    >>> from brevitas.inject.enum import QuantType
    >>> member(QuantType, 'quant_type', 'int')
    <QuantType.INT: 'INT'>
    """
    if isinstance(written, enum):
        return written
    if isinstance(written, str) and not isinstance(written, Enum):
        for m in enum:
            if m.name == written.upper():
                return m
    names = [m.name for m in enum]
    near = suggest(str(written).upper(), names)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise QuantConfigError(f"{directive} = {written!r} is not one of {', '.join(names)}.{hint}")


def refuse_member(directive: str, written: Any, reason: str) -> QuantConfigError:
    """The error for a member that is legal in general, but not here."""
    return QuantConfigError(f"{directive} = {str(written)} cannot be used here: {reason}")


_RESTRICT = {
    RestrictValueType.FP: FloatRestrictValue,
    RestrictValueType.LOG_FP: LogFloatRestrictValue,
    RestrictValueType.INT: IntRestrictValue,
    RestrictValueType.POWER_OF_TWO: PowerOfTwoRestrictValue,
}
_STATS = {
    StatsOp.MAX: AbsMax,
    StatsOp.AVE: AbsAve,
    StatsOp.MAX_AVE: AbsMaxAve,
    StatsOp.MEAN_SIGMA_STD: MeanSigmaStd,
    StatsOp.MEAN_LEARN_SIGMA_STD: MeanLearnedSigmaStd,
    StatsOp.PERCENTILE: AbsPercentile,
    StatsOp.MIN_MAX: AbsMinMax,
    StatsOp.PERCENTILE_INTERVAL: PercentileInterval,
}
_ROUNDING = {
    FloatToIntImplType.ROUND: RoundSte,
    FloatToIntImplType.CEIL: CeilSte,
    FloatToIntImplType.FLOOR: FloorSte,
    FloatToIntImplType.ROUND_TO_ZERO: RoundToZeroSte,
}
_BIT_WIDTH = {
    BitWidthImplType.CONST: BitWidthConst,
    BitWidthImplType.PARAMETER: BitWidthParameter,
    BitWidthImplType.STATEFUL_CONST: BitWidthStatefulConst,
}
_TENSOR_QUANT = {
    QuantType.FP: None,
    QuantType.INT: RescalingIntQuant,
    QuantType.BINARY: BinaryQuant,
    QuantType.TERNARY: TernaryQuant,
}


def rounding_class(directive: str, written: Any) -> type:
    """The straight-through rounding module that a ``FloatToIntImplType`` names."""
    chosen = member(FloatToIntImplType, directive, written)
    if chosen not in _ROUNDING:
        raise refuse_member(directive, chosen, f"it is not available yet; use {', '.join(m.name for m in _ROUNDING)}.")
    return _ROUNDING[chosen]


def bit_width_class(written: Any) -> type:
    """The bit width module that a ``BitWidthImplType`` names."""
    return _BIT_WIDTH[member(BitWidthImplType, "bit_width_impl_type", written)]


def over_channels(scaling_per_output_channel: bool, scaling_stats_op: Any = None) -> bool:
    """Whether statistics run over channels: with a scale per channel, and for the average of the channels' maxima."""
    if scaling_per_output_channel:
        return True
    return scaling_stats_op is not None and member(StatsOp, "scaling_stats_op", scaling_stats_op) is StatsOp.MAX_AVE


class BaseQuantSolver(ExtendedInjector):
    """Directives of every role to core modules."""

    int_quant = IntQuant
    float_to_int_impl_type = FloatToIntImplType.ROUND
    bit_width_impl_type = BitWidthImplType.CONST
    restrict_scaling_type = RestrictValueType.FP
    zero_point_impl = ZeroZeroPoint
    percentile_q = 99.999
    low_percentile_q = 0.001

    @value
    def tensor_quant(quant_type):  # noqa: N805
        return _TENSOR_QUANT[member(QuantType, "quant_type", quant_type)]

    @value
    def float_to_int_impl(float_to_int_impl_type):  # noqa: N805
        return rounding_class("float_to_int_impl_type", float_to_int_impl_type)

    @value
    def bit_width_impl(bit_width_impl_type):  # noqa: N805
        return bit_width_class(bit_width_impl_type)

    @value
    def restrict_bit_width_impl():
        # An instance: as a class, its rounding would be wired to that of the threshold.
        return IntRestrictValue(RoundSte())

    @value
    def restrict_scaling_impl(restrict_scaling_type):  # noqa: N805
        return _RESTRICT[member(RestrictValueType, "restrict_scaling_type", restrict_scaling_type)]

    @value
    def restrict_value_float_to_int_impl_type(restrict_scaling_type):  # noqa: N805
        # CEIL for powers of two, so that the threshold never shrinks below the statistic.
        restrict = member(RestrictValueType, "restrict_scaling_type", restrict_scaling_type)
        return FloatToIntImplType.ROUND if restrict is RestrictValueType.INT else FloatToIntImplType.CEIL

    @value
    def restrict_value_float_to_int_impl(restrict_value_float_to_int_impl_type):  # noqa: N805
        return rounding_class("restrict_value_float_to_int_impl_type", restrict_value_float_to_int_impl_type)

    @value
    def int_scaling_impl(restrict_scaling_type):  # noqa: N805
        restrict = member(RestrictValueType, "restrict_scaling_type", restrict_scaling_type)
        return PowerOfTwoIntScaling if restrict is RestrictValueType.POWER_OF_TWO else IntScaling

    @value
    def scaling_stats_impl(scaling_stats_op):  # noqa: N805
        return _STATS[member(StatsOp, "scaling_stats_op", scaling_stats_op)]

    @value
    def high_percentile_q(percentile_q):  # noqa: N805
        return percentile_q

    @value
    def stats_output_shape(scaling_shape):  # noqa: N805
        return scaling_shape

    @value
    def stats_reduce_dim(scaling_per_output_channel, scaling_stats_op):  # noqa: N805
        return 1 if over_channels(scaling_per_output_channel, scaling_stats_op) else None

    @value
    def affine_rescaling(scaling_impl_type):  # noqa: N805
        return member(ScalingImplType, "scaling_impl_type", scaling_impl_type) is ScalingImplType.AFFINE_STATS

    zero_point_shape = this.scaling_shape
    zero_point_stats_input_view_shape_impl = this.scaling_stats_input_view_shape_impl
