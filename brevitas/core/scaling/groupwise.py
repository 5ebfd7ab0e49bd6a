"""Scaling of groups: thresholds computed anew at each call, and the integer threshold of microscaling formats.

>>> import torch
>>> from brevitas.core.stats import AbsMax
>>> RuntimeDynamicGroupStatsScaling(2, -1, AbsMax(1))(torch.tensor([[1.0, -2.0, 3.0]]))
tensor([[2., 3.]])
>>> MXIntScaling(signed=True)(torch.tensor(8.0))
tensor(64.)
"""

import torch
from torch import Tensor, nn

import brevitas.jit
from brevitas.core._checks import check_bool, check_module
from brevitas.core.groupwise import DynamicOverSubChannelBlockView, group_shape
from brevitas.core.restrict_val import RestrictedThreshold
from brevitas.core.utils import at_least_float32

__all__ = ["MXIntScaling", "RuntimeDynamicGroupStatsScaling"]


class RuntimeDynamicGroupStatsScaling(brevitas.jit.ScriptModule):
    """Threshold of each group of the input, from its statistic, at every call alike; no state.

    Args:
        group_size: elements of a group.
        group_dim: dimension that is cut into groups; may be negative.
        scaling_stats_impl: statistic along dimension 1, such as ``AbsMax(1)``.
        restrict_scaling_impl: domain of the threshold; ``None`` = any float.
        scaling_min_val: lower bound of the threshold; ``None`` = 1e-10.
    """

    def __init__(
        self,
        group_size: int,
        group_dim: int,
        scaling_stats_impl: nn.Module,
        restrict_scaling_impl: nn.Module | None = None,
        scaling_min_val: float | None = None,
    ) -> None:
        super().__init__()
        self.stats_input_view_shape_impl = DynamicOverSubChannelBlockView(group_size, group_dim)
        self.group_size = group_size
        self.group_dim = group_dim
        self.stats_impl = check_module("RuntimeDynamicGroupStatsScaling", "scaling_stats_impl", scaling_stats_impl)
        self.threshold = RestrictedThreshold(restrict_scaling_impl, scaling_min_val)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Thresholds of the shape of ``x``, with the number of groups at ``group_dim``."""
        stat = self.stats_impl(self.stats_input_view_shape_impl(x))
        return self.threshold(stat.view(group_shape(list(x.shape), self.group_size, self.group_dim)))


class MXIntScaling(brevitas.jit.ScriptModule):
    """Code of a power-of-two threshold ``2^floor(log2 amax)``: ``2^(b-2)`` signed, ``2^(b-1)`` unsigned.

    The code range then reaches to just below twice the threshold, above the largest value.
    """

    def __init__(self, signed: bool) -> None:
        super().__init__()
        self.signed = check_bool("MXIntScaling", "signed", signed)

    @brevitas.jit.script_method
    def forward(self, bit_width: Tensor) -> Tensor:
        """Integer threshold of ``bit_width``."""
        bits = at_least_float32(bit_width)
        return torch.exp2(bits - 2.0) if self.signed else torch.exp2(bits - 1.0)
