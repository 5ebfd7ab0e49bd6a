"""Tensor quantizers: modules that map a tensor to ``(y, scale, zero_point, bit_width)``."""

from brevitas.core.quant.binary import BinaryQuant, ClampedBinaryQuant
from brevitas.core.quant.delay import DelayWrapper
from brevitas.core.quant.int import (
    DecoupledRescalingIntQuant,
    PrescaledRestrictIntQuant,
    PrescaledRestrictIntQuantWithInputBitWidth,
    RescalingIntQuant,
)
from brevitas.core.quant.int_base import DecoupledIntQuant, IntQuant
from brevitas.core.quant.ternary import TernaryQuant
from brevitas.core.quant.trunc import TruncIntQuant, TruncMsbScaling, TruncScalingWrapper
from brevitas.inject.enum import QuantType

__all__ = [
    "BinaryQuant",
    "ClampedBinaryQuant",
    "DecoupledIntQuant",
    "DecoupledRescalingIntQuant",
    "DelayWrapper",
    "IntQuant",
    "PrescaledRestrictIntQuant",
    "PrescaledRestrictIntQuantWithInputBitWidth",
    "QuantType",
    "RescalingIntQuant",
    "TernaryQuant",
    "TruncIntQuant",
    "TruncMsbScaling",
    "TruncScalingWrapper",
]
