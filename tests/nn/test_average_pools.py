"""Average pools: exact sums of codes, their grid, truncation, and the windows that have no common grid."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from brevitas.errors import QuantConfigError, QuantMetadataError, UnknownOptionError
from brevitas.nn import (
    QuantAdaptiveAvgPool2d,
    QuantAvgPool2d,
    QuantIdentity,
    TruncAdaptiveAvgPool2d,
    TruncAvgPool2d,
)
from brevitas.quant import Int8ActPerTensorFloat, NoneTruncQuant, RoundTo8bit, TruncTo8bit
from brevitas.quant_tensor import QuantTensor


def on_grid(codes, scale, zero_point=0.0, bits=8, signed=False, dtype=torch.float32):
    codes = torch.as_tensor(codes, dtype=torch.float64)
    scale, zero_point = torch.as_tensor(scale, dtype=dtype), torch.as_tensor(zero_point, dtype=dtype)
    value = (codes.to(torch.promote_types(dtype, torch.float32)) - zero_point) * scale
    return QuantTensor(value.to(dtype), scale, zero_point, bits, signed)


def window_sums(codes, kernel, stride):
    """Sums of integers by numpy."""
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(codes, dtype=np.int64), kernel, axis=(-2, -1))
    return windows[..., :: stride[0], :: stride[1], :, :].sum((-2, -1))


@st.composite
def pooled(draw):
    bits, signed = draw(st.integers(2, 8)), draw(st.booleans())
    kernel = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    stride = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    size = (kernel[0] + draw(st.integers(0, 4)), kernel[1] + draw(st.integers(0, 4)))
    codes = np.random.default_rng(draw(st.integers(0, 10**6))).integers(low, high + 1, (2, 3, *size))
    extreme = draw(st.sampled_from([None, low, high]))
    if extreme is not None:
        codes[:] = extreme
    scale = float(np.float32(draw(st.floats(1e-3, 10.0))))
    zero_point = draw(st.one_of(st.just(0), st.integers(low, high)))
    return codes, scale, zero_point, bits, signed, kernel, stride


@given(pooled())
def test_a_sum_of_codes_lies_exactly_on_its_grid(case):
    codes, scale, zero_point, bits, signed, kernel, stride = case
    y = QuantAvgPool2d(kernel, stride, trunc_quant=None)(on_grid(codes, scale, zero_point, bits, signed))
    size = kernel[0] * kernel[1]
    sums = window_sums(codes, kernel, stride)
    np.testing.assert_array_equal(y.int().numpy(), sums)
    assert y.scale.item() == np.float32(scale) / np.float32(size) and y.zero_point.item() == zero_point * size
    assert torch.equal(y.value, (y.int() - y.zero_point) * y.scale) and y.is_valid and y.signed is signed
    # The width of the formula is the smallest that holds every possible sum.
    extremes = (-size * 2 ** (bits - 1), size * (2 ** (bits - 1) - 1)) if signed else (0, size * (2**bits - 1))
    smallest = (-extremes[0] - 1).bit_length() + 1 if signed else extremes[1].bit_length()
    assert y.bit_width.item() == smallest
    np.testing.assert_allclose(
        y.value.numpy(), (sums / size - zero_point) * np.float32(scale), rtol=1e-6, atol=1e-6 * scale
    )


@given(pooled(), st.sampled_from([(TruncTo8bit, np.floor), (RoundTo8bit, np.round)]), st.integers(2, 8))
def test_truncation_keeps_the_upper_bits_of_the_sum(case, preset, bits_out):
    codes, scale, zero_point, bits, signed, kernel, stride = case
    y = QuantAvgPool2d(kernel, stride, trunc_quant=preset[0], bit_width=bits_out)(
        on_grid(codes, scale, zero_point, bits, signed)
    )
    size = kernel[0] * kernel[1]
    span = size * 2**bits if signed else size * (2**bits - 1) + 1
    width = (span - 1).bit_length()
    shift = 2 ** max(width - bits_out, 0)
    low, high = (-(2 ** (bits_out - 1)), 2 ** (bits_out - 1) - 1) if signed else (0, 2**bits_out - 1)
    new_zero_point = np.clip(np.round(zero_point * size / shift), low, high)
    sums = window_sums(codes, kernel, stride)
    expected = np.clip(preset[1]((sums - zero_point * size) / shift) + new_zero_point, low, high)
    np.testing.assert_array_equal(y.int().numpy(), expected)
    assert y.scale.item() == np.float32(scale) / np.float32(size) * np.float32(shift)
    assert y.zero_point.item() == new_zero_point and y.bit_width.item() == bits_out and y.signed is signed
    assert torch.equal(y.value, (y.int() - y.zero_point) * y.scale)
    if zero_point == 0:
        error = (sums / size * np.float32(scale) - y.value.numpy()) / y.scale.item()
        # Rounding up from the last half step meets the end of the range.
        lowest = 0.0 if preset[0] is TruncTo8bit else -0.5
        assert error.min() >= lowest - 1e-4 and error.max() <= 1.0 + 1e-4


def test_golden_values_of_a_window_of_nine():
    codes = torch.arange(9.0).reshape(1, 1, 3, 3) * 30 + 15  # 15, 45, ..., 255: the sum is 1215, the average 135
    y = QuantAvgPool2d(3)(on_grid(codes, 0.5))
    # 9 * 255 = 2295 needs 12 bits; 4 go, and 1215 // 16 = 75.
    assert y.int().item() == 75 and y.bit_width.item() == 8
    assert y.scale.item() == np.float32(0.5) / np.float32(9) * 16
    assert y.value.item() == pytest.approx(75 * 16 / 9 * 0.5)
    assert 0 <= 135 * 0.5 - y.value.item() < y.scale.item()


def test_binary_codes_are_counted_with_their_largest_sum():
    codes = torch.ones(1, 1, 2, 2)
    for sign in (1, -1):
        y = QuantAvgPool2d(2, trunc_quant=None)(on_grid(sign * codes, 0.5, bits=1, signed=True))
        assert y.int().item() == sign * 4 and y.bit_width.item() == 4  # 3 bits end at +3
        assert y.value.item() == sign * 0.5


def test_large_windows_are_summed_exactly_where_float_averages_are_not():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (1, 8, 128, 128), generator=generator)
    scale = 0.0173
    x = on_grid(codes, scale)
    y = QuantAdaptiveAvgPool2d(1, trunc_quant=None)(x)
    sums = codes.sum((-2, -1))
    assert torch.equal(y.int().flatten(), sums.flatten().int())
    assert torch.equal(y.value, (y.int() - y.zero_point) * y.scale)
    naive = (F.adaptive_avg_pool2d(x.value, 1) / y.scale).flatten()
    assert not torch.equal(naive, sums.flatten().float())


def test_scales_per_channel_stay_per_channel():
    codes = torch.randint(0, 16, (2, 3, 4, 4), generator=torch.Generator().manual_seed(1))
    scale = torch.tensor([0.1, 0.2, 0.7]).reshape(1, 3, 1, 1)
    y = QuantAvgPool2d(2)(on_grid(codes, scale, bits=4))
    assert torch.equal(y.scale, scale / 4) and y.bit_width.item() == 8
    np.testing.assert_array_equal(y.int().numpy(), window_sums(codes, (2, 2), (2, 2)))
    unbatched = QuantAvgPool2d(2)(on_grid(codes[0], scale[0], bits=4))
    assert torch.equal(unbatched.value, y.value[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    codes = torch.randint(-8, 8, (1, 2, 4, 4), generator=torch.Generator().manual_seed(2))
    x = on_grid(codes, 0.25, bits=4, signed=True, dtype=dtype)
    y = QuantAvgPool2d(2, dtype=dtype)(x)
    assert y.value.dtype == dtype
    np.testing.assert_array_equal(y.int().numpy(), window_sums(codes, (2, 2), (2, 2)))


@pytest.mark.parametrize(
    ("quantized", "float_pool"),
    [
        (lambda: QuantAvgPool2d(3, 2, trunc_quant=None), nn.AvgPool2d(3, 2)),
        (lambda: QuantAvgPool2d((2, 3), trunc_quant=NoneTruncQuant), nn.AvgPool2d((2, 3))),
        (lambda: QuantAdaptiveAvgPool2d((3, 2), trunc_quant=None), nn.AdaptiveAvgPool2d((3, 2))),
        (lambda: QuantAdaptiveAvgPool2d((None, 5), trunc_quant=None), nn.AdaptiveAvgPool2d((None, 5))),
    ],
)
def test_without_a_quantizer_a_plain_tensor_is_pooled_as_by_torch(quantized, float_pool):
    layer = quantized()
    x = torch.randn(2, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    assert torch.equal(layer(x), float_pool(x)) and isinstance(layer, type(float_pool))
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize("trunc_quant", [None, TruncTo8bit])
def test_the_gradient_is_that_of_an_average_pool(trunc_quant):
    codes = torch.randint(0, 256, (1, 2, 6, 6), generator=torch.Generator().manual_seed(3))
    value = (codes * 0.02).requires_grad_()
    scale = torch.tensor(0.02, requires_grad=True)
    y = QuantAvgPool2d(3, trunc_quant=trunc_quant)(QuantTensor(value, scale, 0.0, 8, False))
    weights = torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(4))
    (y.value * weights).sum().backward()
    expected = torch.autograd.grad((F.avg_pool2d(value, 3) * weights).sum(), value)[0]
    torch.testing.assert_close(value.grad, expected)
    if trunc_quant is None:
        # The value carries the whole gradient; the scale has no other effect on values that lie on the grid.
        torch.testing.assert_close(scale.grad, torch.tensor(0.0), atol=1e-3, rtol=0)


def test_behind_a_quantizer_the_gradient_reaches_what_it_has_learned():
    model = nn.Sequential(QuantIdentity(Int8ActPerTensorFloat, return_quant_tensor=True), QuantAvgPool2d(2))
    x = torch.randn(2, 3, 4, 4)
    for _ in range(2):
        model(x)
    model[0].act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.counter.fill_(10**6)
    model(x).value.square().sum().backward()
    (threshold,) = model.parameters()
    assert threshold.grad.isfinite().all() and threshold.grad != 0


def test_adaptive_windows_are_remembered():
    pool = QuantAdaptiveAvgPool2d((2, None))
    assert pool.kernel_size is None and pool.stride is None
    y = pool(on_grid(torch.full((1, 1, 6, 5), 7), 1.0))
    assert y.shape == (1, 1, 2, 5) and pool.kernel_size == pool.stride == (3, 1)
    pool.eval()(on_grid(torch.full((1, 1, 4, 5), 7), 1.0))
    assert pool.kernel_size == (2, 1)
    off = QuantAdaptiveAvgPool2d(2, cache_kernel_size_stride=False)
    off(on_grid(torch.full((1, 1, 4, 4), 7), 1.0))
    assert off.kernel_size is None
    assert pickle.loads(pickle.dumps(pool)).kernel_size == (2, 1) and list(pool.state_dict()) == []


def test_the_later_names_are_the_same_classes():
    assert TruncAvgPool2d is QuantAvgPool2d and TruncAdaptiveAvgPool2d is QuantAdaptiveAvgPool2d


def test_getters_know_the_truncation_and_what_the_last_forward_left():
    pool = QuantAvgPool2d(2, bit_width=5)
    assert pool.is_trunc_quant_enabled and pool.is_output_quant_enabled and not pool.is_input_quant_enabled
    assert pool.quant_output_bit_width().item() == 5
    assert pool.quant_output_scale() is None and pool.is_quant_output_signed is None
    pool.cache_inference_quant_inp = pool.cache_inference_quant_out = True
    pool.eval()(on_grid(torch.full((1, 1, 2, 2), 200), 1.0))
    assert pool.quant_output_scale().item() == 8.0 and pool.is_quant_output_signed is False  # 10 bits -> 5: 2^5 / 4
    assert pool.quant_output_zero_point().item() == 0 and pool.is_quant_output_narrow_range is False
    assert pool.quant_input_scale().item() == 1.0 and pool.quant_input_bit_width().item() == 8
    off = QuantAvgPool2d(2, trunc_quant=None)
    assert not off.is_trunc_quant_enabled and off.quant_output_bit_width() is None


@pytest.mark.parametrize("wanted", [None, True, False])
def test_the_output_follows_the_input(wanted):
    x = on_grid(torch.full((1, 1, 2, 2), 200), 1.0)
    y = QuantAvgPool2d(2, return_quant_tensor=wanted)(x)
    assert isinstance(y, QuantTensor) == (wanted is not False) and float(y) == 200.0
    pool = QuantAvgPool2d(2, trunc_quant=None, return_quant_tensor=wanted)
    if wanted:
        with pytest.raises(QuantMetadataError, match="return_quant_tensor=True needs a QuantTensor.*outside quantized"):
            pool(x.value)
    else:
        assert type(pool(x.value)) is torch.Tensor


def test_a_plain_tensor_has_no_codes_to_truncate():
    model = nn.Sequential(QuantIdentity(), nn.Sequential(QuantAvgPool2d(2)))
    with pytest.raises(QuantMetadataError) as error:
        model(torch.randn(1, 1, 4, 4))
    text = str(error.value)
    assert "QuantAvgPool2d '1.0': TruncTo8bit takes bits off integers" in text
    assert "QuantIdentity '0' (return_quant_tensor=False)" in text and "set return_quant_tensor=True on '0'" in text


def test_unequal_windows_have_no_common_grid():
    model = nn.Sequential(QuantAdaptiveAvgPool2d((3, 2)))
    with pytest.raises(QuantMetadataError, match="'0'.* size 7x4 cannot be divided into 3x2 equal windows.*multiple"):
        model(on_grid(torch.ones(1, 1, 7, 4), 1.0))
    assert model[0].kernel_size is None
    with pytest.raises(QuantMetadataError, match="2x2 cannot be divided into 3x2"):
        model(on_grid(torch.ones(1, 1, 2, 2), 1.0))


def test_a_scale_that_varies_within_a_window_is_refused():
    scale = torch.tensor([0.1, 0.2]).reshape(1, 1, 1, 2)
    with pytest.raises(QuantMetadataError, match=r"scale of shape \(1, 1, 1, 2\).*per tensor or channel"):
        QuantAvgPool2d(2)(on_grid(torch.ones(1, 1, 2, 2), scale))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: QuantAvgPool2d(2, padding=1), UnknownOptionError, "'padding' = 1 .*full window.*functional.pad"),
        (lambda: QuantAvgPool2d(2, ceil_mode=True), UnknownOptionError, "'ceil_mode' = True"),
        (lambda: QuantAvgPool2d(2, bit_widht=4), UnknownOptionError, "bit_width"),
        (lambda: QuantAvgPool2d(2, trunc_quant=None, bit_width=4), QuantConfigError, "bit_width"),
        (lambda: QuantAvgPool2d(2, trunc_quant=Int8ActPerTensorFloat), QuantConfigError, "role 'act'.*role 'trunc'"),
        (lambda: QuantAvgPool2d(2, return_quant_tensor=1), QuantConfigError, "expected True, False or None"),
        (lambda: QuantAdaptiveAvgPool2d(2, TruncTo8bit), QuantConfigError, "cache_kernel_size_stride.*True or False"),
    ],
)
def test_bad_arguments(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_results_of_one_shared_truncation_with_different_scales_are_not_added():
    trunc = QuantAvgPool2d(2).trunc_quant
    pool, other = QuantAvgPool2d(2, trunc_quant=trunc), QuantAvgPool2d(2, trunc_quant=trunc)
    codes = torch.full((1, 1, 2, 2), 200)
    same = pool(on_grid(codes, 1.0)) + other(on_grid(codes, 1.0))
    assert same.value.item() == 400.0
    with pytest.raises(QuantMetadataError, match="different scales"):
        pool(on_grid(codes, 1.0)) + other(on_grid(codes, 2.0))
