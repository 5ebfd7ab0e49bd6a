"""Groups: views, statistics, scales repeated over elements, and microscaling formats by formula."""

import math

import pytest
import torch
from extension_catalogue import FORMATS, float_parts
from hypothesis import given
from hypothesis import strategies as st
from test_float import LARGEST, nearest, numbers

from brevitas.core import bit_width as bw
from brevitas.core import function_wrapper as fw
from brevitas.core import groupwise as gw
from brevitas.core import quant as q
from brevitas.core import restrict_val as rv
from brevitas.core import scaling as sc
from brevitas.core import stats as stt
from brevitas.core import zero_point as zp
from brevitas.errors import QuantConfigError

shapes = st.lists(st.integers(1, 7), min_size=1, max_size=4)


def groups_of(x, size, dim):
    """(index of the scale, elements) of every group, by loops over the scale's elements."""
    dim = dim % x.ndim
    shape = list(x.shape)
    shape[dim] = math.ceil(shape[dim] / size)
    for index in torch.cartesian_prod(*[torch.arange(s) for s in shape]).reshape(-1, x.ndim).tolist():
        at = tuple(index)
        part = list(at)
        part[dim] = slice(at[dim] * size, (at[dim] + 1) * size)
        yield at, tuple(part)


@given(shape=shapes, size=st.integers(1, 9), data=st.data())
def test_view_scale_and_repetition(shape, size, data):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = torch.randn(shape)
    rows = gw.DynamicOverSubChannelBlockView(size, dim)(x)
    scale_shape = gw.group_shape(list(x.shape), size, dim)
    assert rows.shape == (math.prod(scale_shape), size)
    if dim >= 0:
        assert torch.equal(gw.OverSubChannelBlockView(size, dim)(x), rows)
    largest = rows.abs().amax(1).view(scale_shape)
    repeated = gw.repeat_over_groups(largest, x, size, dim)
    assert repeated.shape == x.shape
    for at, part in groups_of(x, size, dim):
        elements = x[part].flatten()
        row = rows.view(*scale_shape, size)[at]
        assert torch.equal(row[: elements.numel()], elements) and bool((row[elements.numel() :] == 0).all())
        assert float(largest[at]) == float(elements.abs().max())
        assert bool((repeated[part] == largest[at]).all())


def test_gradient_of_a_repeated_scale_is_summed_over_its_group():
    scale = torch.ones(1, 2, requires_grad=True)
    gw.repeat_over_groups(scale, torch.zeros(1, 3), 2, 1).backward(torch.tensor([[1.0, 10.0, 100.0]]))
    assert scale.grad.tolist() == [[11.0, 100.0]]
    scalar = torch.tensor(2.0)
    assert gw.repeat_over_groups(scalar, torch.zeros(1, 3), 2, 1) is scalar


def mx_scaling(size, dim, statistic=None):
    statistic = stt.AbsMax(1) if statistic is None else statistic
    return sc.RuntimeDynamicGroupStatsScaling(size, dim, statistic, rv.PowerOfTwoRestrictValue(fw.FloorSte()))


def mx_int(size, dim, bits=8):
    return q.GroupwiseRescalingIntQuant(
        q.IntQuant(True, True),
        mx_scaling(size, dim),
        sc.MXIntScaling(True),
        zp.ZeroZeroPoint(),
        bw.BitWidthConst(bits),
        size,
        dim,
    )


def mx_float(name, size, dim):
    _, _, _, inf, nan = FORMATS[name]
    return q.GroupwiseFloatQuant(
        *float_parts(name), size, dim, mx_scaling(size, dim), q.MXFloatScaling(inf or None, nan or None)
    )


def spread(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-6, 7, shape, generator=generator).float()
    return torch.randn(shape, generator=generator) * torch.exp2(exponents)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("shape", "dim"), [((3, 70), -1), ((2, 5, 4, 3), 1), ((64, 2), 0)])
def test_mx_int_by_formula(bits, shape, dim):
    x = spread(shape)
    y, scale, zero_point, width = mx_int(32 if dim != 1 else 2, dim, bits)(x)
    assert scale.shape == y.shape == x.shape and float(width) == bits and float(zero_point) == 0
    for _, part in groups_of(x, 32 if dim != 1 else 2, dim):
        s = 2.0 ** math.floor(math.log2(float(x[part].abs().max()))) / 2.0 ** (bits - 2)
        assert bool((scale[part] == s).all())
        largest = 2 ** (bits - 1) - 1
        expected = [max(min(round(v / s), largest), -largest) * s for v in x[part].flatten().tolist()]
        assert y[part].flatten().tolist() == expected
    # The largest value of a group is clamped by less than a step: codes reach to just below twice the power of two.
    assert bool(((y - x).abs() <= scale).all())


EMAX = {"e4m3_ocp": 8, "e5m2_ocp": 15, "e3m2": 4, "e2m3": 2, "e2m1": 2}


