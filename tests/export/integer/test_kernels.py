"""Kernels against torch in float64, where integers are exact."""

from fractions import Fraction
from math import ceil, floor, trunc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_graphs import sum_of_products

from brevitas.export.integer.kernels import KERNELS, by_row, multiplied


def run(op, xs, shape, attributes=None, **arrays):
    return KERNELS[op]([np.asarray(x)[:, None] for x in xs], (1, *shape), attributes or {}, arrays)[:, 0]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), spatial=st.integers(1, 3), group=st.integers(1, 3))
def test_conv(seed, spatial, group):
    rng = np.random.default_rng(seed)
    c, m = group * int(rng.integers(1, 3)), group * int(rng.integers(1, 3))
    kernel, strides, dilations, pads = (
        rng.integers(a, b, spatial).tolist() for a, b in ((1, 4), (1, 4), (1, 3), (0, 3))
    )
    x = rng.integers(-9, 9, (2, c, *rng.integers(5, 8, spatial)))
    w, bias = rng.integers(-9, 9, (m, c // group, *kernel)), rng.integers(-50, 50, m)
    expected = sum_of_products(x - 3, w, stride=strides, padding=pads, dilation=dilations, groups=group)
    a = {"strides": strides, "dilations": dilations, "begins": pads, "upsample": [1] * spatial, "group": group}
    y = run("conv", [x], expected.shape[1:], a, weight=w, zero=np.int64(3), bias=bias)
    assert y.dtype == np.int64
    assert np.array_equal(y, expected + bias.reshape(-1, *(1,) * spatial))


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_max_pool(ceil_mode):
    x = np.random.default_rng(0).integers(-99, -1, (3, 4, 9, 7))
    expected = F.max_pool2d(torch.from_numpy(x).double(), 3, 2, padding=1, dilation=2, ceil_mode=ceil_mode).numpy()
    a = {"kernel": [3, 3], "strides": [2, 2], "dilations": [2, 2], "begins": [1, 1]}
    assert np.array_equal(run("max_pool", [x], expected.shape[1:], a), expected)
    sign = np.array([1, -1, 1, -1]).reshape(1, 4, 1, 1)
    least = -F.max_pool2d(-torch.from_numpy(x).double(), 3, 2, padding=1, dilation=2, ceil_mode=ceil_mode).numpy()
    both = run("max_pool", [x], expected.shape[1:], a, sign=sign)
    assert np.array_equal(both[:, ::2], expected[:, ::2]) and np.array_equal(both[:, 1::2], least[:, 1::2])


def test_sum_pool_and_sum():
    x = np.random.default_rng(0).integers(-99, 99, (3, 4, 8, 6))
    expected = F.avg_pool2d(torch.from_numpy(x - 5).double(), (3, 2), 2, padding=1, divisor_override=1).numpy()
    a = {"kernel": [3, 2], "strides": [2, 2], "dilations": [1, 1], "begins": [1, 1]}
    assert np.array_equal(run("sum_pool", [x], expected.shape[1:], a, zero=np.int64(5)), expected)
    sums = run("sum", [x], (4, 1, 6), {"outer": 4, "reduce": 8, "inner": 6}, zero=np.int64(5))
    assert np.array_equal(sums[:, :, 0], (x - 5).sum(2))


def test_matmul_add_mul_relu():
    rng = np.random.default_rng(0)
    x, y, w = rng.integers(-9, 9, (2, 3, 4, 5)), rng.integers(-9, 9, (2, 3, 5, 2)), rng.integers(-9, 9, (5, 6))
    z, two = np.int64(2), np.int64(-2)
    assert np.array_equal(
        run("matmul", [x], (3, 4, 6), weight=w, zero=z, bias=np.arange(6)), (x - 2) @ w + np.arange(6)
    )
    assert np.array_equal(run("matmul", [x, y], (3, 4, 2), zero=z, zero_y=two), (x - 2) @ (y + 2))
    other = rng.integers(-9, 9, (1, 3, 1, 1))
    a = {"factor": 4, "factor_y": -1}
    assert np.array_equal(run("add", [x, x[:, :1]], x.shape[1:], a, zero=z), 4 * (x - 2) - x[:, :1])
    assert np.array_equal(run("add", [x], x.shape[1:], a, other=other), 4 * x - other)
    assert np.array_equal(run("mul", [x, x], x.shape[1:], zero=z), (x - 2) * x)
    assert np.array_equal(run("relu", [x], x.shape[1:], zero=z), np.maximum(x, 2))


def test_gather_fills_what_comes_from_nowhere():
    x, y = np.arange(6).reshape(1, 2, 3), np.arange(10, 12).reshape(1, 2)
    table = np.array([5, -1, 6, 0])
    assert run("gather", [x, y], (4,), {"fill": 7}, table=table).tolist() == [[5, 7, 10, 0]]
    assert run("reshape", [x], (3, 2)).tolist() == [[[0, 1], [2, 3], [4, 5]]]


def test_threshold_counts_and_a_negative_sign_counts_backwards():
    x = np.arange(-4, 5).reshape(1, 9)
    a, t = {"low": -1, "step": 1}, np.array([[-2, 0, 3]])
    for sign, expected in ((1, [-1, -1, 0, 0, 1, 1, 1, 2, 2]), (-1, [2, 2, 1, 1, 1, 0, 0, -1, -1])):
        arrays = {"thresholds": t, "rows": np.zeros((1, 1), np.int64), "sign": np.array([sign])}
        assert run("threshold", [x], (9,), a, **arrays).tolist() == [expected]


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 1), (1, 3, 4), (1, 1, 4)])
def test_rows_are_found_wherever_they_vary(shape):
    rows = np.random.default_rng(1).integers(0, 3, shape)
    x = np.arange(24).reshape(2, 1, 3, 4)
    y = by_row(x, rows, lambda values, row: values * 10 + row)
    assert np.array_equal(y, x * 10 + np.broadcast_to(rows, (1, 3, 4)))


@given(
    st.lists(st.integers(-(2**31), 2**31), min_size=1),
    st.integers(-(2**31) + 1, 2**31 - 1),
    st.integers(1, 61),
    st.integers(-(2**60), 2**60),
)
def test_multiplied_rounds_as_fractions_do(x, multiplier, shift, offset):
    exact = [Fraction(v * multiplier + offset, 2**shift) for v in x]
    if any(abs(e * 2**shift) >= 2**62 for e in exact):
        return
    for mode, function in (("ROUND", round), ("CEIL", ceil), ("FLOOR", floor), ("DOWN", trunc)):
        assert multiplied(np.asarray(x), multiplier, shift, offset, mode).tolist() == [function(e) for e in exact]
