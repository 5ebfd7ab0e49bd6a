"""Forward hooks that stay with the model they were made for, and that a recomputation does not call again.

>>> import torch
>>> from torch import nn
>>> seen = []
>>> model = nn.Sequential(nn.Linear(2, 3))
>>> recording = Recording({"0": model[0]}, lambda name, module, out: seen.append((name, tuple(out.shape))))
>>> _ = model(torch.zeros(4, 2)); recording.remove(); _ = model(torch.zeros(4, 2))
>>> seen
[('0', (4, 3))]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["Recording"]

Record = Callable[[str, nn.Module, Any], None]


def _records_nothing(module: nn.Module, args: Any, output: Any) -> None:
    """What a copy of a hook does: a copy of a model (an average of it, a file) is no part of what is recorded."""


def _hook_of_a_copy() -> Any:
    return _records_nothing


class _Hook:
    def __init__(self, name: str, record: Record) -> None:
        self.name = name
        self.record = record

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        # A checkpoint runs its part of the forward again inside the backward, where a graph task is under way.
        recomputed = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
        if not recomputed:
            self.record(self.name, module, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _hook_of_a_copy()

    def __reduce__(self) -> Any:
        return _hook_of_a_copy, ()


class Recording:
    """Calls ``record(name, module, output)`` after each forward of ``modules``, until :meth:`remove`.

    Copies of the modules, by ``deepcopy`` or pickle, are not recorded. Of a part of the model that
    ``torch.utils.checkpoint`` runs twice, the first run is recorded.
    """

    def __init__(self, modules: Mapping[str, nn.Module], record: Record) -> None:
        self._handles = [module.register_forward_hook(_Hook(name, record)) for name, module in modules.items()]

    def remove(self) -> None:
        """Remove the hooks; nothing happens where they are removed already."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
