"""Thresholds that follow statistics: of parameters at every call, or of inputs through a running estimate.

>>> import torch
>>> from brevitas.core.function_wrapper import OverTensorView
>>> from brevitas.core.restrict_val import FloatRestrictValue
>>> from brevitas.core.stats import AbsMax
>>> weight = torch.nn.Parameter(torch.tensor([0.5, -1.27]))
>>> scaling = StatsFromParameterScaling(AbsMax(), OverTensorView(), 0, [weight], FloatRestrictValue(), ())
>>> scaling(weight)
tensor(1.2700, grad_fn=<...>)
"""

from collections.abc import Sequence
from typing import List, Optional, Tuple  # noqa: UP035 - TorchScript reads annotations of this kind

import torch
from torch import Tensor, nn

import brevitas.jit
from brevitas.core._checks import check_bool, check_shape
from brevitas.core.function_wrapper import Identity
from brevitas.core.restrict_val import RestrictedThreshold
from brevitas.core.stats import DEFAULT_MOMENTUM, ParameterListStats, RuntimeStats
from brevitas.core.utils import StatefulModule, learned_parameter
from brevitas.function.ops_ste import abs_binary_sign_grad

__all__ = ["AffineRescaling", "RuntimeStatsScaling", "StatsFromParameterScaling", "StatsScaling"]


class AffineRescaling(StatefulModule):
    """A learned ``affine_weight * u + affine_bias`` of a stored threshold ``u``."""

    shape: List[int]  # noqa: UP006

    def __init__(self, affine_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = list(affine_shape)
        self.affine_weight = learned_parameter(torch.ones(affine_shape))
        self.affine_bias = learned_parameter(torch.zeros(affine_shape))

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Rescaled ``x``."""
        return self.affine_weight.view(self.shape) * x + self.affine_bias.view(self.shape)


class StatsScaling(brevitas.jit.ScriptModule):
    """From a statistic to a threshold: bounded, stored, rescaled if affine, restricted, bounded again."""

    def __init__(
        self,
        restrict_scaling_impl: nn.Module | None,
        scaling_shape: tuple[int, ...],
        affine_rescaling: bool = False,
        scaling_min_val: float | None = None,
    ) -> None:
        super().__init__()
        shape = check_shape("StatsScaling", "scaling_shape", scaling_shape)
        self.is_affine = check_bool("StatsScaling", "affine_rescaling", affine_rescaling)
        self.affine_rescaling = AffineRescaling(shape) if affine_rescaling else Identity()
        self.threshold = RestrictedThreshold(restrict_scaling_impl, scaling_min_val)

    @brevitas.jit.script_method
    def forward(self, stats: Tensor) -> Tensor:
        """Threshold in the dtype of ``stats``."""
        if not self.is_affine:
            return self.threshold(stats)
        stored = self.affine_rescaling(self.threshold.to_stored(self.threshold.bounded(stats)))
        # A logarithm is negative for good reasons; a linear threshold is not.
        if self.threshold.is_linear:
            stored = abs_binary_sign_grad(stored)
        return self.threshold.cast_back(self.threshold.from_stored(stored), stats.dtype)


class StatsFromParameterScaling(brevitas.jit.ScriptModule):
    """Threshold from a statistic of the parameters, at every call and differentiable through them.

    Args:
        scaling_stats_impl: statistic of a viewed tensor.
        scaling_stats_input_view_shape_impl: view before the statistic.
        scaling_stats_input_concat_dim: dimension along which the views of several parameters are joined.
        tracked_parameter_list: parameters that share the scale. With one, the statistic is that of the input.
        restrict_scaling_impl: domain of the threshold.
        scaling_shape: shape of the threshold.
        affine_rescaling: learn a weight and a bias on the stored statistic.
        scaling_min_val: lower bound of the threshold; ``None`` = 1e-10.
    """

    def __init__(
        self,
        scaling_stats_impl: nn.Module,
        scaling_stats_input_view_shape_impl: nn.Module,
        scaling_stats_input_concat_dim: int,
        tracked_parameter_list: Sequence[Tensor] | None,
        restrict_scaling_impl: nn.Module | None,
        scaling_shape: tuple[int, ...],
        affine_rescaling: bool = False,
        scaling_min_val: float | None = None,
    ) -> None:
        super().__init__()
        self.parameter_list_stats = ParameterListStats(
            scaling_stats_input_view_shape_impl,
            scaling_stats_input_concat_dim,
            tracked_parameter_list,
            scaling_stats_impl,
            scaling_shape,
        )
        self.stats_scaling_impl = StatsScaling(restrict_scaling_impl, scaling_shape, affine_rescaling, scaling_min_val)

    def set_tracked_parameters(self, parameters: Sequence[Tensor]) -> None:
        """Track these parameters from now on."""
        self.parameter_list_stats.set_tracked_parameters(parameters)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Threshold for the parameter ``x``."""
        return self.stats_scaling_impl(self.parameter_list_stats(x))


class RuntimeStatsScaling(brevitas.jit.ScriptModule):
    """Threshold from the statistic of each batch in training, from a running estimate of it in eval.

    Args:
        scaling_stats_impl: statistic of a viewed tensor.
        scaling_stats_input_view_shape_impl: view before the statistic.
        restrict_scaling_impl: domain of the threshold.
        scaling_shape: shape of the threshold.
        affine_rescaling: learn a weight and a bias on the stored statistic.
        scaling_stats_permute_dims: permutation before the view, such as channels first.
        scaling_stats_momentum: weight of the newest batch; ``None`` for the true average.
        scaling_min_val: lower bound of the threshold; ``None`` = 1e-10.
    """

    def __init__(
        self,
        scaling_stats_impl: nn.Module,
        scaling_stats_input_view_shape_impl: nn.Module,
        restrict_scaling_impl: nn.Module | None,
        scaling_shape: tuple[int, ...],
        affine_rescaling: bool,
        scaling_stats_permute_dims: Optional[Tuple[int, ...]] = None,  # noqa: UP006, UP045
        scaling_stats_momentum: float | None = DEFAULT_MOMENTUM,
        scaling_min_val: float | None = None,
    ) -> None:
        super().__init__()
        self.runtime_stats = RuntimeStats(
            scaling_stats_impl,
            scaling_shape,
            scaling_stats_input_view_shape_impl,
            scaling_stats_permute_dims,
            scaling_stats_momentum,
        )
        self.stats_scaling_impl = StatsScaling(restrict_scaling_impl, scaling_shape, affine_rescaling, scaling_min_val)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Threshold for the batch ``x``."""
        return self.stats_scaling_impl(self.runtime_stats(x))
