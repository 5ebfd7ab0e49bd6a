"""Activation quantizers: directives to core modules."""

from __future__ import annotations

from typing import Any

from brevitas.core.function_wrapper import OverOutputChannelView, OverTensorView, TensorClamp
from brevitas.core.quant import ClampedBinaryQuant, RescalingIntQuant, TernaryQuant
from brevitas.core.quant.groupwise import GroupwiseRescalingIntQuant
from brevitas.core.scaling import ConstScaling, ParameterFromRuntimeStatsScaling, ParameterScaling, RuntimeStatsScaling
from brevitas.core.scaling.groupwise import RuntimeDynamicGroupStatsScaling
from brevitas.errors import QuantConfigError
from brevitas.inject import this, value
from brevitas.inject.enum import QuantType, ScalingImplType
from brevitas.quant.registry import Choices
from brevitas.quant.solver.common import BaseQuantSolver, is_channel, is_group, over_channels

__all__ = ["ActQuantSolver"]

SCALING = Choices(
    "scaling_impl_type",
    ScalingImplType,
    {
        ScalingImplType.CONST: ConstScaling,
        ScalingImplType.PARAMETER: ParameterScaling,
        ScalingImplType.STATS: RuntimeStatsScaling,
        ScalingImplType.AFFINE_STATS: RuntimeStatsScaling,
        ScalingImplType.PARAMETER_FROM_STATS: ParameterFromRuntimeStatsScaling,
    },
    ("act",),
    {ScalingImplType.HE: "it is derived from a layer's weight."},
)
TENSOR_QUANT = Choices(
    "quant_type",
    QuantType,
    {
        QuantType.FP: None,
        QuantType.INT: RescalingIntQuant,
        QuantType.BINARY: ClampedBinaryQuant,
        QuantType.TERNARY: TernaryQuant,
    },
    ("act",),
)


def channel_first(shape: Any) -> tuple[int, ...] | None:
    """The permutation that puts the one dim of a shape that is not 1 in front; ``None`` where it is in front."""
    wide = [dim for dim, size in enumerate(shape) if size != 1]
    if len(wide) > 1:
        raise QuantConfigError(
            f"per_channel_broadcastable_shape = {tuple(shape)} has {len(wide)} dims that are not 1; a per-channel "
            "scale varies along one"
        )
    if not wide or wide[0] == 0:
        return None
    rest = [dim for dim in range(len(shape)) if dim != wide[0]]
    return (wide[0], *rest)


class ActQuantSolver(BaseQuantSolver):
    """Turns the directives of an activation, input or output quantizer into core modules.

    >>> from brevitas.quant import Uint8ActPerTensorFloat
    >>> Uint8ActPerTensorFloat.scaling_shape
    ()
    """

    _role = "act"
    tensor_clamp_impl: Any = TensorClamp
    scaling_stats_momentum: Any = 0.1
    zero_point_stats_momentum: Any = this.scaling_stats_momentum
    zero_point_stats_permute_dims: Any = this.scaling_stats_permute_dims

    @value
    def tensor_quant(quant_type: Any) -> Any:
        return None if TENSOR_QUANT.name_of(quant_type) == QuantType.FP else this.scaled_tensor_quant

    @value
    def scaled_tensor_quant(quant_type: Any, scaling_per_output_type: Any) -> Any:
        if not is_group(scaling_per_output_type):
            return TENSOR_QUANT.solve(quant_type)
        if TENSOR_QUANT.name_of(quant_type) != QuantType.INT:
            raise QuantConfigError(
                f"scaling_per_output_type = GROUP needs integers, and quant_type is {TENSOR_QUANT.name_of(quant_type)}"
            )
        return GroupwiseRescalingIntQuant

    @value
    def scaling_impl(scaling_impl_type: Any, scaling_per_output_type: Any) -> Any:
        solved = SCALING.solve(scaling_impl_type)
        if not is_group(scaling_per_output_type):
            return solved
        if scaling_impl_type != ScalingImplType.STATS:
            raise QuantConfigError(
                f"scaling_per_output_type = GROUP needs scaling_impl_type = STATS, and it is "
                f"{SCALING.name_of(scaling_impl_type)}: the groups of an activation are scaled anew at each call"
            )
        return RuntimeDynamicGroupStatsScaling

    @value
    def group_dim(module: Any) -> Any:
        return 1 if hasattr(module, "kernel_size") else -1

    @value
    def scaling_init(max_val: Any, min_val: Any) -> Any:
        return max(abs(float(min_val)), abs(float(max_val)))

    @value
    def min_val(signed: Any) -> Any:
        if signed:
            raise QuantConfigError(
                "min_val is required: a signed activation with a fixed or learned threshold needs its range, "
                "for example min_val = -1.0, max_val = 1.0"
            )
        return 0.0

    @value
    def scaling_stats_input_view_shape_impl(scaling_per_output_type: Any, scaling_stats_op: Any = None) -> Any:
        return OverOutputChannelView if over_channels(scaling_per_output_type, scaling_stats_op) else OverTensorView

    @value
    def scaling_shape(scaling_per_output_type: Any) -> Any:
        return this.per_channel_broadcastable_shape if is_channel(scaling_per_output_type) else ()

    @value
    def scaling_stats_permute_dims(scaling_per_output_type: Any, scaling_stats_op: Any = None) -> Any:
        if is_channel(scaling_per_output_type):
            return this.channel_first_dims
        if over_channels(scaling_per_output_type, scaling_stats_op):
            raise QuantConfigError(
                "scaling_stats_permute_dims is required: MAX_AVE of an activation runs over channels, and only you "
                "know which dim they are, for example scaling_stats_permute_dims = (1, 0, 2, 3)"
            )
        return None

    @value
    def channel_first_dims(per_channel_broadcastable_shape: Any) -> Any:
        return channel_first(per_channel_broadcastable_shape)
