"""Domains of the threshold: any float, a float stored as its log2, an integer, a power of two.

    >>> import torch
    >>> restrict = PowerOfTwoRestrictValue()
    >>> stored = restrict.restrict_init_tensor(torch.tensor([0.3, 0.5]))
    >>> restrict(stored)
    tensor([0.5000, 0.5000])

``restrict_init_*`` map a linear value into the domain in which it is stored and learned; ``forward`` maps a stored
value back, restricted.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn

import brevitas.jit
from brevitas.core._checks import check_module, check_number
from brevitas.core.function_wrapper import CeilSte, Identity, InplaceLogTwo, InplaceNoOp, LogTwo, PowerOfTwo, RoundSte
from brevitas.core.utils import at_least_float32, cast_back, largest_threshold
from brevitas.errors import QuantConfigError
from brevitas.function.ops_ste import abs_binary_sign_grad, known_clamp_ste, scalar_clamp_min_ste
from brevitas.inject.enum import FloatToIntImplType, RestrictValueType

__all__ = [
    "DEFAULT_SCALING_MIN_VAL",
    "FloatRestrictValue",
    "FloatToIntImplType",
    "IntRestrictValue",
    "LogFloatRestrictValue",
    "PowerOfTwoRestrictValue",
    "RestrictValueType",
    "RestrictedThreshold",
]

DEFAULT_SCALING_MIN_VAL = 1e-10


class _LinearRestrictValue(brevitas.jit.ScriptModule):
    """Stored as it is."""

    def restrict_init_float(self, x: float) -> float:
        """``x``."""
        return x

    def restrict_init_tensor(self, x: Tensor) -> Tensor:
        """``x``."""
        return x

    def restrict_init_module(self) -> nn.Module:
        """Module form of :meth:`restrict_init_tensor`."""
        return Identity()

    def restrict_init_inplace_module(self) -> nn.Module:
        """In-place form of :meth:`restrict_init_tensor`."""
        return InplaceNoOp()


class _LogRestrictValue(brevitas.jit.ScriptModule):
    """Stored as its log2."""

    def restrict_init_float(self, x: float) -> float:
        """``log2 x``."""
        return math.log2(x)

    def restrict_init_tensor(self, x: Tensor) -> Tensor:
        """``log2 x``."""
        return LogTwo()(x)

    def restrict_init_module(self) -> nn.Module:
        """Module form of :meth:`restrict_init_tensor`."""
        return LogTwo()

    def restrict_init_inplace_module(self) -> nn.Module:
        """In-place form of :meth:`restrict_init_tensor`."""
        return InplaceLogTwo()


class FloatRestrictValue(_LinearRestrictValue):
    """Any float."""

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``x``."""
        return x


class LogFloatRestrictValue(_LogRestrictValue):
    """Any positive float, learned in log2: ``2^x``."""

    def __init__(self) -> None:
        super().__init__()
        self.power_of_two = PowerOfTwo()

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``2^x``."""
        return self.power_of_two(x)


class IntRestrictValue(_LinearRestrictValue):
    """An integer, straight through the rounding."""

    def __init__(self, restrict_value_float_to_int_impl: nn.Module | None = None) -> None:
        super().__init__()
        impl = RoundSte() if restrict_value_float_to_int_impl is None else restrict_value_float_to_int_impl
        self.float_to_int_impl = check_module("IntRestrictValue", "restrict_value_float_to_int_impl", impl)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``x`` rounded."""
        return self.float_to_int_impl(x)


