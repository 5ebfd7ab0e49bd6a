"""Tensor quantizers: modules that map a tensor to ``(y, scale, zero_point, bit_width)``."""

from brevitas.core.quant.binary import BinaryQuant, ClampedBinaryQuant
from brevitas.core.quant.candidate import IntLowEndCandidate, IntThresholdCandidate
from brevitas.core.quant.delay import DelayWrapper
from brevitas.core.quant.float import FloatQuant, FloatThresholdCandidate
from brevitas.core.quant.float_base import (
    ExponentBiasConst,
    ExponentBitWidthConst,
    FloatClamp,
    FloatScaling,
    MantissaBitWidthConst,
    MXFloatScaling,
)
from brevitas.core.quant.groupwise import GroupwiseFloatQuant, GroupwiseRescalingIntQuant
from brevitas.core.quant.int import (
    DecoupledRescalingIntQuant,
    PrescaledRestrictIntQuant,
    PrescaledRestrictIntQuantWithInputBitWidth,
    RescalingIntQuant,
)
from brevitas.core.quant.int_base import DecoupledIntQuant, IntQuant
from brevitas.core.quant.ternary import TernaryQuant
from brevitas.core.quant.trunc import TruncIntQuant, TruncMsbScaling, TruncScalingWrapper
from brevitas.core.quant.weight_norm import AccumulatorAwareIntQuant, PreZeroCenterZeroPoint, WeightNormIntQuant
from brevitas.inject.enum import QuantType

__all__ = [
    "AccumulatorAwareIntQuant",
    "BinaryQuant",
    "ClampedBinaryQuant",
    "DecoupledIntQuant",
    "DecoupledRescalingIntQuant",
    "DelayWrapper",
    "ExponentBiasConst",
    "ExponentBitWidthConst",
    "FloatClamp",
    "FloatQuant",
    "FloatScaling",
    "FloatThresholdCandidate",
    "GroupwiseFloatQuant",
    "GroupwiseRescalingIntQuant",
    "IntLowEndCandidate",
    "IntQuant",
    "IntThresholdCandidate",
    "MXFloatScaling",
    "MantissaBitWidthConst",
    "PreZeroCenterZeroPoint",
    "PrescaledRestrictIntQuant",
    "PrescaledRestrictIntQuantWithInputBitWidth",
    "QuantType",
    "RescalingIntQuant",
    "TernaryQuant",
    "TruncIntQuant",
    "TruncMsbScaling",
    "TruncScalingWrapper",
    "WeightNormIntQuant",
]
