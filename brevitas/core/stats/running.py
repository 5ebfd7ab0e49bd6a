"""Quantities that are estimated first and learned afterwards.

``RunningEstimate`` averages the statistic of batches. ``CollectThenLearn`` and ``FollowThenLearn`` are the two phase
machines of the library, for quantities of activations and of parameters: scales and zero points derive from them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, List, Optional  # noqa: UP035 - TorchScript reads annotations of this kind
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

import brevitas.jit
from brevitas.core._checks import check_int, check_number
from brevitas.core.stats.reductions import counts_over_ranks
from brevitas.core.stats.repetition import (
    awaits_repetition,
    estimate_before,
    forget_collecting_call,
    new_learned_call,
    remember_collecting_call,
)
from brevitas.core.utils import StatefulModule, at_least_float32, is_repetition, learned_parameter, snapshot
from brevitas.function.ranks import is_split

__all__ = ["DEFAULT_MOMENTUM", "CollectThenLearn", "FollowThenLearn", "RunningEstimate"]

DEFAULT_MOMENTUM = 0.1


def check_momentum(owner: str, name: str, momentum: float | None) -> float | None:
    """``momentum`` in (0, 1], or ``None`` for the true average."""
    return None if momentum is None else check_number(owner, name, momentum, 0.0, 1.0, low_open=True)


# Flags that were seen set, with the version of the tensor at that time. Reading a flag from a device waits for the
# device; a flag that is set stays set until something writes to the tensor, which raises its version, or replaces it.
_seen_set: WeakKeyDictionary[nn.Module, tuple[Tensor, int]] = WeakKeyDictionary()


def is_set(owner: nn.Module, flag: Tensor) -> bool:
    """``bool(flag)`` of a buffer of ``owner``, which synchronises with a device only until the flag is set."""
    if flag.is_cpu:
        return bool(flag)
    return _is_set_remembered(owner, flag)


def _is_set_remembered(owner: nn.Module, flag: Tensor) -> bool:
    seen = _seen_set.get(owner)
    if seen is not None and seen[0] is flag and seen[1] == flag._version:
        return True
    value = bool(flag)
    if value and not flag.is_inference():
        _seen_set[owner] = (flag, flag._version)
    return value


def _statistic_or_ones(
    wanted: Tensor, statistic: Callable[[Tensor], Tensor], x: Tensor, shape: list[int], dtype: torch.dtype
) -> Tensor:
    """Inside a compiled graph: ``statistic(x)`` where ``wanted``, else ones at no cost.

    ``x`` enters the branches as one row in memory order, which costs no copy of a dense tensor: torch.cond demands that
    the gradients of both branches have equal strides.
    """
    order: list[int] = []
    for d in range(x.ndim):  # an insertion sort: strides may be symbols, which a compiler compares but does not sort
        place = len(order)
        while place > 0 and x.stride(order[place - 1]) < x.stride(d):
            place -= 1
        order.insert(place, d)
    dense = x.permute(order)
    sizes = list(dense.shape)  # not `dense` itself, which would reach the branches as a second, aliasing input
    back = [order.index(d) for d in range(x.ndim)]

    def compute(row: Tensor) -> Tensor:
        return statistic(row.view(sizes).permute(back)).to(dtype).clone()

    def skip(row: Tensor) -> Tensor:
        return row.new_ones(shape, dtype=dtype)

    return torch.cond(wanted, compute, skip, (dense.reshape(-1),))


class RunningEstimate(StatefulModule):
    """Exponential (or true) average of a statistic of the batches.

    State: ``running_stats`` (in real units), ``counter`` (int64), ``initialised`` (bool).
    """

    running_stats: Tensor
    counter: Tensor
    initialised: Tensor

    def __init__(self, shape: tuple[int, ...], momentum: float | None, start: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_stats", torch.full(shape, start))
        self.register_buffer("counter", torch.tensor(0, dtype=torch.int64))
        self.register_buffer("initialised", torch.tensor(False))

    @brevitas.jit.script_method
    def count(self, stat: Tensor, counts: Optional[Tensor]) -> None:  # noqa: UP045
        """Update the estimate with the statistic of one more batch, unless its ``counts`` on the ranks are all 0."""
        if not is_repetition(self.counter):
            with torch.no_grad():
                averaged = self.averaged(stat.detach())
                if counts is None:
                    self.store(averaged)
                    self.counter.add_(1)
                else:
                    exists = torch.sum(counts) > 0
                    self.store(torch.where(exists, averaged, self.running_stats))
                    self.counter.add_(exists.to(self.counter.dtype))

    @brevitas.jit.script_method
    def store(self, estimate: Tensor) -> None:
        """Replace the estimate."""
        # Through a view: torch's compiler takes a float64 scalar on CPU for a number, and loses what is written to it.
        self.running_stats.view(-1).copy_(estimate.reshape(-1))

    @brevitas.jit.script_method
    def averaged(self, stat: Tensor) -> Tensor:
        """The estimate after one more batch; the first batch replaces the start value, a NaN changes nothing."""
        new = at_least_float32(stat)
        old = at_least_float32(self.running_stats)
        if self.momentum is None:
            blended = old + (new - old) / (self.counter + 1)
        else:
            blended = (1.0 - self.momentum) * old + self.momentum * new
        return torch.where(torch.isnan(new), old, torch.where(self.counter == 0, new, blended))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # 'initialised' and 'counter' are younger than the estimate itself. One of them alone is an incomplete file.
        younger = (prefix + "counter", prefix + "initialised")
        if prefix + "running_stats" in state_dict and not any(key in state_dict for key in younger):
            state_dict[prefix + "counter"] = torch.ones_like(self.counter)
            state_dict[prefix + "initialised"] = torch.ones_like(self.initialised)
        super()._load_from_state_dict(state_dict, prefix, *args)


class CollectThenLearn(RunningEstimate):
    """A quantity that is the statistic of each batch for ``steps`` training calls, and a parameter from then on.

    Sub-classes say what is collected (``statistic``), how it is stored (``to_stored``) and how a quantity in real units
    comes back from a stored one (``learned``) or from a statistic (``from_statistic``).

    Where ``torch.distributed`` runs, each statistic is that of the whole batch of which every rank holds a part, so
    that all ranks hold the state of one process that saw the whole; see :mod:`brevitas.function.ranks`.

    While collecting, ``value`` mirrors the estimate and receives an exact zero gradient, so that optimizers and
    ``DistributedDataParallel`` see the same set of parameters in every step.
    """

    shape: List[int]  # noqa: UP006

    def __init__(self, shape: tuple[int, ...], steps: int, momentum: float | None, start: float) -> None:
        super().__init__(shape, momentum, start)
        self.shape = list(shape)
        self.collect_stats_steps = check_int(type(self).__name__, "collect_stats_steps", steps, 1)
        #: While true, training calls use the estimate and do not count; for layers that call a quantizer many times.
        self.stands_still = False

    def _init_value(self) -> None:
        """Create ``value``; called by the sub-class once its own parts exist."""
        self.value = learned_parameter(self.to_stored(self.running_stats))

    def statistic(self, x: Tensor, counts: Optional[Tensor]) -> Tensor:  # noqa: UP045
        """Statistic of a batch, in real units, of the quantity's shape.

        Args:
            x: the batch, or this rank's part of it.
            counts: elements of the part of each rank; ``None`` where there is one process.
        """
        raise NotImplementedError

    def to_stored(self, stat: Tensor) -> Tensor:
        """A quantity in real units in the domain in which it is learned."""
        raise NotImplementedError

    def learned(self, stored: Tensor) -> Tensor:
        """The quantity of a stored value."""
        raise NotImplementedError

    def from_statistic(self, stat: Tensor) -> Tensor:
        """The quantity of a batch."""
        raise NotImplementedError

    @brevitas.jit.script_method
    def from_value(self) -> Tensor:
        """The learned quantity."""
        return self.learned(self.value.view(self.shape))

    @brevitas.jit.script_method
    def from_estimate(self) -> Tensor:
        """The quantity of the running estimate."""
        return self.learned(self.to_stored(self.running_stats).to(self.value.dtype))

    @brevitas.jit.script_method
    def mirror(self) -> None:
        """Write the running estimate into ``value``."""
        with torch.no_grad():
            self.value.copy_(self.to_stored(self.running_stats).view(self.value.shape))

    @brevitas.jit.script_method
    def quantity(self, x: Tensor) -> Tensor:
        """The quantity in this phase, of ``self.shape``."""
        if not torch.jit.is_scripting() and torch.compiler.is_compiling():
            return self._quantity_without_branches(x)
        initialised = bool(self.initialised) if torch.jit.is_scripting() else is_set(self, self.initialised)
        if initialised:
            if self.training and awaits_repetition(self.counter):
                if not is_repetition(self.counter):
                    new_learned_call(self.counter)
                elif self.repeats_collecting(x):
                    return self.from_batch(self.statistic(x, counts_over_ranks(x) if is_split(x) else None))
            return self.from_value()
        if not self.training or self.stands_still:
            if self.training and is_repetition(self.counter):
                # A forward that stands still counts at its end, and its repetition has to find what it found.
                earlier = estimate_before(self.counter, self.running_stats)
                return self.learned(self.to_stored(earlier).to(self.value.dtype))
            return self.from_estimate()
        # A part may be empty: its rank takes part nevertheless, or the others would wait for it.
        counts = counts_over_ranks(x) if is_split(x) else None
        empty = x.numel() == 0 if counts is None else bool(torch.sum(counts) == 0)
        if empty:
            # An empty batch has no statistic; it does not count.
            return self.from_estimate() + 0.0 * self.value.view(self.shape)
        # A call that ends collection sets the flag, so a repetition that finds it unset repeats a collecting call.
        repeated = is_repetition(self.counter)
        if bool(self.counter >= self.collect_stats_steps) and not repeated:
            self.mirror()
            self.initialised.fill_(True)
            return self.from_value()
        stat = self.statistic(x, counts)
        if repeated:
            forget_collecting_call(self.counter, stat)
        else:
            before = self.running_stats.clone() if bool(self.counter > 0) else None
            remember_collecting_call(self.counter, stat, before)
        self.count(stat, None)
        self.mirror()
        return self.from_batch(stat)

    @brevitas.jit.script_method
    def from_batch(self, stat: Tensor) -> Tensor:
        """The quantity of a batch, and an exact zero gradient to ``value``."""
        return self.from_statistic(stat).to(self.value.dtype) + 0.0 * self.value.view(self.shape)

    @brevitas.jit.script_method
    def repeats_collecting(self, x: Tensor) -> bool:
        """Whether this repeated call, of a quantity that is learned by now, repeats one that collected."""
        with torch.no_grad():
            stat = self.statistic(x, counts_over_ranks(x) if is_split(x) else None)
        return forget_collecting_call(self.counter, stat)

    @torch.jit.unused
    def _quantity_without_branches(self, x: Tensor) -> Tensor:
        """As :meth:`quantity`, with the phase selected inside the graph: no break, no recompilation per step.

        The statistic runs only while collecting.
        """
        alone = not is_split(x)
        if not self.training or (alone and x.numel() == 0):
            return torch.where(self.initialised, self.from_value(), self.from_estimate())
        if self.stands_still:
            return self._standing_quantity()
        collecting = torch.logical_and(torch.logical_not(self.initialised), self.counter < self.collect_stats_steps)
        dtype = at_least_float32(self.running_stats).dtype
        if alone:
            stat = _statistic_or_ones(collecting, lambda part: self.statistic(part, None), x, self.shape, dtype)
            counted = collecting
        else:
            size = [math.prod(self.shape) + 1]
            row = _statistic_or_ones(collecting, self._statistic_and_existence, x, size, dtype)
            exists = row[-1].detach() > 0
            stat = torch.where(exists, row[:-1].view(self.shape), self.running_stats.clone())
            counted = torch.logical_and(collecting, exists)
        with torch.no_grad():
            estimate = torch.where(counted, self.averaged(stat.detach()), self.running_stats)
            self.store(estimate)
            self.counter.add_(counted.to(self.counter.dtype))
            mirrored = self.to_stored(self.running_stats).view(self.value.shape).to(self.value.dtype)
            self.value.copy_(torch.where(self.initialised, self.value, mirrored))
            self.initialised.copy_(torch.logical_not(collecting))
        # Of a copy, since a later call in the same graph writes to ``value``, and autograd would find it changed.
        learned = self.learned(self.value.clone().view(self.shape))
        return torch.where(collecting, self.from_statistic(stat).to(self.value.dtype), learned)

    @torch.jit.unused
    def _standing_quantity(self) -> Tensor:
        """The quantity in this phase, which the same graph may change before this call's backward pass."""
        estimate = self.to_stored(snapshot(self.running_stats)).to(self.value.dtype)
        learned = self.learned(self.value.clone().view(self.shape))
        return torch.where(snapshot(self.initialised), learned, self.learned(estimate))

    @torch.jit.unused
    def _statistic_and_existence(self, x: Tensor) -> Tensor:
        """The statistic over the ranks in one row, followed by 1 if any rank has elements, else 0."""
        counts = counts_over_ranks(x)
        stat = self.statistic(x, counts)
        return torch.cat([stat.reshape(-1), (torch.sum(counts) > 0).to(stat.dtype).reshape(1)])

    def finish_collecting(self) -> None:
        """End collection now; without effect while nothing was collected, or when it has ended."""
        if bool(self.counter > 0) and not bool(self.initialised):
            self.mirror()
            self.initialised.fill_(True)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        younger = ("running_stats", "counter", "initialised")
        has_value = prefix + "value" in state_dict or prefix + "learned_value" in state_dict
        if has_value and not any(prefix + key in state_dict for key in younger):
            # Written by a release that knew only the learned value: it is in use.
            state_dict[prefix + "running_stats"] = self.running_stats.detach()
            state_dict[prefix + "counter"] = torch.full_like(self.counter, self.collect_stats_steps)
            state_dict[prefix + "initialised"] = torch.ones_like(self.initialised)
        super()._load_from_state_dict(state_dict, prefix, *args)


