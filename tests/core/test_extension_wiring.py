"""Declarations wire the extension modules by the names of their arguments, without circles and without doubles."""

import torch
from core_catalogue import weight

from brevitas.core import function_wrapper as fw
from brevitas.core import groupwise as gw
from brevitas.core import quant as q
from brevitas.core import restrict_val as rv
from brevitas.core import rounding as rd
from brevitas.core import scaling as sc
from brevitas.core import stats as stt
from brevitas.core import zero_point as zp
from brevitas.core.bit_width import BitWidthConst
from brevitas.inject import ExtendedInjector, this, value


class _Weight(ExtendedInjector):
    signed = True
    narrow_range = True
    bit_width = 4
    bit_width_impl = BitWidthConst
    float_to_int_impl = fw.RoundSte
    tensor_clamp_impl = fw.TensorClamp
    zero_point_impl = zp.ZeroZeroPoint
    int_quant = q.IntQuant
    int_scaling_impl = sc.IntScaling
    restrict_scaling_impl = rv.FloatRestrictValue
    scaling_shape = (4, 1, 1, 1)
    stats_reduce_dim = 1
    scaling_stats_input_view_shape_impl = fw.OverOutputChannelView
    scaling_stats_input_concat_dim = 1

    @value
    def tracked_parameter_list():
        return [weight()]


class _Mse(_Weight):
    tensor_quant = q.RescalingIntQuant
    scaling_impl = sc.ParameterFromStatsFromParameterScaling
    scaling_stats_impl = stt.MSE
    mse_quant_impl = q.IntThresholdCandidate
    mse_init_op = stt.AbsMax


class _ShiftedMse(_Mse):
    signed = False
    narrow_range = False
    mse_init_op = stt.AbsMinMax
    low_end_init_op = stt.NegativeMinOrZero
    low_end_quant_impl = q.IntLowEndCandidate
    zero_point_impl = zp.ParameterFromStatsFromParameterZeroPoint
    zero_point_stats_impl = stt.LowEndMSE
    zero_point_shape = this.scaling_shape
    zero_point_stats_input_view_shape_impl = this.scaling_stats_input_view_shape_impl
    zero_point_stats_input_concat_dim = this.scaling_stats_input_concat_dim


class _L2(_Weight):
    tensor_quant = q.WeightNormIntQuant
    decoupled_int_quant = q.DecoupledIntQuant
    scaling_impl = sc.ParameterFromStatsFromParameterScaling
    scaling_stats_impl = stt.AbsMaxStep
    restrict_scaling_impl = rv.PowerOfTwoRestrictValue
    pre_scaling_impl = sc.ParameterPreScalingWeightNorm
    pre_zero_point_impl = zp.ZeroZeroPoint


class _A2Q(_L2):
    tensor_quant = q.AccumulatorAwareIntQuant
    float_to_int_impl = fw.RoundToZeroSte
    restrict_scaling_impl = rv.LogFloatRestrictValue
    pre_scaling_impl = sc.AccumulatorAwareParameterPreScaling
    accumulator_bit_width = 16


class _A2QPlus(_A2Q):
    pre_scaling_impl = sc.AccumulatorAwareZeroCenterParameterPreScaling
    pre_zero_point_impl = q.PreZeroCenterZeroPoint


class _Float(_Weight):
    tensor_quant = q.FloatQuant
    exponent_bit_width = 4
    mantissa_bit_width = 3
    exponent_bit_width_impl = q.ExponentBitWidthConst
    mantissa_bit_width_impl = q.MantissaBitWidthConst
    exponent_bias_impl = q.ExponentBiasConst
    float_clamp_impl = q.FloatClamp
    float_scaling_impl = q.FloatScaling
    nan_values = ("111",)
    scaling_impl = sc.StatsFromParameterScaling
    scaling_stats_impl = stt.AbsMax


class _FloatMse(_Float):
    scaling_stats_impl = stt.MSE
    mse_quant_impl = q.FloatThresholdCandidate
    mse_init_op = stt.AbsMax


class _MxFloat(_Float):
    tensor_quant = q.GroupwiseFloatQuant
    float_scaling_impl = q.MXFloatScaling
    group_size = 2
    group_dim = 1
    scaling_shape = (4, 2, 2, 2)
    scaling_stats_input_view_shape_impl = gw.OverSubChannelBlockView
    restrict_scaling_impl = rv.PowerOfTwoRestrictValue
    restrict_value_float_to_int_impl = fw.FloorSte


class _MxAct(_MxFloat):
    scaling_impl = sc.RuntimeDynamicGroupStatsScaling


class _LearnedRound(_Weight):
    tensor_quant = q.RescalingIntQuant
    scaling_impl = sc.StatsFromParameterScaling
    scaling_stats_impl = stt.AbsMax
    float_to_int_impl = rd.LearnedRoundSte
    learned_round_impl = rd.LearnedRoundSigmoid
    learned_round_init = 0.5


LEARNED = {"scaling_impl.value", "scaling_impl.initialised"}
NORM = LEARNED | {"pre_scaling_impl.value", "pre_scaling_impl.initialised"}


def keys_and_output(declaration, *arguments):
    quant = declaration.tensor_quant
    y, scale, *_ = quant(weight().detach(), *arguments)
    assert y.shape == weight().shape and torch.broadcast_shapes(scale.shape, y.shape) == y.shape
    return set(quant.state_dict())


def test_mse():
    assert keys_and_output(_Mse) == LEARNED
    assert keys_and_output(_ShiftedMse) == LEARNED | {"zero_point_impl.value", "zero_point_impl.initialised"}


def test_weight_norm():
    assert keys_and_output(_L2) == NORM
    for declaration in (_A2Q, _A2QPlus):
        assert keys_and_output(declaration, torch.tensor(8.0), False) == NORM
        assert declaration.tensor_quant.pre_scaling_impl.accumulator_bit_width == 16
    scale = _L2.tensor_quant(weight())[1]
    assert bool((torch.frexp(scale)[0] == 0.5).all())


def test_minifloat():
    for declaration in (_Float, _FloatMse, _MxFloat, _MxAct):
        assert keys_and_output(declaration) == set()
    y, scale, *_ = _Float.tensor_quant(weight())
    assert torch.equal(scale, weight().abs().amax((1, 2, 3), keepdim=True) / 448)
    assert torch.equal(y.abs().amax((1, 2, 3), keepdim=True), scale * 448)


def test_learned_rounding():
    assert keys_and_output(_LearnedRound) == {"int_quant.float_to_int_impl.value"}
    assert bool((_LearnedRound.tensor_quant.int_quant.float_to_int_impl.value == 0.5).all())
