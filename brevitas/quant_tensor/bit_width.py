"""How many bits a result needs: code ranges and the smallest width that contains them.

    >>> from brevitas.quant_tensor import accumulator_bit_width, bits_for_range, code_range
    >>> int(accumulator_bit_width(8, 8, 54, input_signed=False, weight_signed=True, weight_narrow_range=True))
    22
    >>> lo, hi = code_range(8, signed=False)
    >>> int(bits_for_range(lo + lo, hi + hi))
    9

Every function works in float64, where the integers of any real accumulator are exact, and is differentiable in the bit
widths: the gradient of the smooth logarithm is passed straight through the ceiling.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from brevitas.function.ops import max_int, min_int
from brevitas.function.ops_ste import ceil_ste

__all__ = [
    "CodeRange",
    "accumulator_bit_width",
    "accumulator_range",
    "bits_for_range",
    "code_range",
    "difference_bit_width",
    "negated_bit_width",
    "product_bit_width",
    "product_range",
    "readable",
    "sum_bit_width",
]

CodeRange = tuple[Tensor, Tensor]


def readable(tensor: Any) -> bool:
    """Whether the number in a one-element tensor may be looked at, at no cost: no device, gradient, graph or tracer."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and not tensor.requires_grad
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not torch.jit.is_tracing()
    )


def _numbers(argument: Any) -> Any:
    """The argument with numbers for tensors; ``None`` where a tensor must not be read."""
    if isinstance(argument, Tensor):
        return float(argument) if readable(argument) else None
    if isinstance(argument, tuple):
        numbers = tuple(_numbers(element) for element in argument)
        return None if None in numbers else numbers
    return argument


