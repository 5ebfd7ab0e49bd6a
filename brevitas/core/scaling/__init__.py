"""Scaling: where the threshold of a quantizer comes from.

    >>> ConstScaling(0.1)(torch.zeros(3))
    tensor(0.1000)

Every module returns the threshold in the shape of the scale; a quantizer divides it by the integer threshold that
``IntScaling`` or ``PowerOfTwoIntScaling`` gives.
"""

import torch  # noqa: F401 - used by the example above

from brevitas.core.scaling.groupwise import MXIntScaling, RuntimeDynamicGroupStatsScaling
from brevitas.core.scaling.int_scaling import IntScaling, PowerOfTwoIntScaling
from brevitas.core.scaling.pre_scaling import (
    AccumulatorAwareParameterPreScaling,
    AccumulatorAwareZeroCenterParameterPreScaling,
    ParameterPreScalingWeightNorm,
)
from brevitas.core.scaling.runtime import RuntimeStatsScaling, StatsFromParameterScaling, StatsScaling
from brevitas.core.scaling.standalone import (
    ConstScaling,
    ParameterFromRuntimeStatsScaling,
    ParameterFromStatsFromParameterScaling,
    ParameterScaling,
)
from brevitas.core.stats import SCALAR_SHAPE
from brevitas.inject.enum import ScalingImplType

SCALING_STATS_REDUCE_DIM = 1

__all__ = [
    "SCALAR_SHAPE",
    "SCALING_STATS_REDUCE_DIM",
    "AccumulatorAwareParameterPreScaling",
    "AccumulatorAwareZeroCenterParameterPreScaling",
    "ConstScaling",
    "IntScaling",
    "MXIntScaling",
    "ParameterFromRuntimeStatsScaling",
    "ParameterFromStatsFromParameterScaling",
    "ParameterPreScalingWeightNorm",
    "ParameterScaling",
    "PowerOfTwoIntScaling",
    "RuntimeDynamicGroupStatsScaling",
    "RuntimeStatsScaling",
    "ScalingImplType",
    "StatsFromParameterScaling",
    "StatsScaling",
]
