import pytest
import torch
from grids import assert_on_grid, code_bounds, grids, make, random_codes, seeds
from hypothesis import given
from hypothesis import strategies as st

from brevitas.errors import QuantMetadataError
from brevitas.quant_tensor import QuantTensor, Source


@given(grids(widths=(1, 16)))
def test_int_gives_back_the_codes(grid):
    codes = grid.qt.int()
    assert codes.dtype == torch.int32
    assert torch.equal(codes, grid.codes.int())
    assert torch.equal(grid.qt.int(float_datatype=True), grid.codes.float())
    assert_on_grid(grid.qt)


@given(grids(dtype=torch.float64, widths=(1, 20)))
def test_int_in_double_precision(grid):
    codes = grid.qt.int(float_datatype=True)
    assert codes.dtype == torch.float64 and torch.equal(codes, grid.codes.double())


def test_float_codes_of_half_precision_are_float32():
    qt = QuantTensor(torch.tensor([0.5, -1.0], dtype=torch.float16), 0.5, 0, 4, True)
    assert qt.int(float_datatype=True).dtype == torch.float32
    assert qt.int().tolist() == [1, -2]


def test_float_codes_pass_the_gradient_straight_through():
    value = torch.tensor([0.5, -1.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    zero_point = torch.tensor(3.0, requires_grad=True)
    QuantTensor(value, scale, zero_point, 4, True).int(float_datatype=True).backward(torch.tensor([1.0, 10.0]))
    # q = round(v / s + z): dq/dv = 1/s, dq/ds = -v/s^2, dq/dz = 1.
    assert value.grad.tolist() == [2.0, 20.0]
    assert scale.grad.item() == pytest.approx(-(1.0 * 0.5 + 10.0 * -1.0) / 0.25)
    assert zero_point.grad.item() == 11.0


def test_one_signed_bit_is_bipolar():
    assert make(torch.tensor([1, -1]), 0.3, bit_width=1).int().tolist() == [1, -1]
    assert not make(torch.tensor([1, 0]), 0.3, bit_width=1).is_valid
    assert make(torch.tensor([1, 0]), 0.3, bit_width=1, signed=False).is_valid


@pytest.mark.parametrize(
    ("bit_width", "signed", "inside", "outside"),
    [
        (4, True, (-8, 7), (-9, 8)),
        (4, False, (0, 15), (-1, 16)),
        (1, True, (-1, 1), (-2, 2)),
        (1, False, (0, 1), (-1, 2)),
    ],
)
def test_codes_must_be_in_range(bit_width, signed, inside, outside):
    for code in inside:
        assert make(torch.tensor([code]), 0.25, bit_width=bit_width, signed=signed).is_valid
    for code in outside:
        assert not make(torch.tensor([code]), 0.25, bit_width=bit_width, signed=signed).is_valid


def test_the_zero_point_takes_part_in_the_range():
    assert make(torch.tensor([0, 255]), 0.1, zero_point=128, signed=False).is_valid
    assert not QuantTensor(torch.tensor([-1.0]), 0.1, 3, 8, False).is_valid


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.05])
def test_values_off_the_grid_are_not_valid(bad):
    assert not QuantTensor(torch.tensor([0.1, bad]), 0.1, 0, 8, True).is_valid


@given(st.floats(0.0, 0.49), seeds)
def test_tolerance_of_small_codes_is_a_fifth_of_a_step(offset, seed):
    codes = random_codes(seed, (8,), 8, True).double()
    qt = QuantTensor(codes + offset, 1, 0, 9, True)
    if abs(offset - 0.2) > 1e-9:
        assert qt.is_valid == (offset < 0.2)


def test_tolerance_grows_with_the_codes_and_the_fan_in():
    # Codes of 2^20 allow 2^-22 * 2^20 = 0.25, which is above the constant 0.2.
    position = torch.tensor([2.0**20 + 0.24, 2.0**20 + 0.26], dtype=torch.float64)
    assert QuantTensor(position[:1], 1, 0, 24, True).is_valid
    assert not QuantTensor(position[1:], 1, 0, 24, True).is_valid
    off = torch.tensor([2.0**18 + 0.24], dtype=torch.float64)  # 2^-22 * 2^18 = 1/16, times sqrt(16) = 1/4
    assert not QuantTensor(off, 1, 0, 24, True, source=Source.derived("conv", fan_in=4)).is_valid
    assert QuantTensor(off, 1, 0, 24, True, source=Source.derived("conv", fan_in=16)).is_valid


def test_an_empty_tensor_is_valid():
    qt = QuantTensor(torch.empty(0, 3), 0.1, 0, 8, True)
    assert qt.is_valid and qt.int().shape == (0, 3)


def test_int_of_an_invalid_tensor_says_what_is_wrong():
    source = Source.derived("QuantReLU 'features.2'")
    qt = QuantTensor(torch.tensor([0.1, 0.2, 0.25, 99.0]), 0.1, 0, 4, False, source=source)
    assert not qt.is_valid
    for float_datatype in (False, True):
        with pytest.raises(QuantMetadataError) as caught:
            qt.int(float_datatype)
        message = str(caught.value)
        assert "QuantTensor from QuantReLU 'features.2' is not valid: 2 of 4 elements" in message
        assert "[0, 15] (unsigned, 4 bits)" in message
        assert "The first is 0.25 at (2,), which is 2.49999996 in units of the grid" in message
        assert "delayed" in message and "dropout" in message


def test_int_of_an_invalid_tensor_without_a_source():
    with pytest.raises(QuantMetadataError, match="from an unnamed producer is not valid: 1 of 1 elements"):
        QuantTensor(torch.tensor([0.05]), 0.1, 0, 4, False).int()


