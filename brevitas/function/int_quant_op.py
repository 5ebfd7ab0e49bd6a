"""Uniform quantization as one operator, ``torch.ops.brevitas.int_quant``.

    >>> import torch
    >>> x = torch.tensor([0.26, -3.0])
    >>> int_quant(x, torch.tensor(0.1), torch.tensor(0.0), torch.tensor(4.0), signed=True, narrow_range=False)
    tensor([ 0.3000, -0.8000])

``q = clamp(round(x / scale + zero_point), min_int, max_int)``, ``y = (q - zero_point) * scale``: divide, round, then
clamp. float16 and bfloat16 are computed in float32 and the result has the dtype of ``x``.

========== ============================ ======================= ==================================
Gradient   in range (of the rounded     outside, ``clamp_ste``  outside, ``clamp_ste=True``
           code)                        ``=False``
========== ============================ ======================= ==================================
x          g                            0                       g
scale      g ((q - z) - x/s)            g (bound - z)           g ((bound - z) - x/s)
zero_point 0                            -g s                    0
bit_width  0                            g s d(bound)/db         0
========== ============================ ======================= ==================================

Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference", 2018;
gradient to the scale: Esser et al., "Learned step size quantization", 2020.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from brevitas.errors import QuantConfigError
from brevitas.function._library import register
from brevitas.function.ops import max_int, min_int, tensor_clamp
from brevitas.function.ops_ste import ceil_ste, floor_ste, round_ste, round_to_zero_ste, tensor_clamp_ste

__all__ = ["ROUNDINGS", "int_quant", "int_quant_reference"]

_ROUND_IN_PLACE = {"ROUND": torch.round_, "CEIL": torch.ceil_, "FLOOR": torch.floor_, "ROUND_TO_ZERO": torch.trunc_}
_ROUND_STE = {"ROUND": round_ste, "CEIL": ceil_ste, "FLOOR": floor_ste, "ROUND_TO_ZERO": round_to_zero_ste}
ROUNDINGS = tuple(_ROUND_IN_PLACE)

# Codes below this have a neighbour half a step away in float32.
_HALF_STEPS_EXACT = 2.0**22
_SIXTEEN_BIT = (torch.float16, torch.bfloat16)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in _SIXTEEN_BIT else x.dtype


def _readable(t: Tensor) -> bool:
    """Whether the value of ``t`` may be looked at: an ordinary CPU scalar, not a tracer's and not on a device."""
    return type(t) is Tensor and t.device.type == "cpu" and t.numel() == 1


def _bounds(bit_width: Tensor, signed: bool, narrow: bool, dtype: torch.dtype) -> tuple[Any, Any]:
    """Code range, as two numbers where that needs no synchronisation with a device, else as two tensors."""
    if _readable(bit_width):
        width = float(bit_width)
        power = 2.0 ** (width - 1.0) if signed else 2.0**width
        mantissa = 53 if dtype == torch.float64 else 24
        largest = min(power - (2.0 if narrow and not signed else 1.0), power * (1.0 - 2.0**-mantissa))
        lowest = (1.0 - power if narrow else -power) if signed else 0.0
        return lowest, largest
    b = bit_width.detach().to(dtype)
    return min_int(signed, narrow, b), max_int(signed, narrow, b)


