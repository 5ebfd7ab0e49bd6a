"""Bit widths: constant, learned, or derived from the width of an input.

    >>> BitWidthConst(8)()
    tensor(8.)
    >>> BitWidthParameter(4)()
    tensor(4., grad_fn=<ViewBackward0>)

A bit width is a float tensor that holds one number.
"""

from typing import Any

import torch
from torch import Tensor, nn

import brevitas.jit
from brevitas.core._checks import check_bool, check_int, check_module, check_number
from brevitas.core.restrict_val import IntRestrictValue
from brevitas.core.utils import StatefulModule, StatelessBuffer, learned_parameter
from brevitas.errors import QuantConfigError
from brevitas.function.ops import divide
from brevitas.function.ops_ste import abs_binary_sign_grad, round_ste, scalar_clamp_ste
from brevitas.inject.enum import BitWidthImplType

__all__ = [
    "BitWidthConst",
    "BitWidthImplType",
    "BitWidthParameter",
    "BitWidthStatefulConst",
    "MsbClampBitWidth",
    "RemoveBitwidthParameter",
]

MAX_BIT_WIDTH = 32
MIN_LEARNED_BIT_WIDTH = 2


class BitWidthConst(brevitas.jit.ScriptModule):
    """A fixed width, not in the state dict."""

    def __init__(self, bit_width: int) -> None:
        super().__init__()
        width = check_int("BitWidthConst", "bit_width", bit_width, 1, MAX_BIT_WIDTH)
        self.bit_width = StatelessBuffer(torch.tensor(float(width)))

    @brevitas.jit.script_method
    def forward(self) -> Tensor:
        """The width."""
        return self.bit_width()


class BitWidthStatefulConst(StatefulModule):
    """A fixed width that is part of the state dict, as ``bit_width``."""

    bit_width: Tensor

    def __init__(self, bit_width: int) -> None:
        super().__init__()
        width = check_int("BitWidthStatefulConst", "bit_width", bit_width, 1, MAX_BIT_WIDTH)
        self.register_buffer("bit_width", torch.tensor(float(width)))

    @brevitas.jit.script_method
    def forward(self) -> Tensor:
        """The width."""
        return self.bit_width.detach()


class _OverridablePretrained(StatefulModule):
    """A module that may keep its constructor's value of ``overridden_key`` whatever a checkpoint holds."""

    overridden_key = ""
    override_pretrained: bool

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.override_pretrained:
            state_dict[prefix + self.overridden_key] = getattr(self, self.overridden_key).detach()
        super()._load_from_state_dict(state_dict, prefix, *args)


class BitWidthParameter(_OverridablePretrained):
    """A learned width, ``restrict(abs(bit_width_offset) + min_bit_width)``.

    Args:
        bit_width: width at the start, from ``min_bit_width`` to 32.
        min_bit_width: the width never falls below it; at least 2.
        restrict_bit_width_impl: maps the float to a width; rounds by default, straight through.
        override_pretrained_bit_width: keep ``bit_width`` when a checkpoint is loaded.
    """

    overridden_key = "bit_width_offset"

    def __init__(
        self,
        bit_width: int,
        min_bit_width: int = MIN_LEARNED_BIT_WIDTH,
        restrict_bit_width_impl: nn.Module | None = None,
        override_pretrained_bit_width: bool = False,
    ) -> None:
        super().__init__()
        owner = "BitWidthParameter"
        low = check_int(owner, "min_bit_width", min_bit_width, MIN_LEARNED_BIT_WIDTH, MAX_BIT_WIDTH)
        width = check_int(owner, "bit_width", bit_width, 1, MAX_BIT_WIDTH)
        if width < low:
            raise QuantConfigError(f"{owner}: bit_width={width} is below min_bit_width={low}.")
        restrict = IntRestrictValue() if restrict_bit_width_impl is None else restrict_bit_width_impl
        self.restrict_bit_width_impl = check_module(owner, "restrict_bit_width_impl", restrict)
        self.override_pretrained = check_bool(owner, "override_pretrained_bit_width", override_pretrained_bit_width)
        base = self._stored(float(low))
        self.min_bit_width_stored = base
        self.bit_width_offset = learned_parameter(torch.tensor(self._stored(float(width)) - base))

    def _stored(self, width: float) -> float:
        init = getattr(self.restrict_bit_width_impl, "restrict_init_float", None)
        return width if init is None else float(init(width))

    @brevitas.jit.script_method
    def forward(self) -> Tensor:
        """The width; its gradient reaches the offset straight through the rounding."""
        stored = abs_binary_sign_grad(self.bit_width_offset) + self.min_bit_width_stored
        return self.restrict_bit_width_impl(stored).view([])


