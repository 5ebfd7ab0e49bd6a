"""One instance of every extension module of the core in every configuration that changes what it computes."""

from collections.abc import Callable
from typing import Any

import torch
from core_catalogue import RESTRICTIONS, Case, batch, from_weight, rescaling, weight
from torch import Tensor, nn

from brevitas.core import bit_width as bw
from brevitas.core import function_wrapper as fw
from brevitas.core import groupwise as gw
from brevitas.core import quant as q
from brevitas.core import restrict_val as rv
from brevitas.core import rounding as rd
from brevitas.core import scaling as sc
from brevitas.core import stats as st
from brevitas.core import zero_point as zp
from brevitas.core.quant import candidate as cd
from brevitas.core.quant import float as fq
from brevitas.core.quant import float_base as fb
from brevitas.core.quant import groupwise as gq
from brevitas.core.quant import weight_norm as wn
from brevitas.core.scaling import groupwise as gs
from brevitas.core.scaling import pre_scaling as ps
from brevitas.core.stats import mse, norm

# format: exponent bits, mantissa bits, bias, mantissas of infinity, mantissas of NaN
FORMATS: dict[str, tuple[int, int, int, tuple[str, ...], tuple[str, ...]]] = {
    "e4m3": (4, 3, 7, (), ()),
    "e5m2": (5, 2, 15, (), ()),
    "e3m2": (3, 2, 3, (), ()),
    "e2m3": (2, 3, 1, (), ()),
    "e2m1": (2, 1, 1, (), ()),
    "e4m3_ocp": (4, 3, 7, (), ("111",)),
    "e5m2_ocp": (5, 2, 15, ("00",), ("01", "10", "11")),
    "e4m3_fnuz": (4, 3, 8, (), ()),
    "e5m2_fnuz": (5, 2, 16, (), ()),
}


def _one_weight() -> tuple[Tensor, ...]:
    return (weight().detach().clone(),)


def learned_round(impl: nn.Module) -> nn.Module:
    start = torch.linspace(-2.0, 2.0, weight().numel()).view(weight().shape)
    return rd.LearnedRoundSte(impl, start)


def float_parts(name: str, signed: bool = True, saturating: bool = True) -> tuple[Any, ...]:
    e, m, bias, inf, nan = FORMATS[name]
    clamp = fb.FloatClamp(signed, saturating, inf or None, nan or None)
    return (
        signed,
        fb.ExponentBitWidthConst(e),
        fb.MantissaBitWidthConst(m),
        fb.ExponentBiasConst(e, bias),
        clamp,
    )


def float_quant(
    name: str, scaling: nn.Module | None = None, signed: bool = True, saturating: bool = True, **kwargs: Any
) -> nn.Module:
    return fq.FloatQuant(*float_parts(name, signed, saturating), scaling_impl=scaling, **kwargs)


class TensorsOf(nn.Module):
    """A minifloat quantizer without the three outputs that are no tensors."""

    def __init__(self, impl: nn.Module) -> None:
        super().__init__()
        self.impl = impl

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        y, scale, zero_point, e, m, bias, _saturating, _inf, _nan = self.impl(x)
        return y, scale, zero_point, e, m, bias


def norm_scaling() -> nn.Module:
    return sc.ParameterFromStatsFromParameterScaling(
        norm.AbsMaxStep(bw.BitWidthConst(4)),
        fw.OverOutputChannelView(),
        1,
        [weight()],
        rv.LogFloatRestrictValue(),
        (4, 1, 1, 1),
    )


def pre_scaling(cls: type, **kwargs: Any) -> nn.Module:
    return cls(fw.OverOutputChannelView(), 1, [weight()], (4, 1, 1, 1), **kwargs)


def weight_norm() -> nn.Module:
    return wn.WeightNormIntQuant(
        q.DecoupledIntQuant(True, True),
        pre_scaling(ps.ParameterPreScalingWeightNorm),
        norm_scaling(),
        zp.ZeroZeroPoint(),
        zp.ZeroZeroPoint(),
        bw.BitWidthConst(4),
    )


