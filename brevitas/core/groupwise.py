"""Groups of neighbours along one dimension, each with a scale of its own.

    >>> import torch
    >>> x = torch.tensor([[1.0, -2.0, 3.0]])
    >>> OverSubChannelBlockView(group_size=2, group_dim=1)(x)
    tensor([[ 1., -2.],
            [ 3.,  0.]])
    >>> group_shape(list(x.shape), 2, 1), repeat_over_groups(torch.tensor([[0.1, 0.2]]), x, 2, 1)
    ([1, 2], tensor([[0.1000, 0.1000, 0.2000]]))

A dimension of d elements has ``ceil(d / group_size)`` groups; the last one is filled up with zeros for statistics, and
values keep their shape. ``group_dim`` counts from the end where it is negative.
"""

from typing import List, Tuple  # noqa: UP035 - TorchScript reads annotations of this kind

import torch
from torch import Tensor

import brevitas.jit
from brevitas.core._checks import check_int

__all__ = [
    "DynamicOverSubChannelBlockView",
    "OverSubChannelBlockView",
    "check_group",
    "group_shape",
    "repeat_over_groups",
]


def check_group(owner: str, group_size: int, group_dim: int, from_end: bool = True) -> tuple[int, int]:
    """``(group_size, group_dim)``, valid."""
    size = check_int(owner, "group_size", group_size, 1)
    return size, check_int(owner, "group_dim", group_dim, -8 if from_end else 0, 8)


def group_shape(shape: List[int], group_size: int, group_dim: int) -> List[int]:  # noqa: UP006
    """Shape of the scale of a tensor of ``shape``: the number of groups in place of the elements of ``group_dim``."""
    groups: List[int] = []  # noqa: UP006
    for size in shape:
        groups.append(size)
    groups[group_dim] = (groups[group_dim] + group_size - 1) // group_size
    return groups


def repeat_over_groups(per_group: Tensor, x: Tensor, group_size: int, group_dim: int) -> Tensor:
    """``per_group`` with each entry repeated for the elements of its group, of a shape that broadcasts to ``x``.

    A scalar stays one. Gradient: summed over the elements of the group.
    """
    if per_group.dim() == 0:
        return per_group
    dim = group_dim + x.dim() if group_dim < 0 else group_dim
    repeated: List[int] = []  # noqa: UP006
    for size in per_group.shape:
        repeated.append(size)
    repeated.insert(dim + 1, group_size)
    full = per_group.unsqueeze(dim + 1).expand(repeated).flatten(dim, dim + 1)
    return full.narrow(dim, 0, x.shape[dim])


class OverSubChannelBlockView(brevitas.jit.ScriptModule):
    """A row per group, in the order of the scale's elements.

    Args:
        group_size: elements of a group.
        group_dim: dimension that is cut into groups.
    """

    def __init__(self, group_size: int, group_dim: int) -> None:
        super().__init__()
        self.group_size, self.group_dim = check_group(type(self).__name__, group_size, group_dim, self._from_end())

    def _from_end(self) -> bool:
        return False

    @brevitas.jit.script_method
    def shape(self, x: Tensor) -> Tuple[int, int]:  # noqa: UP006
        """``(-1, group_size)`` of an ``x`` whose groups are in front of their elements."""
        return -1, self.group_size

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``x`` of shape (groups, group_size), filled up with zeros."""
        dim = self.group_dim + x.dim() if self.group_dim < 0 else self.group_dim
        groups = (x.shape[dim] + self.group_size - 1) // self.group_size
        missing = groups * self.group_size - x.shape[dim]
        sizes: List[int] = []  # noqa: UP006
        for size in x.shape:
            sizes.append(size)
        if missing > 0:
            sizes[dim] = missing
            x = torch.cat([x, torch.zeros(sizes, dtype=x.dtype, device=x.device)], dim=dim)
        sizes[dim] = groups
        sizes.insert(dim + 1, self.group_size)
        return x.reshape(sizes).movedim(dim + 1, -1).reshape(self.shape(x))


class DynamicOverSubChannelBlockView(OverSubChannelBlockView):
    """As :class:`OverSubChannelBlockView`; ``group_dim`` may be negative, for inputs of varying dimensionality."""

    def _from_end(self) -> bool:
        return True
