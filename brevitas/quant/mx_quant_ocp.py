"""Microscaling (MX) presets: groups of 32 neighbours share a power-of-two scale.

>>> from brevitas.quant.mx_quant_ocp import MXInt8Weight
>>> MXInt8Weight.group_size
32

Group scale = 2^(floor(log2 amax) - emax). For b-bit integers it is 2^floor(log2 amax) / 2^(b-2), so that the codes
reach almost to twice the power of two. The groups of an activation are scaled anew at each call. Source: OCP,
"Microscaling formats (MX) specification", 2023.
"""

from typing import Any

from brevitas.core.quant.float_base import MXFloatScaling
from brevitas.core.quant.groupwise import GroupwiseFloatQuant
from brevitas.core.scaling.groupwise import MXIntScaling
from brevitas.inject import ExtendedInjector
from brevitas.inject.enum import FloatToIntImplType, RestrictValueType, ScalingImplType, ScalingPerOutputType, StatsOp
from brevitas.quant.base import (
    MaxStatsScaling,
    MinMaxStatsScaling,
    MSESymmetricScale,
    NarrowIntQuant,
    ShiftedMinUintQuant,
)
from brevitas.quant.float_base import Fp8e4m3Mixin, FpOCPMixin, MSEFloatScale, ScaledFloatActBase, ScaledFloatWeightBase
from brevitas.quant.solver import ActQuantSolver, WeightQuantSolver

__all__ = [
    "MXFloat8e4m3Act",
    "MXFloat8e4m3Weight",
    "MXFloat8e4m3WeightMSE",
    "MXInt8Act",
    "MXInt8Weight",
    "MXInt8WeightMSE",
    "ShiftedMXUInt8Weight",
]


class _MX(ExtendedInjector):
    scaling_per_output_type: Any = ScalingPerOutputType.GROUP
    group_size: Any = 32
    restrict_scaling_type: Any = RestrictValueType.POWER_OF_TWO
    restrict_value_float_to_int_impl_type: Any = FloatToIntImplType.FLOOR


class _MXInt(_MX):
    bit_width: Any = 8
    int_scaling_impl: Any = MXIntScaling


class _MXFloat(Fp8e4m3Mixin, _MX):
    tensor_quant: Any = GroupwiseFloatQuant
    float_scaling_impl: Any = MXFloatScaling
    scaling_impl_type: Any = ScalingImplType.STATS
    scaling_stats_op: Any = StatsOp.MAX


class MXInt8Weight(NarrowIntQuant, MaxStatsScaling, _MXInt, WeightQuantSolver):
    """Weights in [-127, 127], a power-of-two scale for each group of 32 input channels."""


class MXInt8Act(NarrowIntQuant, MaxStatsScaling, _MXInt, ActQuantSolver):
    """Activations in [-127, 127], a power-of-two scale for each group of 32 neighbours, at each call."""


class ShiftedMXUInt8Weight(ShiftedMinUintQuant, MinMaxStatsScaling, _MXInt, WeightQuantSolver):
    """Weights in [0, 255], a power-of-two scale and a zero point for each group of 32 input channels."""


class MXInt8WeightMSE(MSESymmetricScale, MXInt8Weight):
    """As ``MXInt8Weight``; the thresholds start where the squared error is least, then are learned."""


class MXFloat8e4m3Weight(FpOCPMixin, _MXFloat, ScaledFloatWeightBase):
    """OCP e4m3 weights, a power-of-two scale for each group of 32 input channels."""


class MXFloat8e4m3Act(FpOCPMixin, _MXFloat, ScaledFloatActBase):
    """OCP e4m3 activations, a power-of-two scale for each group of 32 neighbours, at each call."""


class MXFloat8e4m3WeightMSE(MSEFloatScale, MXFloat8e4m3Weight):
    """As ``MXFloat8e4m3Weight``; the thresholds start where the squared error is least, then are learned."""
