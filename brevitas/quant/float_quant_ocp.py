"""Minifloat presets: the OCP formats.

>>> from brevitas.quant.float_quant_ocp import Fp8e4m3OCPWeight
>>> Fp8e4m3OCPWeight.exponent_bit_width, Fp8e4m3OCPWeight.mantissa_bit_width
(4, 3)
"""

from typing import Any

from brevitas.quant.float_base import (
    FloatActBase,
    FloatWeightBase,
    Fp8e4m3Mixin,
    Fp8e5m2Mixin,
    FpOCPMixin,
    MSEFloatScale,
    ScaledFloatActBase,
    ScaledFloatWeightBase,
)

__all__ = [
    "Fp8e4m3OCPAct",
    "Fp8e4m3OCPActPerChannelFloat2d",
    "Fp8e4m3OCPActPerTensorFloat",
    "Fp8e4m3OCPActPerTensorFloatMSE",
    "Fp8e4m3OCPWeight",
    "Fp8e4m3OCPWeightPerChannelFloat",
    "Fp8e4m3OCPWeightPerChannelFloatMSE",
    "Fp8e4m3OCPWeightPerTensorFloat",
    "Fp8e4m3OCPWeightPerTensorFloatMSE",
    "Fp8e5m2OCPAct",
    "Fp8e5m2OCPActPerChannelFloat2d",
    "Fp8e5m2OCPActPerTensorFloat",
    "Fp8e5m2OCPActPerTensorFloatMSE",
    "Fp8e5m2OCPWeight",
    "Fp8e5m2OCPWeightPerChannelFloat",
    "Fp8e5m2OCPWeightPerChannelFloatMSE",
    "Fp8e5m2OCPWeightPerTensorFloat",
    "Fp8e5m2OCPWeightPerTensorFloatMSE",
    "FpOCPAct",
    "FpOCPActPerChannelFloat2d",
    "FpOCPActPerTensorFloat",
    "FpOCPActPerTensorFloatMSE",
    "FpOCPWeight",
    "FpOCPWeightPerChannelFloat",
    "FpOCPWeightPerChannelFloatMSE",
    "FpOCPWeightPerTensorFloat",
    "FpOCPWeightPerTensorFloatMSE",
]


class FpOCPWeight(FpOCPMixin, FloatWeightBase):
    """OCP minifloat weights without a scale; the widths are to be declared."""


class FpOCPAct(FpOCPMixin, FloatActBase):
    """OCP minifloat activations without a scale; the widths are to be declared."""


class FpOCPWeightPerTensorFloat(FpOCPMixin, ScaledFloatWeightBase):
    """OCP minifloat weights, one scale; the widths are to be declared."""


class FpOCPActPerTensorFloat(FpOCPMixin, ScaledFloatActBase):
    """OCP minifloat activations, one scale; the widths are to be declared."""


class FpOCPWeightPerChannelFloat(FpOCPMixin, ScaledFloatWeightBase):
    """OCP minifloat weights, a scale per output channel; the widths are to be declared."""

    scaling_per_output_channel: Any = True


class FpOCPActPerChannelFloat2d(FpOCPMixin, ScaledFloatActBase):
    """OCP minifloat activations of images, a scale per channel; widths and shape are to be declared."""

    scaling_per_output_channel: Any = True
    scaling_stats_permute_dims: Any = (1, 0, 2, 3)


class FpOCPWeightPerTensorFloatMSE(MSEFloatScale, FpOCPWeightPerTensorFloat):
    """As ``FpOCPWeightPerTensorFloat``; the threshold starts where the squared error is least."""


class FpOCPActPerTensorFloatMSE(MSEFloatScale, FpOCPActPerTensorFloat):
    """As ``FpOCPActPerTensorFloat``; the threshold starts where the squared error is least."""


class FpOCPWeightPerChannelFloatMSE(MSEFloatScale, FpOCPWeightPerChannelFloat):
    """As ``FpOCPWeightPerChannelFloat``; the threshold starts where the squared error is least."""


