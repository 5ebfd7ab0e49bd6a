"""Weight-normalised quantizers: formulas, state, and the guarantee that accumulators do not overflow."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from brevitas.core import bit_width as bw
from brevitas.core import function_wrapper as fw
from brevitas.core import quant as q
from brevitas.core import restrict_val as rv
from brevitas.core import scaling as sc
from brevitas.core import stats as stt
from brevitas.core import zero_point as zp
from brevitas.errors import QuantConfigError


def build(kind, w, bits=8, accumulator=32, shape=None, step=None, **kwargs):
    """A complete quantizer of the family ``kind`` of the weight ``w`` of shape (channels, ...)."""
    shape = (w.shape[0],) + (1,) * (w.ndim - 1)
    view = fw.OverOutputChannelView()
    if step is None:
        scaling = sc.ParameterFromStatsFromParameterScaling(
            stt.AbsMaxStep(bw.BitWidthConst(bits)), view, 1, [w], rv.LogFloatRestrictValue(), shape
        )
    else:
        scaling = sc.ParameterScaling(step, shape)
    if kind == "l2":
        pre, cls, rounding = sc.ParameterPreScalingWeightNorm(view, 1, [w], shape), q.WeightNormIntQuant, fw.RoundSte()
    else:
        plus, plain = sc.AccumulatorAwareZeroCenterParameterPreScaling, sc.AccumulatorAwareParameterPreScaling
        pre = (plus if kind == "a2q+" else plain)(view, 1, [w], shape, accumulator)
        cls, rounding = q.AccumulatorAwareIntQuant, fw.RoundToZeroSte()
    center = q.PreZeroCenterZeroPoint(view, shape) if kind == "a2q+" else zp.ZeroZeroPoint()
    return cls(
        q.DecoupledIntQuant(True, True, rounding), pre, scaling, center, zp.ZeroZeroPoint(), bw.BitWidthConst(bits)
    )


def codes(y, scale):
    code = y.detach().double() / scale.detach().double()
    # Scale and product are rounded once each, to 2^-24 relative: more than a thousandth of a code from 2^13 on.
    assert bool(((code - code.round()).abs() <= 1e-3 + code.abs() * 2.0**-23).all())
    return code.round()


def bound(kind, accumulator, input_bits, signed):
    if kind == "a2q+":
        return (2.0**accumulator - 2) / (2.0**input_bits - 1)
    return (2.0 ** (accumulator - 1) - 1) * 2.0 ** ((1 if signed else 0) - input_bits)


def real_codes(kind, w, g, s, accumulator=32, input_bits=8, signed=False):
    """Codes before rounding, by the formulas of the specification in float64."""
    w, g, s = w.detach().double(), g.double(), s.double()
    if kind == "l2":
        return w * g / (s * w.flatten(1).norm(dim=1).view(g.shape))
    if kind == "a2q+":
        w = w - w.flatten(1).mean(1).view(g.shape)
    norm = w.abs().flatten(1).sum(1).view(g.shape)
    return w * (g / s).clamp_max(bound(kind, accumulator, input_bits, signed)) / norm


def learned(quant):
    g = torch.exp2(quant.pre_scaling_impl.value.detach().double())
    s = torch.exp2(quant.scaling_impl.value.detach().double())
    return g, s


@pytest.mark.parametrize("kind", ["l2", "a2q", "a2q+"])
@pytest.mark.parametrize(("accumulator", "input_bits", "signed"), [(32, 8, False), (12, 4, True), (8, 3, False)])
def test_codes_by_formula(kind, accumulator, input_bits, signed):
    w = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    quant = build(kind, w, 6, accumulator)
    arguments = () if kind == "l2" else (torch.tensor(float(input_bits)), signed)
    for _ in range(2):
        y, scale, zero_point, bits = quant(w, *arguments)
        g, s = learned(quant)
        torch.testing.assert_close(scale.double(), s, rtol=1e-5, atol=0)
        assert float(zero_point) == 0 and float(bits) == 6
        real = real_codes(kind, w, g, s, accumulator, input_bits, signed)
        rounded = (real.round() if kind == "l2" else real.trunc()).clamp(-31, 31)
        # log2 and 2^x in float32 move codes by some 1e-5; whole numbers may fall on either side.
        certain = (real - real.round()).abs() > 1e-3 if kind != "l2" else (real - real.floor() - 0.5).abs() > 1e-3
        assert torch.equal(codes(y, scale)[certain], rounded[certain])
        assert bool(certain.float().mean() > 0.9)
        with torch.no_grad():
            w.mul_(1.3)
            quant.pre_scaling_impl.value.add_(0.25)
            quant.scaling_impl.value.sub_(0.125)


@pytest.mark.parametrize("kind", ["l2", "a2q", "a2q+"])
def test_starts_as_the_plain_quantizer_and_learns_g_and_s(kind):
    w = torch.randn(4, 9, generator=torch.Generator().manual_seed(2), requires_grad=True)
    quant = build(kind, w)
    arguments = () if kind == "l2" else (torch.tensor(8.0), False)
    y, scale, *_ = quant(w, *arguments)
    torch.testing.assert_close(scale, w.detach().abs().amax(1, keepdim=True) / 127, rtol=1e-5, atol=0)
    # Without its mean a weight may reach past the largest code, where it is clamped.
    plain = w if kind != "a2q+" else torch.clamp(w - w.mean(1, keepdim=True), -127 * scale, 127 * scale)
    assert bool(((y - plain).abs() <= 1.01 * scale).all())
    y.square().sum().backward()
    for tensor in (w.grad, quant.pre_scaling_impl.value.grad, quant.scaling_impl.value.grad):
        assert tensor is not None and bool(tensor.isfinite().all()) and bool((tensor != 0).any())
    assert set(quant.state_dict()) == {
        "pre_scaling_impl.value",
        "pre_scaling_impl.initialised",
        "scaling_impl.value",
        "scaling_impl.initialised",
    }


def test_golden_values():
    # A2Q: norm 1 of (1, -3) is 4; bound (2^7 - 1) / 2^4 = 7.9375; w * 7.9375 / 4 = 1.98, -5.95.
    w = torch.tensor([[1.0, -3.0]], requires_grad=True)
    y, scale, *_ = build("a2q", w, accumulator=8, step=0.5)(w, torch.tensor(4.0), False)
    assert codes(y, scale).tolist() == [[1.0, -5.0]]
    # The magnitude of a signed input is half as large: g / s = 4 / 0.5 = 8 is below the bound; w * 8 / 4 = 2, -6.
    y, scale, *_ = build("a2q", w, accumulator=8, step=0.5)(w, torch.tensor(4.0), True)
    assert codes(y, scale).tolist() == [[2.0, -6.0]]
    # A2Q+: mean -1, centered (2, -2), norm 4; bound (2^9 - 2) / (2^4 - 1) = 34; 2 * 34 / 4 = 17.
    y, scale, *_ = build("a2q+", w, accumulator=9, step=0.01)(w, torch.tensor(4.0), False)
    assert codes(y, scale).tolist() == [[17.0, -17.0]]
    # L2: norm 5; g = 5 at the start, so that codes are w / s.
    w = torch.tensor([[3.0, -4.0]], requires_grad=True)
    y, scale, *_ = build("l2", w, step=0.125)(w)
    assert codes(y, scale).tolist() == [[24.0, -32.0]]


def worst_accumulations(code, input_bits, signed):
    """Smallest and largest sum of products of a channel's codes with any input of the given width."""
    low, high = (-(2 ** (input_bits - 1)), 2 ** (input_bits - 1) - 1) if signed else (0, 2**input_bits - 1)
    positive, negative = code.clamp_min(0).sum(1), code.clamp_max(0).sum(1)
    return positive * low + negative * high, positive * high + negative * low


