"""Minifloat presets: formats without infinity and negative zero.

>>> from brevitas.quant.float_quant_fnuz import Fp8e4m3FNUZWeight
>>> Fp8e4m3FNUZWeight.exponent_bit_width, Fp8e4m3FNUZWeight.mantissa_bit_width
(4, 3)
"""

from typing import Any

from brevitas.quant.float_base import (
    FloatActBase,
    FloatWeightBase,
    Fp8e4m3Mixin,
    Fp8e5m2Mixin,
    FpFNUZMixin,
    MSEFloatScale,
    ScaledFloatActBase,
    ScaledFloatWeightBase,
)

__all__ = [
    "Fp8e4m3FNUZAct",
    "Fp8e4m3FNUZActPerChannelFloat2d",
    "Fp8e4m3FNUZActPerTensorFloat",
    "Fp8e4m3FNUZActPerTensorFloatMSE",
    "Fp8e4m3FNUZWeight",
    "Fp8e4m3FNUZWeightPerChannelFloat",
    "Fp8e4m3FNUZWeightPerChannelFloatMSE",
    "Fp8e4m3FNUZWeightPerTensorFloat",
    "Fp8e4m3FNUZWeightPerTensorFloatMSE",
    "Fp8e5m2FNUZAct",
    "Fp8e5m2FNUZActPerChannelFloat2d",
    "Fp8e5m2FNUZActPerTensorFloat",
    "Fp8e5m2FNUZActPerTensorFloatMSE",
    "Fp8e5m2FNUZWeight",
    "Fp8e5m2FNUZWeightPerChannelFloat",
    "Fp8e5m2FNUZWeightPerChannelFloatMSE",
    "Fp8e5m2FNUZWeightPerTensorFloat",
    "Fp8e5m2FNUZWeightPerTensorFloatMSE",
    "FpFNUZAct",
    "FpFNUZActPerChannelFloat2d",
    "FpFNUZActPerTensorFloat",
    "FpFNUZActPerTensorFloatMSE",
    "FpFNUZWeight",
    "FpFNUZWeightPerChannelFloat",
    "FpFNUZWeightPerChannelFloatMSE",
    "FpFNUZWeightPerTensorFloat",
    "FpFNUZWeightPerTensorFloatMSE",
]


class FpFNUZWeight(FpFNUZMixin, FloatWeightBase):
    """FNUZ minifloat weights without a scale; the widths are to be declared."""


class FpFNUZAct(FpFNUZMixin, FloatActBase):
    """FNUZ minifloat activations without a scale; the widths are to be declared."""


class FpFNUZWeightPerTensorFloat(FpFNUZMixin, ScaledFloatWeightBase):
    """FNUZ minifloat weights, one scale; the widths are to be declared."""


class FpFNUZActPerTensorFloat(FpFNUZMixin, ScaledFloatActBase):
    """FNUZ minifloat activations, one scale; the widths are to be declared."""


class FpFNUZWeightPerChannelFloat(FpFNUZMixin, ScaledFloatWeightBase):
    """FNUZ minifloat weights, a scale per output channel; the widths are to be declared."""

    scaling_per_output_channel: Any = True


class FpFNUZActPerChannelFloat2d(FpFNUZMixin, ScaledFloatActBase):
    """FNUZ minifloat activations of images, a scale per channel; widths and shape are to be declared."""

    scaling_per_output_channel: Any = True
    scaling_stats_permute_dims: Any = (1, 0, 2, 3)


class FpFNUZWeightPerTensorFloatMSE(MSEFloatScale, FpFNUZWeightPerTensorFloat):
    """As ``FpFNUZWeightPerTensorFloat``; the threshold starts where the squared error is least."""


class FpFNUZActPerTensorFloatMSE(MSEFloatScale, FpFNUZActPerTensorFloat):
    """As ``FpFNUZActPerTensorFloat``; the threshold starts where the squared error is least."""


class FpFNUZWeightPerChannelFloatMSE(MSEFloatScale, FpFNUZWeightPerChannelFloat):
    """As ``FpFNUZWeightPerChannelFloat``; the threshold starts where the squared error is least."""


