"""Every mistake is refused when the layer is built, by a message that names the layer, the place and the remedy."""

import inspect
import re

import numpy as np
import pytest
from torch import nn

from brevitas import quant
from brevitas.errors import BrevitasError, QuantConfigError, UnknownOptionError
from brevitas.inject import ExtendedInjector, value
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8ActPerTensorFloatMinMaxInit,
    Int8Bias,
    Int8WeightPerTensorFixedPoint,
    Int8WeightPerTensorFloat,
    IntBias,
    ShiftedUint8ActPerTensorFloat,
    ShiftedUint8WeightPerTensorFloat,
    Uint8ActPerTensorFloat,
    Uint8ActPerTensorFloatMaxInit,
)


def linear(**kwargs):
    return QuantLinear(4, 2, **kwargs)


class Misspelt(Int8WeightPerTensorFloat):
    bit_widht = 4


class WrongEnum(Int8WeightPerTensorFloat):
    scaling_impl_type = "statz"


class WrongRounding(Int8WeightPerTensorFloat):
    float_to_int_impl_type = "rond"


class ZeroBits(Int8WeightPerTensorFloat):
    bit_width = 0


class TwoChannelNames(Int8WeightPerTensorFloat):
    scaling_per_channel = True
    scaling_per_output_channel = False


class LyingWidth(Int8WeightPerTensorFloat):
    @value
    def bit_width(module):
        return 4.5


class Exploding(Int8WeightPerTensorFloat):
    @value
    def bit_width(module):
        raise RuntimeError("the table of widths is empty")


class NoSolver(ExtendedInjector):
    bit_width = 4


class SigmaWithMax(Int8WeightPerTensorFloat):
    sigma = 3.0


class NeedsSigma(Int8WeightPerTensorFloat):
    scaling_stats_op = "mean_sigma_std"


class Percentile(Int8ActPerTensorFloat):
    percentile_q = 101


class PerChannelWithoutShape(Int8ActPerTensorFloat):
    scaling_per_output_channel = True


class BothInits(Int8WeightPerTensorFloat):
    scaling_impl_type = "parameter"
    scaling_const = 0.1
    scaling_init = 0.2


class OnlyWidthFromInput(Int8Bias):
    requires_input_scale = False
    requires_input_bit_width = True


class DirectScaling(Int8WeightPerTensorFloat):
    @value
    def scaling_impl():
        from brevitas.core.scaling import ConstScaling

        return ConstScaling(0.5)

    scaling_stats_op = "ave"


class TwoRoles(Int8WeightPerTensorFloat, Int8ActPerTensorFloat):
    pass


SHARED = linear()