def _offset(zero_point: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The zero point, or ``None`` where it is known to be 0: symmetric quantizers save two passes over the tensor."""
    if _readable(zero_point) and float(zero_point) == 0.0:
        return None
    return zero_point.to(dtype)


def _fits(small: Tensor, big: Tensor) -> bool:
    return small.ndim == 0 or (small.ndim <= big.ndim and torch.broadcast_shapes(small.shape, big.shape) == big.shape)


def _round_in_place(code: Tensor, rounding: str) -> Tensor:
    function = _ROUND_IN_PLACE.get(rounding)
    if function is None:
        raise QuantConfigError(f"rounding={rounding!r} is not known. Expected one of {', '.join(ROUNDINGS)}.")
    return function(code)


def _rounded(x: Tensor, scale: Tensor, offset: Tensor | None, rounding: str) -> Tensor:
    code = torch.div(x, scale)
    if offset is not None:
        code = code.add_(offset) if _fits(offset, code) else code + offset
    return _round_in_place(code, rounding)


def _dequantized(code: Tensor, scale: Tensor, offset: Tensor | None, dtype: torch.dtype) -> Tensor:
    if offset is not None:
        code = code.sub_(offset)
    return code.mul_(scale).to(dtype)


def _forward(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bit_width: Tensor,
    signed: bool,
    narrow_range: bool,
    rounding: str,
    clamp_ste: bool,
) -> Tensor:
    dtype = _compute_dtype(x)
    s, z = scale.to(dtype), _offset(zero_point, dtype)
    low, high = _bounds(bit_width, signed, narrow_range, dtype)
    code = _rounded(x.to(dtype), s, z, rounding)
    code = code.clamp_(low, high) if isinstance(low, float) else torch.clamp(code, low, high)
    return _dequantized(code, s, z, x.dtype)


def _where_inside(values: Tensor, code: Tensor, low: Any, high: Any) -> Tensor:
    """``values`` where the rounded code is in range, else 0."""
    if isinstance(low, float) and -low < _HALF_STEPS_EXACT and high < _HALF_STEPS_EXACT and values.shape == code.shape:
        # One vectorised pass on CPU, where torch.where takes ten times as long. Its bounds are open, hence the halves.
        return torch.ops.aten.hardtanh_backward(values, code, low - 0.5, high + 0.5)
    return torch.where((code >= low) & (code <= high), values, 0.0)


class IntQuantFn(Function):
    """Forward and hand-written backward of ``brevitas::int_quant``.

    Saves nothing where only ``x`` needs a gradient and the clamp is straight-through. Saves the inputs where scale,
    zero point or bit width need one, and on CPU, where computing the codes again is cheaper than a mask; else a mask.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, bit_width: Tensor, *options: Any) -> Tensor:
        signed, narrow_range, rounding, clamp_ste = ctx.options = options
        ctx.x_shape, ctx.dtype = x.shape, _compute_dtype(x)
        need_x, *need_others = ctx.needs_input_grad[:4]
        if any(need_others) or (need_x and not clamp_ste and _readable(bit_width) and x.is_cpu):
            ctx.save_for_backward(x, scale, zero_point, bit_width)
        elif need_x and not clamp_ste:
            s, z = scale.to(ctx.dtype), _offset(zero_point, ctx.dtype)
            code = _rounded(x.to(ctx.dtype), s, z, rounding)
            clamped = torch.clamp(code, *_bounds(bit_width, signed, narrow_range, ctx.dtype))
            ctx.save_for_backward(torch.eq(code, clamped))
            return _dequantized(clamped, s, z, x.dtype)
        return _forward(x, scale, zero_point, bit_width, signed, narrow_range, rounding, clamp_ste)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        saved = ctx.saved_tensors  # once: gradient checkpointing unpacks them at this very access
        if len(saved) == 4:
            return (*_grads_of_all(ctx, saved, grad), None, None, None, None)
        if saved:
            grad = torch.where(saved[0], grad, 0.0)
        return (grad.sum_to_size(ctx.x_shape), *[None] * 7)


