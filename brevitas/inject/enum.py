"""The enums of the directive vocabulary. A member or its name, in any case, may be written in a declaration.

>>> QuantType.INT == 'int'
True
"""

from enum import auto

from brevitas.utils.python_utils import AutoName

__all__ = [
    "BitWidthImplType",
    "FloatToIntImplType",
    "LearnedRoundImplType",
    "QuantType",
    "RestrictValueType",
    "ScalingImplType",
    "ScalingPerOutputType",
    "StatsOp",
    "TruncScalingImplType",
]


class QuantType(AutoName):
    """What the codes are: ±1, {-1, 0, 1}, integers, or not quantized at all (``FP``)."""

    BINARY = auto()
    TERNARY = auto()
    INT = auto()
    FP = auto()


class BitWidthImplType(AutoName):
    """Whether the bit width is a constant, learned, or a constant kept in the state dict."""

    CONST = auto()
    PARAMETER = auto()
    STATEFUL_CONST = auto()


class ScalingImplType(AutoName):
    """Where the threshold comes from."""

    HE = auto()
    CONST = auto()
    STATS = auto()
    AFFINE_STATS = auto()
    PARAMETER = auto()
    PARAMETER_FROM_STATS = auto()


class RestrictValueType(AutoName):
    """Domain of the threshold: any float, float learned in log2, integer, power of two."""

    FP = auto()
    LOG_FP = auto()
    INT = auto()
    POWER_OF_TWO = auto()


class FloatToIntImplType(AutoName):
    """Rounding from float to integer."""

    ROUND = auto()
    CEIL = auto()
    FLOOR = auto()
    ROUND_TO_ZERO = auto()
    DPU = auto()
    LEARNED_ROUND = auto()
    STOCHASTIC_ROUND = auto()


class StatsOp(AutoName):
    """Statistic that gives the threshold."""

    MAX = auto()
    AVE = auto()
    MAX_AVE = auto()
    MEAN_SIGMA_STD = auto()
    MEAN_LEARN_SIGMA_STD = auto()
    PERCENTILE = auto()
    MIN_MAX = auto()
    PERCENTILE_INTERVAL = auto()


class ScalingPerOutputType(AutoName):
    """Granularity of the scale."""

    TENSOR = auto()
    CHANNEL = auto()
    GROUP = auto()


class TruncScalingImplType(AutoName):
    """How a truncation chooses its shift."""

    MSB = auto()
    WRAPPER = auto()


class LearnedRoundImplType(AutoName):
    """Shape of the learned-rounding function."""

    HARD_SIGMOID = auto()
    SIGMOID = auto()
    IDENTITY = auto()
