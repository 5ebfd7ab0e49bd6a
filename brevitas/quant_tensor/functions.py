"""Torch functions that keep the grid of their argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from brevitas.quant_tensor.checks import one_element, static_shape
from brevitas.quant_tensor.dispatch import implements
from brevitas.quant_tensor.metadata import align, carried_dims, fit, follow, reshape_metadata
from brevitas.quant_tensor.operators import plain_values
from brevitas.quant_tensor.source import forget_source
from brevitas.quant_tensor.tensor import QuantTensor

Function = Callable[..., Any]


def _per_tensor(x: QuantTensor) -> bool:
    return one_element(x.scale) and one_element(x.zero_point)


def _with(x: QuantTensor, value: Tensor, scale: Tensor, zero_point: Tensor, whole: bool) -> QuantTensor:
    source = x.source if whole else forget_source(x.source)
    ndim = value.dim()
    scale, zero_point = fit(scale, ndim), fit(zero_point, ndim)
    return QuantTensor.unchecked(value, scale, zero_point, x.bit_width, x.signed, x.training, source)


def _move(x: QuantTensor, function: Callable[[Tensor], Any], whole: bool) -> Any:
    """Apply a function that moves elements; ``whole``: it keeps all of them, so that the grid stays the source's."""
    moved = function(x.value)
    parts = (moved,) if isinstance(moved, Tensor) else tuple(moved)
    if _per_tensor(x):
        results = tuple(x.like(part) for part in parts)
    else:
        columns = []
        for metadata in (x.scale, x.zero_point):
            if one_element(metadata):
                columns.append((metadata,) * len(parts))
            else:
                followed = follow(metadata, x.value, function)
                columns.append((followed,) if isinstance(followed, Tensor) else followed)
        results = tuple(_with(x, part, s, z, whole) for part, s, z in zip(parts, *columns, strict=True))
    return results[0] if isinstance(moved, Tensor) else results


@implements("transpose", "swapaxes", "swapdims", "t", "permute", "movedim", "moveaxis", "squeeze", "unsqueeze")
@implements("pixel_shuffle", "pixel_unshuffle")
def _rearrange(func: Function, x: QuantTensor, *args: Any, **kwargs: Any) -> Any:
    return _move(x, lambda t: func(t, *args, **kwargs), whole=True)


@implements("getitem", "__getitem__", "select", "narrow", "index_select")
@implements("chunk", "split", "tensor_split", "split_with_sizes", "unbind")
def _select(func: Function, x: QuantTensor, *args: Any, **kwargs: Any) -> Any:
    args = plain_values(args)
    return _move(x, lambda t: func(t, *args, **kwargs), whole=False)


@implements("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel")
def _reshape(func: Function, x: QuantTensor, *args: Any, **kwargs: Any) -> Any:
    value = func(x.value, *plain_values(args), **kwargs)
    if value.dtype != x.value.dtype:  # view(dtype)
        return None
    if _per_tensor(x):
        return x.like(value)
    name, old, new = func.__name__, static_shape(x.value), static_shape(value)
    scale, zero_point = (
        field if one_element(field) else reshape_metadata(field, old, new, name, label)
        for field, label in ((x.scale, "scale"), (x.zero_point, "zero point"))
    )
    return _with(x, value, scale, zero_point, whole=True)


@implements("expand", "expand_as", "broadcast_to", "contiguous", "clone")
def _same_metadata(func: Function, x: QuantTensor, *args: Any, **kwargs: Any) -> Any:
    # Broadcasting aligns the last dims of value and metadata, so expand changes nothing for the metadata.
    return x.like(func(x.value, *plain_values(args), **kwargs))


@implements("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout")
@implements("feature_alpha_dropout")
def _dropout(func: Function, x: QuantTensor, *args: Any, inplace: bool = False, **kwargs: Any) -> Any:
    return x.like(func(x.value, *args, **kwargs))


@implements("detach")
def _detach(func: Function, x: QuantTensor) -> QuantTensor:
    return QuantTensor.unchecked(
        func(x.value), func(x.scale), func(x.zero_point), func(x.bit_width), x.signed, x.training, x.source
    )


