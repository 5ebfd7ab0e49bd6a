"""What statistics are made of: largest, smallest and k-th values, sums; of one tensor, or of a batch split over ranks.

A function that ends in ``_over_ranks`` takes this rank's part of the batch, possibly empty, and gives every rank the
result for the whole, the same as for one tensor that holds all parts one after the other. ``counts`` are the numbers of
elements of the parts, rank by rank. All ranks have to call it.
"""

import math
from typing import List, Optional  # noqa: UP035 - TorchScript reads annotations of this kind

import torch
from torch import Tensor

from brevitas.core.utils import at_least_float32
from brevitas.errors import QuantConfigError
from brevitas.function.ranks import gather_over_ranks, index_of_kth_over_ranks, largest_of_ranks

__all__ = [
    "count",
    "counts_over_ranks",
    "high_rank",
    "kth_smallest",
    "largest",
    "largest_over_ranks",
    "low_rank",
    "percentile_over_ranks",
    "rows_of_counts",
    "smallest",
    "sum_over_ranks",
    "whole_batch",
]


def largest(x: Tensor, dim: Optional[int]) -> Tensor:  # noqa: UP045
    """Maximum. Of the whole tensor, equal maxima share the gradient; along a dimension the first one takes it."""
    if dim is None:
        return torch.amax(x)
    return torch.max(x, dim=dim)[0]


def smallest(x: Tensor, dim: Optional[int]) -> Tensor:  # noqa: UP045
    """Minimum, with gradients as in :func:`largest`."""
    if dim is None:
        return torch.amin(x)
    return torch.min(x, dim=dim)[0]


def kth_smallest(x: Tensor, k: int, dim: Optional[int]) -> Tensor:  # noqa: UP045
    """The k-th smallest value, k from 1."""
    if dim is None:
        x = x.reshape(-1)
        dim = 0
    n = x.shape[dim]
    # Near an end of a long row, the few values beyond are found much sooner than the row is partitioned.
    if (n - k + 1) * 64 <= n:
        return torch.topk(x, n - k + 1, dim=dim)[0].select(dim, n - k)
    if k * 64 <= n:
        return torch.topk(x, k, dim=dim, largest=False)[0].select(dim, k - 1)
    return torch.kthvalue(x, k, dim=dim)[0]


def count(x: Tensor, dim: Optional[int]) -> int:  # noqa: UP045
    """Number of values that are reduced to one."""
    if dim is None:
        return x.numel()
    return x.shape[dim]


def high_rank(q: float, n: int) -> int:
    """Rank, from 1, of the upper percentile ``q`` of n values."""
    return max(min(int(math.floor(q * n / 100.0 + 0.5)), n), 1)


def low_rank(q: float, n: int) -> int:
    """Rank, from 1, of the lower percentile ``q`` of n values."""
    return max(min(int(math.ceil(q * n / 100.0)), n), 1)


def counts_over_ranks(x: Tensor) -> Tensor:
    """Number of elements of ``x`` on each rank, int64."""
    return gather_over_ranks(torch.full([], x.numel(), dtype=torch.int64, device=x.device))


def rows_of_counts(counts: Tensor, x: Tensor, dim: Optional[int]) -> Tensor:  # noqa: UP045
    """Of numbers of elements the lengths along ``dim``; all other sizes of ``x`` are those of every rank."""
    if dim is None:
        return counts
    others = 1
    for d in range(x.dim()):
        if d != dim:
            others *= x.shape[d]
    return counts // max(others, 1)


def _sum(x: Tensor, dim: Optional[int]) -> Tensor:  # noqa: UP045
    if dim is None:
        return torch.sum(x)
    return torch.sum(x, dim=dim)


def sum_over_ranks(x: Tensor, dim: Optional[int]) -> Tensor:  # noqa: UP045
    """Sum, in the dtype of ``x``, equal to that of one tensor up to rounding."""
    return torch.sum(gather_over_ranks(_sum(x, dim)), dim=0)


def largest_over_ranks(x: Tensor, dim: Optional[int]) -> Tensor:  # noqa: UP045
    """Maximum, in the dtype of ``x`` and with the gradients of :func:`largest`; ``-inf`` if all parts are empty."""
    wide = at_least_float32(x)
    if x.numel() == 0:
        # A sum of nothing rather than a constant: each rank has to take part in the backward as well.
        mine = _sum(wide, dim) - float("inf")
    else:
        mine = largest(wide, dim)
    everyone = gather_over_ranks(mine)
    if dim is None:
        ties = gather_over_ranks(torch.sum((wide == mine).to(mine.dtype)))
    else:
        held = (everyone == torch.amax(everyone, dim=0)).to(mine.dtype)
        ties = held * (torch.cumsum(held, dim=0) == 1).to(mine.dtype)
    return largest_of_ranks(everyone, ties).to(x.dtype)


def percentile_over_ranks(x: Tensor, counts: Tensor, q: float, high: bool, dim: Optional[int]) -> Tensor:  # noqa: UP045
    """The value of rank :func:`high_rank` or :func:`low_rank` of the whole batch; its gradient goes to that element.

    Only as many values travel as lie beyond the percentile.
    """
    lengths = rows_of_counts(counts, x, dim)
    total = torch.sum(lengths)
    position = q * total.to(torch.float64) / 100.0
    position = torch.floor(position + 0.5) if high else torch.ceil(position)
    k = torch.clamp_min(torch.minimum(position.to(torch.int64), total), 1)
    wide = at_least_float32(x)
    rows = wide.reshape([1, x.numel()]) if dim is None else torch.movedim(wide, dim, -1)
    shape = rows.shape[:-1]
    rows = torch.flatten(rows, 0, -2)
    index = index_of_kth_over_ranks(rows.detach(), lengths, k)
    if x.numel() == 0:
        mine = torch.sum(rows, dim=1)  # 0, of a sum for the reason given above
    else:
        found = torch.gather(rows, 1, torch.clamp_min(index, 0).unsqueeze(1)).squeeze(1)
        mine = torch.where(index >= 0, found, torch.zeros_like(found))
    value = torch.sum(gather_over_ranks(mine), dim=0).to(x.dtype)  # of one value and of zeros, hence exact
    return value.reshape([]) if dim is None else value.reshape(shape)


def whole_batch(x: Tensor, counts: Tensor, dim: int) -> Tensor:
    """The parts of all ranks joined along ``dim``: for statistics that cannot be composed of what the ranks know.

    Raises:
        QuantConfigError: while compiling, since the number of values is known only when the program runs.
    """
    if not torch.jit.is_scripting() and torch.compiler.is_compiling():
        raise QuantConfigError(
            "A statistic without a method over_ranks(x, counts) gathers the whole batch, which torch.compile cannot "
            "do. Give the statistic that method, or finish collecting before you compile (init_scale)."
        )
    lengths: List[int] = rows_of_counts(counts, x, dim).tolist()  # noqa: UP006
    longest = max(lengths)
    if x.shape[dim] < longest:
        size = list(x.shape)
        size[dim] = longest - x.shape[dim]
        x = torch.cat([x, x.new_zeros(size)], dim=dim)
    everyone = gather_over_ranks(x)
    parts: List[Tensor] = []  # noqa: UP006
    for rank in range(len(lengths)):
        parts.append(everyone[rank].narrow(dim, 0, lengths[rank]))
    return torch.cat(parts, dim=dim)
