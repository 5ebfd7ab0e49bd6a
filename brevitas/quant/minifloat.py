"""Minifloat presets: every code is a number.

>>> from brevitas.quant.minifloat import Fp8e4m3Weight
>>> Fp8e4m3Weight.exponent_bit_width, Fp8e4m3Weight.mantissa_bit_width
(4, 3)
"""

from typing import Any

from brevitas.quant.float_base import (
    FloatActBase,
    FloatWeightBase,
    Fp8e4m3Mixin,
    Fp8e5m2Mixin,
    MSEFloatScale,
    ScaledFloatActBase,
    ScaledFloatWeightBase,
)

__all__ = [
    "Fp8e4m3Act",
    "Fp8e4m3ActPerChannelFloat2d",
    "Fp8e4m3ActPerTensorFloat",
    "Fp8e4m3ActPerTensorFloatMSE",
    "Fp8e4m3Weight",
    "Fp8e4m3WeightPerChannelFloat",
    "Fp8e4m3WeightPerChannelFloatMSE",
    "Fp8e4m3WeightPerTensorFloat",
    "Fp8e4m3WeightPerTensorFloatMSE",
    "Fp8e5m2Act",
    "Fp8e5m2ActPerChannelFloat2d",
    "Fp8e5m2ActPerTensorFloat",
    "Fp8e5m2ActPerTensorFloatMSE",
    "Fp8e5m2Weight",
    "Fp8e5m2WeightPerChannelFloat",
    "Fp8e5m2WeightPerChannelFloatMSE",
    "Fp8e5m2WeightPerTensorFloat",
    "Fp8e5m2WeightPerTensorFloatMSE",
]


class Fp8e4m3Weight(Fp8e4m3Mixin, FloatWeightBase):
    """Minifloat e4m3 weights without a scale; largest number 480."""


class Fp8e4m3Act(Fp8e4m3Mixin, FloatActBase):
    """Minifloat e4m3 activations without a scale; largest number 480."""


class Fp8e4m3WeightPerTensorFloat(Fp8e4m3Mixin, ScaledFloatWeightBase):
    """Minifloat e4m3 weights, one scale; largest number 480."""


class Fp8e4m3ActPerTensorFloat(Fp8e4m3Mixin, ScaledFloatActBase):
    """Minifloat e4m3 activations, one scale; largest number 480."""


class Fp8e4m3WeightPerChannelFloat(Fp8e4m3Mixin, ScaledFloatWeightBase):
    """Minifloat e4m3 weights, a scale per output channel; largest number 480."""

    scaling_per_output_channel: Any = True


class Fp8e4m3ActPerChannelFloat2d(Fp8e4m3Mixin, ScaledFloatActBase):
    """Minifloat e4m3 activations of images, a scale per channel (declare its shape); largest number 480."""

    scaling_per_output_channel: Any = True
    scaling_stats_permute_dims: Any = (1, 0, 2, 3)


class Fp8e4m3WeightPerTensorFloatMSE(MSEFloatScale, Fp8e4m3WeightPerTensorFloat):
    """As ``Fp8e4m3WeightPerTensorFloat``; the threshold starts where the squared error is least."""


class Fp8e4m3ActPerTensorFloatMSE(MSEFloatScale, Fp8e4m3ActPerTensorFloat):
    """As ``Fp8e4m3ActPerTensorFloat``; the threshold starts where the squared error is least."""


class Fp8e4m3WeightPerChannelFloatMSE(MSEFloatScale, Fp8e4m3WeightPerChannelFloat):
    """As ``Fp8e4m3WeightPerChannelFloat``; the threshold starts where the squared error is least."""


class Fp8e5m2Weight(Fp8e5m2Mixin, FloatWeightBase):
    """Minifloat e5m2 weights without a scale; largest number 114688."""


class Fp8e5m2Act(Fp8e5m2Mixin, FloatActBase):
    """Minifloat e5m2 activations without a scale; largest number 114688."""


class Fp8e5m2WeightPerTensorFloat(Fp8e5m2Mixin, ScaledFloatWeightBase):
    """Minifloat e5m2 weights, one scale; largest number 114688."""


class Fp8e5m2ActPerTensorFloat(Fp8e5m2Mixin, ScaledFloatActBase):
    """Minifloat e5m2 activations, one scale; largest number 114688."""


class Fp8e5m2WeightPerChannelFloat(Fp8e5m2Mixin, ScaledFloatWeightBase):
    """Minifloat e5m2 weights, a scale per output channel; largest number 114688."""

    scaling_per_output_channel: Any = True


class Fp8e5m2ActPerChannelFloat2d(Fp8e5m2Mixin, ScaledFloatActBase):
    """Minifloat e5m2 activations of images, a scale per channel (declare its shape); largest number 114688."""

    scaling_per_output_channel: Any = True
    scaling_stats_permute_dims: Any = (1, 0, 2, 3)


class Fp8e5m2WeightPerTensorFloatMSE(MSEFloatScale, Fp8e5m2WeightPerTensorFloat):
    """As ``Fp8e5m2WeightPerTensorFloat``; the threshold starts where the squared error is least."""


class Fp8e5m2ActPerTensorFloatMSE(MSEFloatScale, Fp8e5m2ActPerTensorFloat):
    """As ``Fp8e5m2ActPerTensorFloat``; the threshold starts where the squared error is least."""


class Fp8e5m2WeightPerChannelFloatMSE(MSEFloatScale, Fp8e5m2WeightPerChannelFloat):
    """As ``Fp8e5m2WeightPerChannelFloat``; the threshold starts where the squared error is least."""
