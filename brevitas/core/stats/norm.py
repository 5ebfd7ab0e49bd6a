"""Norms and steps of weight-normalised quantizers.

>>> import torch
>>> x = torch.tensor([[3.0, -4.0], [1.0, 1.0]])
>>> L1Norm(1)(x).tolist(), ZeroCenterL1Norm(1)(x).tolist()
([7.0, 2.0], [7.0, 0.0])

Norms are float64 whatever the input: a bound on the sum of codes is only as good as the norm that codes are divided by.
"""

import torch
from torch import Tensor, nn

import brevitas.jit
from brevitas.core._checks import check_int, check_module
from brevitas.core.utils import StatelessBuffer, at_least_float32, largest_value

__all__ = ["AbsMaxStep", "L1Norm", "L2Norm", "ZeroCenterL1Norm"]


class _Norm(brevitas.jit.ScriptModule):
    def __init__(self, stats_reduce_dim: int = 1) -> None:
        super().__init__()
        self.stats_reduce_dim = check_int(type(self).__name__, "stats_reduce_dim", stats_reduce_dim, 0)


class L1Norm(_Norm):
    """Sum of the absolute values along a dimension, in float64."""

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``sum abs x``."""
        return torch.sum(torch.abs(x.to(torch.float64)), dim=self.stats_reduce_dim)


class L2Norm(_Norm):
    """Euclidean norm along a dimension, in float64. Its gradient at 0 is 0."""

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``sqrt(sum x^2)``."""
        return torch.norm(x.to(torch.float64), p=2, dim=self.stats_reduce_dim)


class ZeroCenterL1Norm(_Norm):
    """:class:`L1Norm` of ``x - mean(x)``."""

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``sum abs(x - mean x)``."""
        wide = x.to(torch.float64)
        centered = wide - torch.mean(wide, dim=self.stats_reduce_dim, keepdim=True)
        return torch.sum(torch.abs(centered), dim=self.stats_reduce_dim)


class AbsMaxStep(brevitas.jit.ScriptModule):
    """Step of a symmetric grid that just holds all values, ``max abs x / (2^(b-1) - 1)``.

    Args:
        bit_width_impl: its value at construction is b, >= 2; no reference is kept.
        stats_reduce_dim: dimension to reduce.
    """

    def __init__(self, bit_width_impl: nn.Module, stats_reduce_dim: int = 1) -> None:
        super().__init__()
        owner = "AbsMaxStep"
        width = float(check_module(owner, "bit_width_impl", bit_width_impl)())
        check_int(owner, "bit_width", int(width), 2, 32)
        self.largest_code = StatelessBuffer(torch.tensor(2.0 ** (width - 1.0) - 1.0))
        self.stats_reduce_dim = check_int(owner, "stats_reduce_dim", stats_reduce_dim, 0)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Step, in at least float32."""
        largest = torch.max(torch.abs(at_least_float32(x)), dim=self.stats_reduce_dim)[0]
        code = at_least_float32(self.largest_code())
        # So that, with the step rounded up to a power of two, the largest code is still finite in the dtype of x.
        return torch.minimum(largest / code, largest_value(x.dtype, True) / (code + 1.0))