weights = hnp.arrays(
    "float32",
    st.tuples(st.integers(1, 3), st.integers(1, 40)),
    elements=st.floats(-10, 10, width=32) | st.sampled_from([0.0, 1.0, -1.0, 1e-30, -1e-38, 1e30, 3e38, -3e38, 0.1]),
)


@pytest.mark.parametrize("kind", ["a2q", "a2q+"])
@given(
    array=weights,
    accumulator=st.integers(2, 32),
    input_bits=st.integers(1, 16),
    signed=st.booleans(),
    bits=st.sampled_from([2, 4, 8, 16]),
    shift=st.floats(-20, 20),
)
def test_no_accumulator_overflows(kind, array, accumulator, input_bits, signed, bits, shift):
    w = torch.tensor(array, requires_grad=True)
    quant = build(kind, w, bits, accumulator)
    quant(w, torch.tensor(float(input_bits)), signed)
    with torch.no_grad():
        quant.pre_scaling_impl.value.add_(shift)  # whatever was learned
    y, scale, *_ = quant(w, torch.tensor(float(input_bits)), signed)
    assert bool(y.isfinite().all()) and bool((scale > 0).all())
    code = codes(y, scale)
    assert bool((code.abs().sum(1) <= bound(kind, accumulator, input_bits, signed)).all())
    low, high = worst_accumulations(code, input_bits, signed)
    assert bool((low >= -(2.0 ** (accumulator - 1))).all()) and bool((high <= 2.0 ** (accumulator - 1) - 1).all())


