"""Thresholds of their own: constant, learned, or learned from where statistics put them.

>>> import torch
>>> from brevitas.core.function_wrapper import OverTensorView
>>> from brevitas.core.stats import AbsMax
>>> scaling = ParameterFromRuntimeStatsScaling(2, AbsMax(), OverTensorView())
>>> [scaling(torch.tensor([t])).item() for t in (1.0, 3.0, 100.0)]      # two calls collect, the third is learned
[1.0, 3.0, 1.2000000476837158]
"""

from collections.abc import Sequence
from typing import Any, List, Optional, Tuple  # noqa: UP035 - TorchScript reads annotations of this kind

import torch
from torch import Tensor, nn

import brevitas.jit
from brevitas.core._checks import check_shape, check_thresholds
from brevitas.core.function_wrapper import OverBatchOverTensorView
from brevitas.core.restrict_val import RestrictedThreshold
from brevitas.core.stats import (
    DEFAULT_MOMENTUM,
    SCALAR_SHAPE,
    CollectThenLearn,
    FollowThenLearn,
    InputViewStats,
    ParameterListStats,
)
from brevitas.core.stats.running import check_momentum
from brevitas.core.utils import StatefulModule, StatelessBuffer, learned_parameter
from brevitas.errors import QuantConfigError

__all__ = [
    "ConstScaling",
    "ParameterFromRuntimeStatsScaling",
    "ParameterFromStatsFromParameterScaling",
    "ParameterScaling",
]


def _as_tensor(value: float | Tensor) -> Tensor:
    return value.to(torch.get_default_dtype()) if isinstance(value, Tensor) else torch.tensor(value)


class ConstScaling(brevitas.jit.ScriptModule):
    """A constant threshold, neither learned nor in the state dict.

    Args:
        scaling_init: number or tensor > 0.
        restrict_scaling_impl: domain of the threshold; ``None`` = any float.
        scaling_min_val: lower bound; ``None`` = 1e-10.
    """

    def __init__(
        self,
        scaling_init: float | Tensor,
        restrict_scaling_impl: nn.Module | None = None,
        scaling_min_val: float | None = None,
    ) -> None:
        super().__init__()
        init = _as_tensor(check_thresholds("ConstScaling", "scaling_init", scaling_init))
        self.threshold = RestrictedThreshold(restrict_scaling_impl, scaling_min_val)
        self.value = StatelessBuffer(self.threshold.learned(self.threshold.to_stored(init)))

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """The threshold, whatever ``x``."""
        value = self.value()
        return self.threshold.cast_back(value, value.dtype)


def adopt_runtime_stats(state_dict: dict[str, Any], prefix: str, threshold: RestrictedThreshold) -> None:
    """Let the running estimate of a ``RuntimeStatsScaling`` become the learned value of the module that replaces it.

    ``state_dict`` is changed: the estimate goes, ``value`` comes, in the domain in which it is learned.
    """
    estimate = state_dict.get(f"{prefix}runtime_stats.running_stats")
    if estimate is None or f"{prefix}value" in state_dict or f"{prefix}learned_value" in state_dict:
        return
    for name in ("running_stats", "counter", "initialised"):
        state_dict.pop(f"{prefix}runtime_stats.{name}", None)
    state_dict[f"{prefix}value"] = threshold.to_stored(threshold.bounded(estimate.abs()))


class ParameterScaling(StatefulModule):
    """A learned threshold; parameter ``value`` in the stored domain.

    Args:
        scaling_init: number or tensor > 0. A tensor has the scaling shape or one element.
        scaling_shape: shape of the threshold; ``None`` = that of ``scaling_init``.
        restrict_scaling_impl: domain of the threshold; ``None`` = any float.
        scaling_min_val: lower bound; ``None`` = 1e-10.
    """

    legacy_keys = {"learned_value": "value"}
    shape: List[int]  # noqa: UP006

    def __init__(
        self,
        scaling_init: float | Tensor,
        scaling_shape: tuple[int, ...] | None = None,
        restrict_scaling_impl: nn.Module | None = None,
        scaling_min_val: float | None = None,
    ) -> None:
        super().__init__()
        init = _as_tensor(check_thresholds("ParameterScaling", "scaling_init", scaling_init))
        shape = tuple(init.shape) if scaling_shape is None else scaling_shape
        shape = check_shape("ParameterScaling", "scaling_shape", shape)
        if init.numel() != 1 and tuple(init.shape) != shape:
            raise QuantConfigError(
                f"ParameterScaling: scaling_init has shape {tuple(init.shape)}. "
                f"Expected one value, or scaling_shape={shape}."
            )
        self.shape = list(shape)
        self.threshold = RestrictedThreshold(restrict_scaling_impl, scaling_min_val)
        init = init.expand(shape) if init.ndim <= len(shape) else init.reshape(()).expand(shape)
        self.value = learned_parameter(self.threshold.to_stored(init.clone()))

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """The threshold, whatever ``x``."""
        return self.threshold.learned(self.value.view(self.shape))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        adopt_runtime_stats(state_dict, prefix, self.threshold)
        super()._load_from_state_dict(state_dict, prefix, *args)


