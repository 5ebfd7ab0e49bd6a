"""The integer threshold: the code that the threshold maps to.

>>> import torch
>>> IntScaling(signed=True, narrow_range=True)(torch.tensor(8.0)), PowerOfTwoIntScaling(signed=True)(torch.tensor(8.0))
(tensor(127.), tensor(128.))
"""

import torch
from torch import Tensor

import brevitas.jit
from brevitas.core._checks import check_bool
from brevitas.core.utils import at_least_float32
from brevitas.function.ops import max_int, min_int

__all__ = ["IntScaling", "PowerOfTwoIntScaling"]


class IntScaling(brevitas.jit.ScriptModule):
    """``-min_int`` of a signed range, ``max_int`` of an unsigned one."""

    def __init__(self, signed: bool, narrow_range: bool) -> None:
        super().__init__()
        self.signed = check_bool("IntScaling", "signed", signed)
        self.narrow_range = check_bool("IntScaling", "narrow_range", narrow_range)

    @brevitas.jit.script_method
    def forward(self, bit_width: Tensor) -> Tensor:
        """Integer threshold of ``bit_width``."""
        if self.signed:
            return -min_int(self.signed, self.narrow_range, bit_width)
        return max_int(self.signed, self.narrow_range, bit_width)


class PowerOfTwoIntScaling(brevitas.jit.ScriptModule):
    """``2^(b-1)`` of a signed range, ``2^b`` of an unsigned one: the scale stays a power of two."""

    def __init__(self, signed: bool) -> None:
        super().__init__()
        self.signed = check_bool("PowerOfTwoIntScaling", "signed", signed)

    @brevitas.jit.script_method
    def forward(self, bit_width: Tensor) -> Tensor:
        """Integer threshold of ``bit_width``."""
        bits = at_least_float32(bit_width)
        return torch.exp2(bits - 1.0) if self.signed else torch.exp2(bits)
