"""Statistics of tensors, over the whole tensor or along one dimension of a view.

>>> import torch
>>> AbsMax()(torch.tensor([1.0, -3.0])), AbsMax(stats_reduce_dim=1)(torch.tensor([[1.0, -3.0], [2.0, 0.0]]))
(tensor(3.), tensor([3., 2.]))
"""

from brevitas.core.stats.mse import MSE, LowEndMSE
from brevitas.core.stats.norm import AbsMaxStep, L1Norm, L2Norm, ZeroCenterL1Norm
from brevitas.core.stats.running import DEFAULT_MOMENTUM, CollectThenLearn, FollowThenLearn, RunningEstimate
from brevitas.core.stats.stats_op import (
    AbsAve,
    AbsMax,
    AbsMaxAve,
    AbsMaxL2,
    AbsMinMax,
    AbsPercentile,
    MeanLearnedSigmaStd,
    MeanSigmaStd,
    NegativeMinOrZero,
    NegativePercentileOrZero,
    PercentileInterval,
)
from brevitas.core.stats.stats_wrapper import SCALAR_SHAPE, InputViewStats, ParameterListStats, RuntimeStats, Stats
from brevitas.inject.enum import StatsOp

__all__ = [
    "DEFAULT_MOMENTUM",
    "MSE",
    "SCALAR_SHAPE",
    "AbsAve",
    "AbsMax",
    "AbsMaxAve",
    "AbsMaxL2",
    "AbsMaxStep",
    "AbsMinMax",
    "AbsPercentile",
    "CollectThenLearn",
    "FollowThenLearn",
    "InputViewStats",
    "L1Norm",
    "L2Norm",
    "LowEndMSE",
    "MeanLearnedSigmaStd",
    "MeanSigmaStd",
    "NegativeMinOrZero",
    "NegativePercentileOrZero",
    "ParameterListStats",
    "PercentileInterval",
    "RunningEstimate",
    "RuntimeStats",
    "Stats",
    "StatsOp",
    "ZeroCenterL1Norm",
]
