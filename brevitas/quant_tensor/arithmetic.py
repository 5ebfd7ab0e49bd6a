"""Sums, products and concatenations of QuantTensors.

Each operation takes the exact range of the codes of its operands, so that the width of the result always suffices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from brevitas.quant_tensor.bit_width import (
    accumulator_bit_width,
    difference_bit_width,
    negated_bit_width,
    product_bit_width,
    sum_bit_width,
)
from brevitas.quant_tensor.checks import one_element, require_same, require_same_scale, require_same_sign, static_shape
from brevitas.quant_tensor.dispatch import NARY, implements
from brevitas.quant_tensor.metadata import align, carried_dims, fit
from brevitas.quant_tensor.source import Source, same_scale, same_source
from brevitas.quant_tensor.tensor import QuantTensor

Function = Callable[..., Any]


def _both(a: Any, b: Any) -> bool:
    return isinstance(a, QuantTensor) and isinstance(b, QuantTensor)


def _either(a: QuantTensor, b: QuantTensor) -> bool | None:
    left, right = (None if x.source is None else x.source.shifted for x in (a, b))
    if left or right:
        return True
    return False if left is False and right is False else None


def _scale_uid(*operands: QuantTensor) -> int:
    first = operands[0]
    shared = all(same_scale(first.source, x.source) for x in operands)
    return first.source.scale_uid if shared and first.source is not None else Source.NO_UID


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    """The mean; equal tensors pass through unchanged."""
    first, *others = tensors
    return first + reduce(torch.add, [other - first for other in others]) / len(tensors)


def _added(op: str, func: Function, a: QuantTensor, b: QuantTensor, zero_point: Tensor, width: Tensor) -> QuantTensor:
    value = func(a.value, b.value)
    transient = require_same_scale(a, b, op)
    scale = _mean([a.scale, b.scale]) if transient else a.scale
    signed = a.signed or b.signed or op == "sub"
    source = Source.derived(f"the result of {op}", shifted=_either(a, b), scale_uid=_scale_uid(a, b))
    return QuantTensor.unchecked(value, scale, zero_point, width, signed, a.training or b.training, source)


@implements("add", table=NARY)
def _add(func: Function, input: Any, other: Any, alpha: Any = 1) -> Any:
    if not _both(input, other) or alpha != 1:
        return None
    width = sum_bit_width(input.bit_width, input.signed, other.bit_width, other.signed)
    return _added("add", func, input, other, input.zero_point + other.zero_point, width)


@implements("sub", "subtract", table=NARY)
def _sub(func: Function, input: Any, other: Any, alpha: Any = 1) -> Any:
    if not _both(input, other) or alpha != 1:
        return None
    width = difference_bit_width(input.bit_width, input.signed, other.bit_width, other.signed)
    return _added("sub", func, input, other, input.zero_point - other.zero_point, width)


@implements("mul", "multiply", table=NARY)
def _mul(func: Function, input: Any, other: Any) -> Any:
    if not _both(input, other):
        return None
    shifted_a, shifted_b = input.is_shifted, other.is_shifted
    width = product_bit_width(input.bit_width, other.bit_width, shifted_a, shifted_b)
    source = Source.derived("the result of mul", shifted=False)
    return _product(func(input.value, other.value), input, other, width, shifted_a or shifted_b, source)


@implements("matmul", "__matmul__", table=NARY)
def _matmul(func: Function, input: Any, other: Any) -> Any:
    if not _both(input, other) or not all(
        one_element(field) for x in (input, other) for field in (x.scale, x.zero_point)
    ):
        return None
    value = func(input.value, other.value)
    inner = static_shape(input.value)[-1]
    shifted_a, shifted_b = input.is_shifted, other.is_shifted
    width = accumulator_bit_width(
        input.bit_width,
        other.bit_width,
        inner,
        input_signed=input.signed,
        weight_signed=other.signed,
        input_shifted=shifted_a,
        weight_shifted=shifted_b,
    )
    source = Source.derived("the result of matmul", fan_in=inner, shifted=False)
    return _product(value, input, other, width, shifted_a or shifted_b, source)


def _product(
    value: Tensor, a: QuantTensor, b: QuantTensor, width: Tensor, shifted: bool, source: Source
) -> QuantTensor:
    scale, zero_point = fit(a.scale * b.scale, value.dim()), a.zero_point.new_zeros(())
    signed = a.signed or b.signed or shifted
    return QuantTensor.unchecked(value, scale, zero_point, width, signed, a.training or b.training, source)


@implements("neg", "negative")
def _neg(func: Function, x: QuantTensor) -> QuantTensor:
    source = Source.derived("the result of neg", shifted=_either(x, x), scale_uid=_scale_uid(x))
    width = negated_bit_width(x.bit_width, x.signed)
    return QuantTensor.unchecked(func(x.value), x.scale, -x.zero_point, width, True, x.training, source)


@implements("abs", "absolute")
def _abs(func: Function, x: QuantTensor) -> QuantTensor:
    source = Source.derived("the result of abs", shifted=False, scale_uid=_scale_uid(x))
    zero_point = x.zero_point.new_zeros(())
    return QuantTensor.unchecked(func(x.value), x.scale, zero_point, x.bit_width, False, x.training, source)


@implements("pos", "positive")
def _pos(func: Function, x: QuantTensor) -> QuantTensor:
    return x


@implements("cat", "concat", "concatenate", table=NARY)
def _cat(func: Function, tensors: Any, dim: int = 0, axis: int | None = None) -> Any:
    return _joined("cat", func, tensors, dim if axis is None else axis)


@implements("stack", table=NARY)
def _stack(func: Function, tensors: Any, dim: int = 0) -> Any:
    if not all(isinstance(x, QuantTensor) for x in tensors):
        return None
    # With a dim of size 1 in place, joining along it is what stack does.
    return _joined("stack", torch.cat, [x.unsqueeze(dim) for x in tensors], dim)


def _joined(op: str, func: Function, tensors: Any, dim: int) -> Any:
    if not all(isinstance(x, QuantTensor) for x in tensors):
        return None
    value = func([x.value for x in tensors], dim)
    dim = dim % value.dim()
    first = tensors[0]
    for other in tensors[1:]:
        require_same_sign(first, other, op)
    scale = _joined_metadata(op, tensors, dim, "scale")
    zero_point = _joined_metadata(op, tensors, dim, "zero_point")
    width = reduce(lambda a, b: a if a is b else torch.maximum(a, b), [x.bit_width for x in tensors])
    whole = not (dim in carried_dims(scale, value.dim()) or dim in carried_dims(zero_point, value.dim()))
    if whole and all(same_source(first.source, x.source) for x in tensors):
        source = first.source
    else:
        shifted = reduce(lambda a, b: a if a == b else None, [x.source and x.source.shifted for x in tensors])
        source = Source.derived(f"the result of {op}", shifted=shifted)
    return QuantTensor.unchecked(
        value, scale, zero_point, width, first.signed, any(x.training for x in tensors), source
    )


def _joined_metadata(op: str, tensors: Sequence[QuantTensor], dim: int, field: str) -> Tensor:
    """The common scale or zero point; where it runs along ``dim``, the concatenated one."""
    columns = [getattr(x, field) for x in tensors]
    ndim = tensors[0].dim()
    first = tensors[0]
    if any(dim in carried_dims(column, ndim) for column in columns):
        aligned = [align(column, ndim) for column in columns]
        shapes = [static_shape(column) for column in aligned]
        target = [max(sizes) for sizes in zip(*shapes, strict=True)]
        parts = []
        for x, column in zip(tensors, aligned, strict=True):
            target[dim] = static_shape(x.value)[dim]
            parts.append(column.expand(target))
        return torch.cat(parts, dim)
    if field == "scale":
        transient = [require_same_scale(first, x, op) for x in tensors[1:]]
        return _mean(columns) if any(transient) else columns[0]
    for x in tensors[1:]:
        if not same_source(first.source, x.source):
            require_same(first, x, field, op)
    return columns[0]
