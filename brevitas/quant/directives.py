"""The vocabulary of declarations: every directive, what it may be, what it does, and when it is read.

>>> from brevitas.quant.directives import DIRECTIVES
>>> DIRECTIVES['bit_width'].expected
'an int from 1 to 32'

One table serves the checks at construction, the error messages and the documentation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import Tensor, nn

from brevitas.inject.enum import (
    BitWidthImplType,
    FloatToIntImplType,
    LearnedRoundImplType,
    QuantType,
    RestrictValueType,
    ScalingImplType,
    ScalingPerOutputType,
    StatsOp,
    TruncScalingImplType,
)
from brevitas.quant.registry import legal_names

__all__ = ["ALIASES", "DIRECTIVES", "ROLE_NAMES", "Directive"]

#: Letters by which the table names the roles of a quantizer.
ROLE_NAMES = {"W": "weight", "A": "act", "B": "bias", "T": "trunc", "C": "clamp"}

#: Other spellings of one directive: name written -> name read.
ALIASES = {
    "scaling_per_channel": "scaling_per_output_channel",
    "high_percentile_q": "percentile_q",
}

Check = Callable[[Any], bool]


@dataclass(frozen=True)
class Directive:
    """One name that a quantizer may declare.

    ``check`` tells whether a value is legal; ``expected`` says the same in words. ``read_when`` says under which other
    directives the name has an effect, ``decided_by`` names them, most decisive first.
    """

    name: str
    roles: str
    check: Check
    expected: str
    effect: str
    default: str
    read_when: str = ""
    decided_by: tuple[str, ...] = ()
    enum: type[Enum] | None = None
    example: str = ""

    @property
    def role_names(self) -> tuple[str, ...]:
        """Roles in words: ``('weight', 'act')``."""
        return tuple(ROLE_NAMES[r] for r in self.roles)


def _is_int(v: Any) -> bool:
    return isinstance(v, int) and not isinstance(v, bool)


def _is_real(v: Any) -> bool:
    return isinstance(v, int | float) and not isinstance(v, bool) and v == v and abs(v) != float("inf")


def _int_in(low: int, high: int) -> Check:
    return lambda v: _is_int(v) and low <= v <= high


def _is_positive(v: Any) -> bool:
    if isinstance(v, Tensor):
        return v.is_floating_point() and bool((v > 0).all()) and bool(v.isfinite().all())
    return _is_real(v) and v > 0


def _is_bool(v: Any) -> bool:
    return isinstance(v, bool)


def _member_of(enum: type[Enum], directive: str = "") -> Check:
    names = {m.name for m in enum}

    def check(v: Any) -> bool:
        if isinstance(v, Enum) or not isinstance(v, str):
            return isinstance(v, enum)
        return v.upper() in names or v.upper() in legal_names(directive)

    return check


def _is_shape(v: Any) -> bool:
    return isinstance(v, tuple) and all(_is_int(d) and d >= 1 for d in v)


def _is_permutation(v: Any) -> bool:
    return v is None or (isinstance(v, tuple) and all(_is_int(d) for d in v) and sorted(v) == list(range(len(v))))


def _is_module_class(v: Any) -> bool:
    return inspect.isclass(v) or isinstance(v, nn.Module)


def _is_mantissas(v: Any) -> bool:
    return v is None or (isinstance(v, tuple) and all(isinstance(m, str) and m and not set(m) - {"0", "1"} for m in v))


def _anything(v: Any) -> bool:
    return True


def _choice(enum: type[Enum]) -> str:
    return "one of " + ", ".join(m.name for m in enum)


_LEARNED_WIDTH = ("bit_width_impl_type is PARAMETER", ("bit_width_impl_type", "quant_type"))
_SCALED = ("quant_type is INT, BINARY or TERNARY", ("quant_type", "requires_input_scale"))
_STATS = ("scaling_impl_type is STATS, AFFINE_STATS or PARAMETER_FROM_STATS", ("scaling_impl_type", "quant_type"))
_RUNTIME_STATS = _STATS
_INT = ("quant_type is INT", ("quant_type",))


def _enum(
    name: str, roles: str, enum: type[Enum], effect: str, default: str, when: tuple[str, tuple[str, ...]]
) -> Directive:
    return Directive(name, roles, _member_of(enum, name), _choice(enum), effect, default, *when, enum=enum)


_TABLE = (
    _enum("quant_type", "WABTC", QuantType, "selects the quantizer", "per preset", ("", ())),
    Directive(
        "bit_width",
        "WABT",
        _int_in(1, 32),
        "an int from 1 to 32",
        "number of bits of a code",
        "per preset",
        "the quantizer has a width of its own",
        ("quant_type", "requires_input_bit_width"),
    ),
    _enum("bit_width_impl_type", "WABTC", BitWidthImplType, "constant or learned bit width", "CONST", _INT),
    Directive(
        "min_bit_width",
        "WABT",
        _int_in(2, 32),
        "an int from 2 to 32",
        "smallest width that can be learned",
        "2",
        *_LEARNED_WIDTH,
    ),
    Directive(
        "override_pretrained_bit_width",
        "WABT",
        _is_bool,
        "True or False",
        "keep the declared width when a checkpoint holds another",
        "False",
        *_LEARNED_WIDTH,
    ),
    Directive(
        "restrict_bit_width_impl",
        "WABT",
        _is_module_class,
        "a module class",
        "how a learned width is made an integer",
        "IntRestrictValue",
        *_LEARNED_WIDTH,
    ),
    Directive("signed", "WAB", _is_bool, "True or False", "signed or unsigned codes", "per preset"),
    Directive(
        "narrow_range",
        "WAB",
        _is_bool,
        "True or False",
        "leave out the most negative code (signed) or the largest (unsigned)",
        "per preset",
    ),
    _enum("float_to_int_impl_type", "WABT", FloatToIntImplType, "rounding of the quantizer", "ROUND", _INT),
    Directive(
        "quant_delay_steps",
        "WABT",
        lambda v: _is_int(v) and v >= 0,
        "an int of at least 0",
        "number of first training forwards that return the float input",
        "0",
        "quant_type is INT, BINARY or TERNARY",
        ("quant_type",),
    ),
    _enum("scaling_impl_type", "WAB", ScalingImplType, "how the threshold is obtained", "per preset", _SCALED),
    _enum("restrict_scaling_type", "WAB", RestrictValueType, "domain of the threshold", "FP", _SCALED),
    Directive(
        "restrict_value_float_to_int_impl_type",
        "WAB",
        lambda v: _member_of(FloatToIntImplType)(v) and str(v).upper() in ("CEIL", "ROUND", "FLOOR"),
        "CEIL, ROUND or FLOOR",
        "rounding of the threshold's log2 (POWER_OF_TWO) or of the threshold (INT)",
        "CEIL (POWER_OF_TWO), ROUND (INT)",
        "restrict_scaling_type is POWER_OF_TWO or INT",
        ("restrict_scaling_type", "quant_type"),
        enum=FloatToIntImplType,
    ),
    Directive(
        "restrict_value_float_to_int_impl",
        "WAB",
        _is_module_class,
        "a module class",
        "rounding of the threshold, as a class",
        "CeilSte",
        "restrict_scaling_type is POWER_OF_TWO or INT",
        ("restrict_scaling_type", "quant_type"),
    ),
    _enum("scaling_stats_op", "WAB", StatsOp, "statistic that gives the threshold", "per preset", _STATS),
    Directive(
        "percentile_q",
        "WAB",
        lambda v: _is_real(v) and 0 < v <= 100,
        "a number q with 0 < q <= 100",
        "percentile of PERCENTILE, high end of PERCENTILE_INTERVAL",
        "99.999",
        "scaling_stats_op is PERCENTILE or PERCENTILE_INTERVAL",
        ("scaling_stats_op", "scaling_impl_type", "quant_type"),
    ),
    Directive(
        "high_percentile_q",
        "WAB",
        lambda v: _is_real(v) and 0 < v <= 100,
        "a number q with 0 < q <= 100",
        "another name of percentile_q",
        "99.999",
        "scaling_stats_op is PERCENTILE or PERCENTILE_INTERVAL",
        ("scaling_stats_op", "scaling_impl_type", "quant_type"),
    ),
    Directive(
        "low_percentile_q",
        "WAB",
        lambda v: _is_real(v) and 0 <= v < 50,
        "a number q with 0 <= q < 50",
        "low end of PERCENTILE_INTERVAL",
        "0.001",
        "scaling_stats_op is PERCENTILE_INTERVAL or the zero point is a low percentile",
        ("scaling_stats_op", "scaling_impl_type", "quant_type"),
    ),
    Directive(
        "sigma",
        "WAB",
        lambda v: _is_real(v) and v > 0,
        "a number > 0",
        "standard deviations added to the mean",
        "required",
        "scaling_stats_op is MEAN_SIGMA_STD or MEAN_LEARN_SIGMA_STD",
        ("scaling_stats_op", "scaling_impl_type", "quant_type"),
        example="sigma = 3.0",
    ),
    Directive(
        "collect_stats_steps",
        "A",
        lambda v: _is_int(v) and v > 0,
        "an int > 0",
        "training calls that collect statistics before the scale is learned",
        "300",
        "scaling_impl_type is PARAMETER_FROM_STATS",
        ("scaling_impl_type", "quant_type"),
    ),
    Directive(
        "scaling_stats_momentum",
        "A",
        lambda v: v is None or (_is_real(v) and 0 < v <= 1),
        "a number m with 0 < m <= 1, or None for a true average",
        "weight of the new batch in the running statistic",
        "0.1",
        *_RUNTIME_STATS,
    ),
    Directive(
        "scaling_const",
        "WB",
        _is_positive,
        "a number > 0",
        "the threshold",
        "required",
        "scaling_impl_type is CONST or PARAMETER",
        ("scaling_impl_type", "quant_type"),
        example="scaling_const = 0.1",
    ),
    Directive(
        "scaling_init",
        "WAB",
        _is_positive,
        "a number or float tensor > 0",
        "the initial threshold, in place of the solved one",
        "solved",
        "scaling_impl_type is CONST, PARAMETER or HE",
        ("scaling_impl_type", "quant_type"),
    ),
    Directive(
        "min_val",
        "A",
        _is_real,
        "a finite number",
        "low end of the range of a fixed or learned threshold",
        "0 if unsigned",
        "scaling_impl_type is CONST or PARAMETER",
        ("scaling_impl_type", "quant_type"),
        example="min_val = -1.0",
    ),
    Directive(
        "max_val",
        "A",
        _is_real,
        "a finite number",
        "high end of the range of a fixed or learned threshold",
        "required",
        "scaling_impl_type is CONST or PARAMETER",
        ("scaling_impl_type", "quant_type"),
        example="max_val = 6.0",
    ),
    Directive(
        "scaling_per_output_channel",
        "WAB",
        _is_bool,
        "True or False",
        "one scale per output channel",
        "per preset",
        *_SCALED,
    ),
    Directive(
        "scaling_per_channel",
        "WAB",
        _is_bool,
        "True or False",
        "another name of scaling_per_output_channel",
        "per preset",
        *_SCALED,
    ),
    Directive(
        "scaling_per_output_type",
        "WAB",
        _member_of(ScalingPerOutputType),
        _choice(ScalingPerOutputType),
        "granularity of the scale",
        "from scaling_per_output_channel",
        *_SCALED,
        enum=ScalingPerOutputType,
    ),
    Directive(
        "group_size",
        "WA",
        _int_in(1, 2**31),
        "an int of at least 1",
        "neighbours that share a scale",
        "32",
        "scaling_per_output_type is GROUP",
        ("scaling_per_output_type", "quant_type"),
    ),
    Directive(
        "group_dim",
        "WA",
        _int_in(-8, 8),
        "an int from -8 to 8",
        "dim that is cut into groups",
        "input channels of a weight; channels of an image, else the last dim",
        "scaling_per_output_type is GROUP",
        ("scaling_per_output_type", "quant_type"),
    ),
    Directive(
        "per_channel_broadcastable_shape",
        "A",
        _is_shape,
        "a tuple of ints, for example (1, 64, 1, 1)",
        "shape of a per-channel scale",
        "required if per channel",
        "scaling_per_output_channel is True",
        ("scaling_per_output_channel", "quant_type"),
        example="per_channel_broadcastable_shape = (1, 64, 1, 1)",
    ),
    Directive(
        "scaling_stats_permute_dims",
        "A",
        _is_permutation,
        "a permutation of the dims, for example (1, 0, 2, 3)",
        "order of dims that puts the channel first, for per-channel statistics",
        "derived",
        *_RUNTIME_STATS,
    ),
    Directive("scaling_shape", "WAB", _is_shape, "a tuple of ints", "shape of the scale", "solved", *_SCALED),
    Directive(
        "scaling_min_val",
        "WAB",
        lambda v: v is None or (_is_real(v) and v > 0),
        "a number > 0, or None for 1e-10",
        "lower bound of the threshold, in the linear domain",
        "1e-10",
        *_SCALED,
    ),
    Directive(
        "threshold",
        "WA",
        lambda v: _is_real(v) and 0 < v < 1,
        "a number t with 0 < t < 1",
        "ternary dead zone, relative to the scale",
        "required",
        "quant_type is TERNARY",
        ("quant_type",),
        example="threshold = 0.5",
    ),
    Directive(
        "zero_point_impl",
        "WAB",
        _is_module_class,
        "a module class",
        "where the zero point comes from",
        "ZeroZeroPoint",
        *_INT,
    ),
    Directive(
        "zero_point_init",
        "WA",
        _is_real,
        "a finite number",
        "initial low end of a learned zero point, in real units",
        "required",
        "zero_point_impl is ParameterZeroPoint",
        ("zero_point_impl", "quant_type"),
    ),
    Directive(
        "zero_point_stats_permute_dims",
        "WA",
        _is_permutation,
        "a permutation of the dims",
        "as scaling_stats_permute_dims, for the zero point",
        "derived",
        "the zero point comes from statistics",
        ("zero_point_impl", "quant_type"),
    ),
    Directive(
        "zero_point_stats_momentum",
        "WA",
        lambda v: v is None or (_is_real(v) and 0 < v <= 1),
        "a number m with 0 < m <= 1, or None for a true average",
        "as scaling_stats_momentum, for the zero point",
        "0.1",
        "the zero point comes from statistics",
        ("zero_point_impl", "quant_type"),
    ),
    Directive(
        "tensor_clamp_impl",
        "WAB",
        _is_module_class,
        "a module class",
        "how codes are clamped",
        "solved",
        "quant_type is INT",
        ("quant_type",),
    ),
    Directive("requires_input_scale", "B", _is_bool, "True or False", "the layer supplies the scale", "per preset"),
    Directive(
        "requires_input_bit_width", "B", _is_bool, "True or False", "the layer supplies the bit width", "per preset"
    ),
    Directive(
        "bit_width_to_remove",
        "C",
        lambda v: _is_int(v) and v >= 0,
        "an int of at least 0",
        "most significant bits to take off",
        "required",
        *_INT,
        example="bit_width_to_remove = 4",
    ),
    Directive(
        "min_overall_bit_width",
        "C",
        _int_in(1, 32),
        "an int from 1 to 32",
        "smallest width that may be left",
        "2",
        *_INT,
    ),
    Directive(
        "max_overall_bit_width",
        "C",
        _int_in(1, 32),
        "an int from 1 to 32",
        "largest width that may be left",
        "32",
        *_INT,
    ),
    _enum("trunc_scaling_impl_type", "T", TruncScalingImplType, "how far a truncation shifts", "MSB", _INT),
    _enum(
        "learned_round_impl_type",
        "W",
        LearnedRoundImplType,
        "function that learned rounding adds to the lower code",
        "HARD_SIGMOID",
        ("float_to_int_impl_type is LEARNED_ROUND", ("float_to_int_impl_type", "quant_type")),
    ),
    Directive(
        "accumulator_bit_width",
        "W",
        _int_in(2, 32),
        "an int from 2 to 32",
        "width that no accumulator of the layer may exceed",
        "32",
        "the quantizer is accumulator-aware (A2Q, A2Q+)",
    ),
    Directive(
        "mse_iters",
        "WA",
        _int_in(1, 10_000),
        "an int of at least 1",
        "candidates that the search for the least squared error tries",
        "20",
        "the threshold comes from an MSE search",
    ),
    Directive(
        "exponent_bit_width",
        "WA",
        _int_in(1, 8),
        "an int from 1 to 8",
        "exponent bits of a minifloat",
        "per preset",
        "the quantizer is a minifloat",
        example="exponent_bit_width = 4",
    ),
    Directive(
        "mantissa_bit_width",
        "WA",
        _int_in(0, 23),
        "an int from 0 to 23",
        "mantissa bits of a minifloat",
        "per preset",
        "the quantizer is a minifloat",
        example="mantissa_bit_width = 3",
    ),
    Directive(
        "exponent_bias",
        "WA",
        _int_in(-128, 256),
        "an int from -128 to 256",
        "what is subtracted from the exponent's code",
        "2^(exponent_bit_width - 1) - 1",
        "the quantizer is a minifloat",
    ),
    Directive(
        "saturating",
        "WA",
        _is_bool,
        "True or False",
        "clamp beyond the largest number, rather than giving infinity or NaN",
        "True",
        "the quantizer is a minifloat",
    ),
    Directive(
        "inf_values",
        "WA",
        _is_mantissas,
        "a tuple of mantissas in bits, for example ('00',), or None",
        "mantissas that mean infinity under the largest exponent",
        "per preset",
        "the quantizer is a minifloat",
    ),
    Directive(
        "nan_values",
        "WA",
        _is_mantissas,
        "a tuple of mantissas in bits, for example ('111',), or None",
        "mantissas that mean NaN under the largest exponent",
        "per preset",
        "the quantizer is a minifloat",
    ),
    Directive(
        "act_impl",
        "A",
        lambda v: v is None or _is_module_class(v),
        "a module class or None",
        "activation applied before the quantizer",
        "set by the layer",
    ),
    Directive(
        "passthrough_act",
        "A",
        _is_bool,
        "True or False",
        "with quantization off, hand the metadata of the input on",
        "set by the layer",
    ),
    Directive("module", "WAB", _anything, "the layer", "the layer that owns the quantizer", "set by the proxy"),
    Directive(
        "tracked_parameter_list",
        "WB",
        _anything,
        "a list of parameters",
        "parameters that statistics run over",
        "set by the proxy",
    ),
    Directive("proxy_class", "WABTC", inspect.isclass, "a proxy class", "the proxy to build", "by role"),
)

#: Every directive by name.
DIRECTIVES: dict[str, Directive] = {d.name: d for d in _TABLE}
