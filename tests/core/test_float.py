"""Minifloat quantizers against the enumeration of all codes, and against torch's own float8 dtypes."""

import bisect
import itertools

import pytest
import torch
from core_catalogue import from_weight, weight
from extension_catalogue import FORMATS, float_parts, float_quant
from hypothesis import given
from hypothesis import strategies as st

from brevitas.core import function_wrapper as fw
from brevitas.core import restrict_val as rv
from brevitas.core import scaling as sc
from brevitas.core.quant import float as fq
from brevitas.core.quant import float_base as fb
from brevitas.core.stats import AbsMax
from brevitas.errors import QuantConfigError

LARGEST = {
    "e4m3": 480.0,
    "e5m2": 114688.0,
    "e3m2": 28.0,
    "e2m3": 7.5,
    "e2m1": 6.0,
    "e4m3_ocp": 448.0,
    "e5m2_ocp": 57344.0,
    "e4m3_fnuz": 240.0,
    "e5m2_fnuz": 57344.0,
}
EVERY = sorted(FORMATS)


def numbers(name: str) -> list[float]:
    """The non-negative numbers of a format in the order of their codes, from the definition of a code."""
    e, m, bias, inf, nan = FORMATS[name]
    found = []
    for exponent, mantissa in itertools.product(range(2**e), range(2**m)):
        if exponent == 2**e - 1 and m and format(mantissa, f"0{m}b") in (*inf, *nan):
            continue
        if exponent == 0:
            found.append(mantissa * 2.0 ** (1 - bias - m))
        else:
            found.append((1 + mantissa * 2.0**-m) * 2.0 ** (exponent - bias))
    return found


def nearest(grid: list[float], x: float) -> float:
    """Nearest number, the one of even code on ties, saturating; of either sign."""
    magnitude = abs(x)
    above = bisect.bisect_left(grid, magnitude)
    if above == len(grid):
        best = grid[-1]
    elif above == 0 or grid[above] == magnitude:
        best = grid[above]
    else:
        low, high = magnitude - grid[above - 1], grid[above] - magnitude
        even = above if above % 2 == 0 else above - 1
        best = grid[above - 1] if low < high else grid[above] if high < low else grid[even]
    return -best if x < 0 else best


def probes(name: str) -> torch.Tensor:
    """Every number, every tie, both of their neighbours in float64, and what lies beyond, of both signs."""
    grid = numbers(name)
    points = grid + [(a + b) / 2 for a, b in itertools.pairwise(grid)]
    points += [LARGEST[name] * f for f in (1.01, 1.03, 1.06, 1.2, 2.0, 1e3)]
    x = torch.tensor(points, dtype=torch.float64)
    x = torch.cat([x, torch.nextafter(x, torch.zeros_like(x)), torch.nextafter(x, torch.full_like(x, 1e9))])
    return torch.cat([x, -x])


@pytest.mark.parametrize("name", EVERY)
def test_largest_number(name):
    e, m, bias, inf, nan = FORMATS[name]
    scaling = fb.FloatScaling(inf or None, nan or None)
    assert float(scaling(*(torch.tensor(float(v)) for v in (e, m, bias)))) == LARGEST[name] == max(numbers(name))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("signed", [True, False])
def test_every_number_and_every_tie(name, signed):
    grid, x = numbers(name), probes(name)
    y, scale, zero_point, e, m, bias, saturating, inf, nan = float_quant(name, signed=signed)(x)
    expected = [nearest(grid, v) if signed or v > 0 else 0.0 for v in x.tolist()]
    assert y.tolist() == expected
    assert (float(scale), float(zero_point), saturating) == (1.0, 0.0, True)
    assert (int(e), int(m), int(bias), tuple(inf), tuple(nan)) == FORMATS[name]


@pytest.mark.parametrize("name", EVERY)
@given(values=st.lists(st.floats(-1e5, 1e5, width=32) | st.floats(-8, 8, width=32), min_size=1, max_size=30))
def test_any_number(name, values):
    grid = numbers(name)
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor(values, dtype=dtype)
        assert float_quant(name)(x)[0].tolist() == [nearest(grid, v) for v in x.tolist()]


TORCH_DTYPES = {
    "e4m3_ocp": torch.float8_e4m3fn,
    "e5m2_ocp": torch.float8_e5m2,
    "e4m3_fnuz": torch.float8_e4m3fnuz,
    "e5m2_fnuz": torch.float8_e5m2fnuz,
}