class PowerOfTwoRestrictValue(_LogRestrictValue):
    """A power of two, learned in log2. Rounds up by default, so that a threshold never shrinks."""

    def __init__(self, restrict_value_float_to_int_impl: nn.Module | None = None) -> None:
        super().__init__()
        impl = CeilSte() if restrict_value_float_to_int_impl is None else restrict_value_float_to_int_impl
        self.float_to_int_impl = check_module("PowerOfTwoRestrictValue", "restrict_value_float_to_int_impl", impl)
        self.power_of_two = PowerOfTwo()

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``2^f(x)``, straight through the rounding ``f``."""
        return self.power_of_two(self.float_to_int_impl(x))


class RestrictedThreshold(brevitas.jit.ScriptModule):
    """A restriction together with the lower bound of the threshold: the one place where both are applied.

    The bound is read from its text: of a float that differs between the models of one process, a compiler makes a
    symbol, which operators do not take; a text stays a constant.

    The bound is linear. Statistics are bounded before they are stored, so that log2 never sees 0, and thresholds after
    they are restricted. For powers of two the bound is rounded up to one.

    Args:
        restrict_scaling_impl: one of the restrictions of this module; ``None`` = any float.
        scaling_min_val: bound > 0; ``None`` = 1e-10.
    """

    def __init__(self, restrict_scaling_impl: nn.Module | None = None, scaling_min_val: float | None = None) -> None:
        super().__init__()
        owner = "RestrictedThreshold"
        impl = FloatRestrictValue() if restrict_scaling_impl is None else restrict_scaling_impl
        self.restrict_impl = check_module(owner, "restrict_scaling_impl", impl)
        if not hasattr(impl, "restrict_init_module"):
            raise QuantConfigError(
                f"restrict_scaling_impl={impl!r} has no restrict_init_module(); see core.restrict_val."
            )
        self.store_impl: nn.Module = cast(_LinearRestrictValue, impl).restrict_init_module()
        self.is_power_of_two = isinstance(impl, PowerOfTwoRestrictValue)
        self.is_linear = isinstance(impl, _LinearRestrictValue)
        self.is_identity = type(impl) is FloatRestrictValue
        low = DEFAULT_SCALING_MIN_VAL if scaling_min_val is None else scaling_min_val
        low = check_number("scaling_impl", "scaling_min_val", low, low=0.0, low_open=True)
        self.min_val = 2.0 ** math.ceil(math.log2(low)) if self.is_power_of_two else low
        self.min_val_text = repr(self.min_val)

    @brevitas.jit.script_method
    def bounded(self, stat: Tensor) -> Tensor:
        """A statistic, in at least float32, not below the bound, and such that codes are finite in its own dtype.

        That of inputs with a NaN, which is NaN, becomes the bound: the values are NaN, the threshold is a number.
        """
        limit = largest_threshold(stat.dtype, self.is_power_of_two)
        return known_clamp_ste(at_least_float32(stat), float(self.min_val_text), limit)

    @brevitas.jit.script_method
    def to_stored(self, linear: Tensor) -> Tensor:
        """Linear positive values in the domain in which they are stored."""
        return self.store_impl(linear)

    @brevitas.jit.script_method
    def from_stored(self, stored: Tensor) -> Tensor:
        """Threshold of a stored value, in at least float32."""
        return scalar_clamp_min_ste(self.restrict_impl(at_least_float32(stored)), float(self.min_val_text))

    @brevitas.jit.script_method
    def learned(self, stored: Tensor) -> Tensor:
        """Threshold of a learned value, in its dtype. Absolute value first, so that a value may cross 0."""
        value = self.restrict_impl(at_least_float32(stored))
        if self.is_linear:
            value = abs_binary_sign_grad(value)
        return self.cast_back(scalar_clamp_min_ste(value, float(self.min_val_text)), stored.dtype)

    @brevitas.jit.script_method
    def from_bounded(self, stat: Tensor) -> Tensor:
        """Threshold of a bounded statistic: a float one is its own threshold."""
        if self.is_identity:
            return stat
        return self.from_stored(self.to_stored(stat))

    @brevitas.jit.script_method
    def cast_back(self, threshold: Tensor, dtype: torch.dtype) -> Tensor:
        """``threshold`` in ``dtype``, neither 0 nor infinite."""
        return cast_back(threshold, dtype, self.is_power_of_two)

    @brevitas.jit.script_method
    def forward(self, stat: Tensor) -> Tensor:
        """Threshold of any statistic, in the statistic's dtype."""
        return self.cast_back(self.from_bounded(self.bounded(stat)), stat.dtype)
