"""Scales to quantize with that normalise the weight, so that a learned number is its norm.

    >>> import torch
    >>> from brevitas.core.function_wrapper import OverOutputChannelView
    >>> weight = torch.nn.Parameter(torch.tensor([[3.0, -4.0]]))
    >>> pre_scaling = AccumulatorAwareParameterPreScaling(OverOutputChannelView(), 1, [weight], (1, 1), 8)
    >>> step, input_bit_width = torch.tensor([[0.1]]), torch.tensor(4.0)
    >>> code = (weight / pre_scaling(weight, step, input_bit_width, False)).trunc()
    >>> code.abs().sum() * (2**4 - 1) <= 2**7 - 1              # no accumulator of 8 bits overflows
    tensor(True)

Per output channel, with the norm ``g`` learned in log2 (parameter ``value``) and the step ``s`` of the grid given,
the weight divided by the pre-scale is ``w * min(g / s, bound) / norm(w)``. Until the first training call ``g`` is the
norm of the weight. Everything is computed in float64, which keeps the bound exact for accumulators of up to 32 bits,
and the pre-scale is returned in it.

Sources: Salimans and Kingma, "Weight normalization", 2016; Colbert, Pappalardo, Petri-Koenig, "A2Q: Accumulator-aware
quantization with guaranteed overflow avoidance", 2023, and "A2Q+: Improving accumulator-aware weight quantization",
2024.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import brevitas.jit
from brevitas.core._checks import check_int, check_shape
from brevitas.core.restrict_val import LogFloatRestrictValue, RestrictedThreshold
from brevitas.core.stats import FollowThenLearn, ParameterListStats
from brevitas.core.stats.norm import L1Norm, L2Norm, ZeroCenterL1Norm
from brevitas.errors import QuantConfigError
from brevitas.function.ops import divide
from brevitas.function.ops_ste import scalar_clamp_min_ste

__all__ = [
    "AccumulatorAwareParameterPreScaling",
    "AccumulatorAwareZeroCenterParameterPreScaling",
    "ParameterPreScalingWeightNorm",
]


class _NormPreScaling(FollowThenLearn):
    """State ``value`` (log2 of the norm) and ``initialised``; the norm itself is that of the weight."""

    norm_class: type[nn.Module] = L1Norm

    def __init__(
        self,
        view: nn.Module,
        concat_dim: int,
        tracked_parameter_list: Sequence[Tensor] | None,
        shape: tuple[int, ...],
        reduce_dim: int,
        min_val: float | None,
    ) -> None:
        shape = check_shape(type(self).__name__, "scaling_shape", shape)
        norm = self.norm_class(reduce_dim)
        super().__init__(shape, ParameterListStats(view, concat_dim, tracked_parameter_list, norm, shape))
        self.threshold = RestrictedThreshold(LogFloatRestrictValue(), min_val)
        self._init_value()

    @brevitas.jit.script_method
    def to_stored(self, stat: Tensor) -> Tensor:
        """log2."""
        return torch.log2(self.threshold.bounded(stat))

    @brevitas.jit.script_method
    def learned(self, stored: Tensor) -> Tensor:
        """Norm of a stored value, in float64."""
        return self.threshold.from_stored(stored.to(torch.float64))

    @brevitas.jit.script_method
    def norm(self, x: Tensor) -> Tensor:
        """Norm of the weight, bounded, in float64."""
        return scalar_clamp_min_ste(self.parameter_list_stats(x), self.threshold.min_val)

    @brevitas.jit.script_method
    def norm_in_steps(self, x: Tensor, scale: Tensor) -> Tensor:
        """``g / s`` in float64."""
        return divide(self.quantity(x), scale.to(torch.float64))

    def init_scale(self) -> None:
        """Learn from now on, starting from the tracked parameters."""
        self.finish_following()


class ParameterPreScalingWeightNorm(_NormPreScaling):
    """``norm2(w) * s / g``: the weight is normalised in the Euclidean norm, no bound.

    Args:
        scaling_stats_input_view_shape_impl: view with a row per output channel.
        scaling_stats_input_concat_dim: dimension along which the views of several parameters are joined.
        tracked_parameter_list: parameters that share the norm.
        scaling_shape: shape of the pre-scale.
        stats_reduce_dim: dimension of the view that is not the channel.
        pre_scaling_min_val: lower bound of the norm; ``None`` = 1e-10.
    """

    norm_class = L2Norm

    def __init__(
        self,
        scaling_stats_input_view_shape_impl: nn.Module,
        scaling_stats_input_concat_dim: int,
        tracked_parameter_list: Sequence[Tensor] | None,
        scaling_shape: tuple[int, ...],
        stats_reduce_dim: int = 1,
        pre_scaling_min_val: float | None = None,
    ) -> None:
        super().__init__(
            scaling_stats_input_view_shape_impl,
            scaling_stats_input_concat_dim,
            tracked_parameter_list,
            scaling_shape,
            stats_reduce_dim,
            pre_scaling_min_val,
        )

    @brevitas.jit.script_method
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """Pre-scale of the weight ``x`` for the step ``scale``, in float64."""
        return divide(self.norm(x), self.norm_in_steps(x, scale))


class AccumulatorAwareParameterPreScaling(_NormPreScaling):
    """``norm1(w) / min(g / s, bound)``, bound ``(2^(P-1) - 1) * 2^(sigma - N)``.

    N is the bit width of the input, sigma is 1 if it is signed, else 0. Rounded toward zero, the codes of a channel
    have an L1 norm of at most the bound, so that no sum of products exceeds P bits.

    Args:
        scaling_stats_input_view_shape_impl: view with a row per output channel.
        scaling_stats_input_concat_dim: dimension along which the views of several parameters are joined.
        tracked_parameter_list: parameters that share the norm.
        scaling_shape: shape of the pre-scale.
        accumulator_bit_width: P, from 2 to 32.
        stats_reduce_dim: dimension of the view that is not the channel.
        pre_scaling_min_val: lower bound of the norm; ``None`` = 1e-10.
    """

    def __init__(
        self,
        scaling_stats_input_view_shape_impl: nn.Module,
        scaling_stats_input_concat_dim: int,
        tracked_parameter_list: Sequence[Tensor] | None,
        scaling_shape: tuple[int, ...],
        accumulator_bit_width: int = 32,
        stats_reduce_dim: int = 1,
        pre_scaling_min_val: float | None = None,
    ) -> None:
        width = check_int(type(self).__name__, "accumulator_bit_width", accumulator_bit_width, 2, 32)
        super().__init__(
            scaling_stats_input_view_shape_impl,
            scaling_stats_input_concat_dim,
            tracked_parameter_list,
            scaling_shape,
            stats_reduce_dim,
            pre_scaling_min_val,
        )
        self.accumulator_bit_width = width

    @brevitas.jit.script_method
    def bound(self, input_bit_width: Tensor, input_is_signed: bool) -> Tensor:
        """Largest L1 norm of the codes of a channel, in float64."""
        sigma = 1.0 if input_is_signed else 0.0
        return (2.0 ** (self.accumulator_bit_width - 1) - 1.0) * torch.exp2(sigma - input_bit_width.to(torch.float64))

    @brevitas.jit.script_method
    def forward(self, x: Tensor, scale: Tensor, input_bit_width: Tensor, input_is_signed: bool) -> Tensor:
        """Pre-scale of the weight ``x`` for the step ``scale``, in float64."""
        ratio = self.norm_in_steps(x, scale)
        bound = self.bound(input_bit_width, input_is_signed)
        return divide(self.norm(x), torch.where(ratio > bound, bound, ratio))


class AccumulatorAwareZeroCenterParameterPreScaling(AccumulatorAwareParameterPreScaling):
    """As :class:`AccumulatorAwareParameterPreScaling` for weights of mean 0, bound ``(2^P - 2) / (2^N - 1)``.

    The positive and the negative codes of a channel each sum to at most half the bound. The weight is centered by
    ``PreZeroCenterZeroPoint``; norms are those of ``w - mean(w)``. Cannot be shared: a mean belongs to one weight.
    """

    norm_class = ZeroCenterL1Norm

    def set_tracked_parameters(self, parameters: Sequence[Tensor]) -> None:
        """Track this one parameter from now on."""
        _refuse_sharing(parameters)
        super().set_tracked_parameters(parameters)

    def __init__(
        self,
        scaling_stats_input_view_shape_impl: nn.Module,
        scaling_stats_input_concat_dim: int,
        tracked_parameter_list: Sequence[Tensor] | None,
        scaling_shape: tuple[int, ...],
        accumulator_bit_width: int = 32,
        stats_reduce_dim: int = 1,
        pre_scaling_min_val: float | None = None,
    ) -> None:
        _refuse_sharing(tracked_parameter_list or ())
        super().__init__(
            scaling_stats_input_view_shape_impl,
            scaling_stats_input_concat_dim,
            tracked_parameter_list,
            scaling_shape,
            accumulator_bit_width,
            stats_reduce_dim,
            pre_scaling_min_val,
        )

    @brevitas.jit.script_method
    def bound(self, input_bit_width: Tensor, input_is_signed: bool) -> Tensor:
        """Largest L1 norm of the codes of a channel, in float64."""
        largest = 2.0**self.accumulator_bit_width - 2.0
        levels = torch.exp2(input_bit_width.to(torch.float64)) - 1.0
        return divide(torch.full_like(levels, largest), levels)


def _refuse_sharing(parameters: Sequence[Tensor]) -> None:
    if len(parameters) > 1:
        raise QuantConfigError(
            f"AccumulatorAwareZeroCenterParameterPreScaling: {len(parameters)} layers share this quantizer, and the "
            "mean that centers codes belongs to one weight. Give each layer a quantizer of its own."
        )
