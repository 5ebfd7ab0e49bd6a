"""Straight-through functions.

    >>> import torch
    >>> x = torch.tensor([0.5, 1.5], requires_grad=True)
    >>> y = round_ste(x)
    >>> y
    tensor([0., 2.], grad_fn=<RoundSteFnBackward>)

Forward: bit for bit the plain function. Backward: the gradient of the output goes to ``x`` unchanged, and none goes to
bounds. Each is a registered operator ``torch.ops.brevitas.<name>``, so it works in eager mode, TorchScript,
``torch.compile``, ``torch.export`` and under autocast. Source: Bengio, Léonard, Courville, "Estimating or propagating
gradients through stochastic neurons for conditional computation", 2013.
"""

import torch
from torch import Tensor

from brevitas.function import autograd_ste_ops as fns
from brevitas.function._library import register

__all__ = [
    "abs_binary_sign_grad",
    "binary_sign_ste",
    "ceil_ste",
    "floor_ste",
    "round_ste",
    "round_to_zero_ste",
    "scalar_clamp_min_ste",
    "scalar_clamp_ste",
    "tensor_clamp_ste",
    "tensor_clamp_ste_",
    "ternary_sign_ste",
]


def _clamp_in_place(x: Tensor, min_val: Tensor, max_val: Tensor) -> Tensor:
    return x.copy_(fns.clamp_by_tensors(x, min_val, max_val))


_round_ste = register("round_ste(Tensor x) -> Tensor", fns.RoundSteFn, torch.round)
_ceil_ste = register("ceil_ste(Tensor x) -> Tensor", fns.CeilSteFn, torch.ceil)
_floor_ste = register("floor_ste(Tensor x) -> Tensor", fns.FloorSteFn, torch.floor)
_round_to_zero_ste = register("round_to_zero_ste(Tensor x) -> Tensor", fns.RoundToZeroSteFn, torch.trunc)
_binary_sign_ste = register("binary_sign_ste(Tensor x) -> Tensor", fns.BinarySignSteFn, fns.binary_sign_value)
_ternary_sign_ste = register("ternary_sign_ste(Tensor x) -> Tensor", fns.TernarySignSteFn, torch.sign)
_abs_binary_sign_grad = register("abs_binary_sign_grad(Tensor x) -> Tensor", fns.AbsBinarySignGradFn, torch.abs)
_scalar_clamp_ste = register(
    "scalar_clamp_ste(Tensor x, float min_val, float max_val) -> Tensor", fns.ScalarClampSteFn, torch.clamp
)
_known_clamp_ste = register(
    "known_clamp_ste(Tensor x, float min_val, float max_val) -> Tensor", fns.KnownClampSteFn, fns.known_clamp
)
_scalar_clamp_min_ste = register(
    "scalar_clamp_min_ste(Tensor x, float min_val) -> Tensor", fns.ScalarClampMinSteFn, torch.clamp_min
)
_tensor_clamp_ste = register(
    "tensor_clamp_ste(Tensor x, Tensor min_val, Tensor max_val) -> Tensor", fns.TensorClampSteFn, fns.clamp_by_tensors
)
_tensor_clamp_ste_ = register(
    "tensor_clamp_ste_(Tensor(a!) x, Tensor min_val, Tensor max_val) -> Tensor(a!)",
    fns.InplaceTensorClampSteFn,
    _clamp_in_place,
)


def round_ste(x: Tensor) -> Tensor:
    """Round half to even."""
    if torch.jit.is_scripting():
        return torch.ops.brevitas.round_ste(x)
    return _round_ste(x)


def ceil_ste(x: Tensor) -> Tensor:
    """Round up."""
    if torch.jit.is_scripting():
        return torch.ops.brevitas.ceil_ste(x)
    return _ceil_ste(x)


def floor_ste(x: Tensor) -> Tensor:
    """Round down."""
    if torch.jit.is_scripting():
        return torch.ops.brevitas.floor_ste(x)
    return _floor_ste(x)


def round_to_zero_ste(x: Tensor) -> Tensor:
    """Round toward zero."""
    if torch.jit.is_scripting():
        return torch.ops.brevitas.round_to_zero_ste(x)
    return _round_to_zero_ste(x)


def binary_sign_ste(x: Tensor) -> Tensor:
    """+1 where ``x >= 0``, -1 where ``x < 0``."""
    if torch.jit.is_scripting():
        return torch.ops.brevitas.binary_sign_ste(x)
    return _binary_sign_ste(x)


def ternary_sign_ste(x: Tensor) -> Tensor:
    """Sign of ``x``, 0 at 0."""
    if torch.jit.is_scripting():
        return torch.ops.brevitas.ternary_sign_ste(x)
    return _ternary_sign_ste(x)


def scalar_clamp_ste(x: Tensor, min_val: float, max_val: float) -> Tensor:
    """Clamp between two numbers."""
    if torch.jit.is_scripting():
        return torch.ops.brevitas.scalar_clamp_ste(x, min_val, max_val)
    return _scalar_clamp_ste(x, min_val, max_val)


def known_clamp_ste(x: Tensor, min_val: float, max_val: float) -> Tensor:
    """Clamp between two numbers; NaN becomes the lower one."""
    if torch.jit.is_scripting():
        return torch.ops.brevitas.known_clamp_ste(x, min_val, max_val)
    return _known_clamp_ste(x, min_val, max_val)


def scalar_clamp_min_ste(x: Tensor, min_val: float) -> Tensor:
    """Clamp from below by a number."""
    if torch.jit.is_scripting():
        return torch.ops.brevitas.scalar_clamp_min_ste(x, min_val)
    return _scalar_clamp_min_ste(x, min_val)


def tensor_clamp_ste(x: Tensor, min_val: Tensor, max_val: Tensor) -> Tensor:
    """Clamp between two broadcasting tensors."""
    if torch.jit.is_scripting():
        return torch.ops.brevitas.tensor_clamp_ste(x, min_val, max_val)
    return _tensor_clamp_ste(x, min_val, max_val)


def tensor_clamp_ste_(x: Tensor, min_val: Tensor, max_val: Tensor) -> Tensor:
    """Clamp between two broadcasting tensors, in place; returns ``x``."""
    if torch.jit.is_scripting():
        return torch.ops.brevitas.tensor_clamp_ste_(x, min_val, max_val)
    return _tensor_clamp_ste_(x, min_val, max_val)


def abs_binary_sign_grad(x: Tensor) -> Tensor:
    """``abs(x)`` with gradient ``g * binary_sign(x)``: +g at 0, so that a learned magnitude can leave 0."""
    if torch.jit.is_scripting():
        return torch.ops.brevitas.abs_binary_sign_grad(x)
    return _abs_binary_sign_grad(x)
