"""Batches that are split over the ranks of ``torch.distributed``: which ranks, and what each of them holds.

    >>> import torch
    >>> ranks()                                               # nothing is distributed here
    1
    >>> gather_over_ranks(torch.tensor([1.0, 2.0])).shape     # one row a rank
    torch.Size([1, 2])

The ranks are those of the default process group as soon as there is one. Processes that do not share their batches,
because each holds another part of the model or another model, say so with :func:`set_statistics_group`.

Gathering is differentiable. Its backward gives a rank the sum, over all ranks, of the gradients to what it sent: the
gradient of the sum of the ranks' losses. Gradients of parameters that are averaged over the ranks, as
``DistributedDataParallel`` does, are then those of one process whose loss is the mean of the ranks' losses.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from brevitas.errors import QuantConfigError
from brevitas.function._library import register, register_plain

__all__ = [
    "GatherOverRanksFn",
    "LargestOfRanksFn",
    "gather_over_ranks",
    "index_of_kth_over_ranks",
    "is_split",
    "largest_of_ranks",
    "ranks",
    "set_statistics_group",
    "statistics_over",
]

# Name, size and own rank of the group that was chosen; None = the default group, looked up since it comes and goes.
_chosen: tuple[str, int, int] | None = None
_ALONE = ("", 1, 0)


def _group() -> tuple[str, int, int]:
    if _chosen is not None:
        return _chosen
    if not (dist.is_available() and dist.is_initialized()):
        return _ALONE
    size = dist.get_world_size()
    return (dist.group.WORLD.group_name, size, dist.get_rank()) if size > 1 else _ALONE  # type: ignore[union-attr]


def set_statistics_group(group: Any) -> None:
    """Choose the ranks over which this process shares the statistics of its batches, from now on.

    >>> set_statistics_group(None)          # with nobody: this process holds a model of its own
    >>> set_statistics_group("default")     # with all ranks of the default process group, as at the start

    Args:
        group: a process group that this process belongs to, such as that of the replicas of one pipeline stage;
            ``None`` = no other rank; ``"default"`` = whatever ``torch.distributed`` was initialised with.

    Raises:
        QuantConfigError: ``group`` is none of these.
    """
    global _chosen
    if group is None:
        _chosen = _ALONE
    elif isinstance(group, str) and group == "default":
        _chosen = None
    elif dist.is_available() and isinstance(group, dist.ProcessGroup):
        _chosen = (group.group_name, group.size(), group.rank()) if group.size() > 1 else _ALONE
    else:
        raise QuantConfigError(
            f"group={group!r} is no group of ranks. Expected a torch.distributed process group that this rank belongs "
            'to, None for no other rank, or "default".'
        )


@contextlib.contextmanager
def statistics_over(group: Any) -> Iterator[None]:
    """As :func:`set_statistics_group`, within a ``with`` block.

    >>> with statistics_over(None):         # such as a rank that calibrates alone
    ...     ranks()
    1
    """
    global _chosen
    before = _chosen
    set_statistics_group(group)
    try:
        yield
    finally:
        _chosen = before


def _is_split(x: Tensor) -> bool:
    return _group()[1] > 1


def _gather(x: Tensor) -> Tensor:
    name, size, _ = _group()
    row = x.detach().unsqueeze(0).contiguous()
    if size == 1:
        return row.clone()
    # The functional forms of collectives are those that a compiler knows.
    rows = torch.ops._c10d_functional.all_gather_into_tensor(row, size, name)
    return torch.ops._c10d_functional.wait_tensor(rows)


class GatherOverRanksFn(Function):
    """What each rank holds; a rank's gradient is the sum of the gradients to its row on all ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: D102
        return _gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # noqa: D102
        name, size, _ = _group()
        if size == 1:
            return grad.squeeze(0)
        mine = torch.ops._c10d_functional.reduce_scatter_tensor(grad.contiguous(), "sum", size, name)
        return torch.ops._c10d_functional.wait_tensor(mine).squeeze(0)


def _largest(values: Tensor, ties: Tensor) -> Tensor:
    return torch.amax(values, dim=0)