def _remember(count: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Count the bits of constant widths once: in eager mode a layer has the same widths in every forward."""

    @functools.lru_cache(maxsize=4096)
    def counted(args: tuple[Any, ...], keywords: tuple[tuple[str, Any], ...]) -> float:
        return float(count(*args, **dict(keywords)))

    @functools.wraps(count)
    def remembering(*args: Any, **keywords: Any) -> Tensor:
        first = args[0]
        if readable(first):
            numbers = _numbers(args)
            given = {name: _numbers(argument) for name, argument in keywords.items() if argument is not None}
            if numbers is not None and None not in given.values():
                return torch.full((), counted(numbers, tuple(given.items())), dtype=first.dtype)
        return count(*args, **keywords)

    return remembering


def code_range(bit_width: Tensor | float, signed: bool, narrow_range: bool = False, shifted: bool = False) -> CodeRange:
    """Smallest and largest integer that an operand contributes, as float64 tensors.

    >>> [int(bound) for bound in code_range(4, signed=True, narrow_range=True)]
    [-7, 7]
    >>> [int(bound) for bound in code_range(1, signed=True)]
    [-1, 1]
    >>> [int(bound) for bound in code_range(4, signed=False, shifted=True)]
    [-15, 15]

    One signed bit holds the bipolar codes -1 and +1. With ``shifted`` the operand has a zero point, which may lie
    anywhere in its range, so that code minus zero point spans twice the range.
    """
    bits = (bit_width if isinstance(bit_width, Tensor) else torch.tensor(bit_width)).to(torch.float64)
    lo, hi = min_int(signed, narrow_range, bits), max_int(signed, narrow_range, bits)
    if signed:
        # Changes one-bit ranges only: from two bits on, -1 and 1 are always inside.
        lo, hi = lo.clamp(max=-1.0), hi.clamp(min=1.0)
    return (lo - hi, hi - lo) if shifted else (lo, hi)


def product_range(a: CodeRange, b: CodeRange) -> CodeRange:
    """Smallest and largest product of an integer in ``a`` and one in ``b``.

    >>> [int(bound) for bound in product_range(code_range(8, signed=False), code_range(8, signed=True))]
    [-32640, 32385]
    """
    corners = [x * y for x in a for y in b]
    return (
        torch.minimum(torch.minimum(corners[0], corners[1]), torch.minimum(corners[2], corners[3])),
        torch.maximum(torch.maximum(corners[0], corners[1]), torch.maximum(corners[2], corners[3])),
    )


def bits_for_range(lo: Tensor, hi: Tensor, signed: bool | None = None) -> Tensor:
    """Smallest width whose integer range contains ``lo`` and ``hi``, as float64; at least 1, at least 2 if signed.

    >>> int(bits_for_range(torch.tensor(0.), torch.tensor(255.)))
    8
    >>> int(bits_for_range(torch.tensor(-128.), torch.tensor(128.)))
    9

    The range is unsigned where ``lo`` >= 0, unless ``signed=True`` asks for a signed one. Unsigned:
    ceil(log2(hi + 1)); signed: ceil(log2(max(-lo, hi + 1))) + 1, where one bit would be the bipolar codes.
    """
    lo, hi = lo.to(torch.float64), hi.to(torch.float64)
    magnitude = torch.maximum(-lo, hi + 1.0)
    bits = ceil_ste(torch.log2(magnitude))
    # From 2^49 on the logarithms of 2^k and 2^k + 1 are the same float64 number; a width must never be too small.
    bits = bits + (torch.exp2(bits.detach()) < magnitude).to(torch.float64)
    return bits.clamp(min=1.0) + (1.0 if signed else (lo < 0).to(torch.float64))


def accumulator_range(
    input_range: CodeRange, weight_range: CodeRange, fan_in: int, bias_range: CodeRange | None = None
) -> CodeRange:
    """Range of the sum of ``fan_in`` products and a bias.

    >>> [int(bound) for bound in accumulator_range(code_range(4, False), code_range(4, True, True), 10)]
    [-1050, 1050]
    """
    lo, hi = product_range(input_range, weight_range)
    lo, hi = lo * fan_in, hi * fan_in
    return (lo, hi) if bias_range is None else (lo + bias_range[0], hi + bias_range[1])


def _like(bits: Tensor, width: Tensor | float) -> Tensor:
    return bits.to(width.dtype if isinstance(width, Tensor) else torch.float32)


@_remember
def sum_bit_width(a: Tensor | float, a_signed: bool, b: Tensor | float, b_signed: bool) -> Tensor:
    """Width of ``a + b``; signed if either is.

    >>> int(sum_bit_width(8, True, 8, False))
    10
    """
    (lo_a, hi_a), (lo_b, hi_b) = code_range(a, a_signed), code_range(b, b_signed)
    return _like(bits_for_range(lo_a + lo_b, hi_a + hi_b, a_signed or b_signed), a)


@_remember
def difference_bit_width(a: Tensor | float, a_signed: bool, b: Tensor | float, b_signed: bool) -> Tensor:
    """Width of ``a - b``, always signed.

    >>> int(difference_bit_width(8, False, 8, False))
    9
    """
    (lo_a, hi_a), (lo_b, hi_b) = code_range(a, a_signed), code_range(b, b_signed)
    return _like(bits_for_range(lo_a - hi_b, hi_a - lo_b, True), a)


@_remember
def negated_bit_width(a: Tensor | float, signed: bool) -> Tensor:
    """Width of ``-a``, always signed.

    >>> int(negated_bit_width(8, True))
    9
    """
    lo, hi = code_range(a, signed)
    return _like(bits_for_range(-hi, -lo, True), a)


def product_bit_width(a: Tensor, b: Tensor, a_shifted: bool = False, b_shifted: bool = False) -> Tensor:
    """Width of the elementwise ``a * b``; code minus zero point of a shifted operand has one bit more.

    >>> int(product_bit_width(torch.tensor(8.), torch.tensor(4.), a_shifted=True))
    13
    """
    shifts = int(a_shifted) + int(b_shifted)
    return a + b + float(shifts) if shifts else a + b


@_remember
def accumulator_bit_width(
    input_bit_width: Tensor | float,
    weight_bit_width: Tensor | float,
    fan_in: int,
    *,
    input_signed: bool,
    weight_signed: bool,
    weight_narrow_range: bool = False,
    input_shifted: bool = False,
    weight_shifted: bool = False,
    bias_range: CodeRange | None = None,
) -> Tensor:
    """Width of the accumulator of a layer whose output elements are sums of ``fan_in`` products.

    >>> int(accumulator_bit_width(4, 4, 10, input_signed=False, weight_signed=True, weight_narrow_range=True))
    12
    >>> bias = code_range(8, signed=True)
    >>> int(accumulator_bit_width(8, 8, 64, input_signed=True, weight_signed=True, weight_narrow_range=True,
    ...                           bias_range=bias))
    21

    The bound assumes the extreme code in every operand, so it never under-estimates. Inputs count as not narrow.
    ``bias_range`` is the :func:`code_range` of a bias in units of the accumulator. The dtype is that of
    ``input_bit_width`` (float32 for a number).
    """
    lo, hi = accumulator_range(
        code_range(input_bit_width, input_signed, False, input_shifted),
        code_range(weight_bit_width, weight_signed, weight_narrow_range, weight_shifted),
        fan_in,
        bias_range,
    )
    return _like(bits_for_range(lo, hi), input_bit_width)