@pytest.mark.parametrize("kind", ["a2q", "a2q+"])
@pytest.mark.parametrize("accumulator", [8, 16, 20])
@pytest.mark.parametrize("size", [2, 3, 1000, 70000])
def test_no_overflow_for_weights_that_reach_the_bound(kind, accumulator, size):
    generator = torch.Generator().manual_seed(size)
    for w in (
        torch.ones(1, size),
        torch.ones(1, size) * 0.1,
        torch.tensor([1.0, -1.0]).repeat(size // 2 + 1)[None],
        torch.randint(-3, 4, (1, size), generator=generator) * 0.1,
        torch.rand(1, size, generator=generator),
        torch.cat([torch.full((1, size), 1e-6), torch.full((1, 1), 1e6)], dim=1),
        1000.0 + torch.rand(1, size, generator=generator),
    ):
        w.requires_grad_()
        quant = build(kind, w, 16, accumulator, step=1e-9)
        code = codes(*quant(w, torch.tensor(4.0), False)[:2])
        assert float(code.abs().sum()) <= bound(kind, accumulator, 4, False)
        low, high = worst_accumulations(code, 4, False)
        assert float(low) >= -(2.0 ** (accumulator - 1)) and float(high) <= 2.0 ** (accumulator - 1) - 1


def test_a_brute_force_accumulator_of_6_bits_never_wraps():
    w = torch.tensor([[0.7, -0.2, 0.4]], requires_grad=True)
    for kind, signed in itertools.product(("a2q", "a2q+"), (False, True)):
        code = codes(*build(kind, w, 8, 6)(w, torch.tensor(2.0), signed)[:2])[0]
        assert float(code.abs().sum()) > 0
        inputs = range(-2, 2) if signed else range(4)
        for x in itertools.product(inputs, repeat=3):
            total = sum(a * b for a, b in zip(code.tolist(), x, strict=True))
            assert -32 <= total <= 31


@pytest.mark.parametrize("kind", ["l2", "a2q", "a2q+"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_zero_channel_gives_zero_codes_and_finite_gradients(kind, dtype):
    w = torch.tensor([[0.0, 0.0], [0.5, -0.25]], dtype=dtype, requires_grad=True)
    quant = build(kind, w).to(dtype)
    arguments = () if kind == "l2" else (torch.tensor(8.0), False)
    for _ in range(2):
        y, scale, *_ = quant(w, *arguments)
        assert y[0].tolist() == [0.0, 0.0] and bool((scale > 0).all()) and y.dtype == scale.dtype == dtype
        (y.sum() + scale.sum()).backward()
        for tensor in (w.grad, quant.pre_scaling_impl.value.grad, quant.scaling_impl.value.grad):
            assert bool(tensor.isfinite().all())


def test_the_bound_holds_for_each_layer_that_shares_a_quantizer():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, n, generator=generator, requires_grad=True) for n in (6, 10))
    view, shape = fw.OverOutputChannelView(), (2, 1)
    quant = q.AccumulatorAwareIntQuant(
        q.DecoupledIntQuant(True, True, fw.RoundToZeroSte()),
        sc.AccumulatorAwareParameterPreScaling(view, 1, [a, b], shape, 8),
        sc.ParameterScaling(0.01, shape),
        zp.ZeroZeroPoint(),
        zp.ZeroZeroPoint(),
        bw.BitWidthConst(8),
    )
    for w in (a, b):
        code = codes(*quant(w, torch.tensor(4.0), False)[:2])
        assert bool((code.abs().sum(1) <= bound("a2q", 8, 4, False)).all())


def test_the_step_of_the_statistic():
    x = torch.tensor([[0.5, -1.27], [0.0, 0.254]])
    torch.testing.assert_close(stt.AbsMaxStep(bw.BitWidthConst(8))(x), torch.tensor([0.01, 0.002]))


VIEW = fw.OverOutputChannelView()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: sc.AccumulatorAwareParameterPreScaling(VIEW, 1, None, (2, 1), 33), ["_bit_width=33", "2 to 32"]),
        (lambda: sc.AccumulatorAwareParameterPreScaling(VIEW, 1, None, (2, 1), 1), ["accumulator_bit_width=1"]),
        (lambda: sc.ParameterPreScalingWeightNorm(VIEW, 1, None, (0, 1)), ["scaling_shape", "positive"]),
        (lambda: sc.ParameterPreScalingWeightNorm(VIEW, 1, None, (1, 1), pre_scaling_min_val=0.0), ["min_val"]),
        (
            lambda: sc.AccumulatorAwareZeroCenterParameterPreScaling(VIEW, 1, [torch.ones(2, 2)] * 2, (2, 1)),
            ["2 layers share", "quantizer of its own"],
        ),
        (
            lambda: q.AccumulatorAwareIntQuant(
                q.DecoupledIntQuant(True, True),
                sc.AccumulatorAwareParameterPreScaling(VIEW, 1, None, (2, 1)),
                sc.ConstScaling(1.0),
                zp.ZeroZeroPoint(),
                zp.ZeroZeroPoint(),
                bw.BitWidthConst(8),
            ),
            ["RoundSte", "Expected RoundToZeroSte"],
        ),
        (lambda: stt.AbsMaxStep(bw.BitWidthConst(1)), ["bit_width=1", "2 to 32"]),
    ],
)
def test_illegal_arguments(make, says):
    with pytest.raises(QuantConfigError) as error:
        make()
    for part in says:
        assert part in str(error.value)
