"""Formats of small floats: widths, specials, the largest value, and clamping to it.

    >>> import torch
    >>> e, m, bias = torch.tensor(4.0), torch.tensor(3.0), torch.tensor(7.0)
    >>> FloatScaling()(e, m, bias), FloatScaling(nan_values=("111",))(e, m, bias)      # all codes numbers; OCP e4m3
    (tensor(480.), tensor(448.))

A code is sign, exponent, mantissa. A code with the largest exponent is a number unless its mantissa is listed, as a
string of bits, in ``inf_values`` or ``nan_values``. Sources: OCP, "8-bit floating point specification (OFP8)", 2023,
and "Microscaling formats (MX) specification", 2023.
"""

from collections.abc import Sequence
from typing import Any, List  # noqa: UP035 - TorchScript reads annotations of this kind

import torch
from torch import Tensor

import brevitas.jit
from brevitas.core._checks import check_bool, check_int
from brevitas.core.utils import StatelessBuffer, at_least_float32
from brevitas.errors import QuantConfigError
from brevitas.function.ops import tensor_clamp

__all__ = [
    "ExponentBiasConst",
    "ExponentBitWidthConst",
    "FloatClamp",
    "FloatScaling",
    "FloatSpecials",
    "MXFloatScaling",
    "MantissaBitWidthConst",
]

MAX_EXPONENT_BIT_WIDTH = 8
MAX_MANTISSA_BIT_WIDTH = 23


class ExponentBitWidthConst(brevitas.jit.ScriptModule):
    """A fixed number of exponent bits, 1 to 8, not in the state dict."""

    def __init__(self, exponent_bit_width: int) -> None:
        super().__init__()
        width = check_int("FloatQuant", "exponent_bit_width", exponent_bit_width, 1, MAX_EXPONENT_BIT_WIDTH)
        self.bit_width = StatelessBuffer(torch.tensor(float(width)))

    @brevitas.jit.script_method
    def forward(self) -> Tensor:
        """The width."""
        return self.bit_width()


class MantissaBitWidthConst(brevitas.jit.ScriptModule):
    """A fixed number of mantissa bits, 0 to 23, not in the state dict."""

    def __init__(self, mantissa_bit_width: int) -> None:
        super().__init__()
        width = check_int("FloatQuant", "mantissa_bit_width", mantissa_bit_width, 0, MAX_MANTISSA_BIT_WIDTH)
        self.bit_width = StatelessBuffer(torch.tensor(float(width)))

    @brevitas.jit.script_method
    def forward(self) -> Tensor:
        """The width."""
        return self.bit_width()


class ExponentBiasConst(brevitas.jit.ScriptModule):
    """A fixed bias, not in the state dict.

    Args:
        exponent_bit_width: exponent bits.
        exponent_bias: what is subtracted from the exponent code; ``None`` = ``2^(e-1) - 1``.
    """

    def __init__(self, exponent_bit_width: int, exponent_bias: int | None = None) -> None:
        super().__init__()
        width = check_int("FloatQuant", "exponent_bit_width", exponent_bit_width, 1, MAX_EXPONENT_BIT_WIDTH)
        bias = 2 ** (width - 1) - 1 if exponent_bias is None else exponent_bias
        bias = check_int("FloatQuant", "exponent_bias", bias, -128, 2**MAX_EXPONENT_BIT_WIDTH)
        self.bias = StatelessBuffer(torch.tensor(float(bias)))

    @brevitas.jit.script_method
    def forward(self) -> Tensor:
        """The bias."""
        return self.bias()


def _check_specials(owner: str, name: str, value: Any) -> list[str]:
    if value is None:
        return []
    legal = "None or a tuple of mantissas in bits, all of one length, such as ('01', '10', '11')"
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise QuantConfigError(f"{owner}: {name}={value!r} is not a tuple. Expected {legal}.")
    bits = list(value)
    if any(not isinstance(b, str) or not b or set(b) - {"0", "1"} for b in bits) or len(set(bits)) < len(bits):
        raise QuantConfigError(f"{owner}: {name}={tuple(bits)!r} are not mantissas. Expected {legal}.")
    if len({len(b) for b in bits}) > 1:
        raise QuantConfigError(f"{owner}: {name}={tuple(bits)!r} differ in length. Expected {legal}.")
    return bits


