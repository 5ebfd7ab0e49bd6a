import itertools
import math

import pytest
import torch
from grids import code_bounds
from hypothesis import given
from hypothesis import strategies as st

from brevitas.quant_tensor import (
    accumulator_bit_width,
    accumulator_range,
    bits_for_range,
    code_range,
    difference_bit_width,
    negated_bit_width,
    product_bit_width,
    product_range,
    sum_bit_width,
)
from brevitas.quant_tensor.bit_width import readable

widths = st.integers(1, 12)


def smallest_width(lo: int, hi: int) -> int:
    """By exact integer arithmetic: the first width whose range holds both. One signed bit is for -1 and +1 only."""
    for bits in itertools.count(2 if lo < 0 else 1):
        if lo >= 0 and hi <= 2**bits - 1:
            return bits
        if lo < 0 and lo >= -(2 ** (bits - 1)) and hi <= 2 ** (bits - 1) - 1:
            return bits
    raise AssertionError


@pytest.mark.parametrize(
    ("bit_width", "signed", "narrow", "shifted", "expected"),
    [
        (8, True, False, False, (-128, 127)),
        (8, True, True, False, (-127, 127)),
        (8, False, False, False, (0, 255)),
        (8, False, True, False, (0, 254)),
        (1, True, False, False, (-1, 1)),
        (1, True, True, False, (-1, 1)),
        (1, False, False, False, (0, 1)),
        (8, False, False, True, (-255, 255)),
        (8, True, True, True, (-254, 254)),
    ],
)
def test_code_range(bit_width, signed, narrow, shifted, expected):
    lo, hi = code_range(torch.tensor(float(bit_width)), signed, narrow, shifted)
    assert (lo.item(), hi.item()) == expected
    assert lo.dtype == hi.dtype == torch.float64


def conv(channels, kernel):
    return channels * math.prod(kernel)


def transposed(channels, kernel, stride, dilation=1):
    return channels * math.prod(math.ceil(k / (stride / math.gcd(stride, dilation))) for k in kernel)


NARROW = {"weight_signed": True, "weight_narrow_range": True}


@pytest.mark.parametrize(
    ("input_bits", "weight_bits", "fan_in", "options", "expected"),
    [
        (8, 8, conv(6, (3, 3)), {"input_signed": False, **NARROW}, 22),
        (4, 4, 10, {"input_signed": False, **NARROW}, 12),
        (8, 8, transposed(4, (3, 3), 2), {"input_signed": False, **NARROW}, 20),
        (8, 8, 64, {"input_signed": True, **NARROW, "bias_range": code_range(8, True)}, 21),
        # 3 * 1 * 7 = 21 needs 6 bits signed; binary inputs and weights: +-9 needs 5.
        (1, 4, 3, {"input_signed": False, **NARROW}, 6),
        (1, 1, 9, {"input_signed": True, "weight_signed": True}, 5),
        # Unsigned everything: 2 * 15 * 15 = 450 needs 9 bits.
        (4, 4, 2, {"input_signed": False, "weight_signed": False}, 9),
        # A shifted unsigned input counts from -15 to 15: 15 * 7 * 2 = 210 needs 9 bits signed.
        (4, 4, 2, {"input_signed": False, "input_shifted": True, **NARROW}, 9),
        # Both shifted: 15 * 15 * 2 = 450 needs 10 bits signed.
        (4, 4, 2, {"input_signed": False, "weight_signed": False, "input_shifted": True, "weight_shifted": True}, 10),
        # A signed bias makes an unsigned accumulator signed: -8 .. 2 * 225 + 7 needs 10 bits.
        (4, 4, 2, {"input_signed": False, "weight_signed": False, "bias_range": code_range(4, True)}, 10),
    ],
)
def test_accumulator_width_by_hand(input_bits, weight_bits, fan_in, options, expected):
    assert fan_in in (54, 10, 16, 64, 3, 9, 2)
    for a, b in ((input_bits, weight_bits), (torch.tensor(float(input_bits)), torch.tensor(float(weight_bits)))):
        width = accumulator_bit_width(a, b, fan_in, **options)
        assert width.item() == expected
        assert width.dtype == torch.float32 and width.dim() == 0


@given(widths, st.booleans(), widths, st.booleans(), st.integers(1, 5000), st.booleans(), st.booleans())
def test_accumulator_width_suffices_and_is_the_smallest(a, a_signed, b, b_signed, fan_in, a_shifted, b_shifted):
    def span(bits, signed, shifted):
        lo, hi = code_bounds(bits, signed)
        return (lo - hi, hi - lo) if shifted else (lo, hi)

    products = [x * y for x in span(a, a_signed, a_shifted) for y in span(b, b_signed, b_shifted)]
    expected = smallest_width(fan_in * min(products), fan_in * max(products))
    width = accumulator_bit_width(
        float(a),
        float(b),
        fan_in,
        input_signed=a_signed,
        weight_signed=b_signed,
        input_shifted=a_shifted,
        weight_shifted=b_shifted,
    )
    assert width.item() == expected


