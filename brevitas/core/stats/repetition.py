"""Which collecting calls a backward pass may still repeat.

Gradient checkpointing runs a forward again during the backward pass, and the repetition has to compute what the first
run did. A repeated call that finds its quantity still collecting repeats a collecting call. One that finds it learned
may repeat either kind: where two call sites share a quantizer, or where two forwards precede a backward pass, the last
collecting call and the first one that used the learned value await their repetition together. The statistic tells them
apart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

__all__ = ["estimate_before", "forget", "has_several_kinds", "new_call", "remember", "repeats_a_collecting_call"]

# Collecting calls that are kept for each quantity, and calls after the last of them for which they are kept.
_KEPT = 32
_LIFETIME = 32


@dataclass
class _Collected:
    statistics: deque[Tensor] = field(default_factory=lambda: deque(maxlen=_KEPT))
    lifetime: int = _LIFETIME
    estimate_before: Tensor | None = None


# Beside the modules rather than in them: it is of no use in a copy.
_collected: WeakKeyDictionary[nn.Module, _Collected] = WeakKeyDictionary()


def remember(owner: nn.Module, statistic: Tensor, estimate_before: Tensor | None) -> None:
    """Note that ``owner`` used this statistic, and which estimate it had until then, if any."""
    kept = _collected.setdefault(owner, _Collected())
    kept.statistics.append(statistic.detach())
    kept.estimate_before = estimate_before


def estimate_before(owner: nn.Module) -> Tensor | None:
    """The estimate that ``owner`` had before the last call that was no repetition; ``None``: it had none."""
    kept = _collected.get(owner)
    return None if kept is None else kept.estimate_before


def forget(owner: nn.Module, statistic: Tensor) -> bool:
    """Drop a noted statistic that equals this one; whether there was one."""
    kept = _collected.get(owner)
    if kept is None:
        return False
    for index, other in enumerate(kept.statistics):
        if other.shape == statistic.shape and torch.allclose(other, statistic, rtol=0.0, atol=0.0, equal_nan=True):
            del kept.statistics[index]
            return True
    return False


def has_several_kinds(owner: nn.Module) -> bool:
    """Whether a repeated call of ``owner``, which is learned by now, may repeat a collecting call."""
    return bool(_collected) and owner in _collected


def new_call(owner: nn.Module) -> None:
    """Note a call that is no repetition and used the learned value; some of them later, nothing is kept any more."""
    kept = _collected[owner]
    kept.lifetime -= 1
    if kept.lifetime == 0 or not kept.statistics:
        del _collected[owner]


def repeats_a_collecting_call(owner: nn.Module, statistic: Callable[[], Tensor]) -> bool:
    """Whether a repeated call of a learned quantity repeats one that used its statistic; that one is dropped."""
    with torch.no_grad():
        return forget(owner, statistic())