class FloatSpecials(brevitas.jit.ScriptModule):
    """What infinities and NaN leave of the codes with the largest exponent.

    Args:
        inf_values: mantissas that mean infinity; ``None`` for none.
        nan_values: mantissas that mean NaN; ``None`` for none.
    """

    inf_values: List[str]  # noqa: UP006
    nan_values: List[str]  # noqa: UP006

    def __init__(self, inf_values: Sequence[str] | None = None, nan_values: Sequence[str] | None = None) -> None:
        super().__init__()
        owner = "FloatQuant"
        self.inf_values = _check_specials(owner, "inf_values", inf_values)
        self.nan_values = _check_specials(owner, "nan_values", nan_values)
        both = self.inf_values + self.nan_values
        if len(set(both)) < len(both) or len({len(b) for b in both}) > 1:
            raise QuantConfigError(
                f"{owner}: inf_values={tuple(self.inf_values)} and nan_values={tuple(self.nan_values)} do not go "
                "together. Expected different mantissas of one length."
            )
        #: Bits of the mantissas that are listed; 0 if none are.
        self.mantissa_bit_width = len(both[0]) if both else 0
        taken = {int(b, 2) for b in both}
        count = 2**self.mantissa_bit_width
        numbers = [code for code in range(count) if code not in taken] if both else [0]
        # With every mantissa taken the largest number has the next smaller exponent, and all its mantissa bits set.
        self.dropped_exponents = 0.0 if numbers else 1.0
        self.dropped_mantissas = float(count - 1 - numbers[-1]) if both and numbers else 0.0

    @brevitas.jit.script_method
    def largest_exponent(self, exponent_bit_width: Tensor, exponent_bias: Tensor) -> Tensor:
        """Exponent of the largest finite number."""
        return torch.exp2(exponent_bit_width) - 1.0 - self.dropped_exponents - exponent_bias

    @brevitas.jit.script_method
    def forward(self, exponent_bit_width: Tensor, mantissa_bit_width: Tensor, exponent_bias: Tensor) -> Tensor:
        """Largest finite number."""
        significand = 2.0 - (1.0 + self.dropped_mantissas) * torch.exp2(-mantissa_bit_width)
        return torch.exp2(self.largest_exponent(exponent_bit_width, exponent_bias)) * significand


class FloatScaling(brevitas.jit.ScriptModule):
    """The number that a threshold maps to: the largest finite one.

    Args: those of :class:`FloatSpecials`.
    """

    def __init__(self, inf_values: Sequence[str] | None = None, nan_values: Sequence[str] | None = None) -> None:
        super().__init__()
        self.specials = FloatSpecials(inf_values, nan_values)

    @brevitas.jit.script_method
    def forward(self, exponent_bit_width: Tensor, mantissa_bit_width: Tensor, exponent_bias: Tensor) -> Tensor:
        """Largest finite number, in at least float32."""
        e, m, bias = at_least_float32(exponent_bit_width), at_least_float32(mantissa_bit_width), exponent_bias
        return self.specials(e, m, at_least_float32(bias))


class MXFloatScaling(brevitas.jit.ScriptModule):
    """Largest power of two of the format: what a power-of-two threshold ``2^floor(log2 amax)`` maps to.

    Args: those of :class:`FloatSpecials`.
    """

    def __init__(self, inf_values: Sequence[str] | None = None, nan_values: Sequence[str] | None = None) -> None:
        super().__init__()
        self.specials = FloatSpecials(inf_values, nan_values)

    @brevitas.jit.script_method
    def forward(self, exponent_bit_width: Tensor, mantissa_bit_width: Tensor, exponent_bias: Tensor) -> Tensor:
        """``2^emax``, in at least float32."""
        e, bias = at_least_float32(exponent_bit_width), at_least_float32(exponent_bias)
        return torch.exp2(self.specials.largest_exponent(e, bias))


class FloatClamp(brevitas.jit.ScriptModule):
    """Clamp to the finite numbers of a format, or past them to infinity or NaN. NaN stays NaN.

    Args:
        signed: whether there are negative numbers.
        saturating: clamp; if not, numbers beyond the largest become infinity if the format has it, else NaN.
        inf_values: mantissas that mean infinity; ``None`` for none.
        nan_values: mantissas that mean NaN; ``None`` for none.
    """

    inf_values: List[str]  # noqa: UP006
    nan_values: List[str]  # noqa: UP006

    def __init__(
        self,
        signed: bool,
        saturating: bool = True,
        inf_values: Sequence[str] | None = None,
        nan_values: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.signed = check_bool("FloatClamp", "signed", signed)
        self.saturating = check_bool("FloatClamp", "saturating", saturating)
        self.specials = FloatSpecials(inf_values, nan_values)
        self.inf_values = list(self.specials.inf_values)
        self.nan_values = list(self.specials.nan_values)
        self.beyond = float("inf") if self.inf_values else float("nan")

    @brevitas.jit.script_method
    def forward(
        self, x: Tensor, exponent_bit_width: Tensor, mantissa_bit_width: Tensor, exponent_bias: Tensor
    ) -> Tensor:
        """Clamped ``x``, which is on the grid of the format already; no gradient beyond the largest number."""
        e, m, bias = exponent_bit_width.to(x.dtype), mantissa_bit_width.to(x.dtype), exponent_bias.to(x.dtype)
        largest = self.specials(e, m, bias)
        smallest = -largest if self.signed else torch.zeros_like(largest)
        clamped = tensor_clamp(x, smallest, largest)
        if self.saturating:
            return clamped
        overflow = x.detach() > largest
        result = torch.where(overflow, self.beyond, clamped)
        if self.signed:
            return torch.where(x.detach() < smallest, -self.beyond, result)
        return result