@pytest.mark.parametrize("name", sorted(EMAX))
def test_mx_float_by_formula(name):
    x = spread((3, 70))
    y, scale, *_ = mx_float(name, 32, -1)(x)
    grid = numbers(name)
    assert math.floor(math.log2(LARGEST[name])) == EMAX[name]
    for _, part in groups_of(x, 32, -1):
        s = 2.0 ** (math.floor(math.log2(float(x[part].abs().max()))) - EMAX[name])
        assert bool((scale[part] == s).all())
        assert y[part].flatten().tolist() == [nearest(grid, v / s) * s for v in x[part].flatten().tolist()]


def test_golden_mx_values():
    # amax 5: scale 4 / 64; 5 / 0.0625 = 80. amax 1.99: scale 1 / 64; 1.99 * 64 = 127.36 -> 127.
    y, scale, *_ = mx_int(2, -1)(torch.tensor([1.0, 1.99, 5.0, -0.03]))
    assert scale.tolist() == [1 / 64, 1 / 64, 1 / 16, 1 / 16] and y.tolist() == [1.0, 127 / 64, 5.0, 0.0]
    # e2m1: emax 2. amax 5: scale 4 / 4 = 1; 5 ties between 4 and 6: even mantissa, 4. 1.2 -> 1.
    y, scale, *_ = mx_float("e2m1", 2, -1)(torch.tensor([1.2, 5.0]))
    assert scale.tolist() == [1.0, 1.0] and y.tolist() == [1.0, 4.0]


def test_shifted_groups_of_a_weight():
    w = torch.nn.Parameter(spread((3, 5)))
    view, shape = gw.OverSubChannelBlockView(2, 1), (3, 3)
    int_quant = q.IntQuant(False, False)
    quant = q.GroupwiseRescalingIntQuant(
        int_quant,
        sc.StatsFromParameterScaling(stt.AbsMinMax(1), view, 1, [w], rv.FloatRestrictValue(), shape),
        sc.IntScaling(False, False),
        zp.MinUintZeroPoint(int_quant, view, shape, 1),
        bw.BitWidthConst(4),
        2,
        1,
    )
    y, scale, zero_point, _ = quant(w)
    assert y.shape == scale.shape == zero_point.shape == w.shape
    for _, part in groups_of(w, 2, 1):
        values = w[part].detach().flatten()
        low = min(float(values.min()), 0.0)
        s = (max(float(values.max()), 0.0) - low) / 15
        z = min(max(round(-low / s), 0), 15)
        torch.testing.assert_close(scale[part].flatten(), torch.full_like(values, s))
        assert bool((zero_point[part] == z).all())
        code = torch.clamp(torch.round(values / scale[part].detach() + z), 0, 15)
        torch.testing.assert_close(y[part].detach(), (code - z) * scale[part].detach())


def test_a_learned_scale_of_groups_trains():
    scaling = sc.ParameterScaling(1.0, (2, 2))
    quant = q.GroupwiseRescalingIntQuant(
        q.IntQuant(True, True), scaling, sc.IntScaling(True, True), zp.ZeroZeroPoint(), bw.BitWidthConst(4), 3, 1
    )
    x = spread((2, 5))
    quant(x)[0].sum().backward()
    for at, part in groups_of(x, 3, 1):
        # d y / d s is the code less x / s inside the range and the bound outside; s is t / 7.
        v = x[part].double() * 7.0
        slope = torch.where(v.round().abs() <= 7, v.round() - v, 7.0 * v.sign()).sum() / 7.0
        assert float(scaling.value.grad[at]) == pytest.approx(float(slope), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1e-40, 6e-8, 1.0, 6e4])
def test_finite_scales_values_and_gradients(dtype, value):
    for quant in (mx_int(4, -1), mx_float("e4m3_ocp", 4, -1), mx_float("e5m2_ocp", 4, -1)):
        x = torch.full((2, 6), value, dtype=dtype).requires_grad_()
        y, scale, *_ = quant.to(dtype)(x)
        (y.sum() + scale.sum()).backward()
        assert bool((scale > 0).all()) and y.dtype == dtype
        for tensor in (y, scale, x.grad):
            assert bool(tensor.isfinite().all())


def test_no_state_and_any_batch():
    quant = mx_int(4, -1)
    assert list(quant.state_dict()) == []
    for shape in ((6,), (2, 6), (3, 2, 9), (0, 6)):
        y, scale, *_ = quant(torch.ones(shape))
        assert y.shape == scale.shape == shape


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: gw.OverSubChannelBlockView(0, 1), ["group_size=0", ">= 1"]),
        (lambda: gw.OverSubChannelBlockView(2, -1), ["group_dim=-1", "0 to 8"]),
        (lambda: sc.RuntimeDynamicGroupStatsScaling(2, 1.0, stt.AbsMax(1)), ["group_dim=1.0"]),
        (lambda: sc.RuntimeDynamicGroupStatsScaling(2, 1, stt.AbsMax), ["scaling_stats_impl", "instance"]),
        (lambda: sc.MXIntScaling(signed=1), ["signed=1"]),
    ],
)
def test_illegal_arguments(make, says):
    with pytest.raises(QuantConfigError) as error:
        make()
    for part in says:
        assert part in str(error.value)
