"""Presets of normalised weights, among them those that keep an accumulator from overflowing (A2Q, A2Q+).

>>> from brevitas.quant.weight_norm import Int8AccumulatorAwareWeightQuant
>>> Int8AccumulatorAwareWeightQuant.accumulator_bit_width
32

Per output channel, the norm of the weight and the step of the grid are learned in log2. Sources: Colbert, Pappalardo
and Petri-Koenig, "A2Q: Accumulator-aware quantization with guaranteed overflow avoidance", 2023, and "A2Q+: Improving
accumulator-aware weight quantization", 2024.
"""

from typing import Any

from brevitas.core.quant import DecoupledIntQuant
from brevitas.core.quant.weight_norm import AccumulatorAwareIntQuant, PreZeroCenterZeroPoint, WeightNormIntQuant
from brevitas.core.scaling.pre_scaling import (
    AccumulatorAwareParameterPreScaling,
    AccumulatorAwareZeroCenterParameterPreScaling,
    ParameterPreScalingWeightNorm,
)
from brevitas.core.stats.norm import AbsMaxStep
from brevitas.core.zero_point import ZeroZeroPoint
from brevitas.inject.enum import FloatToIntImplType, RestrictValueType, ScalingImplType
from brevitas.quant.base import NarrowIntQuant
from brevitas.quant.solver import WeightQuantSolver

__all__ = [
    "Int8AccumulatorAwareWeightQuant",
    "Int8AccumulatorAwareZeroCenterWeightQuant",
    "Int8WeightNormL2PerChannelFixedPoint",
]


class _WeightNorm(NarrowIntQuant, WeightQuantSolver):
    tensor_quant: Any = WeightNormIntQuant
    decoupled_int_quant: Any = DecoupledIntQuant
    pre_scaling_impl: Any = ParameterPreScalingWeightNorm
    pre_zero_point_impl: Any = ZeroZeroPoint
    scaling_impl_type: Any = ScalingImplType.PARAMETER_FROM_STATS
    scaling_stats_impl: Any = AbsMaxStep
    scaling_per_output_channel: Any = True
    bit_width: Any = 8


class Int8WeightNormL2PerChannelFixedPoint(_WeightNorm):
    """Weights in [-127, 127], normalised in the Euclidean norm; per output channel, a power-of-two scale."""

    restrict_scaling_type: Any = RestrictValueType.POWER_OF_TWO


class Int8AccumulatorAwareWeightQuant(_WeightNorm):
    """Weights in [-127, 127] whose L1 norm fits an accumulator of ``accumulator_bit_width`` bits (A2Q).

    The layer's input must be quantized: its bit width and sign set the bound.
    """

    tensor_quant: Any = AccumulatorAwareIntQuant
    pre_scaling_impl: Any = AccumulatorAwareParameterPreScaling
    restrict_scaling_type: Any = RestrictValueType.LOG_FP
    float_to_int_impl_type: Any = FloatToIntImplType.ROUND_TO_ZERO
    accumulator_bit_width: Any = 32


class Int8AccumulatorAwareZeroCenterWeightQuant(Int8AccumulatorAwareWeightQuant):
    """As ``Int8AccumulatorAwareWeightQuant`` for weights of mean 0, with the larger bound of A2Q+."""

    pre_scaling_impl: Any = AccumulatorAwareZeroCenterParameterPreScaling
    pre_zero_point_impl: Any = PreZeroCenterZeroPoint
