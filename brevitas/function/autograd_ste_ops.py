"""The straight-through functions as ``torch.autograd.Function`` classes.

    >>> import torch
    >>> x = torch.tensor([0.4, 1.6], requires_grad=True)
    >>> RoundSteFn.apply(x).sum().backward()
    >>> x.grad
    tensor([1., 1.])

A straight-through function passes the gradient of its output to its first input unchanged. Writing it as
``x + (f(x) - x).detach()`` would not reproduce ``f(x)`` bit for bit, hence the classes.
"""

# ruff: noqa: D102 - forward and backward are what their class says

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

__all__ = [
    "AbsBinarySignGradFn",
    "BinarySignSteFn",
    "CeilSteFn",
    "DivideFn",
    "FloorSteFn",
    "InplaceTensorClampSteFn",
    "RoundSteFn",
    "RoundToZeroSteFn",
    "ScalarClampMinSteFn",
    "ScalarClampSteFn",
    "TensorClampFn",
    "TensorClampSteFn",
    "TernarySignSteFn",
]


def clamp_by_tensors(x: Tensor, min_val: Tensor, max_val: Tensor) -> Tensor:
    """Value of ``tensor_clamp``, in the dtype of ``x``."""
    return torch.maximum(torch.minimum(x, max_val.to(x.dtype)), min_val.to(x.dtype))


def binary_sign_value(x: Tensor) -> Tensor:
    """Value of ``binary_sign``."""
    return torch.where(torch.isnan(x), float("nan"), torch.sign(torch.sign(x) + 0.5))


class _SteFn(Function):
    """Straight through to the first of any number of inputs."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, *[None] * (len(ctx.needs_input_grad) - 1)


class RoundSteFn(_SteFn):
    """Round half to even."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)


class CeilSteFn(_SteFn):
    """Round up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.ceil(x)


class FloorSteFn(_SteFn):
    """Round down."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.floor(x)


class RoundToZeroSteFn(_SteFn):
    """Round toward zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.trunc(x)


class BinarySignSteFn(_SteFn):
    """+1 where x >= 0, else -1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return binary_sign_value(x)


class TernarySignSteFn(_SteFn):
    """Sign, 0 at 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.sign(x)


class ScalarClampSteFn(_SteFn):
    """Clamp between two numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, min_val: float, max_val: float) -> Tensor:
        return torch.clamp(x, min_val, max_val)


def known_clamp(x: Tensor, min_val: float, max_val: float) -> Tensor:
    """Clamp between two numbers; NaN becomes the lower one."""
    return torch.nan_to_num(x, nan=min_val).clamp_(min_val, max_val)


class KnownClampSteFn(_SteFn):
    """Clamp between two numbers; NaN becomes the lower one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, min_val: float, max_val: float) -> Tensor:
        return known_clamp(x, min_val, max_val)


class ScalarClampMinSteFn(_SteFn):
    """Clamp from below by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, min_val: float) -> Tensor:
        return torch.clamp_min(x, min_val)


class TensorClampSteFn(Function):
    """Clamp between two tensors; no gradient to the bounds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, min_val: Tensor, max_val: Tensor) -> Tensor:
        ctx.shape = x.shape
        return clamp_by_tensors(x, min_val, max_val)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.sum_to_size(ctx.shape), None, None


class InplaceTensorClampSteFn(Function):
    """Clamp between two tensors, in place; no gradient to the bounds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, min_val: Tensor, max_val: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.copy_(clamp_by_tensors(x, min_val, max_val))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None, None


class TensorClampFn(Function):
    """Clamp between two tensors, with the gradient of a clamp to all three.

    torch.clamp drops the gradient to equal bounds, and torch.minimum halves it at ties; this one does neither.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, min_val: Tensor, max_val: Tensor) -> Tensor:
        ctx.save_for_backward(x, min_val, max_val)
        return clamp_by_tensors(x, min_val, max_val)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, min_val, max_val = ctx.saved_tensors
        need_x, need_min, need_max = ctx.needs_input_grad
        below, above = x < min_val.to(x.dtype), x > max_val.to(x.dtype)
        grad_x = grad_min = grad_max = None
        if need_x:
            grad_x = torch.where(below | above, 0.0, grad).sum_to_size(x.shape)
        if need_min:
            grad_min = torch.where(below, grad, 0.0).sum_to_size(min_val.shape).to(min_val.dtype)
        if need_max:
            grad_max = torch.where(above, grad, 0.0).sum_to_size(max_val.shape).to(max_val.dtype)
        return grad_x, grad_min, grad_max


class AbsBinarySignGradFn(Function):
    """Absolute value whose gradient at 0 is +1, so that a learned magnitude can leave 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.abs(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grad * binary_sign_value(x)


class DivideFn(Function):
    """Division with the gradients that eager autograd computes, bit for bit.

    TorchScript differentiates a division of its own by an algebraically equal formula that rounds differently.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return x / y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, y = ctx.saved_tensors
        need_x, need_y = ctx.needs_input_grad
        grad_x = (grad / y).sum_to_size(x.shape).to(x.dtype) if need_x else None
        grad_y = (-grad * ((x / y) / y)).sum_to_size(y.shape).to(y.dtype) if need_y else None
        return grad_x, grad_y
