"""Upsampling on the grid of the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from brevitas.nn.following import FollowingLayer
from brevitas.quant_tensor import QuantTensor

__all__ = ["QuantUpsample", "QuantUpsamplingBilinear2d", "QuantUpsamplingNearest2d"]

Size = int | tuple[int, ...]
Factor = float | tuple[float, ...]
Device = torch.device | str | None
_COPYING = ("nearest", "nearest-exact")


class _QuantUpsample(FollowingLayer):
    mode: str

    def forward(self, input: Any) -> Any:
        """The upsampled input; of a ``QuantTensor``, on the grid of the input.

        Between the elements the nearest points of the grid are taken; the rounding passes its gradient straight
        through.

        Raises:
            QuantMetadataError: ``return_quant_tensor=True``, and the input has no grid; or its scale varies along the
                dims that are interpolated.
        """
        self._cache_input(input)
        if not isinstance(input, QuantTensor) or self.mode in _COPYING:
            return self.follow(super().forward(input), input)  # type: ignore[misc]
        self.require_one_grid(input, input.dim() - 2)
        return self.follow(input.requantize(super().forward(input.value)), input)  # type: ignore[misc]


class QuantUpsample(_QuantUpsample, nn.Upsample):
    """Upsampling that keeps the grid of a ``QuantTensor``.

    >>> import torch
    >>> from brevitas.nn import QuantUpsample
    >>> from brevitas.quant_tensor import QuantTensor
    >>> x = QuantTensor(torch.tensor([[[0.0, 1.0, 4.0]]]), scale=1.0, zero_point=0, bit_width=4, signed=False)
    >>> QuantUpsample(scale_factor=2, mode='linear')(x).int()
    tensor([[[0, 0, 1, 2, 3, 4]]], dtype=torch.int32)

    Args:
        size, scale_factor, mode, align_corners, recompute_scale_factor: as for ``torch.nn.Upsample``.
        return_quant_tensor: ``None`` returns what the input leads to, ``False`` a plain tensor, ``True`` insists.
        device, dtype: accepted as by every layer; there is no state to place.

    Input (N, C, ...) with one to three spatial dims.
    """

    def __init__(
        self,
        size: Size | None = None,
        scale_factor: Factor | None = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
        return_quant_tensor: bool | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Upsample.__init__(self, size, scale_factor, mode, align_corners, recompute_scale_factor)  # type: ignore[arg-type]
        self._init_layer(return_quant_tensor, may_follow=True)


class _QuantUpsampling2d(_QuantUpsample):
    def __init__(
        self,
        size: Size | None = None,
        scale_factor: Factor | None = None,
        return_quant_tensor: bool | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(size, scale_factor)  # type: ignore[call-arg]
        self._init_layer(return_quant_tensor, may_follow=True)


class QuantUpsamplingBilinear2d(_QuantUpsampling2d, nn.UpsamplingBilinear2d):
    """Bilinear 2-d upsampling with aligned corners, on the grid of a ``QuantTensor``.

    >>> import torch
    >>> from brevitas.nn import QuantUpsamplingBilinear2d
    >>> from brevitas.quant_tensor import QuantTensor
    >>> x = QuantTensor(torch.tensor([[[[0.0, 3.0]]]]), scale=1.0, zero_point=0, bit_width=4, signed=False)
    >>> QuantUpsamplingBilinear2d(size=(1, 3))(x).int()
    tensor([[[[0, 2, 3]]]], dtype=torch.int32)

    Args:
        size, scale_factor: as for ``torch.nn.UpsamplingBilinear2d``.
        return_quant_tensor, device, dtype: as for :class:`QuantUpsample`.

    Input (N, C, H, W).
    """


class QuantUpsamplingNearest2d(_QuantUpsampling2d, nn.UpsamplingNearest2d):
    """2-d upsampling by copies, which keeps the grid of a ``QuantTensor``.

    Arguments are those of :class:`QuantUpsamplingBilinear2d`. Input (N, C, H, W).
    """
