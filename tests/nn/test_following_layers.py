"""Layers that hand the grid of their input on: max pools, dropout, upsampling; and those that take bits off it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from brevitas.errors import QuantConfigError, QuantMetadataError, UnknownOptionError
from brevitas.nn import (
    ClampQuantAccumulator,
    QuantConv2d,
    QuantDropout,
    QuantIdentity,
    QuantMaxPool1d,
    QuantMaxPool2d,
    QuantMaxPool3d,
    QuantReLU,
    QuantUpsample,
    QuantUpsamplingBilinear2d,
    QuantUpsamplingNearest2d,
    TruncQuantAccumulator,
)
from brevitas.quant import Int8ActPerTensorFloat, RoundTo8bit, TruncTo8bit
from brevitas.quant.base import IntQuant
from brevitas.quant.solver import ClampQuantSolver
from brevitas.quant_tensor import QuantTensor


class Drop(IntQuant, ClampQuantSolver):
    bit_width_to_remove = 4


def random_codes(*shape, bits=4, signed=True, seed=0):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).float()


def on_grid(codes, scale=0.3, zero_point=0.0, bits=4, signed=True):
    scale, zero_point = torch.as_tensor(scale), torch.as_tensor(zero_point)
    return QuantTensor((codes - zero_point) * scale, scale, zero_point, bits, signed)


COUNTERPARTS = [
    (lambda **kw: QuantMaxPool1d(2, **kw), nn.MaxPool1d(2), (2, 3, 8)),
    (lambda **kw: QuantMaxPool1d(3, 2, 1, 2, ceil_mode=True, **kw), nn.MaxPool1d(3, 2, 1, 2, ceil_mode=True), (3, 9)),
    (lambda **kw: QuantMaxPool2d(3, stride=2, padding=1, **kw), nn.MaxPool2d(3, 2, 1), (2, 3, 6, 7)),
    (lambda **kw: QuantMaxPool2d((2, 1), **kw), nn.MaxPool2d((2, 1)), (3, 6, 7)),
    (lambda **kw: QuantMaxPool3d(2, **kw), nn.MaxPool3d(2), (1, 2, 4, 4, 4)),
    (lambda **kw: QuantDropout(0.3, **kw).eval(), nn.Dropout(0.3).eval(), (5, 6)),
    (lambda **kw: QuantUpsample(scale_factor=2, **kw), nn.Upsample(scale_factor=2), (1, 2, 3)),
    (lambda **kw: QuantUpsample(size=(5, 7), mode="nearest-exact", **kw), nn.Upsample((5, 7), mode="nearest-exact"),
     (1, 2, 3, 3)),
    (lambda **kw: QuantUpsamplingNearest2d(scale_factor=2, **kw), nn.UpsamplingNearest2d(scale_factor=2), (1, 2, 3, 3)),
]  # fmt: skip
SMOOTH = [
    (lambda **kw: QuantUpsample(5, mode="linear", **kw), nn.Upsample(5, mode="linear"), (1, 2, 3)),
    (lambda **kw: QuantUpsample(scale_factor=2, mode="bicubic", align_corners=True, **kw),
     nn.Upsample(scale_factor=2, mode="bicubic", align_corners=True), (2, 3, 4, 4)),
    (lambda **kw: QuantUpsample(scale_factor=1.5, mode="trilinear", **kw), nn.Upsample(scale_factor=1.5,
     mode="trilinear"), (1, 1, 2, 4, 4)),
    (lambda **kw: QuantUpsamplingBilinear2d(scale_factor=3, **kw), nn.UpsamplingBilinear2d(scale_factor=3),
     (1, 2, 3, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("build", "counterpart", "shape"), COUNTERPARTS + SMOOTH)
def test_a_plain_tensor_is_treated_as_by_torch(build, counterpart, shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    layer = build()
    assert isinstance(layer, type(counterpart)) and torch.equal(layer(x), counterpart(x))
    assert type(layer(x)) is torch.Tensor and torch.autograd.gradcheck(layer, (x,))
    assert list(layer.state_dict()) == [] and build(device="cpu", dtype=torch.float16)


@pytest.mark.parametrize(("build", "counterpart", "shape"), COUNTERPARTS)
def test_the_grid_of_the_input_stays(build, counterpart, shape):
    x = on_grid(random_codes(*shape), zero_point=2.0)
    y = build()(x)
    assert torch.equal(y.value, counterpart(x.value)) and y.is_valid
    assert torch.equal(y.value, (y.int() - y.zero_point) * y.scale)
    assert y.scale is x.scale and y.zero_point is x.zero_point and y.bit_width is x.bit_width and y.signed == x.signed


@pytest.mark.parametrize(("build", "counterpart", "shape"), SMOOTH)
def test_interpolated_values_go_to_the_nearest_points_of_the_grid(build, counterpart, shape):
    x = on_grid(random_codes(*shape), zero_point=2.0)
    y = build()(x)
    between = (counterpart(x.value) / x.scale + 2.0).double().numpy()
    clear = abs(between - np.floor(between) - 0.5) > 1e-4  # away from ties, which float noise decides
    expected = np.clip(np.round(between), -8, 7)
    np.testing.assert_array_equal(y.int().numpy()[clear], expected[clear])
    assert torch.equal(y.value, (y.int() - y.zero_point) * y.scale) and y.is_valid
    assert torch.equal(y.scale, x.scale) and y.bit_width.item() == 4 and y.signed


def test_bicubic_overshoot_is_clamped_to_the_range():
    x = on_grid(torch.tensor([0.0, 0.0, 7.0, 7.0, 0.0, 0.0]).expand(1, 1, 6, 6), scale=1.0, bits=3, signed=False)
    assert F.interpolate(x.value, scale_factor=4, mode="bicubic").max() > 7.0
    y = QuantUpsample(scale_factor=4, mode="bicubic")(x)
    assert y.int().max() == 7 and y.int().min() == 0 and y.is_valid


def test_the_gradient_of_interpolation_passes_the_rounding():
    value = (random_codes(1, 1, 3, 3) * 0.3).requires_grad_()
    weights = torch.randn(1, 1, 6, 6)
    y = QuantUpsamplingBilinear2d(scale_factor=2)(QuantTensor(value, 0.3, 0.0, 4, True))
    (y.value * weights).sum().backward()
    reference = nn.UpsamplingBilinear2d(scale_factor=2)
    expected = torch.autograd.grad((reference(value) * weights).sum(), value)[0]
    torch.testing.assert_close(value.grad, expected)


def test_scales_per_channel_are_kept_and_others_refused():
    scale = torch.tensor([0.1, 0.4]).reshape(1, 2, 1, 1)
    x = on_grid(random_codes(1, 2, 4, 4), scale)
    for layer in (QuantMaxPool2d(2), QuantUpsamplingBilinear2d(scale_factor=2), QuantUpsamplingNearest2d(8)):
        y = layer(x)
        assert torch.equal(y.scale, scale) and y.is_valid
    varying = on_grid(random_codes(1, 1, 2, 2), torch.tensor([0.1, 0.4]))
    with pytest.raises(QuantMetadataError, match=r"scale of shape \(2,\)"):
        QuantUpsamplingBilinear2d(scale_factor=2)(varying)
    assert type(QuantMaxPool2d(2)(varying)) is torch.Tensor
    with pytest.raises(QuantMetadataError, match="one grid for all elements that become one"):
        QuantMaxPool2d(2, return_quant_tensor=True)(varying)


def test_indices_come_with_the_grid():
    x = on_grid(random_codes(1, 2, 4, 4))
    y, indices = QuantMaxPool2d(2, return_indices=True)(x)
    expected, where = F.max_pool2d(x.value, 2, return_indices=True)
    assert isinstance(y, QuantTensor) and torch.equal(y.value, expected) and torch.equal(indices, where)
    plain, _ = QuantMaxPool2d(2, return_indices=True, return_quant_tensor=False)(x)
    assert type(plain) is torch.Tensor


def test_dropout_scales_what_remains_and_keeps_the_metadata():
    x = on_grid(torch.full((1000,), 4.0))
    layer = QuantDropout(0.25)
    y = layer(x)
    kept = y.value != 0
    assert 650 < int(kept.sum()) < 850 and not y.is_valid
    torch.testing.assert_close(y.value[kept], x.value[kept] / 0.75)
    assert y.scale is x.scale and y.bit_width is x.bit_width
    assert torch.equal(layer.eval()(x).value, x.value)
    inplace = QuantDropout(0.25, inplace=True)
    before = x.value.clone()
    inplace(x)
    assert torch.equal(x.value, before)


ALL = [*COUNTERPARTS, *SMOOTH, (lambda **kw: TruncQuantAccumulator(**kw), None, (3,)),
       (lambda **kw: ClampQuantAccumulator(**kw), None, (3,))]  # fmt: skip


@pytest.mark.parametrize(("build", "counterpart", "shape"), ALL)
def test_what_is_returned(build, counterpart, shape):
    x = on_grid(random_codes(*shape))
    assert isinstance(build()(x), QuantTensor) and isinstance(build(return_quant_tensor=True)(x), QuantTensor)
    assert type(build(return_quant_tensor=False)(x)) is torch.Tensor
    assert type(build()(x.value)) is torch.Tensor
    model = nn.Sequential(QuantReLU(), build(return_quant_tensor=True))
    with pytest.raises(QuantMetadataError) as error:
        model(x.value)
    text = str(error.value)
    assert "'1': return_quant_tensor=True needs a QuantTensor" in text and "QuantReLU '0'" in text
    with pytest.raises(QuantConfigError, match="return_quant_tensor = 'yes' .*expected True, False or None"):
        build(return_quant_tensor="yes")


def test_getters_know_what_the_last_eval_forward_left():
    layer = QuantMaxPool2d(2)
    layer.cache_inference_quant_inp = layer.cache_inference_quant_out = True
    assert layer.quant_input_scale() is None and layer.is_quant_output_signed is None
    assert not layer.is_input_quant_enabled and not layer.is_output_quant_enabled
    layer(on_grid(random_codes(1, 1, 2, 2)))
    assert layer.quant_output_scale() is None  # training fills no cache
    layer.eval()(on_grid(random_codes(1, 1, 2, 2), zero_point=1.0))
    assert layer.quant_input_scale().item() == pytest.approx(0.3) and layer.quant_output_bit_width().item() == 4
    assert layer.quant_output_zero_point().item() == 1.0 and layer.is_quant_output_signed is True


# Accumulators


def accumulator(bits, signed, scale=0.05):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    codes = torch.linspace(low, high, 301).round()
    return on_grid(codes, scale, bits=bits, signed=signed), codes.numpy().astype(np.float64)


@given(
    st.integers(8, 20), st.integers(2, 8), st.booleans(),
    st.sampled_from([(TruncTo8bit, np.floor), (RoundTo8bit, np.round)]),
)  # fmt: skip
def test_truncation_of_an_accumulator(bits, bits_out, signed, preset):
    x, codes = accumulator(bits, signed)
    y = TruncQuantAccumulator(preset[0], bit_width=bits_out)(x)
    shift = 2.0 ** (bits - bits_out)
    low, high = (-(2 ** (bits_out - 1)), 2 ** (bits_out - 1) - 1) if signed else (0, 2**bits_out - 1)
    np.testing.assert_array_equal(y.int().numpy(), np.clip(preset[1](codes / shift), low, high))
    assert y.scale.item() == np.float32(0.05) * np.float32(shift) and y.bit_width.item() == bits_out
    assert torch.equal(y.value, y.int() * y.scale) and y.signed is signed


@given(st.integers(2, 20), st.integers(0, 10), st.booleans())
def test_clamping_of_an_accumulator(bits, remove, signed):
    x, codes = accumulator(bits, signed)
    y = ClampQuantAccumulator(Drop, bit_width_to_remove=remove, signed=signed)(x)
    left = max(bits - remove, 2)
    low, high = (-(2 ** (left - 1)), 2 ** (left - 1) - 1) if signed else (0, 2**left - 1)
    np.testing.assert_array_equal(y.int().numpy(), np.clip(codes, low, high))
    assert torch.equal(y.scale, x.scale) and y.bit_width.item() == left and torch.equal(y.value, y.int() * y.scale)


def test_gradients_of_accumulators():
    x = torch.tensor([100.0, -120.0, 5.0], requires_grad=True)
    ClampQuantAccumulator(Drop)(QuantTensor(x, 1.0, 0.0, 8, True)).value.sum().backward()
    assert x.grad.tolist() == [0.0, 0.0, 1.0]
    x = torch.tensor([100.0, -120.0, 5.0], requires_grad=True)
    TruncQuantAccumulator(TruncTo8bit, bit_width=4)(QuantTensor(x, 1.0, 0.0, 8, True)).value.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


def test_a_learned_number_of_bits_is_trained():
    layer = ClampQuantAccumulator(Drop, bit_width_impl_type="parameter", return_quant_tensor=True)
    x, _ = accumulator(12, True)
    assert layer(x).bit_width.item() == 8
    layer(x).value.square().sum().backward()
    (learned,) = layer.parameters()
    assert learned.grad.isfinite() and learned.grad != 0


def test_an_accumulator_of_a_convolution_is_truncated():
    model = nn.Sequential(
        QuantIdentity(bit_width=4, return_quant_tensor=True),
        QuantConv2d(2, 3, 3, bias=False, weight_bit_width=4, return_quant_tensor=True),
        TruncQuantAccumulator(TruncTo8bit),
    )
    x = torch.randn(1, 2, 6, 6)
    model(x)
    model.eval()
    sums = model[:2](x)
    y = model(x)
    shift = 2 ** (int(sums.bit_width) - 8)
    assert torch.equal(y.int(), torch.floor(sums.int() / shift).int()) and torch.equal(y.scale, sums.scale * shift)


def test_without_a_quantizer_an_accumulator_hands_its_input_on():
    x, _ = accumulator(10, True)
    for layer in (TruncQuantAccumulator(), ClampQuantAccumulator(), ClampQuantAccumulator(None)):
        assert layer(x) is x and layer(x.value) is x.value
    assert not TruncQuantAccumulator().is_trunc_quant_enabled and not ClampQuantAccumulator().is_clamp_quant_enabled


def test_getters_of_accumulators():
    clamp = ClampQuantAccumulator(Drop)
    clamp.cache_inference_quant_out = True
    assert clamp.is_clamp_quant_enabled and clamp.is_output_quant_enabled and clamp.is_quant_output_signed is True
    assert clamp.quant_output_bit_width() is None and clamp.is_quant_output_narrow_range is False
    clamp.eval()(accumulator(12, True)[0])
    assert clamp.quant_output_bit_width().item() == 8 and clamp.quant_output_scale().item() == pytest.approx(0.05)


def test_bad_input_to_accumulators_is_named():
    x, _ = accumulator(10, False)
    model = nn.Sequential(QuantIdentity(), TruncQuantAccumulator(TruncTo8bit), ClampQuantAccumulator(Drop))
    with pytest.raises(QuantMetadataError, match=r"TruncQuantAccumulator '1': TruncTo8bit .*QuantIdentity '0'"):
        model(torch.randn(3))
    with pytest.raises(QuantMetadataError, match=r"ClampQuantAccumulator '2', clamp_quant: Drop.*=True.*=False"):
        model[1:](x)
    shifted = on_grid(random_codes(3), zero_point=3.0)
    with pytest.raises(QuantMetadataError, match=r"'2', clamp_quant: .*zero point 3"):
        model[2:](shifted)
    with pytest.raises(UnknownOptionError, match="bit_width_to_remove"):
        ClampQuantAccumulator(Drop, bit_width_to_remov=3)
    with pytest.raises(QuantConfigError, match="bit_width"):
        TruncQuantAccumulator(bit_width=4)
    with pytest.raises(QuantConfigError, match="role 'act'.*role 'clamp'"):
        ClampQuantAccumulator(Int8ActPerTensorFloat)


def test_clamped_operands_of_one_quantizer_can_be_added():
    shared = QuantIdentity(return_quant_tensor=True)
    clamp = ClampQuantAccumulator(Drop)
    a, b = clamp(shared(torch.randn(8))), clamp(shared(3 * torch.randn(8)))
    assert (a + b).bit_width.item() == 5  # their scales differ while statistics are collected
    with pytest.raises(QuantMetadataError, match="different scales"):
        clamp(accumulator(8, True, 0.1)[0]) + clamp(accumulator(8, True, 0.2)[0])


class Halved(nn.Module):
    """A quantizer of accumulators that is no proxy of the library."""

    is_quant_enabled = True
    rounding_mode = None

    def __init__(self):
        super().__init__()
        self.used_by = []

    def add_tracked_module(self, module):
        self.used_by.append(type(module).__name__)

    def forward(self, x):
        codes = torch.floor(x.int(float_datatype=True) / 2)
        return QuantTensor(codes * x.scale * 2, x.scale * 2, 0.0, x.bit_width - 1, x.signed)


@pytest.mark.parametrize("role", ["trunc", "clamp"])
def test_any_module_of_the_protocol_serves(role):
    own = Halved()
    layer = (TruncQuantAccumulator if role == "trunc" else ClampQuantAccumulator)(own)
    assert own.used_by == [type(layer).__name__]
    assert layer(on_grid(torch.tensor([5.0, -3.0]))).int().tolist() == [2, -2]
    with pytest.raises(QuantMetadataError, match=f"{role} takes bits off integers"):
        layer(torch.zeros(2))