class Fp8e4m3OCPWeight(Fp8e4m3Mixin, FpOCPWeight):
    """OCP minifloat e4m3 weights without a scale; largest number 448."""


class Fp8e4m3OCPAct(Fp8e4m3Mixin, FpOCPAct):
    """OCP minifloat e4m3 activations without a scale; largest number 448."""


class Fp8e4m3OCPWeightPerTensorFloat(Fp8e4m3Mixin, FpOCPWeightPerTensorFloat):
    """OCP minifloat e4m3 weights, one scale; largest number 448."""


class Fp8e4m3OCPActPerTensorFloat(Fp8e4m3Mixin, FpOCPActPerTensorFloat):
    """OCP minifloat e4m3 activations, one scale; largest number 448."""


class Fp8e4m3OCPWeightPerChannelFloat(Fp8e4m3Mixin, FpOCPWeightPerChannelFloat):
    """OCP minifloat e4m3 weights, a scale per output channel; largest number 448."""


class Fp8e4m3OCPActPerChannelFloat2d(Fp8e4m3Mixin, FpOCPActPerChannelFloat2d):
    """OCP minifloat e4m3 activations of images, a scale per channel (declare its shape); largest number 448."""


class Fp8e4m3OCPWeightPerTensorFloatMSE(MSEFloatScale, Fp8e4m3OCPWeightPerTensorFloat):
    """As ``Fp8e4m3OCPWeightPerTensorFloat``; the threshold starts where the squared error is least."""


class Fp8e4m3OCPActPerTensorFloatMSE(MSEFloatScale, Fp8e4m3OCPActPerTensorFloat):
    """As ``Fp8e4m3OCPActPerTensorFloat``; the threshold starts where the squared error is least."""


class Fp8e4m3OCPWeightPerChannelFloatMSE(MSEFloatScale, Fp8e4m3OCPWeightPerChannelFloat):
    """As ``Fp8e4m3OCPWeightPerChannelFloat``; the threshold starts where the squared error is least."""


class Fp8e5m2OCPWeight(Fp8e5m2Mixin, FpOCPWeight):
    """OCP minifloat e5m2 weights without a scale; largest number 57344."""


class Fp8e5m2OCPAct(Fp8e5m2Mixin, FpOCPAct):
    """OCP minifloat e5m2 activations without a scale; largest number 57344."""


class Fp8e5m2OCPWeightPerTensorFloat(Fp8e5m2Mixin, FpOCPWeightPerTensorFloat):
    """OCP minifloat e5m2 weights, one scale; largest number 57344."""


class Fp8e5m2OCPActPerTensorFloat(Fp8e5m2Mixin, FpOCPActPerTensorFloat):
    """OCP minifloat e5m2 activations, one scale; largest number 57344."""


class Fp8e5m2OCPWeightPerChannelFloat(Fp8e5m2Mixin, FpOCPWeightPerChannelFloat):
    """OCP minifloat e5m2 weights, a scale per output channel; largest number 57344."""


class Fp8e5m2OCPActPerChannelFloat2d(Fp8e5m2Mixin, FpOCPActPerChannelFloat2d):
    """OCP minifloat e5m2 activations of images, a scale per channel (declare its shape); largest number 57344."""


class Fp8e5m2OCPWeightPerTensorFloatMSE(MSEFloatScale, Fp8e5m2OCPWeightPerTensorFloat):
    """As ``Fp8e5m2OCPWeightPerTensorFloat``; the threshold starts where the squared error is least."""


class Fp8e5m2OCPActPerTensorFloatMSE(MSEFloatScale, Fp8e5m2OCPActPerTensorFloat):
    """As ``Fp8e5m2OCPActPerTensorFloat``; the threshold starts where the squared error is least."""


class Fp8e5m2OCPWeightPerChannelFloatMSE(MSEFloatScale, Fp8e5m2OCPWeightPerChannelFloat):
    """As ``Fp8e5m2OCPWeightPerChannelFloat``; the threshold starts where the squared error is least."""
