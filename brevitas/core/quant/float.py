"""Quantization to small floats.

    >>> import torch
    >>> quant = FloatQuant(
    ...     True, ExponentBitWidthConst(2), MantissaBitWidthConst(1), ExponentBiasConst(2), FloatClamp(True))
    >>> y, scale, zero_point, e, m, bias, saturating, inf_values, nan_values = quant(torch.tensor([0.3, 2.4, -9.0]))
    >>> y                                                                   # 0, 0.5, 1, 1.5, 2, 3, 4, 6
    tensor([ 0.5000,  2.0000, -6.0000])

With ``v = x / s``, exponent ``E = max(floor(log2 abs v), 1 - bias)`` and ``ulp = 2^(E - m)`` for m mantissa bits,
``y = clamp(f2i(v / ulp) * ulp, -V, V) * s``. V is the largest finite number. Subnormal numbers are included.
"""

from typing import List, Tuple, cast  # noqa: UP035 - TorchScript reads annotations of this kind

import torch
from torch import Tensor, nn

import brevitas.jit
from brevitas.core._checks import check_bool, check_module
from brevitas.core.function_wrapper import RoundSte
from brevitas.core.quant.float_base import (
    ExponentBiasConst,
    ExponentBitWidthConst,
    FloatClamp,
    FloatScaling,
    MantissaBitWidthConst,
)
from brevitas.core.restrict_val import RestrictedThreshold
from brevitas.core.rounding import StochasticRoundSte
from brevitas.core.utils import StatelessBuffer, at_least_float32, largest_value
from brevitas.errors import QuantConfigError
from brevitas.function.ops import divide
from brevitas.function.ops_ste import scalar_clamp_min_ste

__all__ = [
    "ExponentBiasConst",
    "ExponentBitWidthConst",
    "FloatClamp",
    "FloatQuant",
    "FloatScaling",
    "FloatThresholdCandidate",
    "MantissaBitWidthConst",
]


def _floor_log2(v: Tensor) -> Tensor:
    """Exponent of float32 or float64 numbers that are normal in their dtype; of others, one that the caller bounds.

    Read from the bits, because torch.compile has no frexp for vectors of float64. TorchScript has no view of bits;
    there it is that of frexp, whose mantissa is in [1/2, 1).
    """
    if torch.jit.is_scripting():
        return torch.frexp(v)[1].to(v.dtype) - 1.0
    if v.dtype == torch.float64:
        return ((v.view(torch.int64) >> 52) & 0x7FF).to(v.dtype) - 1023.0
    return ((v.view(torch.int32) >> 23) & 0xFF).to(v.dtype) - 127.0