@given(widths, st.booleans(), widths, st.booleans())
def test_widths_of_sums_differences_and_negation(a, a_signed, b, b_signed):
    (lo_a, hi_a), (lo_b, hi_b) = code_bounds(a, a_signed), code_bounds(b, b_signed)
    wide_a, wide_b = torch.tensor(float(a)), torch.tensor(float(b))
    assert sum_bit_width(wide_a, a_signed, wide_b, b_signed).item() == smallest_width(lo_a + lo_b, hi_a + hi_b)
    assert difference_bit_width(wide_a, a_signed, wide_b, b_signed).item() == smallest_width(lo_a - hi_b, hi_a - lo_b)
    assert negated_bit_width(wide_a, a_signed).item() == smallest_width(-hi_a, -lo_a)


def test_product_width_adds_a_bit_for_each_shifted_operand():
    a, b = torch.tensor(8.0), torch.tensor(4.0)
    assert product_bit_width(a, b).item() == 12
    assert product_bit_width(a, b, True, False).item() == 13
    assert product_bit_width(a, b, True, True).item() == 14


def test_product_range_takes_the_extreme_corners():
    lo, hi = product_range(code_range(4, True), code_range(4, True))
    assert (lo.item(), hi.item()) == (-56, 64)


def test_accumulator_range_adds_the_bias():
    lo, hi = accumulator_range(code_range(4, False), code_range(4, True, True), 10, code_range(8, True))
    assert (lo.item(), hi.item()) == (-10 * 15 * 7 - 128, 10 * 15 * 7 + 127)


@pytest.mark.parametrize("power", range(1, 53))
def test_powers_of_two_at_every_magnitude(power):
    exact = torch.tensor(2.0**power, dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.float64)
    assert bits_for_range(zero, exact - 1).item() == power
    assert bits_for_range(zero, exact).item() == power + 1
    assert bits_for_range(-exact, exact - 1).item() == power + 1
    assert bits_for_range(-exact - 1, zero).item() == power + 2


def test_a_width_is_at_least_one_and_two_if_signed():
    zero = torch.zeros(())
    assert bits_for_range(zero, zero).item() == 1
    assert bits_for_range(zero, zero, signed=True).item() == 2
    assert bits_for_range(zero - 1, zero).item() == 2
    assert negated_bit_width(torch.tensor(1.0), False).item() == 2


def test_gradient_is_that_of_the_logarithm():
    # Unsigned times unsigned: b = log2(F (2^a - 1)(2^w - 1) + 1), so db/da = F W 2^a / (F W (2^a - 1) + 1).
    a = torch.tensor(4.0, requires_grad=True)
    w = torch.tensor(3.0, requires_grad=True)
    accumulator_bit_width(a, w, 5, input_signed=False, weight_signed=False).backward()
    weight, inputs = 5 * 7, 5 * 15
    assert a.grad.item() == pytest.approx(weight * 16 / (weight * 15 + 1), rel=1e-6)
    assert w.grad.item() == pytest.approx(inputs * 8 / (inputs * 7 + 1), rel=1e-6)


def test_gradients_are_finite_at_the_smallest_widths():
    for signed in (True, False):
        a = torch.tensor(1.0, requires_grad=True)
        accumulator_bit_width(a, a, 1, input_signed=signed, weight_signed=signed).backward()
        assert math.isfinite(a.grad.item())


def test_a_remembered_width_equals_the_computed_one():
    options = {"input_signed": False, "weight_signed": True, "bias_range": code_range(16, True)}
    learned = torch.tensor(7.0, requires_grad=True)
    computed = accumulator_bit_width(learned, torch.tensor(5.0), 72, **options)
    first = accumulator_bit_width(torch.tensor(7.0), torch.tensor(5.0), 72, **options)
    again = accumulator_bit_width(torch.tensor(7.0), torch.tensor(5.0), 72, **options)
    assert computed.requires_grad and not first.requires_grad
    assert computed.item() == first.item() == again.item()
    assert first is not again  # one caller's in-place change must not reach another


def test_numbers_are_read_only_where_that_loses_nothing():
    seen = []

    def looked_at(a):
        seen.append(readable(a))
        return a * 1.0

    torch.func.grad(looked_at)(torch.tensor(4.0))
    torch.jit.trace(looked_at, (torch.tensor(4.0),), check_trace=False)
    assert seen == [False, False]
    assert not readable(torch.tensor(4.0, requires_grad=True))
    assert not readable(torch.tensor(4.0, device="meta"))
    assert readable(torch.tensor(4.0))
