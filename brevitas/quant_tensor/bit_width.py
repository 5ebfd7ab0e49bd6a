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

import torch
from torch import Tensor

from brevitas.function.ops import max_int, min_int
from brevitas.function.ops_ste import ceil_ste

__all__ = ["CodeRange", "accumulator_bit_width", "accumulator_range", "bits_for_range", "code_range", "product_range"]

CodeRange = tuple[Tensor, Tensor]


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
    """Smallest width whose integer range contains ``lo`` and ``hi``, as float64; at least 1.

    >>> int(bits_for_range(torch.tensor(0.), torch.tensor(255.)))
    8
    >>> int(bits_for_range(torch.tensor(-128.), torch.tensor(128.)))
    9

    The range is unsigned where ``lo`` >= 0, unless ``signed=True`` asks for a signed one. Unsigned:
    ceil(log2(hi + 1)); signed: ceil(log2(max(-lo, hi + 1))) + 1.
    """
    lo, hi = lo.to(torch.float64), hi.to(torch.float64)
    magnitude = torch.maximum(-lo, hi + 1.0)
    bits = ceil_ste(torch.log2(magnitude))
    # From 2^49 on the logarithms of 2^k and 2^k + 1 are the same float64 number; a width must never be too small.
    bits = bits + (torch.exp2(bits.detach()) < magnitude).to(torch.float64)
    bits = bits + (1.0 if signed else (lo < 0).to(torch.float64))
    return bits.clamp(min=1.0)


def accumulator_range(
    input_range: CodeRange, weight_range: CodeRange, fan_in: int, bias_range: CodeRange | None = None
) -> CodeRange:
    """Range of the sum of ``fan_in`` products and a bias."""
    lo, hi = product_range(input_range, weight_range)
    lo, hi = lo * fan_in, hi * fan_in
    return (lo, hi) if bias_range is None else (lo + bias_range[0], hi + bias_range[1])


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
    dtype = input_bit_width.dtype if isinstance(input_bit_width, Tensor) else torch.float32
    return bits_for_range(lo, hi).to(dtype)
