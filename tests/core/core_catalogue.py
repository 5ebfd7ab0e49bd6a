"""One instance of every core module in every configuration that changes what it computes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brevitas.core import bit_width as bw
from brevitas.core import function_wrapper as fw
from brevitas.core import quant as q
from brevitas.core import restrict_val as rv
from brevitas.core import scaling as sc
from brevitas.core import stats as st
from brevitas.core import zero_point as zp
from brevitas.core.utils import SingleArgStatelessBuffer, StatelessBuffer

Quantized = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """How to build a module, and the inputs of one call."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]


def weight(seed: int = 0, channels: int = 4) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(channels, 3, 2, 2, generator=generator))


def batch(seed: int = 0) -> tuple[Tensor, ...]:
    return (torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(seed)),)


def _one_weight() -> tuple[Tensor, ...]:
    return (weight().detach().clone(),)


def _nothing() -> tuple[Tensor, ...]:
    return ()


def _scalar(value: float) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.tensor(value),)


def _positive() -> tuple[Tensor, ...]:
    return (torch.tensor([0.3, 0.5, 7.0]),)


def _clamp_inputs() -> tuple[Tensor, ...]:
    return (*batch(), torch.tensor(-0.5), torch.tensor(0.5))


def _zero_point_inputs() -> tuple[Tensor, ...]:
    return (*batch(), torch.tensor(0.02), torch.tensor(8.0))


def _weight_zero_point_inputs() -> tuple[Tensor, ...]:
    return (*_one_weight(), torch.tensor(0.02), torch.tensor(8.0))


RESTRICTIONS: dict[str, Callable[[], nn.Module]] = {
    "float": rv.FloatRestrictValue,
    "log": rv.LogFloatRestrictValue,
    "int": rv.IntRestrictValue,
    "pot": rv.PowerOfTwoRestrictValue,
    "pot_round": lambda: rv.PowerOfTwoRestrictValue(fw.RoundSte()),
}

WHOLE_STATS: dict[str, Callable[[int | None], nn.Module]] = {
    "AbsMax": st.AbsMax,
    "AbsMinMax": st.AbsMinMax,
    "AbsAve": st.AbsAve,
    "AbsPercentile": lambda d: st.AbsPercentile(90.0, d),
    "PercentileInterval": lambda d: st.PercentileInterval(10.0, 90.0, d),
    "NegativeMinOrZero": st.NegativeMinOrZero,
    "NegativePercentileOrZero": lambda d: st.NegativePercentileOrZero(10.0, d),
    "MeanSigmaStd": lambda d: st.MeanSigmaStd(d, 2.0),
    "MeanLearnedSigmaStd": lambda d: st.MeanLearnedSigmaStd(d, 2.0, () if d is None else (8,)),
}


def unsigned(steps: int = 0) -> q.IntQuant:
    return q.IntQuant(narrow_range=False, signed=False, quant_delay_steps=steps)


def from_runtime(restriction: str = "float", steps: int = 2, per_channel: bool = False, **kwargs: object) -> nn.Module:
    shape, view, dim = (
        ((1, 4, 1, 1), fw.OverOutputChannelView((1, 0, 2, 3)), 1) if per_channel else ((), fw.OverTensorView(), None)
    )
    stats = st.AbsPercentile(90.0, dim)
    return sc.ParameterFromRuntimeStatsScaling(steps, stats, view, shape, RESTRICTIONS[restriction](), **kwargs)


def from_weight(
    cls: type = sc.StatsFromParameterScaling, several: bool = False, per_channel: bool = False, **kwargs: object
) -> nn.Module:
    tracked = [weight(0), weight(1)] if several else [weight()]
    view, dim, shape = (fw.OverOutputChannelView(), 1, (4, 1, 1, 1)) if per_channel else (fw.OverTensorView(), None, ())
    kwargs.setdefault("restrict_scaling_impl", rv.FloatRestrictValue())
    return cls(st.AbsMax(dim), view, 1 if per_channel else 0, tracked, scaling_shape=shape, **kwargs)


def rescaling(
    scaling: nn.Module,
    signed: bool = True,
    narrow: bool = False,
    width: nn.Module | None = None,
    zero_point: nn.Module | None = None,
    int_scaling: nn.Module | None = None,
    **kwargs: object,
) -> nn.Module:
    return q.RescalingIntQuant(
        q.IntQuant(narrow, signed, **kwargs),
        scaling,
        sc.IntScaling(signed, narrow) if int_scaling is None else int_scaling,
        zp.ZeroZeroPoint() if zero_point is None else zero_point,
        bw.BitWidthConst(8) if width is None else width,
    )


