"""Max pools: the largest of some codes is one of them, so the grid stays."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from brevitas.nn.following import FollowingLayer

__all__ = ["QuantMaxPool1d", "QuantMaxPool2d", "QuantMaxPool3d"]

Size = int | tuple[int, ...]
Device = torch.device | str | None


class _QuantMaxPool(FollowingLayer):
    """What the max pools of every dimension share: all but the class of torch."""

    return_indices: bool

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
        return_quant_tensor: bool | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, return_indices, ceil_mode)  # type: ignore[call-arg]
        self._init_layer(return_quant_tensor, may_follow=True)

    def forward(self, input: Any) -> Any:
        """The largest element of each window; with ``return_indices`` also where it is.

        Raises:
            QuantMetadataError: ``return_quant_tensor=True``, and the input has no grid.
        """
        self._cache_input(input)
        y = super().forward(input)  # type: ignore[misc]
        if self.return_indices:
            return self.follow(y[0], input), y[1]
        return self.follow(y, input)


class QuantMaxPool1d(_QuantMaxPool, nn.MaxPool1d):
    """1-d max pool that keeps the grid of a ``QuantTensor``; see :class:`QuantMaxPool2d`. Input (N, C, L) or (C, L)."""


class QuantMaxPool2d(_QuantMaxPool, nn.MaxPool2d):
    """2-d max pool that keeps the grid of a ``QuantTensor``.

    >>> import torch
    >>> from brevitas.nn import QuantIdentity, QuantMaxPool2d
    >>> x = QuantIdentity(bit_width=4, return_quant_tensor=True)(torch.randn(1, 3, 4, 4))
    >>> y = QuantMaxPool2d(2)(x)
    >>> y.shape, y.bit_width, torch.equal(y.scale, x.scale)
    (torch.Size([1, 3, 2, 2]), tensor(4.), True)

    Args:
        kernel_size, stride, padding, dilation, return_indices, ceil_mode: as for ``torch.nn.MaxPool2d``.
        return_quant_tensor: ``None`` returns what the input leads to, ``False`` a plain tensor, ``True`` insists.
        device, dtype: accepted as by every layer; there is no state to place.

    Input (N, C, H, W) or (C, H, W).
    """


class QuantMaxPool3d(_QuantMaxPool, nn.MaxPool3d):
    """3-d max pool that keeps the grid of a ``QuantTensor``; see :class:`QuantMaxPool2d`.

    Input (N, C, D, H, W) or (C, D, H, W).
    """
