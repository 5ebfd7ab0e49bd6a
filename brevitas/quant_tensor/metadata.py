"""Scales and zero points of several elements follow the dims of the value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from brevitas.errors import QuantMetadataError
from brevitas.quant_tensor.checks import one_element, static_shape, untraced

__all__ = ["align", "carried_dims", "fit", "follow", "reshape_metadata"]


def align(metadata: Tensor, ndim: int) -> Tensor:
    """The metadata with leading dims of size 1 up to ``ndim``, as broadcasting would add them."""
    missing = ndim - metadata.dim()
    return metadata.reshape((1,) * missing + static_shape(metadata)) if missing > 0 else metadata


def fit(metadata: Tensor, ndim: int) -> Tensor:
    """Metadata of one element in no more than ``ndim`` dims; the same tensor where it has no more."""
    return metadata if metadata.dim() <= ndim else metadata.reshape((1,) * ndim)


def carried_dims(metadata: Tensor, ndim: int) -> tuple[int, ...]:
    """Dims of an ``ndim``-dimensional value along which the metadata differ."""
    if one_element(metadata):
        return ()
    first = ndim - metadata.dim()
    return tuple(first + dim for dim, size in enumerate(static_shape(metadata)) if size != 1)


def follow(metadata: Tensor, value: Tensor, function: Callable[[Tensor], Any]) -> Any:
    """What ``function``, which moves or selects elements of ``value``, makes of the metadata.

    The metadata are expanded without memory, so that dims they do not depend on have stride 0; ``function`` moves them
    as it moves the value; dims that still have stride 0 shrink to size 1 again.
    """
    moved = function(align(metadata, value.dim()).expand(value.shape))
    if isinstance(moved, Tensor):
        return _shrink(moved)
    return tuple(_shrink(part) for part in moved)


def _shrink(expanded: Tensor) -> Tensor:
    if torch.jit.is_tracing():
        with untraced():
            size, stride = expanded.size(), expanded.stride()
    else:
        size, stride = expanded.size(), expanded.stride()
    for dim in range(expanded.dim()):
        if stride[dim] == 0 and size[dim] > 1:
            expanded = expanded.narrow(dim, 0, 1)
    return expanded


def reshape_metadata(
    metadata: Tensor, old: tuple[int, ...], new: tuple[int, ...], op: str, field: str = "scale"
) -> Tensor:
    """Metadata of a value reshaped from ``old`` to ``new``.

    A reshape is a list of blocks of dims, each replaced by a block with as many elements. Within a block either no dim
    carries metadata, or all of them do, and the metadata are then reshaped with it.
    """
    if 0 in old:
        return align(metadata, len(old)).expand(old).reshape(new)
    carried = set(carried_dims(metadata, len(old)))
    shape: list[int] = []
    for old_dims, new_dims in _blocks(old, new):
        inside = [dim for dim in old_dims if dim in carried]
        free = [dim for dim in old_dims if dim not in carried and old[dim] != 1]
        if inside and free:
            raise QuantMetadataError(
                f"{op}: a reshape from {tuple(old)} to {tuple(new)} merges dim {inside[0]}, along which the {field} "
                f"has {old[inside[0]]} values, with dim {free[0]}. Keep that dim apart, or quantize with one {field} "
                f"per tensor, or reshape the plain tensor .value."
            )
        shape += [new[dim] if inside else 1 for dim in new_dims]
    return metadata.reshape(shape)


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Smallest groups of neighbouring dims whose products agree."""
    blocks = []
    i = j = 0
    while i < len(old) or j < len(new):
        old_dims, new_dims = [], []
        old_size = new_size = 1
        if i < len(old):
            old_dims, old_size, i = [i], old[i], i + 1
        if j < len(new):
            new_dims, new_size, j = [j], new[j], j + 1
        while old_size != new_size:
            if old_size < new_size:
                old_dims, old_size, i = [*old_dims, i], old_size * old[i], i + 1
            else:
                new_dims, new_size, j = [*new_dims, j], new_size * new[j], j + 1
        blocks.append((old_dims, new_dims))
    return blocks
