"""Which collecting calls a backward pass may still repeat.

Gradient checkpointing runs a forward again during the backward pass, and the repetition has to compute what the first
run did. A repeated call that finds its quantity still collecting repeats a collecting call. One that finds it learned
may repeat either kind: where two call sites share a quantizer, or where two forwards precede a backward pass, the last
collecting call and the first one that used the learned value await their repetition together. The statistic tells them
apart.

A quantity is known here by its counter, a tensor, so that TorchScript can ask as well: each function is an operator.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Optional

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from brevitas.function._library import register_plain

__all__ = [
    "awaits_repetition",
    "estimate_before",
    "forget_collecting_call",
    "new_learned_call",
    "remember_collecting_call",
]

# Collecting calls that are kept for each quantity, and calls after the last of them for which they are kept.
_KEPT = 32
_LIFETIME = 32


@dataclass
class _Collected:
    statistics: deque[Tensor] = field(default_factory=lambda: deque(maxlen=_KEPT))
    lifetime: int = _LIFETIME
    estimate_before: Tensor | None = None


# Beside the modules rather than in them: it is of no use in a copy.
_collected: dict[Tensor, _Collected] = WeakTensorKeyDictionary()  # type: ignore[assignment]


def _remember(counter: Tensor, statistic: Tensor, before: Tensor | None) -> None:
    kept = _collected.setdefault(counter, _Collected())
    kept.statistics.append(statistic.detach())
    kept.estimate_before = before


def _forget(counter: Tensor, statistic: Tensor) -> bool:
    kept = _collected.get(counter)
    if kept is None:
        return False
    for index, other in enumerate(kept.statistics):
        if other.shape == statistic.shape and torch.allclose(other, statistic, rtol=0.0, atol=0.0, equal_nan=True):
            del kept.statistics[index]
            return True
    return False


def _awaits(counter: Tensor) -> bool:
    return bool(_collected) and counter in _collected


def _new_call(counter: Tensor) -> None:
    kept = _collected[counter]
    kept.lifetime -= 1
    if kept.lifetime == 0 or not kept.statistics:
        del _collected[counter]


def _before(counter: Tensor, now: Tensor) -> Tensor:
    kept = _collected.get(counter)
    return (now if kept is None or kept.estimate_before is None else kept.estimate_before).clone()


# The counter counts as written to, or TorchScript would take two calls for one.
register_plain("remember_collecting_call(Tensor(a!) counter, Tensor statistic, Tensor? before) -> ()", _remember)
register_plain("forget_collecting_call(Tensor(a!) counter, Tensor statistic) -> bool", _forget)
register_plain("awaits_repetition(Tensor counter) -> bool", _awaits)
register_plain("new_learned_call(Tensor(a!) counter) -> ()", _new_call)
register_plain("estimate_before(Tensor counter, Tensor now) -> Tensor", _before)


def remember_collecting_call(counter: Tensor, statistic: Tensor, before: Optional[Tensor]) -> None:  # noqa: UP045
    """Note that a quantity used this statistic, and which estimate it had until then, if any."""
    if torch.jit.is_scripting():
        torch.ops.brevitas.remember_collecting_call(counter, statistic, before)
    else:
        _remember(counter, statistic, before)


def forget_collecting_call(counter: Tensor, statistic: Tensor) -> bool:
    """Drop a noted call whose statistic equals this one; whether there was one."""
    if torch.jit.is_scripting():
        return torch.ops.brevitas.forget_collecting_call(counter, statistic)
    return _forget(counter, statistic)


def awaits_repetition(counter: Tensor) -> bool:
    """Whether a repeated call of a quantity that is learned by now may repeat a collecting call."""
    if torch.jit.is_scripting():
        return torch.ops.brevitas.awaits_repetition(counter)
    return _awaits(counter)


def new_learned_call(counter: Tensor) -> None:
    """Note a call that is no repetition and used the learned value; some of them later, nothing is kept any more."""
    if torch.jit.is_scripting():
        torch.ops.brevitas.new_learned_call(counter)
    else:
        _new_call(counter)


def estimate_before(counter: Tensor, now: Tensor) -> Tensor:
    """The estimate before the last call that counted; ``now``, the present one, if there was none before."""
    if torch.jit.is_scripting():
        return torch.ops.brevitas.estimate_before(counter, now)
    return _before(counter, now)
