"""Shapes ``s`` for ``x.view(s)`` that put the values of one scale on one row.

>>> import torch
>>> over_output_channels(torch.zeros(8, 3, 5, 5))
(8, -1)
"""

from typing import Tuple  # noqa: UP035 - TorchScript reads annotations of this kind

from torch import Tensor

__all__ = ["over_batch_over_output_channels", "over_batch_over_tensor", "over_output_channels", "over_tensor"]


def over_tensor(x: Tensor) -> int:
    """One row: ``-1``."""
    return -1


def over_output_channels(x: Tensor) -> Tuple[int, int]:  # noqa: UP006
    """A row per output channel: ``(x.shape[0], -1)``."""
    return x.shape[0], -1


def over_batch_over_tensor(x: Tensor) -> Tuple[int, int]:  # noqa: UP006
    """A row per sample: ``(x.shape[0], -1)``."""
    return x.shape[0], -1


def over_batch_over_output_channels(x: Tensor) -> Tuple[int, int, int]:  # noqa: UP006
    """A row per sample and channel: ``(x.shape[0], x.shape[1], -1)``."""
    return x.shape[0], x.shape[1], -1
