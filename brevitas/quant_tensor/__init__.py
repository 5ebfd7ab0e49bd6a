"""The affine tensor and its algebra.

    >>> import torch
    >>> from brevitas.quant_tensor import QuantTensor
    >>> x = QuantTensor(torch.tensor([0.5, -1.0]), scale=0.5, zero_point=0, bit_width=4, signed=True)
    >>> (x + x).int()
    tensor([ 2, -4], dtype=torch.int32)

:class:`QuantTensor` is a real tensor with the integer grid it lies on. ``arithmetic`` and ``functions`` say what each
torch function does to the grid; ``bit_width`` is the one place that counts bits.
"""

from brevitas.quant_tensor import arithmetic as _arithmetic
from brevitas.quant_tensor import functions as _functions
from brevitas.quant_tensor.bit_width import (
    CodeRange,
    accumulator_bit_width,
    accumulator_range,
    bits_for_range,
    code_range,
    difference_bit_width,
    negated_bit_width,
    product_bit_width,
    product_range,
    sum_bit_width,
)
from brevitas.quant_tensor.dispatch import keeps_grid
from brevitas.quant_tensor.source import Source, dropped_by
from brevitas.quant_tensor.tensor import QuantTensor

del _arithmetic, _functions  # imported to register their handlers

__all__ = [
    "CodeRange",
    "QuantTensor",
    "Source",
    "accumulator_bit_width",
    "accumulator_range",
    "bits_for_range",
    "code_range",
    "difference_bit_width",
    "dropped_by",
    "keeps_grid",
    "negated_bit_width",
    "product_bit_width",
    "product_range",
    "sum_bit_width",
]