class ForInput(nn.Module):
    """An accumulator-aware quantizer for one input, without the argument that is no tensor."""

    def __init__(self, impl: nn.Module, input_is_signed: bool) -> None:
        super().__init__()
        self.impl = impl
        self.input_is_signed = input_is_signed

    def forward(self, x: Tensor, input_bit_width: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.impl(x, input_bit_width, self.input_is_signed)


def accumulator_aware(zero_center: bool, accumulator_bit_width: int, input_is_signed: bool = False) -> nn.Module:
    cls = ps.AccumulatorAwareZeroCenterParameterPreScaling if zero_center else ps.AccumulatorAwareParameterPreScaling
    center = wn.PreZeroCenterZeroPoint(fw.OverOutputChannelView(), (4, 1, 1, 1)) if zero_center else zp.ZeroZeroPoint()
    quant = wn.AccumulatorAwareIntQuant(
        q.DecoupledIntQuant(True, True, fw.RoundToZeroSte()),
        pre_scaling(cls, accumulator_bit_width=accumulator_bit_width),
        norm_scaling(),
        center,
        zp.ZeroZeroPoint(),
        bw.BitWidthConst(4),
    )
    return ForInput(quant, input_is_signed)


def _weight_and_width() -> tuple[Tensor, ...]:
    return (*_one_weight(), torch.tensor(4.0))


def int_candidate(signed: bool = True, restriction: str = "float", shifted: bool = False, dim: Any = None) -> nn.Module:
    pot = restriction.startswith("pot")
    return cd.IntThresholdCandidate(
        q.IntQuant(signed, signed),
        sc.PowerOfTwoIntScaling(signed) if pot else sc.IntScaling(signed, signed),
        bw.BitWidthConst(3),
        RESTRICTIONS[restriction](),
        low_end_init_op=st.NegativeMinOrZero(dim) if shifted else None,
    )


def mse_weight(restriction: str = "float", per_channel: bool = False) -> nn.Module:
    dim, view, shape = (1, fw.OverOutputChannelView(), (4, 1, 1, 1)) if per_channel else (None, fw.OverTensorView(), ())
    search = mse.MSE(int_candidate(restriction=restriction), st.AbsMax(dim), stats_reduce_dim=dim)
    scaling = sc.ParameterFromStatsFromParameterScaling(
        search, view, 1 if per_channel else 0, [weight()], RESTRICTIONS[restriction](), shape
    )
    return rescaling(scaling, narrow=True, width=bw.BitWidthConst(3))


def mse_act() -> nn.Module:
    search = mse.MSE(int_candidate(), st.AbsMax())
    return rescaling(
        sc.ParameterFromRuntimeStatsScaling(2, search, fw.OverTensorView()), narrow=True, width=bw.BitWidthConst(3)
    )


def low_end_mse(dim: int | None = None) -> nn.Module:
    scale_search = mse.MSE(int_candidate(False, shifted=True, dim=dim), st.AbsMinMax(dim), stats_reduce_dim=dim)
    quant = cd.IntLowEndCandidate(
        q.IntQuant(False, False), sc.IntScaling(False, False), bw.BitWidthConst(3), scale_search
    )
    return mse.LowEndMSE(quant, st.NegativeMinOrZero(dim), stats_reduce_dim=dim)


def _rows() -> tuple[Tensor, ...]:
    return (batch()[0].reshape(8, -1),)


def group_act(float_format: str | None = None) -> nn.Module:
    scaling = gs.RuntimeDynamicGroupStatsScaling(3, 1, st.AbsMax(1), rv.PowerOfTwoRestrictValue(fw.FloorSte()))
    if float_format is None:
        return gq.GroupwiseRescalingIntQuant(
            q.IntQuant(True, True), scaling, gs.MXIntScaling(True), zp.ZeroZeroPoint(), bw.BitWidthConst(8), 3, 1
        )
    _, _, _, inf, nan = FORMATS[float_format]
    return TensorsOf(
        gq.GroupwiseFloatQuant(
            *float_parts(float_format),
            group_size=3,
            group_dim=1,
            scaling_impl=scaling,
            float_scaling_impl=fb.MXFloatScaling(inf or None, nan or None),
        )
    )


def group_weight(shifted: bool = False) -> nn.Module:
    shape = tuple(gw.group_shape(list(weight().shape), 2, 1))
    view = gw.OverSubChannelBlockView(2, 1)
    stat = st.AbsMinMax(1) if shifted else st.AbsMax(1)
    scaling = sc.StatsFromParameterScaling(stat, view, 1, [weight()], rv.FloatRestrictValue(), shape)
    zero_point: nn.Module = zp.ZeroZeroPoint()
    if shifted:
        zero_point = zp.MinUintZeroPoint(q.IntQuant(False, False), view, shape, 1)
    return gq.GroupwiseRescalingIntQuant(
        q.IntQuant(not shifted, not shifted),
        scaling,
        sc.IntScaling(not shifted, not shifted),
        zero_point,
        bw.BitWidthConst(4),
        2,
        1,
    )


def _runtime_max() -> nn.Module:
    return sc.ParameterFromRuntimeStatsScaling(2, st.AbsMax(), fw.OverTensorView())


LEARNED_ROUNDS: dict[str, Callable[[], nn.Module]] = {
    "hard_sigmoid": rd.LearnedRoundHardSigmoid,
    "sigmoid": lambda: rd.LearnedRoundSigmoid(0.7),
    "identity": rd.LearnedRoundIdentity,
}

CASES: dict[str, Case] = {
    "DPURoundSte": Case(rd.DPURoundSte, lambda: (torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.3]),)),
    "StochasticRoundSte/seed": Case(lambda: rd.StochasticRoundSte(seed=3), batch),
    **{f"LearnedRoundSte/{n}": Case(lambda f=f: learned_round(f()), _one_weight) for n, f in LEARNED_ROUNDS.items()},
    **{
        f"RescalingIntQuant/weight/{n}": Case(
            lambda f=f: rescaling(from_weight(), narrow=True, float_to_int_impl=f()), _one_weight
        )
        for n, f in (
            ("dpu", rd.DPURoundSte),
            ("stochastic", lambda: rd.StochasticRoundSte(seed=0)),
            *((f"learned_round/{n}", lambda f=f: learned_round(f())) for n, f in LEARNED_ROUNDS.items()),
        )
    },
    "L1Norm": Case(norm.L1Norm, _rows),
    "L2Norm": Case(norm.L2Norm, _rows),
    "ZeroCenterL1Norm": Case(norm.ZeroCenterL1Norm, _rows),
    "AbsMaxStep": Case(lambda: norm.AbsMaxStep(bw.BitWidthConst(4)), _rows),
    "MSE": Case(lambda: mse.MSE(int_candidate(), st.AbsMax()), batch),
    "MSE/pot": Case(lambda: mse.MSE(int_candidate(restriction="pot"), st.AbsMax()), batch),
    "MSE/channel": Case(lambda: mse.MSE(int_candidate(), st.AbsMax(1), stats_reduce_dim=1), _rows),
    "MSE/shifted": Case(lambda: mse.MSE(int_candidate(False, shifted=True), st.AbsMinMax()), batch),
    "MSE/float": Case(lambda: mse.MSE(fq.FloatThresholdCandidate(*float_parts("e2m1")), st.AbsMax()), batch),
    "LowEndMSE": Case(low_end_mse, batch),
    "LowEndMSE/channel": Case(lambda: low_end_mse(1), _rows),
    "RescalingIntQuant/weight/mse": Case(mse_weight, _one_weight),
    "RescalingIntQuant/weight/mse/pot": Case(lambda: mse_weight("pot"), _one_weight),
    "RescalingIntQuant/weight/mse/channel": Case(lambda: mse_weight(per_channel=True), _one_weight),
    "RescalingIntQuant/act/mse": Case(mse_act, batch),
    "WeightNormIntQuant": Case(weight_norm, _one_weight),
    **{
        f"AccumulatorAwareIntQuant/{'zero_center/' if z else ''}{p}{'/signed' if s else ''}": Case(
            lambda z=z, p=p, s=s: accumulator_aware(z, p, s), _weight_and_width
        )
        for z, p, s in ((False, 8, False), (False, 32, True), (True, 8, False), (True, 16, True))
    },
    **{f"FloatQuant/{n}": Case(lambda n=n: TensorsOf(float_quant(n)), batch) for n in ("e4m3", "e5m2_ocp", "e2m1")},
    "FloatQuant/weight": Case(lambda: TensorsOf(float_quant("e4m3_ocp", from_weight())), _one_weight),
    "FloatQuant/weight/channel": Case(
        lambda: TensorsOf(float_quant("e4m3", from_weight(per_channel=True))), _one_weight
    ),
    "FloatQuant/act": Case(lambda: TensorsOf(float_quant("e5m2_ocp", _runtime_max())), batch),
    "FloatQuant/act/unsigned": Case(lambda: TensorsOf(float_quant("e2m1", _runtime_max(), signed=False)), batch),
    "FloatQuant/act/not_saturating": Case(lambda: TensorsOf(float_quant("e5m2_ocp", saturating=False)), batch),
    "FloatQuant/wide": Case(
        lambda: TensorsOf(
            fq.FloatQuant(
                True,
                fb.ExponentBitWidthConst(8),
                fb.MantissaBitWidthConst(7),
                fb.ExponentBiasConst(8),
                fb.FloatClamp(True),
            )
        ),
        batch,
    ),
    "FloatScaling": Case(
        lambda: fb.FloatScaling(None, ("111",)), lambda: (torch.tensor(4.0), torch.tensor(3.0), torch.tensor(7.0))
    ),
    "OverSubChannelBlockView": Case(lambda: gw.OverSubChannelBlockView(3, 1), batch),
    "DynamicOverSubChannelBlockView": Case(lambda: gw.DynamicOverSubChannelBlockView(2, -1), batch),
    "RuntimeDynamicGroupStatsScaling": Case(lambda: gs.RuntimeDynamicGroupStatsScaling(3, 1, st.AbsMax(1)), batch),
    "MXIntScaling": Case(lambda: gs.MXIntScaling(True), lambda: (torch.tensor(8.0),)),
    "GroupwiseRescalingIntQuant/act/mx": Case(group_act, batch),
    "GroupwiseRescalingIntQuant/weight": Case(group_weight, _one_weight),
    "GroupwiseRescalingIntQuant/weight/shifted": Case(lambda: group_weight(True), _one_weight),
    "GroupwiseFloatQuant/act/mx": Case(lambda: group_act("e4m3_ocp"), batch),
}
