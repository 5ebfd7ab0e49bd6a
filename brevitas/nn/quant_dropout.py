"""Dropout that keeps the metadata of a QuantTensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from brevitas.nn.following import FollowingLayer

__all__ = ["QuantDropout"]


class QuantDropout(FollowingLayer, nn.Dropout):
    """Dropout that hands the metadata of a ``QuantTensor`` on.

    >>> import torch
    >>> from brevitas.nn import QuantDropout, QuantIdentity
    >>> x = QuantIdentity(bit_width=4, return_quant_tensor=True)(torch.randn(8))
    >>> torch.equal(QuantDropout(0.5).eval()(x).int(), x.int())
    True

    In training the values that remain carry the factor 1 / (1 - p), which moves them off the grid.

    Args:
        p: probability of a zero.
        inplace: as for ``torch.nn.Dropout``; a ``QuantTensor`` is never written to.
        return_quant_tensor: ``None`` returns what the input leads to, ``False`` a plain tensor, ``True`` insists.
        device, dtype: accepted as by every layer; there is no state to place.
    """

    def __init__(
        self,
        p: float = 0.5,
        inplace: bool = False,
        return_quant_tensor: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Dropout.__init__(self, p, inplace)
        self._init_layer(return_quant_tensor, may_follow=True)

    def forward(self, input: Any) -> Any:
        """The input with elements set to 0 at random in training, as it is in eval mode.

        Raises:
            QuantMetadataError: ``return_quant_tensor=True``, and the input has no grid.
        """
        self._cache_input(input)
        return self.follow(nn.Dropout.forward(self, input), input)