@pytest.mark.parametrize("name", sorted(TORCH_DTYPES))
def test_equals_the_float8_of_torch(name):
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(20000, generator=generator) * torch.exp2(
        torch.randint(-20, 18, (20000,), generator=generator).float()
    )
    x = torch.cat([probes(name).float(), spread, torch.tensor([float("nan"), float("inf"), -float("inf")])])
    expected = x.to(TORCH_DTYPES[name]).float()
    # Releases of torch differ in whether a format without infinity saturates.
    saturating = bool(torch.tensor(float("inf")).to(TORCH_DTYPES[name]).float().isfinite())
    y = float_quant(name, saturating=saturating)(x)[0]
    assert torch.equal(torch.nan_to_num(y, nan=12345.0), torch.nan_to_num(expected, nan=12345.0))
    inside = x.abs() <= LARGEST[name]
    assert torch.equal(float_quant(name)(x)[0][inside], expected[inside])


@pytest.mark.parametrize("name", EVERY)
def test_beyond_the_largest_number(name):
    largest, has_inf = LARGEST[name], bool(FORMATS[name][3])
    x = torch.tensor([float("inf"), -float("inf"), 3 * largest, -3 * largest, float("nan"), largest])
    saturated = float_quant(name)(x)[0]
    assert saturated[:4].tolist() == [largest, -largest, largest, -largest] and saturated[4].isnan()
    free = float_quant(name, saturating=False)(x)[0]
    if has_inf:
        assert free[:4].tolist() == [float("inf"), -float("inf")] * 2
    else:
        assert bool(free[:4].isnan().all())
    assert free[4].isnan() and float(free[5]) == largest


@pytest.mark.parametrize("name", EVERY)
def test_gradient_is_straight_through_up_to_the_largest_number(name):
    largest = LARGEST[name]
    ulp = numbers(name)[-1] - numbers(name)[-2]
    x = torch.tensor([0.0, 0.3, -largest, largest + 0.49 * ulp, largest + 0.51 * ulp, -2 * largest], requires_grad=True)
    g = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    float_quant(name)(x)[0].backward(g)
    assert x.grad.tolist() == [1.0, 2.0, 3.0, 4.0, 0.0, 0.0]


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_scaled_weight_by_formula(name, per_channel):
    w = weight().detach()
    quant = float_quant(name, from_weight(per_channel=per_channel))
    y, scale, *_ = quant(w)
    t = w.abs().amax((1, 2, 3), keepdim=True) if per_channel else w.abs().max()
    assert torch.equal(scale, t / LARGEST[name])
    grid = numbers(name)
    v = (w / scale).double()
    expected = torch.tensor([nearest(grid, a) for a in v.flatten().tolist()], dtype=torch.float64).view(w.shape)
    assert torch.equal(y, (expected.float() * scale))


def test_gradient_to_the_scale():
    scaling = sc.ParameterScaling(3.0)
    quant = float_quant("e2m1", scaling)  # V = 6, so s = 0.5
    x = torch.tensor([0.6, -5.0, 2.9])
    y, scale, *_ = quant(x)
    assert scale.item() == 0.5 and y.tolist() == [0.5, -3.0, 3.0]
    y.backward(torch.tensor([1.0, 10.0, 100.0]))
    # code - v inside (1 - 1.2, 6 - 5.8), the bound outside (-6); then dt/ds = 1/V.
    expected = ((1 - 1.2) * 1.0 + (-6.0) * 10.0 + (6 - 5.8) * 100.0) / 6.0
    torch.testing.assert_close(scaling.value.grad, torch.tensor([expected]))


@pytest.mark.parametrize("rounding", [fw.FloorSte, fw.CeilSte, fw.RoundToZeroSte])
def test_roundings_apply_to_the_mantissa(rounding):
    x = torch.tensor([2.2, -2.2, 0.3, 4.5])
    y = float_quant("e2m1", float_to_int_impl=rounding())(x)[0]
    down, up, inward = [2.0, -3.0, 0.0, 4.0], [3.0, -2.0, 0.5, 6.0], [2.0, -2.0, 0.0, 4.0]
    assert y.tolist() == {fw.FloorSte: down, fw.CeilSte: up, fw.RoundToZeroSte: inward}[rounding]


