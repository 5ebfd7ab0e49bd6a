"""Quantization that starts after a number of training calls.

>>> import torch
>>> delay = DelayWrapper(1)
>>> x, y = torch.tensor(0.3), torch.tensor(0.0)
>>> float(delay(x, y)), float(delay(x, y))
(0.30000001192092896, 0.0)
"""

import torch
from torch import Tensor

import brevitas.jit
from brevitas.core._checks import check_int
from brevitas.core.utils import StatefulModule, is_repetition

__all__ = ["DelayWrapper"]


class _NoDelay(brevitas.jit.ScriptModule):
    @brevitas.jit.script_method
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y


class _DelayQuant(StatefulModule):
    steps_left: Tensor
    delayed: Tensor

    def __init__(self, quant_delay_steps: int) -> None:
        super().__init__()
        self.register_buffer("steps_left", torch.tensor(quant_delay_steps, dtype=torch.int64))
        self.register_buffer("delayed", torch.tensor(False), persistent=False)

    @brevitas.jit.script_method
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.training:
            return y
        repeated = is_repetition(self.steps_left)
        if not repeated:
            self.delayed.copy_(self.steps_left > 0)
            self.steps_left.sub_(self.delayed.to(torch.int64))
        # A selection, not a branch: nothing for a compiler to break at. The gradient goes to the selected one.
        # The buffer is copied, for the next call overwrites it before this one's backward pass reads the selection.
        return torch.where(self.delayed.clone(), x, y)


class DelayWrapper(brevitas.jit.ScriptModule):
    """``x`` for the first ``quant_delay_steps`` training calls; afterwards, and always in eval, ``y``."""

    def __init__(self, quant_delay_steps: int = 0) -> None:
        super().__init__()
        steps = check_int("DelayWrapper", "quant_delay_steps", quant_delay_steps, 0)
        self.delay_impl = _DelayQuant(steps) if steps > 0 else _NoDelay()

    @brevitas.jit.script_method
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``x`` or ``y``."""
        return self.delay_impl(x, y)