def _grads_of_all(ctx: Any, saved: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, zero_point, bit_width = saved
    signed, narrow_range, rounding, clamp_ste = ctx.options
    need_x, need_scale, need_zero_point, need_bit_width = ctx.needs_input_grad[:4]
    g = grad.to(ctx.dtype)
    # y is linear in everything but the straight-through rounding, whose own derivative is constant: the factors below
    # take no part in a second derivative.
    with torch.no_grad():
        s, z = scale.to(ctx.dtype), _offset(zero_point, ctx.dtype)
        low, high = _bounds(bit_width, signed, narrow_range, ctx.dtype)
        # Memory that is asked for anew costs more than the arithmetic: work in place wherever that is possible.
        if need_scale:
            ratio = torch.div(x.to(ctx.dtype), s)
            code = _round_in_place(ratio.clone() if z is None else ratio + z, rounding)
        else:
            code = _rounded(x.to(ctx.dtype), s, z, rounding)
    grad_x = grad_scale = grad_zero_point = grad_bit_width = None
    if need_x:
        grad_x = (g if clamp_ste else _where_inside(g, code, low, high)).sum_to_size(x.shape).to(x.dtype)
    if need_scale:
        with torch.no_grad():
            factor = torch.clamp(code, low, high)
            if z is not None:
                factor.sub_(z)
            factor.sub_(ratio if clamp_ste else _where_inside(ratio, code, low, high))
        # Under vmap `g` may have a dimension that `factor` has not.
        product = factor * g if torch._C._are_functorch_transforms_active() else factor.mul_(g)
        grad_scale = product.sum_to_size(scale.shape).to(scale.dtype)
    if need_zero_point:
        g_s = g * s
        outside = torch.zeros_like(g_s) if clamp_ste else g_s - _where_inside(g_s, code, low, high)
        grad_zero_point = (-outside).sum_to_size(zero_point.shape).to(zero_point.dtype)
    if need_bit_width:
        grad_bit_width = torch.zeros_like(bit_width)
        if not clamp_ste:
            power = torch.exp2(bit_width.to(ctx.dtype) - 1.0) if signed else torch.exp2(bit_width.to(ctx.dtype))
            d_bound = (code > high).to(ctx.dtype)
            if signed:
                d_bound = d_bound - (code < low).to(ctx.dtype)
            d_bound = d_bound * (power * math.log(2.0))
            grad_bit_width = (g * s * d_bound).sum_to_size(bit_width.shape).to(bit_width.dtype)
    return grad_x, grad_scale, grad_zero_point, grad_bit_width


def _fake(x: Tensor, scale: Tensor, zero_point: Tensor, bit_width: Tensor, *options: Any) -> Tensor:
    return x.new_empty(torch.broadcast_shapes(x.shape, scale.shape, zero_point.shape))


_int_quant = register(
    "int_quant(Tensor x, Tensor scale, Tensor zero_point, Tensor bit_width, bool signed, bool narrow_range, "
    "str rounding, bool clamp_ste) -> Tensor",
    IntQuantFn,
    _forward,
    _fake,
)


def int_quant(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bit_width: Tensor,
    signed: bool,
    narrow_range: bool,
    rounding: str = "ROUND",
    clamp_ste: bool = False,
) -> Tensor:
    """Quantize and dequantize ``x``: see the module docstring for value and gradients.

    Args:
        x: float tensor of any shape.
        scale: positive, broadcastable to ``x``.
        zero_point: integers stored as floats, broadcastable to ``x``.
        bit_width: one number, stored as a float.
        signed: whether the codes have a sign.
        narrow_range: whether one code is left out, so that a signed range is symmetric.
        rounding: ``'ROUND'`` (half to even), ``'CEIL'``, ``'FLOOR'`` or ``'ROUND_TO_ZERO'``.
        clamp_ste: pass the gradient of clamped values as well.

    Raises:
        QuantConfigError: ``rounding`` is none of the four.
    """
    if torch.jit.is_scripting():
        return torch.ops.brevitas.int_quant(x, scale, zero_point, bit_width, signed, narrow_range, rounding, clamp_ste)
    return _int_quant(x, scale, zero_point, bit_width, signed, narrow_range, rounding, clamp_ste)


def int_quant_reference(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bit_width: Tensor,
    signed: bool,
    narrow_range: bool,
    rounding: str = "ROUND",
    clamp_ste: bool = False,
) -> Tensor:
    """The same function composed of smaller ones and differentiated by autograd: the yardstick of :func:`int_quant`."""
    dtype = _compute_dtype(x)
    s, z, b = scale.to(dtype), zero_point.to(dtype), bit_width.to(dtype)
    code = _ROUND_STE[rounding](x.to(dtype) / s + z)
    clamp = tensor_clamp_ste if clamp_ste else tensor_clamp
    code = clamp(code, min_int(signed, narrow_range, b), max_int(signed, narrow_range, b))
    return ((code - z) * s).to(x.dtype)