class Fp8e4m3FNUZWeight(Fp8e4m3Mixin, FpFNUZWeight):
    """FNUZ minifloat e4m3 weights without a scale; largest number 240."""


class Fp8e4m3FNUZAct(Fp8e4m3Mixin, FpFNUZAct):
    """FNUZ minifloat e4m3 activations without a scale; largest number 240."""


class Fp8e4m3FNUZWeightPerTensorFloat(Fp8e4m3Mixin, FpFNUZWeightPerTensorFloat):
    """FNUZ minifloat e4m3 weights, one scale; largest number 240."""


class Fp8e4m3FNUZActPerTensorFloat(Fp8e4m3Mixin, FpFNUZActPerTensorFloat):
    """FNUZ minifloat e4m3 activations, one scale; largest number 240."""


class Fp8e4m3FNUZWeightPerChannelFloat(Fp8e4m3Mixin, FpFNUZWeightPerChannelFloat):
    """FNUZ minifloat e4m3 weights, a scale per output channel; largest number 240."""


class Fp8e4m3FNUZActPerChannelFloat2d(Fp8e4m3Mixin, FpFNUZActPerChannelFloat2d):
    """FNUZ minifloat e4m3 activations of images, a scale per channel (declare its shape); largest number 240."""


class Fp8e4m3FNUZWeightPerTensorFloatMSE(MSEFloatScale, Fp8e4m3FNUZWeightPerTensorFloat):
    """As ``Fp8e4m3FNUZWeightPerTensorFloat``; the threshold starts where the squared error is least."""


class Fp8e4m3FNUZActPerTensorFloatMSE(MSEFloatScale, Fp8e4m3FNUZActPerTensorFloat):
    """As ``Fp8e4m3FNUZActPerTensorFloat``; the threshold starts where the squared error is least."""


class Fp8e4m3FNUZWeightPerChannelFloatMSE(MSEFloatScale, Fp8e4m3FNUZWeightPerChannelFloat):
    """As ``Fp8e4m3FNUZWeightPerChannelFloat``; the threshold starts where the squared error is least."""


class Fp8e5m2FNUZWeight(Fp8e5m2Mixin, FpFNUZWeight):
    """FNUZ minifloat e5m2 weights without a scale; largest number 57344."""


class Fp8e5m2FNUZAct(Fp8e5m2Mixin, FpFNUZAct):
    """FNUZ minifloat e5m2 activations without a scale; largest number 57344."""


class Fp8e5m2FNUZWeightPerTensorFloat(Fp8e5m2Mixin, FpFNUZWeightPerTensorFloat):
    """FNUZ minifloat e5m2 weights, one scale; largest number 57344."""


class Fp8e5m2FNUZActPerTensorFloat(Fp8e5m2Mixin, FpFNUZActPerTensorFloat):
    """FNUZ minifloat e5m2 activations, one scale; largest number 57344."""


class Fp8e5m2FNUZWeightPerChannelFloat(Fp8e5m2Mixin, FpFNUZWeightPerChannelFloat):
    """FNUZ minifloat e5m2 weights, a scale per output channel; largest number 57344."""


class Fp8e5m2FNUZActPerChannelFloat2d(Fp8e5m2Mixin, FpFNUZActPerChannelFloat2d):
    """FNUZ minifloat e5m2 activations of images, a scale per channel (declare its shape); largest number 57344."""


class Fp8e5m2FNUZWeightPerTensorFloatMSE(MSEFloatScale, Fp8e5m2FNUZWeightPerTensorFloat):
    """As ``Fp8e5m2FNUZWeightPerTensorFloat``; the threshold starts where the squared error is least."""


class Fp8e5m2FNUZActPerTensorFloatMSE(MSEFloatScale, Fp8e5m2FNUZActPerTensorFloat):
    """As ``Fp8e5m2FNUZActPerTensorFloat``; the threshold starts where the squared error is least."""


class Fp8e5m2FNUZWeightPerChannelFloatMSE(MSEFloatScale, Fp8e5m2FNUZWeightPerChannelFloat):
    """As ``Fp8e5m2FNUZWeightPerChannelFloat``; the threshold starts where the squared error is least."""
