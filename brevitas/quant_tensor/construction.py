"""What may go into a QuantTensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from brevitas.errors import QuantMetadataError
from brevitas.quant_tensor.checks import describe_source, one_element, static_shape
from brevitas.quant_tensor.source import Source

__all__ = ["checked_fields"]


def checked_fields(
    value: Any, scale: Any, zero_point: Any, bit_width: Any, signed: Any, training: Any, source: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, bool, bool]:
    """The fields as tensors and bools; :class:`QuantMetadataError` naming what is missing or does not fit."""
    given = {"scale": scale, "zero_point": zero_point, "bit_width": bit_width, "signed": signed}
    missing = [name for name, content in given.items() if content is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise QuantMetadataError(
            f"QuantTensor{_of(source)}: {', '.join(missing)} {verb} missing. A QuantTensor needs a value, scale, "
            f"zero_point, bit_width and signed; a value without a grid stays a plain torch.Tensor."
        )
    if source is not None and not isinstance(source, Source):
        raise QuantMetadataError(f"QuantTensor: source must be a Source or None, got {type(source).__name__}.")
    if not isinstance(value, Tensor):
        fix = " Use its .value." if hasattr(value, "bit_width") else ""
        raise QuantMetadataError(
            f"QuantTensor{_of(source)}: value must be a torch.Tensor, got {type(value).__name__}.{fix}"
        )
    if not value.is_floating_point():
        raise QuantMetadataError(
            f"QuantTensor{_of(source)}: value must be floating point, got {value.dtype}. The value is the real number "
            f"(q - zero_point) * scale, not the code q."
        )
    scale = _as_tensor("scale", scale, value, source)
    zero_point = _as_tensor("zero_point", zero_point, value, source)
    bit_width = _as_tensor("bit_width", bit_width, value, source)
    for name, metadata in (("scale", scale), ("zero_point", zero_point)):
        if not _broadcasts_to(static_shape(metadata), static_shape(value)):
            raise QuantMetadataError(
                f"QuantTensor{_of(source)}: {name} of shape {tuple(metadata.shape)} does not broadcast to the value of "
                f"shape {tuple(value.shape)}. Along a channel dim the shape is 1 elsewhere, such as (1, C, 1, 1)."
            )
    if not one_element(bit_width):
        raise QuantMetadataError(
            f"QuantTensor{_of(source)}: bit_width must have one element, got shape {tuple(bit_width.shape)}."
        )
    return value, scale, zero_point, bit_width, _as_bool("signed", signed), _as_bool("training", training)


def _of(source: Any) -> str:
    return f" from {describe_source(source)}" if isinstance(source, Source) else ""


def _as_tensor(name: str, content: Any, value: Tensor, source: Any) -> Tensor:
    if isinstance(content, (int, float)) and not isinstance(content, bool):
        return torch.full((), content, dtype=value.dtype, device=value.device)
    if not isinstance(content, Tensor):
        raise QuantMetadataError(
            f"QuantTensor{_of(source)}: {name} must be a torch.Tensor or a number, got {type(content).__name__}."
        )
    if not content.is_floating_point():
        raise QuantMetadataError(
            f"QuantTensor{_of(source)}: {name} must be floating point, got {content.dtype}. Use {name}.float()."
        )
    if content.device != value.device:
        raise QuantMetadataError(
            f"QuantTensor{_of(source)}: all fields must be on one device, but value is on {value.device} and {name} on "
            f"{content.device}. Use {name}.to(value.device)."
        )
    return content


def _as_bool(name: str, content: Any) -> bool:
    if not isinstance(content, bool):
        fix = f" Use bool({name})." if isinstance(content, (int, Tensor)) else ""
        raise QuantMetadataError(f"QuantTensor: {name} must be True or False, got {type(content).__name__}.{fix}")
    return content


def _broadcasts_to(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    if len(shape) > len(target):
        return False
    return all(size in (1, goal) for size, goal in zip(reversed(shape), reversed(target), strict=False))
