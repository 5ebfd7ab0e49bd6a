"""Roundings beyond the four of :mod:`brevitas.function.ops_ste`.

>>> import torch
>>> dpu_round(torch.tensor([-2.5, -1.5, -0.7, 0.5, 1.5, 2.5]))
tensor([-2., -1., -1.,  0.,  2.,  2.])

``dpu_round`` is the rounding of the integer units of some accelerators: half to even where ``x >= 0``, ties of negative
numbers up. Stochastic rounding: Gupta et al., "Deep learning with limited numerical precision", 2015.
"""

# ruff: noqa: D102 - forward and backward are what their class says

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from brevitas.function._library import register

__all__ = [
    "DPURoundSteFn",
    "SigmoidFn",
    "StochasticRoundSteFn",
    "dpu_round",
    "dpu_round_ste",
    "sigmoid",
    "stochastic_round_ste",
]


def dpu_round(x: Tensor) -> Tensor:
    """Half to even for ``x >= 0``; ties of negative ``x`` toward +infinity. Gradient: 0."""
    negative_tie = torch.logical_and(x < 0, x - torch.floor(x) == 0.5)
    return torch.where(negative_tie, torch.ceil(x), torch.round(x))


def _stochastic_round(x: Tensor, uniform: Tensor) -> Tensor:
    low = torch.floor(x)
    return low + (uniform < x - low).to(x.dtype)


class DPURoundSteFn(Function):
    """:func:`dpu_round`, straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return dpu_round(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad


class StochasticRoundSteFn(Function):
    """Up where a uniform number is below the fraction, straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, uniform: Tensor) -> Tensor:
        return _stochastic_round(x, uniform)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None


class SigmoidFn(Function):
    """The logistic function with the gradients that eager autograd computes, bit for bit.

    TorchScript differentiates a sigmoid of its own by an algebraically equal formula that rounds differently.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.sigmoid(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.sigmoid_backward(grad, y)


_dpu_round_ste = register("dpu_round_ste(Tensor x) -> Tensor", DPURoundSteFn, dpu_round)
_stochastic_round_ste = register(
    "stochastic_round_ste(Tensor x, Tensor uniform) -> Tensor", StochasticRoundSteFn, _stochastic_round
)
# Called from TorchScript only.
register("sigmoid(Tensor x) -> Tensor", SigmoidFn, torch.sigmoid)


def sigmoid(x: Tensor) -> Tensor:
    """Logistic function, with equal gradients in eager mode and TorchScript."""
    if torch.jit.is_scripting():
        return torch.ops.brevitas.sigmoid(x)
    return torch.sigmoid(x)


def dpu_round_ste(x: Tensor) -> Tensor:
    """:func:`dpu_round` whose gradient goes to ``x`` unchanged."""
    if torch.jit.is_scripting():
        return torch.ops.brevitas.dpu_round_ste(x)
    return _dpu_round_ste(x)


def stochastic_round_ste(x: Tensor, uniform: Tensor) -> Tensor:
    """``floor(x)``, plus one where ``uniform < x - floor(x)``; the gradient goes to ``x`` unchanged.

    Args:
        x: float tensor.
        uniform: numbers in [0, 1), of the shape of ``x``. Independent and uniform ones make ``x`` the expected value.
    """
    if torch.jit.is_scripting():
        return torch.ops.brevitas.stochastic_round_ste(x, uniform)
    return _stochastic_round_ste(x, uniform)