class RemoveBitwidthParameter(_OverridablePretrained):
    """A learned number of bits to remove, ``1 / (non_zero_epsilon + abs(bit_width_coeff))``.

    Args:
        bit_width_to_remove: bits removed at the start, >= 0.
        override_pretrained_bit_width: keep the start value when a checkpoint is loaded.
        non_zero_epsilon: keeps the quotient finite.
        remove_zero_bit_width: stands for 0 bits at the start.
    """

    overridden_key = "bit_width_coeff"

    def __init__(
        self,
        bit_width_to_remove: int,
        override_pretrained_bit_width: bool = False,
        non_zero_epsilon: float = 1e-6,
        remove_zero_bit_width: float = 0.1,
    ) -> None:
        super().__init__()
        owner = "RemoveBitwidthParameter"
        bits = check_int(owner, "bit_width_to_remove", bit_width_to_remove, 0, MAX_BIT_WIDTH)
        self.non_zero_epsilon = check_number(owner, "non_zero_epsilon", non_zero_epsilon, low=0.0, low_open=True)
        zero = check_number(owner, "remove_zero_bit_width", remove_zero_bit_width, low=0.0, low_open=True)
        self.override_pretrained = check_bool(owner, "override_pretrained_bit_width", override_pretrained_bit_width)
        self.bit_width_coeff = learned_parameter(torch.tensor(1.0 / (float(bits) if bits > 0 else zero)))

    @brevitas.jit.script_method
    def forward(self) -> Tensor:
        """Bits to remove, a fraction while it is learned."""
        divisor = self.non_zero_epsilon + torch.abs(self.bit_width_coeff)
        return divide(torch.ones_like(divisor), divisor).view([])


class MsbClampBitWidth(brevitas.jit.ScriptModule):
    """Width that is left when bits are removed from the width of an input.

    Args:
        bit_width_to_remove_impl: module without arguments that returns the bits to remove.
        min_overall_bit_width: lower bound of the result.
        max_overall_bit_width: upper bound of the result.
    """

    def __init__(
        self, bit_width_to_remove_impl: nn.Module, min_overall_bit_width: int = 2, max_overall_bit_width: int = 32
    ) -> None:
        super().__init__()
        owner = "MsbClampBitWidth"
        low = check_int(owner, "min_overall_bit_width", min_overall_bit_width, 1, MAX_BIT_WIDTH)
        high = check_int(owner, "max_overall_bit_width", max_overall_bit_width, 1, MAX_BIT_WIDTH)
        if low > high:
            raise QuantConfigError(f"{owner}: min_overall_bit_width={low} is above max_overall_bit_width={high}.")
        self.bit_width_to_remove_impl = check_module(owner, "bit_width_to_remove_impl", bit_width_to_remove_impl)
        self.min_overall_bit_width = float(low)
        self.max_overall_bit_width = float(high)

    @brevitas.jit.script_method
    def forward(self, input_bit_width: Tensor) -> Tensor:
        """``round(clamp(input_bit_width - removed, min, max))``, straight through."""
        left = input_bit_width - self.bit_width_to_remove_impl()
        return round_ste(scalar_clamp_ste(left, self.min_overall_bit_width, self.max_overall_bit_width))
