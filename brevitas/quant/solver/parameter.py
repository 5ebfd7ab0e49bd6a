"""What weights and biases have in common: their statistics run over parameters that exist when the layer is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from brevitas.core.function_wrapper import OverOutputChannelView, OverTensorView, TensorClamp, TensorClampSte
from brevitas.core.groupwise import OverSubChannelBlockView
from brevitas.core.scaling import (
    ConstScaling,
    ParameterFromStatsFromParameterScaling,
    ParameterScaling,
    StatsFromParameterScaling,
)
from brevitas.errors import QuantConfigError
from brevitas.inject import this, value
from brevitas.inject.enum import BitWidthImplType, ScalingImplType
from brevitas.quant.registry import Choices
from brevitas.quant.solver.common import BaseQuantSolver, is_channel, is_group, over_channels

__all__ = ["ParameterQuantSolver", "common_channels", "layers_of"]

SCALING = Choices(
    "scaling_impl_type",
    ScalingImplType,
    {
        ScalingImplType.HE: ConstScaling,
        ScalingImplType.CONST: ConstScaling,
        ScalingImplType.STATS: StatsFromParameterScaling,
        ScalingImplType.AFFINE_STATS: StatsFromParameterScaling,
        ScalingImplType.PARAMETER: ParameterScaling,
        ScalingImplType.PARAMETER_FROM_STATS: ParameterFromStatsFromParameterScaling,
    },
    ("weight", "bias"),
)
_LEARNED_SCALING = (ScalingImplType.AFFINE_STATS, ScalingImplType.PARAMETER, ScalingImplType.PARAMETER_FROM_STATS)


def layers_of(module: Any) -> Sequence[Any]:
    """The layers of a quantizer: one, or a tuple where it is shared."""
    return module if isinstance(module, tuple) else (module,)


def common_channels(module: Any, count: Callable[[Any], int]) -> int:
    """Number of output channels by ``count``, the same in every layer that shares the quantizer."""
    counts = [count(layer) for layer in layers_of(module)]
    if len(set(counts)) > 1:
        raise QuantConfigError(
            f"layers with {' and '.join(str(c) for c in sorted(set(counts)))} output channels cannot share a "
            "per-channel scale; "
            "set scaling_per_output_channel=False, or give each its own quantizer"
        )
    return counts[0]


class ParameterQuantSolver(BaseQuantSolver):
    """Scaling and clamping of parameters."""

    @value
    def scaling_impl(scaling_impl_type: Any) -> Any:
        return SCALING.solve(scaling_impl_type)

    @value
    def scaling_init(scaling_impl_type: Any) -> Any:
        return this.he_threshold if scaling_impl_type == ScalingImplType.HE else this.scaling_const

    @value
    def he_threshold(module: Any) -> Any:
        layers = layers_of(module)
        return sum((2.0 / layer.weights_per_output) ** 0.5 for layer in layers) / len(layers)

    @value
    def tensor_clamp_impl(bit_width_impl_type: Any, scaling_impl_type: Any = None) -> Any:
        # Where nothing but the parameter is learned, its gradient passes the clamp, so that no weight is lost for good.
        # A bias whose scale comes from the layer declares no scaling of its own.
        learned_width = bit_width_impl_type == BitWidthImplType.PARAMETER
        learned_scale = any(learned == scaling_impl_type for learned in _LEARNED_SCALING)
        return TensorClamp if learned_width or learned_scale else TensorClampSte

    @value
    def scaling_stats_input_view_shape_impl(scaling_per_output_type: Any, scaling_stats_op: Any = None) -> Any:
        if is_group(scaling_per_output_type):
            return OverSubChannelBlockView
        return OverOutputChannelView if over_channels(scaling_per_output_type, scaling_stats_op) else OverTensorView

    @value
    def scaling_stats_input_concat_dim(scaling_per_output_type: Any) -> Any:
        return 1 if is_channel(scaling_per_output_type) else 0

    zero_point_stats_input_concat_dim: Any = this.scaling_stats_input_concat_dim