class _OwnRounding(nn.Module):
    """A rounding that the library does not know, so that quantizers have to be composed around it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.floor(x).detach() + (x - x.detach())


def shifted_act(steps: int = 2) -> nn.Module:
    zero = zp.ParameterFromRuntimeMinZeroPoint(
        steps, unsigned(), None, (), fw.OverTensorView(), zero_point_stats_impl=st.NegativePercentileOrZero(10.0)
    )
    scaling = sc.ParameterFromRuntimeStatsScaling(steps, st.PercentileInterval(10.0, 90.0), fw.OverTensorView())
    return rescaling(scaling, signed=False, zero_point=zero)


def decoupled() -> nn.Module:
    pre = from_weight()
    post = from_weight(sc.ParameterFromStatsFromParameterScaling)
    return q.DecoupledRescalingIntQuant(
        q.DecoupledIntQuant(True, True),
        pre,
        post,
        sc.IntScaling(True, True),
        zp.ZeroZeroPoint(),
        zp.ZeroZeroPoint(),
        bw.BitWidthConst(4),
    )


class TruncOfFixedSign(nn.Module):
    """``TruncIntQuant`` without the argument that is no tensor."""

    def __init__(self, impl: nn.Module) -> None:
        super().__init__()
        self.impl = impl

    def forward(self, x: Tensor, scale: Tensor, zero_point: Tensor, input_bit_width: Tensor) -> Quantized:
        return self.impl(x, scale, zero_point, input_bit_width, True)


def _trunc_inputs() -> tuple[Tensor, ...]:
    return (*batch(), torch.tensor(0.02), torch.tensor(3.0), torch.tensor(8.0))


CASES: dict[str, Case] = {
    "Identity": Case(fw.Identity, batch),
    "PowerOfTwo": Case(fw.PowerOfTwo, batch),
    "LogTwo": Case(fw.LogTwo, _positive),
    **{n: Case(getattr(fw, n), batch) for n in ("RoundSte", "CeilSte", "FloorSte", "RoundToZeroSte")},
    "ScalarClampMinSte": Case(lambda: fw.ScalarClampMinSte(0.1), batch),
    "ScalarClamp": Case(lambda: fw.ScalarClamp(-0.5, 0.5), batch),
    "ClampMin": Case(lambda: fw.ClampMin(0.1), batch),
    "TensorClamp": Case(fw.TensorClamp, _clamp_inputs),
    "TensorClampSte": Case(fw.TensorClampSte, _clamp_inputs),
    **{
        n: Case(getattr(fw, n), batch)
        for n in (
            "OverTensorView",
            "OverOutputChannelView",
            "OverBatchOverTensorView",
            "OverBatchOverOutputChannelView",
        )
    },
    "OverOutputChannelView/permuted": Case(lambda: fw.OverOutputChannelView((1, 0, 2, 3)), batch),
    "StatelessBuffer": Case(lambda: StatelessBuffer(torch.tensor(2.0)), _nothing),
    "SingleArgStatelessBuffer": Case(lambda: SingleArgStatelessBuffer(2.0), batch),
    "BitWidthConst": Case(lambda: bw.BitWidthConst(8), _nothing),
    "BitWidthStatefulConst": Case(lambda: bw.BitWidthStatefulConst(8), _nothing),
    "BitWidthParameter": Case(lambda: bw.BitWidthParameter(5), _nothing),
    "RemoveBitwidthParameter": Case(lambda: bw.RemoveBitwidthParameter(3), _nothing),
    "MsbClampBitWidth/const": Case(lambda: bw.MsbClampBitWidth(bw.BitWidthConst(3)), _scalar(8.0)),
    "MsbClampBitWidth/learned": Case(lambda: bw.MsbClampBitWidth(bw.RemoveBitwidthParameter(3)), _scalar(8.0)),
    **{f"restrict/{n}": Case(f, batch) for n, f in RESTRICTIONS.items()},
    **{f"{n}/tensor": Case(lambda f=f: f(None), batch) for n, f in WHOLE_STATS.items()},
    **{f"{n}/channel": Case(lambda f=f: f(1), lambda: (batch()[0].reshape(8, -1),)) for n, f in WHOLE_STATS.items()},
    "AbsMaxAve": Case(lambda: st.AbsMaxAve(1), lambda: (batch()[0].reshape(8, -1),)),
    "AbsMaxL2": Case(lambda: st.AbsMaxL2(1), lambda: (batch()[0].reshape(8, -1),)),
    "ConstScaling": Case(lambda: sc.ConstScaling(0.3), batch),
    "ConstScaling/pot": Case(lambda: sc.ConstScaling(0.3, rv.PowerOfTwoRestrictValue()), batch),
    **{
        f"ParameterScaling/{n}": Case(lambda f=f: sc.ParameterScaling(2.3, restrict_scaling_impl=f()), batch)
        for n, f in RESTRICTIONS.items()
    },
    "ParameterScaling/channel": Case(lambda: sc.ParameterScaling(torch.tensor([[1.0], [2.0]])), batch),
    "StatsFromParameterScaling": Case(from_weight, _one_weight),
    "StatsFromParameterScaling/several": Case(lambda: from_weight(several=True), _one_weight),
    "StatsFromParameterScaling/channel": Case(lambda: from_weight(per_channel=True), _one_weight),
    "StatsFromParameterScaling/channel/several": Case(lambda: from_weight(per_channel=True, several=True), _one_weight),
    **{
        f"StatsFromParameterScaling/affine/{n}": Case(
            lambda f=f: from_weight(affine_rescaling=True, restrict_scaling_impl=f()), _one_weight
        )
        for n, f in RESTRICTIONS.items()
    },
    "RuntimeStatsScaling": Case(
        lambda: sc.RuntimeStatsScaling(st.AbsMax(), fw.OverTensorView(), None, (), False), batch
    ),
    "RuntimeStatsScaling/average": Case(
        lambda: sc.RuntimeStatsScaling(st.AbsMax(), fw.OverTensorView(), None, (), False, scaling_stats_momentum=None),
        batch,
    ),
    "RuntimeStatsScaling/affine/channel": Case(
        lambda: sc.RuntimeStatsScaling(
            st.AbsMax(1), fw.OverOutputChannelView(), rv.PowerOfTwoRestrictValue(), (1, 4, 1, 1), True, (1, 0, 2, 3)
        ),
        batch,
    ),
    **{f"ParameterFromRuntimeStatsScaling/{n}": Case(lambda n=n: from_runtime(n), batch) for n in RESTRICTIONS},
    "ParameterFromRuntimeStatsScaling/channel": Case(lambda: from_runtime(per_channel=True), batch),
    "ParameterFromRuntimeStatsScaling/average": Case(lambda: from_runtime(scaling_stats_momentum=None), batch),
    "ParameterFromRuntimeStatsScaling/sigma": Case(
        lambda: sc.ParameterFromRuntimeStatsScaling(2, st.MeanLearnedSigmaStd(None, 2.0, ()), fw.OverTensorView()),
        batch,
    ),
    "ParameterFromStatsFromParameterScaling": Case(
        lambda: from_weight(sc.ParameterFromStatsFromParameterScaling), _one_weight
    ),
    "ParameterFromStatsFromParameterScaling/channel/pot": Case(
        lambda: from_weight(
            sc.ParameterFromStatsFromParameterScaling,
            per_channel=True,
            restrict_scaling_impl=rv.PowerOfTwoRestrictValue(),
        ),
        _one_weight,
    ),
    "IntScaling/signed": Case(lambda: sc.IntScaling(True, True), _scalar(8.0)),
    "IntScaling/unsigned": Case(lambda: sc.IntScaling(False, False), _scalar(8.0)),
    "PowerOfTwoIntScaling": Case(lambda: sc.PowerOfTwoIntScaling(True), _scalar(8.0)),
    "ZeroZeroPoint": Case(zp.ZeroZeroPoint, _zero_point_inputs),
    "MinUintZeroPoint": Case(
        lambda: zp.MinUintZeroPoint(unsigned(), fw.OverTensorView(), ()), _weight_zero_point_inputs
    ),
    "MinUintZeroPoint/several": Case(
        lambda: zp.MinUintZeroPoint(unsigned(), fw.OverTensorView(), (), None, [weight(0), weight(1)]),
        _weight_zero_point_inputs,
    ),
    "StatsFromParameterZeroPoint/channel": Case(
        lambda: zp.StatsFromParameterZeroPoint(
            unsigned(), fw.OverOutputChannelView(), (4, 1, 1, 1), st.NegativePercentileOrZero(10.0, 1)
        ),
        _weight_zero_point_inputs,
    ),
    "ParameterZeroPoint": Case(lambda: zp.ParameterZeroPoint(-0.7, unsigned()), _zero_point_inputs),
    "ParameterFromRuntimeMinZeroPoint": Case(
        lambda: zp.ParameterFromRuntimeMinZeroPoint(2, unsigned(), None, (), fw.OverTensorView()), _zero_point_inputs
    ),
    "ParameterFromRuntimeZeroPoint/channel": Case(
        lambda: zp.ParameterFromRuntimeZeroPoint(
            2, unsigned(), st.NegativeMinOrZero(1), (1, 4, 1, 1), fw.OverOutputChannelView((1, 0, 2, 3))
        ),
        _zero_point_inputs,
    ),
    "ParameterFromStatsFromParameterZeroPoint": Case(
        lambda: zp.ParameterFromStatsFromParameterZeroPoint(
            unsigned(), fw.OverTensorView(), (), st.NegativeMinOrZero(), [weight()]
        ),
        _weight_zero_point_inputs,
    ),
    "RescalingIntQuant/weight": Case(
        lambda: rescaling(from_weight(), narrow=True, tensor_clamp_impl=fw.TensorClampSte()), _one_weight
    ),
    "RescalingIntQuant/weight/channel": Case(
        lambda: rescaling(from_weight(per_channel=True), narrow=True, tensor_clamp_impl=fw.TensorClampSte()),
        _one_weight,
    ),
    "RescalingIntQuant/weight/shifted": Case(
        lambda: rescaling(
            from_weight(), signed=False, zero_point=zp.MinUintZeroPoint(unsigned(), fw.OverTensorView(), ())
        ),
        _one_weight,
    ),
    "RescalingIntQuant/weight/learned_width": Case(
        lambda: rescaling(from_weight(), width=bw.BitWidthParameter(4), narrow=True), _one_weight
    ),
    "RescalingIntQuant/act": Case(lambda: rescaling(from_runtime()), batch),
    "RescalingIntQuant/act/pot": Case(
        lambda: rescaling(from_runtime("pot"), int_scaling=sc.PowerOfTwoIntScaling(True)), batch
    ),
    "RescalingIntQuant/act/shifted": Case(shifted_act, batch),
    "RescalingIntQuant/act/delayed": Case(lambda: rescaling(from_runtime(), quant_delay_steps=3), batch),
    "RescalingIntQuant/act/own_rounding": Case(
        lambda: rescaling(sc.ParameterScaling(1.0), float_to_int_impl=_OwnRounding()), batch
    ),
    "RescalingIntQuant/const": Case(
        lambda: rescaling(sc.ConstScaling(1.0), width=bw.BitWidthConst(2), narrow=True), batch
    ),
    "PrescaledRestrictIntQuant": Case(
        lambda: q.PrescaledRestrictIntQuant(q.IntQuant(False, True), bw.BitWidthConst(8)),
        lambda: (*batch(), torch.tensor(0.01)),
    ),
    "PrescaledRestrictIntQuantWithInputBitWidth": Case(
        lambda: q.PrescaledRestrictIntQuantWithInputBitWidth(q.IntQuant(False, True), fw.Identity()),
        lambda: (*batch(), torch.tensor(0.01), torch.tensor(5.0)),
    ),
    "PrescaledRestrictIntQuantWithInputBitWidth/clamped": Case(
        lambda: q.PrescaledRestrictIntQuantWithInputBitWidth(
            q.IntQuant(False, True), bw.MsbClampBitWidth(bw.RemoveBitwidthParameter(3))
        ),
        lambda: (*batch(), torch.tensor(0.01), torch.tensor(8.0)),
    ),
    "DecoupledRescalingIntQuant": Case(decoupled, _one_weight),
    "BinaryQuant": Case(lambda: q.BinaryQuant(sc.ParameterScaling(0.3)), batch),
    "BinaryQuant/delayed": Case(lambda: q.BinaryQuant(sc.ParameterScaling(0.3), 2), batch),
    "ClampedBinaryQuant": Case(lambda: q.ClampedBinaryQuant(sc.ParameterScaling(0.3)), batch),
    "ClampedBinaryQuant/ste": Case(lambda: q.ClampedBinaryQuant(sc.ParameterScaling(0.3), fw.TensorClampSte()), batch),
    "TernaryQuant": Case(lambda: q.TernaryQuant(sc.ParameterScaling(0.9), 0.5), batch),
    **{
        f"TruncIntQuant/{n}": Case(
            lambda f=f, t=t: TruncOfFixedSign(q.TruncIntQuant(f(), bw.BitWidthConst(4), t())), _trunc_inputs
        )
        for n, f, t in (
            ("floor", fw.FloorSte, q.TruncMsbScaling),
            ("round", fw.RoundSte, q.TruncMsbScaling),
            ("learned", fw.RoundSte, q.TruncScalingWrapper),
        )
    },
}
