"""Presets whose threshold starts where the squared error of the quantized values is least.

>>> from brevitas.quant.mse import Int8WeightPerTensorFloatMSE
>>> Int8WeightPerTensorFloatMSE.mse_iters
20
"""

from brevitas.quant.base import MSEActZeroPoint, MSEAsymmetricScale, MSESymmetricScale, MSEWeightZeroPoint
from brevitas.quant.fixed_point import (
    Int8ActPerTensorFixedPoint,
    Int8WeightPerChannelFixedPoint,
    Int8WeightPerTensorFixedPoint,
    Uint8ActPerTensorFixedPoint,
)
from brevitas.quant.scaled_int import (
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFloat,
    Uint8ActPerTensorFloat,
)
from brevitas.quant.shifted_scaled_int import (
    ShiftedUint8ActPerTensorFixedPoint,
    ShiftedUint8ActPerTensorFloat,
    ShiftedUint8WeightPerChannelFloat,
    ShiftedUint8WeightPerTensorFloat,
)

__all__ = [
    "Int8ActPerTensorFixedPointMSE",
    "Int8ActPerTensorFloatMSE",
    "Int8WeightPerChannelFixedPointMSE",
    "Int8WeightPerChannelFloatMSE",
    "Int8WeightPerTensorFixedPointMSE",
    "Int8WeightPerTensorFloatMSE",
    "ShiftedUint8ActPerTensorFixedPointMSE",
    "ShiftedUint8ActPerTensorFloatMSE",
    "ShiftedUint8WeightPerChannelFloatMSE",
    "ShiftedUint8WeightPerTensorFloatMSE",
    "Uint8ActPerTensorFixedPointMSE",
    "Uint8ActPerTensorFloatMSE",
]


class Int8WeightPerTensorFloatMSE(MSESymmetricScale, Int8WeightPerTensorFloat):
    """As ``Int8WeightPerTensorFloat``; the threshold starts where the squared error is least, then is learned."""


class Int8WeightPerChannelFloatMSE(MSESymmetricScale, Int8WeightPerChannelFloat):
    """As ``Int8WeightPerChannelFloat``; the threshold starts where the squared error is least, then is learned."""


class Int8WeightPerTensorFixedPointMSE(MSESymmetricScale, Int8WeightPerTensorFixedPoint):
    """As ``Int8WeightPerTensorFixedPoint``; the threshold starts where the squared error is least, then is learned."""


class Int8WeightPerChannelFixedPointMSE(MSESymmetricScale, Int8WeightPerChannelFixedPoint):
    """As ``Int8WeightPerChannelFixedPoint``; the threshold starts where the squared error is least, then is learned."""


class ShiftedUint8WeightPerTensorFloatMSE(MSEAsymmetricScale, MSEWeightZeroPoint, ShiftedUint8WeightPerTensorFloat):
    """As ``ShiftedUint8WeightPerTensorFloat``; threshold and low end start where the squared error is least."""


class ShiftedUint8WeightPerChannelFloatMSE(MSEAsymmetricScale, MSEWeightZeroPoint, ShiftedUint8WeightPerChannelFloat):
    """As ``ShiftedUint8WeightPerChannelFloat``; threshold and low end start where the squared error is least."""


class Int8ActPerTensorFloatMSE(MSESymmetricScale, Int8ActPerTensorFloat):
    """As ``Int8ActPerTensorFloat``; the threshold is searched for on each collected batch."""


class Uint8ActPerTensorFloatMSE(MSESymmetricScale, Uint8ActPerTensorFloat):
    """As ``Uint8ActPerTensorFloat``; the threshold is searched for on each collected batch."""


class Int8ActPerTensorFixedPointMSE(MSESymmetricScale, Int8ActPerTensorFixedPoint):
    """As ``Int8ActPerTensorFixedPoint``; the threshold is searched for on each collected batch."""


class Uint8ActPerTensorFixedPointMSE(MSESymmetricScale, Uint8ActPerTensorFixedPoint):
    """As ``Uint8ActPerTensorFixedPoint``; the threshold is searched for on each collected batch."""


class ShiftedUint8ActPerTensorFloatMSE(MSEAsymmetricScale, MSEActZeroPoint, ShiftedUint8ActPerTensorFloat):
    """As ``ShiftedUint8ActPerTensorFloat``; threshold and low end are searched for on each batch."""


class ShiftedUint8ActPerTensorFixedPointMSE(MSEAsymmetricScale, MSEActZeroPoint, ShiftedUint8ActPerTensorFixedPoint):
    """As ``ShiftedUint8ActPerTensorFixedPoint``; threshold and low end are searched for on each batch."""