class ParameterFromRuntimeStatsScaling(CollectThenLearn):
    """The statistic of each batch for ``collect_stats_steps`` training calls, then learned from their average.

    Eval before the first training call uses the threshold 1; eval while collecting the running estimate.

    Args:
        collect_stats_steps: training calls that collect, >= 1.
        scaling_stats_impl: statistic of a viewed tensor.
        scaling_stats_input_view_shape_impl: view before the statistic.
        scaling_shape: shape of the threshold.
        restrict_scaling_impl: domain of the threshold, in every phase; ``None`` = any float.
        scaling_stats_permute_dims: permutation before the view, such as channels first.
        scaling_stats_momentum: weight of the newest batch; ``None`` for the true average.
        scaling_min_val: lower bound of the threshold; ``None`` = 1e-10.
    """

    legacy_keys = {"learned_value": "value"}

    def __init__(
        self,
        collect_stats_steps: int,
        scaling_stats_impl: nn.Module,
        scaling_stats_input_view_shape_impl: nn.Module | None = None,
        scaling_shape: tuple[int, ...] = SCALAR_SHAPE,
        restrict_scaling_impl: nn.Module | None = None,
        scaling_stats_permute_dims: Optional[Tuple[int, ...]] = None,  # noqa: UP006, UP045
        scaling_stats_momentum: float | None = DEFAULT_MOMENTUM,
        scaling_min_val: float | None = None,
    ) -> None:
        owner = "ParameterFromRuntimeStatsScaling"
        momentum = check_momentum(owner, "scaling_stats_momentum", scaling_stats_momentum)
        shape = check_shape(owner, "scaling_shape", scaling_shape)
        super().__init__(shape, collect_stats_steps, momentum, start=1.0)
        view = scaling_stats_input_view_shape_impl
        view = OverBatchOverTensorView() if view is None else view
        self.runtime_stats = InputViewStats(view, scaling_stats_impl, shape, scaling_stats_permute_dims)
        self.threshold = RestrictedThreshold(restrict_scaling_impl, scaling_min_val)
        self._init_value()

    @brevitas.jit.script_method
    def statistic(self, x: Tensor, counts: Optional[Tensor]) -> Tensor:  # noqa: UP045
        """Bounded statistic of ``x``, linear; NaN, which is not averaged, where ``x`` has a NaN."""
        stat = self.runtime_stats(x, counts)
        return torch.where(torch.isnan(stat), stat, self.threshold.bounded(stat))

    @brevitas.jit.script_method
    def to_stored(self, stat: Tensor) -> Tensor:
        """Stored domain."""
        # Bounded again: a float16 estimate may have rounded to 0.
        return self.threshold.to_stored(self.threshold.bounded(stat))

    @brevitas.jit.script_method
    def learned(self, stored: Tensor) -> Tensor:
        """Threshold of a stored value."""
        return self.threshold.learned(stored)

    @brevitas.jit.script_method
    def from_statistic(self, stat: Tensor) -> Tensor:
        """Threshold of a statistic."""
        bounded = self.threshold.bounded(stat)
        return self.threshold.cast_back(self.threshold.from_bounded(bounded), self.value.dtype)

    def init_scale(self) -> None:
        """End collection now; without effect before the first training call."""
        self.finish_collecting()

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Threshold in this phase."""
        return self.quantity(x)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        adopt_runtime_stats(state_dict, prefix, self.threshold)
        super()._load_from_state_dict(state_dict, prefix, *args)


class ParameterFromStatsFromParameterScaling(FollowThenLearn):
    """A learned threshold that starts as the statistic of the parameter that it scales.

    Until the first training call it follows the parameter; that call stores the statistic in ``value``.

    Args:
        scaling_stats_impl: statistic of a viewed tensor.
        scaling_stats_input_view_shape_impl: view before the statistic.
        scaling_stats_input_concat_dim: dimension along which the views of several parameters are joined.
        tracked_parameter_list: parameters that share the scale. With one, the statistic is that of the input.
        restrict_scaling_impl: domain of the threshold; ``None`` = any float.
        scaling_shape: shape of the threshold.
        scaling_min_val: lower bound of the threshold; ``None`` = 1e-10.
    """

    def __init__(
        self,
        scaling_stats_impl: nn.Module,
        scaling_stats_input_view_shape_impl: nn.Module,
        scaling_stats_input_concat_dim: int,
        tracked_parameter_list: Sequence[Tensor] | None,
        restrict_scaling_impl: nn.Module | None = None,
        scaling_shape: tuple[int, ...] = SCALAR_SHAPE,
        scaling_min_val: float | None = None,
    ) -> None:
        shape = check_shape("ParameterFromStatsFromParameterScaling", "scaling_shape", scaling_shape)
        stats = ParameterListStats(
            scaling_stats_input_view_shape_impl,
            scaling_stats_input_concat_dim,
            tracked_parameter_list,
            scaling_stats_impl,
            shape,
        )
        super().__init__(shape, stats)
        self.threshold = RestrictedThreshold(restrict_scaling_impl, scaling_min_val)
        self._init_value()

    @brevitas.jit.script_method
    def to_stored(self, stat: Tensor) -> Tensor:
        """Stored domain."""
        return self.threshold.to_stored(self.threshold.bounded(stat))

    @brevitas.jit.script_method
    def learned(self, stored: Tensor) -> Tensor:
        """Threshold of a stored value."""
        return self.threshold.learned(stored)

    def init_scale(self) -> None:
        """Learn from now on, starting from the tracked parameters."""
        self.finish_following()

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Threshold for the parameter ``x``."""
        return self.quantity(x)