class _NoScaling(brevitas.jit.ScriptModule):
    """The threshold of an unscaled format: a scale of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.one = StatelessBuffer(torch.tensor(1.0))

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """1."""
        return self.one()


class FloatQuant(brevitas.jit.ScriptModule):
    """A minifloat quantizer; returns ``(y, scale, 0, e, m, bias, saturating, inf_values, nan_values)``.

    Gradient to ``x``: g where the rounded value is within the finite numbers, else 0; to the scale, as of
    ``clamp(v) * s`` with straight-through rounding. ``inf_values`` and ``nan_values`` are lists, empty for none.

    Args:
        signed: whether there are negative numbers.
        exponent_bit_width_impl: exponent bits e.
        mantissa_bit_width_impl: mantissa bits m.
        exponent_bias_impl: bias of the exponent code.
        float_clamp_impl: ``FloatClamp`` or a module with its attributes.
        scaling_impl: threshold of an input; ``None``: the scale is 1.
        float_scaling_impl: number that the threshold maps to; ``None``: the largest finite one.
        float_to_int_impl: rounding of the mantissa; default half to even.
    """

    saturating: bool
    inf_values: List[str]  # noqa: UP006
    nan_values: List[str]  # noqa: UP006

    def __init__(
        self,
        signed: bool,
        exponent_bit_width_impl: nn.Module,
        mantissa_bit_width_impl: nn.Module,
        exponent_bias_impl: nn.Module,
        float_clamp_impl: nn.Module,
        scaling_impl: nn.Module | None = None,
        float_scaling_impl: nn.Module | None = None,
        float_to_int_impl: nn.Module | None = None,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        self.signed = check_bool(owner, "signed", signed)
        self.exponent_bit_width_impl = check_module(owner, "exponent_bit_width_impl", exponent_bit_width_impl)
        self.mantissa_bit_width_impl = check_module(owner, "mantissa_bit_width_impl", mantissa_bit_width_impl)
        self.exponent_bias_impl = check_module(owner, "exponent_bias_impl", exponent_bias_impl)
        self.float_clamp_impl = check_module(owner, "float_clamp_impl", float_clamp_impl)
        self.saturating = check_bool(owner, "float_clamp_impl.saturating", float_clamp_impl.saturating)
        self.inf_values = list(cast(FloatClamp, float_clamp_impl).inf_values)
        self.nan_values = list(cast(FloatClamp, float_clamp_impl).nan_values)
        self.is_scaled = scaling_impl is not None
        self.scaling_impl = check_module(owner, "scaling_impl", _NoScaling() if scaling_impl is None else scaling_impl)
        if float_scaling_impl is None:
            float_scaling_impl = FloatScaling(self.inf_values, self.nan_values)
        self.float_scaling_impl = check_module(owner, "float_scaling_impl", float_scaling_impl)
        rounding = RoundSte() if float_to_int_impl is None else float_to_int_impl
        self.float_to_int_impl = check_module(owner, "float_to_int_impl", rounding)
        self.zero_point = StatelessBuffer(torch.tensor(0.0))
        self.is_wide = self._check_format()

    def _check_format(self) -> bool:
        """Whether some numbers of the format lie where float32 has no exact arithmetic of its own."""
        owner = type(self).__name__
        e, m = float(self.exponent_bit_width_impl()), float(self.mantissa_bit_width_impl())
        bias = float(self.exponent_bias_impl())
        specials = self.inf_values + self.nan_values
        if specials and len(specials[0]) != m:
            raise QuantConfigError(
                f"{owner}: inf_values={tuple(self.inf_values)}, nan_values={tuple(self.nan_values)} have "
                f"{len(specials[0])} bits, mantissa_bit_width={int(m)}. Expected mantissas of {int(m)} bits."
            )
        if getattr(self.float_clamp_impl, "signed", self.signed) != self.signed:
            raise QuantConfigError(
                f"{owner}: signed={self.signed} and float_clamp_impl has signed={not self.signed}. Expected equal ones."
            )
        top, lowest = 2.0**e - 1.0 - bias, 1.0 - bias - m
        if lowest < -149 or top > 128:
            raise QuantConfigError(
                f"{owner}: exponent_bit_width={int(e)}, mantissa_bit_width={int(m)}, exponent_bias={int(bias)} reach "
                f"from 2^{int(lowest)} to 2^{int(top)}. Expected a format within float32, 2^-149 to 2^128."
            )
        return lowest < -64 or top > 64

    @brevitas.jit.script_method
    def scale(self, threshold: Tensor) -> Tensor:
        """Scale of a threshold: a number of its dtype, in at least float32 for the sake of its gradient."""
        wide = at_least_float32(threshold)
        if not self.is_scaled:
            return wide
        e, m, bias = self.exponent_bit_width_impl(), self.mantissa_bit_width_impl(), self.exponent_bias_impl()
        scale = divide(wide, self.float_scaling_impl(e, m, bias))
        if threshold.dtype == torch.float16:
            scale = scalar_clamp_min_ste(scale, 2.0**-14)
        if threshold.dtype != scale.dtype:
            # Exact: the two differ by less than half of either. Gradients of codes up to 2^15 exceed float16.
            scale = scale + (scale.to(threshold.dtype).to(scale.dtype) - scale).detach()
        return scale

    @brevitas.jit.script_method
    def expanded(self, scale: Tensor, x: Tensor) -> Tensor:
        """The scale in a shape that broadcasts to ``x``."""
        return scale

    @brevitas.jit.script_method
    def ulp(self, v: Tensor) -> Tensor:
        """Distance of the numbers of the format around ``v``, without gradient."""
        e, m = self.exponent_bit_width_impl().to(v.dtype), self.mantissa_bit_width_impl().to(v.dtype)
        bias = self.exponent_bias_impl().to(v.dtype)
        exponent = _floor_log2(v.detach())
        exponent = torch.minimum(torch.maximum(exponent, 1.0 - bias), torch.exp2(e) - 1.0 - bias)
        return torch.exp2(exponent - m).detach()

    @brevitas.jit.script_method
    def quantized(self, x: Tensor, scale: Tensor) -> Tensor:
        """``x`` on the grid of the format times ``scale``, in the dtype of ``x``."""
        wide = x.to(torch.float64) if self.is_wide else at_least_float32(x)
        s = scale.to(wide.dtype)
        v = divide(wide, s)
        ulp = self.ulp(v)
        rounded = self.float_to_int_impl(divide(v, ulp)) * ulp
        e, m, bias = self.exponent_bit_width_impl(), self.mantissa_bit_width_impl(), self.exponent_bias_impl()
        y = self.float_clamp_impl(rounded, e, m, bias) * s
        if self.saturating and (self.is_wide or x.dtype == torch.float16):
            # Rounded past the largest number of the dtype of x: take the next smaller one of the format.
            shorter = torch.trunc(divide(v, ulp)) * ulp * s
            limit = largest_value(x.dtype, False)
            y = torch.where(torch.abs(y) > limit, torch.clamp(shorter, -limit, limit), y)
        return y.to(x.dtype)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool, List[str], List[str]]:  # noqa: UP006
        """Quantized ``x`` and everything that tells which numbers it may hold."""
        threshold = self.scaling_impl(x)
        scale = self.expanded(self.scale(threshold), x)
        y = self.quantized(x, scale)
        e, m, bias = self.exponent_bit_width_impl(), self.mantissa_bit_width_impl(), self.exponent_bias_impl()
        scale = scale.to(threshold.dtype)
        return y, scale, self.zero_point(), e, m, bias, self.saturating, self.inf_values, self.nan_values


class FloatThresholdCandidate(brevitas.jit.ScriptModule):
    """A minifloat quantizer as a function of the statistic that gives its threshold, for ``MSE``.

    Rounds half to even where the quantizer's rounding is stochastic or learned.

    Args: those of :class:`FloatQuant` of the same names, and of the threshold:
        restrict_scaling_impl: domain of the threshold; ``None`` = any float.
        scaling_min_val: lower bound of the threshold; ``None`` = 1e-10.
    """

    def __init__(
        self,
        signed: bool,
        exponent_bit_width_impl: nn.Module,
        mantissa_bit_width_impl: nn.Module,
        exponent_bias_impl: nn.Module,
        float_clamp_impl: nn.Module,
        float_scaling_impl: nn.Module | None = None,
        float_to_int_impl: nn.Module | None = None,
        restrict_scaling_impl: nn.Module | None = None,
        scaling_min_val: float | None = None,
    ) -> None:
        super().__init__()
        rounding = float_to_int_impl
        if rounding is not None and (isinstance(rounding, StochasticRoundSte) or bool(rounding.state_dict())):
            rounding = None
        self.float_quant = FloatQuant(
            signed,
            exponent_bit_width_impl,
            mantissa_bit_width_impl,
            exponent_bias_impl,
            float_clamp_impl,
            RestrictedThreshold(restrict_scaling_impl, scaling_min_val),
            float_scaling_impl,
            rounding,
        )

    @brevitas.jit.script_method
    def context(self, x: Tensor) -> Tensor:
        """Nothing that candidates have in common."""
        return x.new_zeros([])

    @brevitas.jit.script_method
    def context_over_ranks(self, x: Tensor, counts: Tensor) -> Tensor:
        """As ``context``: nothing."""
        return x.new_zeros([])

    @brevitas.jit.script_method
    def forward(self, x: Tensor, candidate: Tensor, context: Tensor) -> Tensor:
        """Quantized ``x`` for a statistic that broadcasts to it."""
        return self.float_quant.quantized(x, self.float_quant.scale(self.float_quant.scaling_impl(candidate)))