def test_codes_beyond_int32():
    qt = QuantTensor(torch.tensor([2.0**31], dtype=torch.float64), 1, 0, 32, False)
    assert qt.is_valid
    with pytest.raises(QuantMetadataError, match=r"magnitude 2147483648 and does not fit int32\. Use int\(float_data"):
        qt.int()
    assert qt.int(float_datatype=True).item() == 2.0**31


@given(grids(channel_dims=(None, 0, 1)), st.floats(-2.0, 2.0))
def test_requantize_moves_to_the_nearest_point(grid, factor):
    qt = grid.qt
    value = qt.value * factor + qt.scale * 0.3
    moved = qt.requantize(value)
    assert_on_grid(moved)
    codes = moved.int(float_datatype=True).double()
    bits = int(qt.bit_width)
    if qt.signed and bits == 1:
        assert torch.equal(codes, torch.where(value >= 0, 1.0, -1.0).double())
    else:
        lo, hi = code_bounds(bits, qt.signed)
        position = value.double() / qt.scale.double() + qt.zero_point.double()
        # Half a step, and what a float32 division may add.
        assert ((codes - position.clamp(lo, hi)).abs() <= 0.5 + 1e-4).all()


@given(grids(channel_dims=(None, 1)))
def test_requantize_keeps_what_is_on_the_grid(grid):
    assert torch.equal(grid.qt.requantize(grid.qt.value).value, grid.qt.value)


def test_requantize_gradient():
    scale = torch.tensor(0.5, requires_grad=True)
    value = torch.tensor([0.6, 99.0, -99.0], requires_grad=True)
    QuantTensor(torch.zeros(1), scale, 0, 4, True).requantize(value).value.backward(torch.tensor([1.0, 10.0, 100.0]))
    assert value.grad.tolist() == [1.0, 10.0, 100.0]
    # round(v/s) - v/s inside; bound - v/s beyond, straight through the clamp.
    expected = (1 - 1.2) + 10 * (7 - 198) + 100 * (-8 + 198)
    assert scale.grad.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_requantize_in_half_precision(dtype):
    qt = QuantTensor(torch.zeros(3, dtype=dtype), torch.tensor(0.25), torch.tensor(0.0), torch.tensor(4.0), True)
    moved = qt.requantize(torch.tensor([0.3, -0.4, 9.0], dtype=dtype))
    assert moved.dtype == dtype and moved.value.tolist() == [0.25, -0.5, 1.75]


def test_checks():
    a, b = (
        make(torch.tensor([1]), 0.5, source=Source.derived("left")),
        make(torch.tensor([1]), 0.25, source=Source.derived("right")),
    )
    a.check_scaling_factors_same(a.clone())
    with pytest.raises(QuantMetadataError, match=r"different scales: 0\.5 from left, and 0\.25 from right"):
        a.check_scaling_factors_same(b)
    a.check_zero_points_same(b)
    with pytest.raises(QuantMetadataError, match="different zero points: 0 from left, and 1 from a"):
        a.check_zero_points_same(a.set(zero_point=1))
    a.check_bit_width_same(b)
    with pytest.raises(QuantMetadataError, match="different bit widths: 8 from left, and 4"):
        a.check_bit_width_same(a.set(bit_width=4))
    a.check_sign_same(b)
    with pytest.raises(QuantMetadataError, match="one is not: signed from left, and unsigned from an"):
        a.check_sign_same(a.set(signed=False))
    QuantTensor.check_input_type(a)
    with pytest.raises(QuantMetadataError, match="Expected a QuantTensor, got Tensor"):
        a.check_input_type(a.value)
    assert a.is_zero_zero_point() is True and a.set(zero_point=1).is_zero_zero_point() is False


def test_scales_agree_to_one_in_a_hundred_thousand():
    a = make(torch.tensor([1]), 0.5)
    a.check_scaling_factors_same(a.set(scale=0.5 * (1 + 0.5e-5)))
    with pytest.raises(QuantMetadataError):
        a.check_scaling_factors_same(a.set(scale=0.5 * (1 + 2e-5)))


# Significant bits of each format, hidden one included.
SIXTEEN_BIT = {torch.float16: 11, torch.bfloat16: 8}


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
@pytest.mark.parametrize("zero_point", [0, 37])
def test_sixteen_bits_tell_every_code_that_they_can(dtype, zero_point):
    """On scales of all mantissas: within the limit each code is read back, and one step beyond none is claimed."""
    limit = 2 ** (SIXTEEN_BIT[dtype] - 1)
    steps = torch.arange(-limit, limit + 1)
    for mantissa in range(limit, 2 * limit, max(limit // 64, 1)):
        scale = torch.tensor(mantissa / limit / 64)
        value = (steps * scale).to(dtype)
        qt = QuantTensor(value, scale, float(zero_point), 16.0, True)
        assert torch.equal(qt.int(), steps.to(torch.int32) + zero_point)
        beyond = QuantTensor(((limit + 1) * scale).to(dtype)[None], scale, float(zero_point), 16.0, True)
        exact = mantissa == limit
        assert beyond.is_valid == exact
        if not exact:
            with pytest.raises(QuantMetadataError, match=rf"codes up to {limit} steps from the zero point apart"):
                beyond.int()


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_sixteen_bits_and_a_power_of_two(dtype):
    limit = 2 ** SIXTEEN_BIT[dtype]
    codes = torch.arange(-limit, limit + 1)
    qt = QuantTensor((codes * 0.125).to(dtype), torch.tensor(0.125), 0.0, 16.0, True)
    assert torch.equal(qt.int(), codes.to(torch.int32))
    assert not QuantTensor(((limit + 2) * qt.scale).to(dtype)[None], qt.scale, 0.0, 16.0, True).is_valid