MISTAKES = {
    # S1: unknown names
    "keyword of the layer": (
        lambda: linear(weigth_bit_width=4),
        UnknownOptionError,
        "QuantLinear",
        "'weigth_bit_width' = 4",
        "'weight_bit_width'",
    ),
    "directive in a keyword": (
        lambda: linear(weight_bit_widht=4),
        UnknownOptionError,
        "weight_quant=",
        "'weight_bit_widht' = 4",
        "'weight_bit_width'",
    ),
    "attribute of a class": (
        lambda: linear(weight_quant=Misspelt),
        UnknownOptionError,
        "QuantLinear",
        "Misspelt",
        "'bit_widht' = 4",
        "'bit_width'",
    ),
    "attribute of let": (
        lambda: linear(weight_quant=Int8WeightPerTensorFloat.let(singed=True)),
        UnknownOptionError,
        "'singed'",
        "'signed'",
    ),
    "keyword of an activation": (
        lambda: QuantReLU(bit_with=4),
        UnknownOptionError,
        "QuantReLU",
        "'bit_with'",
        "'bit_width'",
    ),
    "torch argument misspelt": (
        lambda: QuantConv2d(1, 1, 3, strid=2),
        UnknownOptionError,
        "QuantConv2d",
        "'strid'",
        "'stride'",
    ),
    "argument behind a prefix": (
        lambda: linear(weight_quamt=Int8WeightPerTensorFloat),
        UnknownOptionError,
        "'weight_quamt'",
        "Did you mean 'weight_quant'",
    ),
    "input keyword": (
        lambda: linear(input_quant=Int8ActPerTensorFloat, input_bitwidth=4),
        UnknownOptionError,
        "input_quant=",
        "'input_bit_width'",
    ),
    # S2: names without effect
    "sigma without its statistic": (
        lambda: linear(weight_quant=SigmaWithMax),
        QuantConfigError,
        "'sigma' = 3.0 has no effect because scaling_stats_op is MAX",
    ),
    "keyword of a quantizer that is off": (
        lambda: linear(bias_bit_width=8),
        QuantConfigError,
        "'bias_bit_width' = 8 has no effect because quant_type is FP",
    ),
    "weight off": (
        lambda: linear(weight_quant=None, weight_bit_width=4),
        QuantConfigError,
        "'weight_bit_width' = 4 has no effect",
        "quant_type is FP",
    ),
    "max_val with statistics": (
        lambda: QuantReLU(max_val=6.0),
        QuantConfigError,
        "'max_val' = 6.0 has no effect because scaling_impl_type is PARAMETER_FROM_STATS",
        "CONST or PARAMETER",
    ),
    "collect_stats_steps of a fixed range": (
        lambda: QuantReLU(act_quant=Uint8ActPerTensorFloatMaxInit, max_val=1.0, collect_stats_steps=3),
        QuantConfigError,
        "'collect_stats_steps' = 3 has no effect",
    ),
    "directive of another role": (
        lambda: linear(weight_collect_stats_steps=5),
        QuantConfigError,
        "belongs to quantizers of role act, not 'weight'",
    ),
    "replaced by a direct declaration": (
        lambda: linear(weight_quant=DirectScaling),
        QuantConfigError,
        "'scaling_stats_op' = 'ave' has no effect",
    ),
    "learned-width option of a constant width": (
        lambda: linear(weight_min_bit_width=3),
        QuantConfigError,
        "'weight_min_bit_width' = 3 has no effect because bit_width_impl_type is CONST",
    ),
    "signed of a quantizer that is off": (
        lambda: linear(weight_quant=None, weight_signed=True),
        QuantConfigError,
        "'weight_signed' = True has no effect",
    ),
    "shape of a scale per channel that nobody asked for": (
        lambda: QuantReLU(per_channel_broadcastable_shape=(1, 4, 1, 1)),
        QuantConfigError,
        "'per_channel_broadcastable_shape' = (1, 4, 1, 1) has no effect because scaling_per_output_channel is False",
        "only when scaling_per_output_channel is True",
    ),
    "binary with a zero point": (
        lambda: linear(weight_quant=ShiftedUint8WeightPerTensorFloat, weight_quant_type="binary"),
        QuantConfigError,
        "zero_point_impl = MinUintZeroPoint needs integers",
        "BINARY",
    ),
    "average of maxima with a zero point": (
        lambda: linear(weight_quant=ShiftedUint8WeightPerTensorFloat, weight_scaling_stats_op="max_ave"),
        QuantConfigError,
        "MAX_AVE averages over channels",
        "MIN_MAX",
    ),
    "groups of an activation with a zero point": (
        lambda: QuantIdentity(
            ShiftedUint8ActPerTensorFloat, scaling_per_output_type="group", scaling_impl_type="stats"
        ),
        QuantConfigError,
        "zero_point_impl = ParameterFromRuntimeMinZeroPoint",
        "symmetric",
    ),
    "statistic beside a search": (
        lambda: linear(weight_quant=quant.Int8WeightPerTensorFloatMSE, weight_scaling_stats_op="ave"),
        QuantConfigError,
        "'weight_scaling_stats_op' = 'ave' has no effect because scaling_stats_impl = MSE",
    ),
    "two roles in one class": (
        lambda: linear(weight_quant=TwoRoles),
        QuantConfigError,
        "TwoRoles",
        "'weight'",
        "'act'",
        "one role",
    ),
    # S3: illegal values
    "enum string": (
        lambda: linear(weight_quant=WrongEnum),
        QuantConfigError,
        "WrongEnum",
        "'statz'",
        "STATS",
        "HE, CONST, STATS",
    ),
    "enum string in a keyword": (
        lambda: linear(weight_quant_type="itn"),
        QuantConfigError,
        "'weight_quant_type' = 'itn'",
        "'INT'",
    ),
    "rounding": (lambda: linear(weight_quant=WrongRounding), QuantConfigError, "'rond'", "'ROUND'"),
    "zero bits": (lambda: linear(weight_quant=ZeroBits), QuantConfigError, "'bit_width' = 0", "an int from 1 to 32"),
    "bool bits": (
        lambda: linear(weight_bit_width=True),
        QuantConfigError,
        "'weight_bit_width' = True",
        "an int from 1 to 32",
    ),
    "fractional bits": (lambda: linear(weight_bit_width=4.0), QuantConfigError, "'weight_bit_width' = 4.0"),
    "a number that is no int": (
        lambda: linear(weight_bit_width=np.int64(4)),
        QuantConfigError,
        "'weight_bit_width' = np.int64(4)",
        "an int from 1 to 32",
    ),
    "bits as text": (lambda: linear(weight_bit_width="4"), QuantConfigError, "'weight_bit_width' = '4'"),
    "33 bits": (lambda: linear(weight_bit_width=33), QuantConfigError, "'weight_bit_width' = 33"),
    "one signed bit": (
        lambda: linear(weight_bit_width=1),
        QuantConfigError,
        "'weight_bit_width' = 1",
        "at least 2 bits",
        "binary",
    ),
    "percentile": (lambda: QuantIdentity(Percentile), QuantConfigError, "'percentile_q' = 101", "0 < q <= 100"),
    "negative scale": (
        lambda: linear(weight_scaling_impl_type="const", weight_scaling_const=-1.0),
        QuantConfigError,
        "'weight_scaling_const' = -1.0",
        "a number > 0",
    ),
    "nan scale": (
        lambda: linear(weight_scaling_impl_type="const", weight_scaling_const=float("nan")),
        QuantConfigError,
        "'weight_scaling_const' = nan",
    ),
    "signed as a number": (lambda: linear(weight_signed=1), QuantConfigError, "'weight_signed' = 1", "True or False"),
    "no steps": (lambda: QuantReLU(collect_stats_steps=0), QuantConfigError, "'collect_stats_steps' = 0", "an int > 0"),
    "momentum": (lambda: QuantReLU(scaling_stats_momentum=1.5), QuantConfigError, "'scaling_stats_momentum' = 1.5"),
    "permutation": (
        lambda: QuantReLU(
            scaling_per_output_channel=True, per_channel_broadcastable_shape=(1, 4), scaling_stats_permute_dims=(1, 1)
        ),
        QuantConfigError,
        "'scaling_stats_permute_dims' = (1, 1)",
        "a permutation",
    ),
    "lower bound": (lambda: linear(weight_scaling_min_val=0.0), QuantConfigError, "'weight_scaling_min_val' = 0.0"),
    "value of a function": (lambda: linear(weight_quant=LyingWidth), QuantConfigError, "bit_width", "4.5"),
    "HE for an activation": (
        lambda: QuantReLU(scaling_impl_type="he"),
        QuantConfigError,
        "HE",
        "CONST, PARAMETER, STATS",
    ),
    "learned rounding of an activation": (
        lambda: QuantReLU(float_to_int_impl_type="learned_round"),
        QuantConfigError,
        "LEARNED_ROUND",
        "a parameter for each element of a weight",
        "ROUND, CEIL, FLOOR",
    ),
    "groups of a learned activation": (
        lambda: QuantReLU(scaling_per_output_type="group"),
        QuantConfigError,
        "GROUP needs scaling_impl_type = STATS",
        "PARAMETER_FROM_STATS",
    ),
    "groups of a binary weight": (
        lambda: linear(weight_quant_type="binary", weight_scaling_per_output_type="group"),
        QuantConfigError,
        "GROUP needs integers",
        "BINARY",
    ),
    "two granularities": (
        lambda: linear(weight_scaling_per_output_type="group", weight_scaling_per_output_channel=True),
        QuantConfigError,
        "scaling_per_output_type = 'group'",
        "contradict",
    ),
    "widths of a minifloat": (
        lambda: linear(weight_quant=quant.Fp8e4m3Weight, weight_mantissa_bit_width=2),
        QuantConfigError,
        "bit_width = 8 is not 1 + exponent_bit_width + mantissa_bit_width = 1 + 4 + 2",
    ),
    "group size": (
        lambda: linear(weight_scaling_per_output_type="group", weight_group_size=0),
        QuantConfigError,
        "'weight_group_size' = 0",
    ),
    "group size of a scale per tensor": (
        lambda: linear(weight_group_size=4),
        QuantConfigError,
        "'weight_group_size' = 4 has no effect",
        "scaling_per_output_type is GROUP",
    ),
    # S4: contradictions
    "two names of one option": (
        lambda: linear(weight_quant=TwoChannelNames),
        QuantConfigError,
        "'scaling_per_channel' = True",
        "'scaling_per_output_channel' = False",
        "contradict",
    ),
    "two initial values": (lambda: linear(weight_quant=BothInits), QuantConfigError, "scaling_init and scaling_const"),
    "empty range": (
        lambda: QuantIdentity(Int8ActPerTensorFloatMinMaxInit, min_val=1.0, max_val=1.0),
        QuantConfigError,
        "min_val = 1.0 is not below max_val = 1.0",
    ),
    "negative range of unsigned codes": (
        lambda: QuantReLU(act_quant=Uint8ActPerTensorFloatMaxInit, min_val=-1.0, max_val=1.0),
        QuantConfigError,
        "min_val = -1.0 is negative",
    ),
    "unsigned codes up to a negative number": (
        lambda: QuantReLU(scaling_impl_type="const", max_val=-1.0),
        QuantConfigError,
        "max_val = -1.0 is not positive",
    ),
    "width without scale": (
        lambda: linear(bias_quant=OnlyWidthFromInput),
        QuantConfigError,
        "requires_input_bit_width",
        "requires_input_scale",
    ),
    "binary with 4 bits": (
        lambda: linear(weight_quant_type="binary", weight_bit_width=4),
        QuantConfigError,
        "BINARY",
        "bit_width 1, not 4",
    ),
    # S5: missing names
    "sigma missing": (lambda: linear(weight_quant=NeedsSigma), QuantConfigError, "'sigma' is required", "sigma = 3.0"),
    "range missing": (
        lambda: QuantIdentity(Int8ActPerTensorFloatMinMaxInit),
        QuantConfigError,
        "'max_val' is required",
        "max_val = 6.0",
    ),
    "low end missing": (
        lambda: QuantIdentity(Int8ActPerTensorFloatMinMaxInit, max_val=1.0),
        QuantConfigError,
        "min_val is required",
        "min_val = -1.0",
    ),
    "constant missing": (
        lambda: linear(weight_scaling_impl_type="const"),
        QuantConfigError,
        "'scaling_const' is required",
    ),
    "shape missing": (
        lambda: QuantReLU(act_quant=PerChannelWithoutShape),
        QuantConfigError,
        "'per_channel_broadcastable_shape' is required",
        "(1, 64, 1, 1)",
    ),
    "no solver": (lambda: linear(weight_quant=NoSolver), QuantConfigError, "NoSolver", "tensor_quant", "solver"),
    # S6: wrong role
    "weight quantizer as activation": (
        lambda: QuantReLU(act_quant=Int8WeightPerTensorFloat),
        QuantConfigError,
        "role 'weight'",
        "role 'act'",
        "Int8WeightPerTensorFloat",
    ),
    "activation quantizer as weight": (
        lambda: linear(weight_quant=Uint8ActPerTensorFloat),
        QuantConfigError,
        "role 'act'",
        "role 'weight'",
    ),
    "activation quantizer as bias": (
        lambda: linear(bias_quant=Int8ActPerTensorFloat),
        QuantConfigError,
        "role 'act'",
        "role 'bias'",
    ),
    "bias quantizer as input": (lambda: linear(input_quant=IntBias), QuantConfigError, "role 'bias'", "input_quant"),
    "proxy of another role": (
        lambda: QuantIdentity(SHARED.weight_quant),
        QuantConfigError,
        "role 'weight'",
        "act_quant",
    ),
    "a required option of a keyword": (
        lambda: linear(bias_quant_type="int", bias_bit_width=8),
        QuantConfigError,
        "is required",
        "as a keyword of the layer: bias_",
    ),
    # other arguments
    "return_quant_tensor": (
        lambda: linear(return_quant_tensor="yes"),
        QuantConfigError,
        "return_quant_tensor = 'yes'",
        "True or False",
    ),
    "an instance": (lambda: linear(weight_quant=8), QuantConfigError, "weight_quant=8", "a quantizer class"),
    "a name": (
        lambda: linear(weight_quant="Int8WeightPerTensorFloat"),
        QuantConfigError,
        "'Int8WeightPerTensorFloat'",
        "a quantizer class",
    ),
    "a layer for a proxy": (lambda: linear(weight_quant=SHARED), QuantConfigError, "other_layer.weight_quant"),
    "any module for a proxy": (lambda: linear(weight_quant=nn.ReLU()), QuantConfigError, "ReLU", "proxy"),
    "keywords with a proxy": (
        lambda: linear(weight_quant=SHARED.weight_quant, weight_bit_width=3),
        QuantConfigError,
        "weight_bit_width",
        "shared",
    ),
    "padding type": (lambda: QuantConv2d(1, 1, 3, padding_type="sam"), QuantConfigError, "'sam'", "'same'"),
    "two paddings": (
        lambda: QuantConv2d(1, 1, 3, padding=1, padding_type="same"),
        QuantConfigError,
        "padding = 1",
        "same",
    ),
    "same with reflection": (
        lambda: QuantConv2d(1, 1, 3, padding_type="same", padding_mode="reflect"),
        QuantConfigError,
        "'reflect'",
        "zeros",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.replace(" ", "-"))
def test_mistake_is_refused_by_name(mistake):
    build, kind, *fragments = MISTAKES[mistake]
    with pytest.raises(kind) as caught:
        build()
    text = str(caught.value)
    assert isinstance(caught.value, BrevitasError)
    for fragment in fragments:
        assert fragment in text, f"{fragment!r} not in:\n{text}"


def line_of(obj, fragment):
    lines, start = inspect.getsourcelines(obj)
    return start + next(i for i, line in enumerate(lines) if fragment in line)


def test_error_names_the_line_of_a_class_body():
    with pytest.raises(UnknownOptionError) as caught:
        linear(weight_quant=Misspelt)
    assert f"{__file__}:{line_of(Misspelt, 'bit_widht')}" in str(caught.value)


def test_error_names_the_line_of_a_layer_call():
    with pytest.raises(QuantConfigError) as caught:
        QuantLinear(4, 2, weight_bit_width=0)
    assert re.search(rf"{re.escape(__file__)}:\d+", str(caught.value))


def test_exception_in_a_value_function_is_chained():
    with pytest.raises(QuantConfigError, match="the table of widths is empty") as caught:
        linear(weight_quant=Exploding)
    chain, error = [], caught.value
    while error is not None:
        chain.append(type(error))
        error = error.__cause__
    assert RuntimeError in chain


def test_unknown_keyword_is_a_type_error_and_a_value_error():
    with pytest.raises(TypeError):
        linear(weigth_bit_width=4)
    with pytest.raises(ValueError, match="weigth"):
        linear(weigth_bit_width=4)


def test_failed_construction_leaves_a_shared_quantizer_as_it_was():
    first = QuantLinear(4, 2, weight_scaling_per_output_channel=True)
    before = list(first.weight_quant.tracked_module_list)
    with pytest.raises(QuantConfigError, match="2 and 3 output channels"):
        QuantLinear(4, 3, weight_quant=first.weight_quant)
    assert first.weight_quant.tracked_module_list == before
    assert first.quant_weight_scale().shape == (2, 1)


class SharedMixin(ExtendedInjector):
    """A mixin without a solver may hold what only some of its users read."""

    collect_stats_steps = 5
    sigma = 2.0


class MixedWeight(SharedMixin, Int8WeightPerTensorFloat):
    pass


class MixedAct(SharedMixin, Uint8ActPerTensorFloat):
    pass


class Helpful(Int8WeightPerTensorFloat):
    _note = "measured on the validation set"
    width_of_first_layer = 8

    @value
    def bit_width(width_of_first_layer):
        return width_of_first_layer


class PerTensor(ExtendedInjector):
    scaling_per_output_channel = False


class PerTensorAct(PerTensor, Uint8ActPerTensorFloat):
    pass


class WideOrNot(Int8WeightPerTensorFloat):
    wide = 6

    @value
    def bit_width(wide):
        return wide


class NotWide(WideOrNot):
    bit_width = 2  # what read `wide` is replaced, so that `wide` is left over


ACCEPTED = {
    "an option whose reader a subclass replaced": lambda: linear(weight_quant=NotWide),
    "binary over an 8-bit preset": lambda: linear(weight_quant_type="binary"),
    "mixin of a weight": lambda: linear(weight_quant=MixedWeight),
    "mixin of an activation": lambda: QuantReLU(act_quant=MixedAct),
    "private note and own name": lambda: linear(weight_quant=Helpful),
    "None means not given": lambda: linear(weight_bit_width=None),
    "alias": lambda: linear(weight_scaling_per_channel=True),
    "alias as an enum": lambda: linear(weight_scaling_per_output_type="channel"),
    "both names, same value": lambda: linear(
        weight_quant=Int8WeightPerTensorFloat.let(scaling_per_channel=True, scaling_per_output_channel=True)
    ),
    "shape hint of a per-tensor scale": lambda: QuantReLU(
        scaling_per_output_channel=False, per_channel_broadcastable_shape=(1, 4, 1, 1)
    ),
    "shape hint and an alias": lambda: QuantReLU(
        scaling_per_channel=False, per_channel_broadcastable_shape=(1, 4, 1, 1)
    ),
    "shape hint and a mixin": lambda: QuantReLU(PerTensorAct, per_channel_broadcastable_shape=(1, 4, 1, 1)),
    "enum of any case": lambda: linear(
        weight_quant=Int8WeightPerTensorFixedPoint, weight_restrict_value_float_to_int_impl_type="Floor"
    ),
    "shifted": lambda: QuantIdentity(ShiftedUint8ActPerTensorFloat, low_percentile_q=1.0, high_percentile_q=99.0),
    "off": lambda: linear(weight_quant=None, bias_quant=None),
    "bias enabled by keywords": lambda: linear(
        bias_quant_type="int",
        bias_bit_width=8,
        bias_signed=True,
        bias_narrow_range=False,
        bias_requires_input_scale=True,
    ),
}


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda m: m.replace(" ", "-"))
def test_what_has_a_meaning_is_accepted(case):
    assert isinstance(ACCEPTED[case](), nn.Module)


def test_alias_reaches_the_name_that_is_read():
    assert linear(weight_scaling_per_channel=True).quant_weight_scale().shape == (2, 1)
    assert linear(weight_scaling_per_output_type="TENSOR").quant_weight_scale().shape == ()