class FollowThenLearn(StatefulModule):
    """A quantity that follows a parameter until the first training call, and is learned from then on.

    So weights that are loaded or replaced before training count. Sub-classes say how a statistic is stored
    (``to_stored``) and how the quantity comes back from a stored value (``learned``).

    State: ``value`` (parameter) and ``initialised`` (bool).
    """

    legacy_keys = {"learned_value": "value"}
    shape: List[int]  # noqa: UP006
    initialised: Tensor

    def __init__(self, shape: tuple[int, ...], parameter_list_stats: nn.Module) -> None:
        super().__init__()
        self.shape = list(shape)
        self.parameter_list_stats = parameter_list_stats
        self.register_buffer("initialised", torch.tensor(False))

    def _init_value(self) -> None:
        """Create ``value``; called by the sub-class once its own parts exist."""
        self.value = learned_parameter(self.to_stored(torch.ones(self.shape)))
        self.refresh()

    def to_stored(self, stat: Tensor) -> Tensor:
        """A statistic in the domain in which it is learned, in at least float32."""
        raise NotImplementedError

    def learned(self, stored: Tensor) -> Tensor:
        """The quantity of a stored value, in its dtype."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Recompute ``value`` from the tracked parameters; without effect once it is learned."""
        tracked: list[Tensor] = list(self.parameter_list_stats.tracked_parameters)  # type: ignore[arg-type]
        if not tracked or tracked[0].is_meta or self.initialised.is_meta:
            return
        if not bool(self.initialised):
            with torch.no_grad():
                self.value.copy_(self.stored_statistic(tracked[0]).view(self.value.shape))

    def set_tracked_parameters(self, parameters: Sequence[Tensor]) -> None:
        """Track these parameters from now on."""
        self.parameter_list_stats.set_tracked_parameters(parameters)  # type: ignore[operator]
        self.refresh()

    def finish_following(self) -> None:
        """Learn from now on, starting from the tracked parameters."""
        self.refresh()
        self.initialised.fill_(True)

    @brevitas.jit.script_method
    def stored_statistic(self, x: Tensor) -> Tensor:
        """Statistic of the parameter ``x``, as it is stored."""
        return self.to_stored(self.parameter_list_stats(x))

    @brevitas.jit.script_method
    def from_value(self) -> Tensor:
        """The learned quantity."""
        return self.learned(self.value.view(self.shape))

    @brevitas.jit.script_method
    def from_parameter(self, x: Tensor) -> Tensor:
        """The quantity of the parameter itself."""
        return self.learned(self.stored_statistic(x).to(self.value.dtype))

    @brevitas.jit.script_method
    def quantity(self, x: Tensor) -> Tensor:
        """The quantity in this phase, of ``self.shape``."""
        if not torch.jit.is_scripting() and torch.compiler.is_compiling():
            return self._quantity_without_branches(x)
        initialised = bool(self.initialised) if torch.jit.is_scripting() else is_set(self, self.initialised)
        if not initialised:
            if not self.training:
                return self.from_parameter(x)
            with torch.no_grad():
                self.value.copy_(self.stored_statistic(x).view(self.value.shape))
                self.initialised.fill_(True)
        return self.from_value()

    @torch.jit.unused
    def _quantity_without_branches(self, x: Tensor) -> Tensor:
        """As :meth:`quantity`, with the phase selected inside the graph.

        Of one parameter, the statistic runs only until the value is learned.
        """
        following = torch.logical_not(self.initialised)
        if self.parameter_list_stats.has_several:
            # Always computed: ``x`` is one of the tracked parameters, and torch.cond takes no two names of one tensor.
            stored = self.stored_statistic(x).to(self.value.dtype)
        else:
            stored = _statistic_or_ones(following, self.stored_statistic, x, self.shape, self.value.dtype)
        if not self.training:
            return torch.where(self.initialised, self.from_value(), self.learned(stored))
        with torch.no_grad():
            self.value.copy_(torch.where(self.initialised, self.value, stored.detach().view(self.value.shape)))
            self.initialised.fill_(True)
        return self.learned(self.value.clone().view(self.shape))  # of a copy, as above

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if prefix + "value" in state_dict or prefix + "learned_value" in state_dict:
            # Written by a release that knew only the learned value: it is in use.
            state_dict.setdefault(prefix + "initialised", torch.ones_like(self.initialised))
        super()._load_from_state_dict(state_dict, prefix, *args)