def test_float16_stays_finite_at_the_end_of_its_range():
    for name in EVERY:
        x = torch.tensor([65504.0, -65504.0, 6e-8, 0.0], dtype=torch.float16)
        y = float_quant(name)(x)[0]
        assert y.dtype == torch.float16 and bool(y.isfinite().all())
    assert float_quant("e5m2")(torch.tensor([65504.0], dtype=torch.float16))[0].item() == 57344.0


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1e-30, 6e-8, 1.0, 6e4])
def test_finite_scale_values_and_gradients(name, dtype, value):
    scaling = sc.ParameterFromStatsFromParameterScaling(AbsMax(), fw.OverTensorView(), 0, [torch.zeros(3)])
    quant = float_quant(name, scaling).to(dtype)
    x = torch.full((3,), value, dtype=dtype).requires_grad_()
    y, scale, *_ = quant(x)
    (y.sum() + scale.sum()).backward()
    assert scale.item() > 0 and y.dtype == scale.dtype == dtype
    for tensor in (y, scale, x.grad, scaling.value.grad):
        assert bool(tensor.isfinite().all())


def test_wide_formats_are_exact():
    quant = fq.FloatQuant(
        True,
        fb.ExponentBitWidthConst(8),
        fb.MantissaBitWidthConst(7),
        fb.ExponentBiasConst(8),
        fb.FloatClamp(True, inf_values=None),
    )
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-140, 125, (5000,), generator=generator).float()
    x = torch.randn(5000, generator=generator) * torch.exp2(exponents)
    x.requires_grad_()
    y = quant(x)[0]
    assert torch.equal(y, x.detach().to(torch.bfloat16).float())  # e8m7 is bfloat16
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    end = torch.tensor([torch.finfo(torch.float32).max])
    assert bool(quant(end)[0].isfinite())


def test_mse_candidate_is_the_complete_quantizer():
    candidate = fq.FloatThresholdCandidate(*float_parts("e2m1"), restrict_scaling_impl=rv.PowerOfTwoRestrictValue())
    x = torch.tensor([0.3, 0.9, -2.0])
    quant = float_quant("e2m1", sc.ConstScaling(0.9, rv.PowerOfTwoRestrictValue()))
    assert torch.equal(candidate(x, torch.tensor(0.9), candidate.context(x)), quant(x)[0])


def test_bias_defaults_to_the_middle():
    assert [int(fb.ExponentBiasConst(e)()) for e in (1, 2, 4, 5, 8)] == [0, 1, 7, 15, 127]


def _quant(e=4, m=3, bias=None, **clamp):
    return fq.FloatQuant(
        True,
        fb.ExponentBitWidthConst(e),
        fb.MantissaBitWidthConst(m),
        fb.ExponentBiasConst(e, bias),
        fb.FloatClamp(True, **clamp),
    )


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: fb.ExponentBitWidthConst(0), ["exponent_bit_width=0", "1 to 8"]),
        (lambda: fb.MantissaBitWidthConst(24), ["mantissa_bit_width=24", "0 to 23"]),
        (lambda: fb.ExponentBiasConst(4, 7.0), ["exponent_bias=7.0", "not an integer"]),
        (lambda: fb.FloatClamp(True, nan_values="111"), ["nan_values='111'", "tuple"]),
        (lambda: fb.FloatClamp(True, nan_values=("12",)), ["nan_values=('12',)", "mantissas"]),
        (lambda: fb.FloatClamp(True, nan_values=("01", "1")), ["differ in length"]),
        (lambda: fb.FloatClamp(True, inf_values=("01",), nan_values=("01",)), ["do not go together"]),
        (lambda: _quant(nan_values=("11",)), ["2 bits", "mantissa_bit_width=3"]),
        (lambda: _quant(e=8, m=23, bias=200), ["exponent_bit_width=8", "within float32"]),
        (lambda: _quant(e=5, m=2, bias=-128), ["2^159", "within float32"]),
        (lambda: fq.FloatQuant(False, *float_parts("e2m1")[1:]), ["signed=False", "signed=True"]),
    ],
)
def test_illegal_arguments(build, says):
    with pytest.raises(QuantConfigError) as error:
        build()
    for part in says:
        assert part in str(error.value)