@implements("to", "cpu", "cuda", "type_as", "float", "double", "half", "bfloat16")
def _to(func: Function, x: QuantTensor, *args: Any, **kwargs: Any) -> Any:
    value = func(x.value, *plain_values(args), **kwargs)
    if not value.is_floating_point():
        return None
    # Metadata keep their dtype: a scale rounded to 16 bits would move every value off the grid.
    non_blocking = bool(kwargs.get("non_blocking", False))
    scale, zero_point, bit_width = (
        field.to(device=value.device, non_blocking=non_blocking) for field in (x.scale, x.zero_point, x.bit_width)
    )
    return QuantTensor.unchecked(value, scale, zero_point, bit_width, x.signed, x.training, x.source)


def _with_zero(x: QuantTensor) -> Tensor:
    """The bit width, at least 2 if signed: one signed bit, whose codes are -1 and +1, has no zero."""
    return x.bit_width.clamp(min=2.0) if x._may_be_bipolar() else x.bit_width


@implements("relu")
def _relu(func: Function, x: QuantTensor, inplace: bool = False) -> QuantTensor:
    return QuantTensor.unchecked(func(x.value), x.scale, x.zero_point, _with_zero(x), x.signed, x.training, x.source)


def _max_pool(spatial: int) -> Function:
    def max_pool(func: Function, x: QuantTensor, *args: Any, **kwargs: Any) -> Any:
        carried = carried_dims(x.scale, x.dim()) + carried_dims(x.zero_point, x.dim())
        if any(dim >= x.dim() - spatial for dim in carried):
            return None  # a maximum over several grids lies on none of them
        pooled = func(x.value, *args, **kwargs)
        return x.like(pooled) if isinstance(pooled, Tensor) else (x.like(pooled[0]), *pooled[1:])

    return max_pool


for _spatial in (1, 2, 3):
    for _name in (f"max_pool{_spatial}d", f"adaptive_max_pool{_spatial}d"):
        implements(_name, f"{_name}_with_indices")(_max_pool(_spatial))


@implements("interpolate", "upsample")
def _interpolate(
    func: Function,
    x: QuantTensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    *args: Any,
    **kw: Any,
) -> Any:
    if mode not in ("nearest", "nearest-exact"):
        return None

    def resize(t: Tensor) -> Tensor:
        return func(t, size, scale_factor, mode, *args, **kw)

    value = resize(x.value)
    scale, zero_point = (
        resize(align(field, x.dim()).expand(x.shape)) if max(carried_dims(field, x.dim()), default=0) > 1 else field
        for field in (x.scale, x.zero_point)
    )
    return _with(x, value, scale, zero_point, whole=scale is x.scale and zero_point is x.zero_point)


@implements("upsample_nearest")
def _upsample_nearest(func: Function, x: QuantTensor, size: Any = None, scale_factor: Any = None) -> Any:
    return F.interpolate(x, size, scale_factor, mode="nearest")  # type: ignore[arg-type]


@implements("pad")
def _pad(func: Function, x: QuantTensor, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
    if mode != "constant" or value not in (None, 0):
        return None
    padded = func(x.value, pad, mode, value)
    # The padded zeros lie on any grid; scale 1 and zero point 0 where the metadata have to grow.
    scale, zero_point = _pad_metadata(x.scale, x.dim(), pad, 1.0), _pad_metadata(x.zero_point, x.dim(), pad, 0.0)
    source = x.source if scale is x.scale and zero_point is x.zero_point else forget_source(x.source)
    return QuantTensor.unchecked(padded, scale, zero_point, _with_zero(x), x.signed, x.training, source)


def _pad_metadata(metadata: Tensor, ndim: int, pad: Any, fill: float) -> Tensor:
    carried = carried_dims(metadata, ndim)
    widths: list[int] = []
    for pair in range(len(pad) // 2):
        widths += pad[2 * pair : 2 * pair + 2] if ndim - 1 - pair in carried else (0, 0)
    return F.pad(align(metadata, ndim), widths, "constant", fill) if any(widths) else metadata


@implements("clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "relu6")
def _clamp(func: Function, x: QuantTensor, *args: Any, inplace: bool = False, **kwargs: Any) -> Any:
    bounds = (*args, *kwargs.values())
    if any(isinstance(bound, (Tensor, QuantTensor)) for bound in bounds):
        return None
    # As floats: torch.onnx cannot decompose a clamp between an int and a float.
    args = tuple(None if bound is None else float(bound) for bound in args)
    kwargs = {name: None if bound is None else float(bound) for name, bound in kwargs.items()}
    return x.requantize(func(x.value, *args, **kwargs))
