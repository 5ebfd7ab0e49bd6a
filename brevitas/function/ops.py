"""Plain functions: sign, rounding, clamping and the integer ranges.

    >>> import torch
    >>> binary_sign(torch.tensor([-0.5, 0.0, 2.0]))
    tensor([-1.,  1.,  1.])
    >>> min_int(True, False, torch.tensor(8.0)), max_int(True, False, torch.tensor(8.0))
    (tensor(-128.), tensor(127.))

All of them compile with TorchScript. The output has the dtype of ``x``.
"""

import torch
from torch import Tensor

from brevitas.function import autograd_ste_ops as fns
from brevitas.function._library import register

__all__ = ["binary_sign", "divide", "identity", "max_int", "min_int", "round_to_zero", "tensor_clamp", "tensor_clamp_"]

_tensor_clamp = register(
    "tensor_clamp(Tensor x, Tensor min_val, Tensor max_val) -> Tensor", fns.TensorClampFn, fns.clamp_by_tensors
)
# Called from TorchScript only.
register("divide(Tensor x, Tensor y) -> Tensor", fns.DivideFn, torch.div)


def divide(x: Tensor, y: Tensor) -> Tensor:
    """``x / y``, with equal gradients in eager mode and TorchScript (whose own derivative rounds differently)."""
    if torch.jit.is_scripting():
        return torch.ops.brevitas.divide(x, y)
    return x / y


def binary_sign(x: Tensor) -> Tensor:
    """+1 where ``x >= 0``, -1 where ``x < 0``, NaN where NaN. Gradient: 0."""
    return torch.where(torch.isnan(x), float("nan"), torch.sign(torch.sign(x) + 0.5))


def round_to_zero(x: Tensor) -> Tensor:
    """``sign(x) * floor(abs(x))``. Gradient: 0."""
    return torch.trunc(x)


def tensor_clamp(x: Tensor, min_val: Tensor, max_val: Tensor) -> Tensor:
    """``max(min(x, max_val), min_val)`` with broadcasting bounds.

    Gradient to ``x`` inside, bounds included; to ``max_val`` where x is above it; to ``min_val`` where x is below it.
    """
    if torch.jit.is_scripting():
        return torch.ops.brevitas.tensor_clamp(x, min_val, max_val)
    return _tensor_clamp(x, min_val, max_val)


def tensor_clamp_(x: Tensor, min_val: Tensor, max_val: Tensor) -> Tensor:
    """As :func:`tensor_clamp`, in place and outside autograd; returns ``x``."""
    with torch.no_grad():
        x.copy_(torch.maximum(torch.minimum(x, max_val), min_val))
    return x


def identity(x: Tensor) -> Tensor:
    """``x``."""
    return x


def max_int(signed: bool, narrow_range: bool, bit_width: Tensor) -> Tensor:
    """Largest code: ``2^(b-1) - 1`` signed; ``2^b - 1`` unsigned, one less if narrow. Differentiable in ``bit_width``.

    In float32 beyond 24 bits, where the code is not a float, the next float below, so that clamped codes stay in range.
    """
    b = bit_width if bit_width.dtype == torch.float64 else bit_width.to(torch.float32)
    power = torch.exp2(b - 1.0) if signed else torch.exp2(b)
    largest = power - 2.0 if (narrow_range and not signed) else power - 1.0
    unit_below_one = 1.0 - 2.0**-53 if b.dtype == torch.float64 else 1.0 - 2.0**-24
    return torch.minimum(largest, power * unit_below_one)


def min_int(signed: bool, narrow_range: bool, bit_width: Tensor) -> Tensor:
    """Smallest code: ``-2^(b-1)`` signed, plus one if narrow; 0 unsigned. Differentiable in ``bit_width``."""
    b = bit_width if bit_width.dtype == torch.float64 else bit_width.to(torch.float32)
    if not signed:
        return b * 0.0
    lowest = -torch.exp2(b - 1.0)
    return lowest + 1.0 if narrow_range else lowest
