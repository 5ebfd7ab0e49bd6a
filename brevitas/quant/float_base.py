"""Fragments of minifloats: a sign, exponent and mantissa bits, with or without a scale.

>>> from brevitas.quant.float_base import Fp6e3m2Mixin, ScaledFloatWeightBase
>>> class Fp6Weight(Fp6e3m2Mixin, ScaledFloatWeightBase):
...     scaling_per_output_channel = True

A mixin of widths goes left of a base. ``bit_width`` is 1 + ``exponent_bit_width`` + ``mantissa_bit_width``.
"""

from typing import Any

from brevitas.core.quant.float import FloatQuant, FloatThresholdCandidate
from brevitas.core.quant.float_base import (
    ExponentBiasConst,
    ExponentBitWidthConst,
    FloatClamp,
    FloatScaling,
    MantissaBitWidthConst,
)
from brevitas.inject import ExtendedInjector, value
from brevitas.inject.enum import FloatToIntImplType, RestrictValueType, ScalingImplType, StatsOp
from brevitas.quant.base import MSESymmetricScale
from brevitas.quant.solver import ActQuantSolver, WeightQuantSolver

__all__ = [
    "FloatActBase",
    "FloatWeightBase",
    "Fp4e2m1Mixin",
    "Fp6e2m3Mixin",
    "Fp6e3m2Mixin",
    "Fp8e4m3Mixin",
    "Fp8e5m2Mixin",
    "FpFNUZMixin",
    "FpOCPMixin",
    "MSEFloatScale",
    "ScaledFloatActBase",
    "ScaledFloatWeightBase",
]


class _Float(ExtendedInjector):
    tensor_quant: Any = FloatQuant
    signed: Any = True
    exponent_bit_width_impl: Any = ExponentBitWidthConst
    mantissa_bit_width_impl: Any = MantissaBitWidthConst
    exponent_bias_impl: Any = ExponentBiasConst
    float_clamp_impl: Any = FloatClamp
    float_scaling_impl: Any = FloatScaling
    float_to_int_impl_type: Any = FloatToIntImplType.ROUND
    saturating: Any = True


class _Scaled(ExtendedInjector):
    scaling_stats_op: Any = StatsOp.MAX
    scaling_per_output_channel: Any = False
    restrict_scaling_type: Any = RestrictValueType.FP


class FloatWeightBase(_Float, WeightQuantSolver):
    """Minifloat weights without a scale; the widths are to be declared."""

    scaling_impl: Any = None


class FloatActBase(_Float, ActQuantSolver):
    """Minifloat activations without a scale; the widths are to be declared."""

    scaling_impl: Any = None


class ScaledFloatWeightBase(_Float, _Scaled, WeightQuantSolver):
    """Minifloat weights; scale = max abs W / largest number, at every step."""

    scaling_impl_type: Any = ScalingImplType.STATS


class ScaledFloatActBase(_Float, _Scaled, ActQuantSolver):
    """Minifloat activations; scale = t / largest number, t learned from the largest absolute value of 300 calls."""

    scaling_impl_type: Any = ScalingImplType.PARAMETER_FROM_STATS
    collect_stats_steps: Any = 300


class MSEFloatScale(MSESymmetricScale):
    """As ``MSESymmetricScale``, for minifloats."""

    mse_quant_impl: Any = FloatThresholdCandidate


class Fp8e4m3Mixin(ExtendedInjector):
    """8 bits: 4 of exponent, 3 of mantissa."""

    bit_width: Any = 8
    exponent_bit_width: Any = 4
    mantissa_bit_width: Any = 3


class Fp8e5m2Mixin(ExtendedInjector):
    """8 bits: 5 of exponent, 2 of mantissa."""

    bit_width: Any = 8
    exponent_bit_width: Any = 5
    mantissa_bit_width: Any = 2


class Fp6e3m2Mixin(ExtendedInjector):
    """6 bits: 3 of exponent, 2 of mantissa."""

    bit_width: Any = 6
    exponent_bit_width: Any = 3
    mantissa_bit_width: Any = 2


class Fp6e2m3Mixin(ExtendedInjector):
    """6 bits: 2 of exponent, 3 of mantissa."""

    bit_width: Any = 6
    exponent_bit_width: Any = 2
    mantissa_bit_width: Any = 3


class Fp4e2m1Mixin(ExtendedInjector):
    """4 bits: 2 of exponent, 1 of mantissa."""

    bit_width: Any = 4
    exponent_bit_width: Any = 2
    mantissa_bit_width: Any = 1


# What the OCP formats reserve under the largest exponent: (mantissas of infinity, mantissas of NaN).
_OCP_SPECIALS: dict[tuple[int, int], tuple[Any, Any]] = {
    (4, 3): (None, ("111",)),
    (5, 2): (("00",), ("01", "10", "11")),
}


class FpOCPMixin(ExtendedInjector):
    """The OCP formats: e4m3 with NaN, e5m2 with infinity and NaN, smaller ones with numbers only."""

    @value
    def inf_values(exponent_bit_width: Any, mantissa_bit_width: Any) -> Any:
        return _OCP_SPECIALS.get((exponent_bit_width, mantissa_bit_width), (None, None))[0]

    @value
    def nan_values(exponent_bit_width: Any, mantissa_bit_width: Any) -> Any:
        return _OCP_SPECIALS.get((exponent_bit_width, mantissa_bit_width), (None, None))[1]


class FpFNUZMixin(ExtendedInjector):
    """Formats without infinity and negative zero, whose code is NaN; the bias is one larger."""

    @value
    def exponent_bias(exponent_bit_width: Any) -> Any:
        return 2 ** (exponent_bit_width - 1)