class LargestOfRanksFn(Function):
    """Maximum over dim 0; the rows that hold it share the gradient in proportion to ``ties``."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ties: Tensor) -> Tensor:  # noqa: D102
        largest = torch.amax(values, dim=0)
        ctx.save_for_backward(values == largest, ties)
        return largest

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # noqa: D102
        holds, ties = ctx.saved_tensors
        shares = torch.where(holds, ties, 0.0)
        return grad * shares / torch.sum(shares, dim=0), None


def _flat_candidates(mine: Tensor, length: int, largest: bool) -> tuple[Tensor, Tensor]:
    """The ``length`` outermost values of each row, padded from within, and where they stand (-1: padding)."""
    found = min(length, mine.shape[1])
    values, where = torch.topk(mine, found, dim=1, largest=largest)
    innermost = float("-inf") if largest else float("inf")
    padding = (0, length - found)
    return (
        torch.nn.functional.pad(values, padding, value=innermost),
        torch.nn.functional.pad(where, padding, value=-1),
    )


def _index_of_kth(rows: Tensor, counts: Tensor, k: Tensor) -> Tensor:
    """Eager: see :func:`index_of_kth_over_ranks`."""
    sizes: list[int] = counts.tolist()
    total, rank_k = sum(sizes), int(k)
    if total == 0:
        return rows.new_full(rows.shape[:1], -1, dtype=torch.int64)
    # From the nearer end, so that as few values travel as possible.
    largest = total - rank_k + 1 <= rank_k
    needed = total - rank_k + 1 if largest else rank_k
    values, where = _flat_candidates(rows.detach(), min(needed, max(sizes)), largest)
    all_values, all_where = _gather(values), _gather(where)
    flat = all_values.transpose(0, 1).flatten(1)
    kth = torch.topk(flat, needed, dim=1, largest=largest)[0].select(1, needed - 1)
    # NaN, which sorts above everything, is found as NaN.
    hit = (all_values == kth.unsqueeze(1)) | (all_values.isnan() & kth.isnan().unsqueeze(1))
    hit &= all_where >= 0
    owner = hit.any(dim=2).to(torch.int8).argmax(dim=0)  # the first rank that holds it
    me = _group()[2]
    index = torch.gather(where, 1, hit[me].to(torch.int8).argmax(dim=1, keepdim=True)).squeeze(1)
    return torch.where(owner == me, index, -1)


def _fake_index(rows: Tensor, counts: Tensor, k: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[:1], dtype=torch.int64)


register_plain("is_split(Tensor x) -> bool", _is_split)
_largest_of_ranks = register("largest_of_ranks(Tensor values, Tensor ties) -> Tensor", LargestOfRanksFn, _largest)
_gather_over_ranks = register("gather_over_ranks(Tensor x) -> Tensor", GatherOverRanksFn, _gather)
_index_of_kth_op = register_plain(
    "index_of_kth_over_ranks(Tensor rows, Tensor counts, Tensor k) -> Tensor", _index_of_kth, _fake_index
)


def ranks() -> int:
    """Number of processes over which batches are split; 1 if there is only this one."""
    return _group()[1]


def is_split(x: Tensor) -> bool:
    """Whether ``x`` is one rank's part of a batch; an argument, or TorchScript would take the answer for a constant."""
    if torch.jit.is_scripting():
        return torch.ops.brevitas.is_split(x)
    return _group()[1] > 1


def gather_over_ranks(x: Tensor) -> Tensor:
    """What each rank holds, of shape (ranks, *x.shape); every rank has to call it, with an ``x`` of the same shape.

    The gradient to ``x`` is summed over the ranks: see the module docstring.
    """
    if torch.jit.is_scripting():
        return torch.ops.brevitas.gather_over_ranks(x)
    return _gather_over_ranks(x)


def largest_of_ranks(values: Tensor, ties: Tensor) -> Tensor:
    """Maximum over the ranks of what was gathered; ranks that hold it share the gradient in proportion to ``ties``.

    Args:
        values: the maximum of each rank's part, of shape (ranks, ...).
        ties: how many elements of each part equal the maximum of that part, of the shape and dtype of ``values``.
    """
    if torch.jit.is_scripting():
        return torch.ops.brevitas.largest_of_ranks(values, ties)
    return _largest_of_ranks(values, ties)


def index_of_kth_over_ranks(rows: Tensor, counts: Tensor, k: Tensor) -> Tensor:
    """Where the k-th smallest value of each row of the whole batch stands in this rank's part; -1 if it is elsewhere.

    Of equal values one is chosen, the same for all ranks. As few values travel as the result can depend on.

    Args:
        rows: this rank's part, of shape (rows, n); n may be 0 and may differ between ranks.
        counts: n of each rank, int64.
        k: one number, int64, from 1 to the sum of ``counts``.
    """
    if torch.jit.is_scripting():
        return torch.ops.brevitas.index_of_kth_over_ranks(rows, counts, k)
    return _index_of_kth_op(rows, counts, k)
