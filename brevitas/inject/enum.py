"""The enums of the directive vocabulary. A member or its name, in any case, may be written in a declaration.

Lines ``NAME: what it means`` of a docstring are the reference's text for the member.

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
    """What the codes are.

    BINARY: two codes, -1 and 1.
    TERNARY: three codes, -1, 0 and 1.
    INT: integers of ``bit_width`` bits.
    FP: not quantized, the float input is handed on.
    """

    BINARY = auto()
    TERNARY = auto()
    INT = auto()
    FP = auto()


class BitWidthImplType(AutoName):
    """Where the bit width is kept.

    CONST: a constant.
    PARAMETER: a parameter that is learned.
    STATEFUL_CONST: a constant that is in the state dict.
    """

    CONST = auto()
    PARAMETER = auto()
    STATEFUL_CONST = auto()


class ScalingImplType(AutoName):
    """Where the threshold comes from.

    HE: a constant, sqrt(2 / F), with F the number of weights that feed one output element.
    CONST: a constant, declared.
    STATS: a statistic, taken anew at every step of the weight, or running over the inputs.
    AFFINE_STATS: as STATS, with a learned factor and offset.
    PARAMETER: a learned parameter that starts at a declared value.
    PARAMETER_FROM_STATS: a learned parameter that starts at a statistic.
    """

    HE = auto()
    CONST = auto()
    STATS = auto()
    AFFINE_STATS = auto()
    PARAMETER = auto()
    PARAMETER_FROM_STATS = auto()


class RestrictValueType(AutoName):
    """Domain of the threshold.

    FP: any float.
    LOG_FP: any float; what is learned is its log2.
    INT: integers.
    POWER_OF_TWO: powers of two; what is learned is the log2.
    """

    FP = auto()
    LOG_FP = auto()
    INT = auto()
    POWER_OF_TWO = auto()


class FloatToIntImplType(AutoName):
    """Rounding from float to integer.

    ROUND: to the nearest, halves to even.
    CEIL: up.
    FLOOR: down.
    ROUND_TO_ZERO: towards 0.
    DPU: to the nearest, halves to even where positive and up where negative.
    LEARNED_ROUND: up or down, as is learned for each weight.
    STOCHASTIC_ROUND: up with the probability of the fraction, at random.
    """

    ROUND = auto()
    CEIL = auto()
    FLOOR = auto()
    ROUND_TO_ZERO = auto()
    DPU = auto()
    LEARNED_ROUND = auto()
    STOCHASTIC_ROUND = auto()


class StatsOp(AutoName):
    """Statistic that gives the threshold.

    MAX: largest absolute value.
    AVE: mean absolute value.
    MAX_AVE: mean over the channels of the largest absolute value.
    MEAN_SIGMA_STD: mean absolute value plus ``sigma`` standard deviations.
    MEAN_LEARN_SIGMA_STD: as MEAN_SIGMA_STD, with a learned sigma.
    PERCENTILE: the ``percentile_q``-th percentile of the absolute values.
    MIN_MAX: length of the range, 0 included.
    PERCENTILE_INTERVAL: distance of the ``low_percentile_q``-th and the ``percentile_q``-th percentile, 0 included.
    """

    MAX = auto()
    AVE = auto()
    MAX_AVE = auto()
    MEAN_SIGMA_STD = auto()
    MEAN_LEARN_SIGMA_STD = auto()
    PERCENTILE = auto()
    MIN_MAX = auto()
    PERCENTILE_INTERVAL = auto()


class ScalingPerOutputType(AutoName):
    """Granularity of the scale.

    TENSOR: one scale.
    CHANNEL: one scale per output channel.
    GROUP: one scale per group of ``group_size`` elements.
    """

    TENSOR = auto()
    CHANNEL = auto()
    GROUP = auto()


class TruncScalingImplType(AutoName):
    """How a truncation chooses its shift.

    MSB: by the number of bits that are taken off.
    WRAPPER: learned, by at most the number of bits that are taken off.
    """

    MSB = auto()
    WRAPPER = auto()


class LearnedRoundImplType(AutoName):
    """Shape of the learned-rounding function.

    HARD_SIGMOID: a sigmoid stretched and cut to [0, 1].
    SIGMOID: a sigmoid.
    IDENTITY: the parameter itself.
    """

    HARD_SIGMOID = auto()
    SIGMOID = auto()
    IDENTITY = auto()
