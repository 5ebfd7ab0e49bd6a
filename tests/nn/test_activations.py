"""Activation layers: QuantReLU, QuantSigmoid, QuantTanh, QuantHardTanh, QuantIdentity."""

import warnings

import pytest
import torch
from torch import nn

from brevitas.errors import QuantConfigError, QuantMetadataError, UnknownOptionError
from brevitas.nn import QuantHardTanh, QuantIdentity, QuantLinear, QuantReLU, QuantSigmoid, QuantTanh
from brevitas.quant import (
    Fp8e4m3OCPActPerTensorFloat,
    Int8ActPerTensorFloat,
    Int8ActPerTensorFloatMinMaxInit,
    NoneActQuant,
    ShiftedUint8ActPerTensorFloat,
    Uint8ActPerTensorFloatMaxInit,
)
from brevitas.quant_tensor import QuantTensor


def test_relu_without_quantizer_is_torch_relu():
    x = torch.randn(4, 5)
    assert torch.equal(QuantReLU(act_quant=None)(x), torch.relu(x))
    assert torch.equal(QuantIdentity(None)(x), x)


def test_layers_are_their_torch_counterparts():
    assert isinstance(QuantReLU(), nn.ReLU) and isinstance(QuantIdentity(), nn.Identity)


def test_relu_is_unsigned_and_on_its_grid():
    y = QuantReLU(bit_width=3, return_quant_tensor=True)(torch.linspace(-1, 1, 33))
    assert y.signed is False and y.is_valid
    assert torch.equal(y.value, (y.int() - y.zero_point) * y.scale)
    assert y.int().min() == 0 and y.int().max() == 7


def test_input_quantizer_runs_before_the_activation():
    relu = QuantReLU(input_quant=Int8ActPerTensorFloat, input_bit_width=2, bit_width=8, return_quant_tensor=True)
    y = relu(torch.linspace(-1, 1, 33))
    assert len(y.value.unique()) <= 2  # signed 2 bits: 0 and 1 are what ReLU leaves
    assert relu.quant_input_bit_width().item() == 2 and relu.quant_act_bit_width().item() == 8


def test_disabled_activation_hands_the_grid_on():
    x = QuantIdentity(bit_width=4, return_quant_tensor=True)(torch.linspace(-1, 1, 33))
    y = QuantReLU(act_quant=None, return_quant_tensor=True)(x)
    assert isinstance(y, QuantTensor) and torch.equal(y.scale, x.scale)
    assert torch.equal(y.value, torch.relu(x.value))
    assert torch.equal(QuantIdentity(None, return_quant_tensor=True)(x).value, x.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: QuantReLU(act_quant=None, return_quant_tensor=True),
        lambda: QuantIdentity(None, return_quant_tensor=True),
    ],
)
def test_disabled_activation_cannot_return_a_grid_for_a_float_input(build):
    model = nn.Sequential(nn.Sequential(build()))
    with pytest.raises(QuantMetadataError, match="'0.0'.*act_quant is off"):
        model(torch.randn(3))


def test_evaluation_before_any_data_warns_once_and_names_the_layer():
    model = nn.Sequential(nn.Linear(2, 2), QuantReLU()).eval()
    with pytest.warns(UserWarning, match="QuantReLU '1'.*initial 1"):
        model(torch.randn(3, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.randn(3, 2))


def test_no_warning_after_a_training_call():
    relu = QuantReLU()
    relu(torch.randn(8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert relu.eval()(torch.randn(8)).isfinite().all()


def test_one_quantizer_at_two_places():
    first = QuantIdentity(bit_width=4, return_quant_tensor=True)
    second = QuantIdentity(first.act_quant, return_quant_tensor=True)
    x, y = first(torch.randn(16)), second(torch.randn(16) * 2)
    total = x + y
    assert isinstance(total, QuantTensor) and total.bit_width.item() == 5
    assert second.act_quant is first.act_quant
    assert len(list(nn.ModuleList([first, second]).parameters())) == 1


def test_shifted_activation_represents_zero_exactly():
    layer = QuantIdentity(ShiftedUint8ActPerTensorFloat, return_quant_tensor=True)
    y = layer(torch.cat([torch.zeros(1), torch.linspace(-0.3, 2, 50)]))
    assert y.value[0] == 0 and y.zero_point > 0 and y.is_valid


def test_metadata_only_cache():
    layer = QuantIdentity(bit_width=4)
    layer.cache_inference_quant_out = True
    layer(torch.randn(16))
    assert layer._cached_output is None
    layer.eval()(torch.randn(16))
    assert layer._cached_output.bit_width.item() == 4 and layer._cached_output.value.numel() == 1


def test_metadata_of_a_scale_per_channel_are_cached():
    layer = QuantIdentity(scaling_per_output_channel=True, per_channel_broadcastable_shape=(1, 3, 1))
    layer.cache_inference_quant_out = True
    layer(torch.randn(2, 3, 4))
    layer.eval()(torch.randn(2, 3, 4))
    assert layer._cached_output.scale.shape == (1, 3, 1) and layer._cached_output.value.numel() == 1
    layer.cache_quant_io_metadata_only = False
    y = layer(torch.randn(2, 3, 4))
    assert torch.equal(layer._cached_output.value, y)


def test_minifloats_have_no_grid_to_return():
    model = nn.Sequential(QuantReLU(Fp8e4m3OCPActPerTensorFloat, return_quant_tensor=True))
    with pytest.raises(QuantMetadataError, match="QuantReLU '0'.*needs integers.*gives minifloats"):
        model(torch.randn(3))
    layer = QuantLinear(3, 2, output_quant=Fp8e4m3OCPActPerTensorFloat, return_quant_tensor=True)
    with pytest.raises(QuantMetadataError, match="QuantLinear.*needs integers.*gives minifloats"):
        layer(torch.randn(3))


# Sigmoid, Tanh, HardTanh


@pytest.mark.parametrize(
    ("layer", "float_layer"),
    [
        (lambda: QuantSigmoid(None), nn.Sigmoid()),
        (lambda: QuantTanh(None), nn.Tanh()),
        (lambda: QuantTanh(NoneActQuant), nn.Tanh()),
        (lambda: QuantHardTanh(None), nn.Hardtanh()),
        (lambda: QuantHardTanh(None, min_val=-0.5, max_val=2), nn.Hardtanh(-0.5, 2)),
    ],
)
def test_without_a_quantizer_an_activation_is_that_of_torch(layer, float_layer):
    layer = layer()
    x = torch.linspace(-3, 3, 41, dtype=torch.float64, requires_grad=True)
    assert torch.equal(layer(x), float_layer(x)) and isinstance(layer, type(float_layer))
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize(
    ("cls", "function", "signed"), [(QuantSigmoid, torch.sigmoid, False), (QuantTanh, torch.tanh, True)]
)
def test_an_activation_is_applied_and_then_quantized(cls, function, signed):
    preset = Int8ActPerTensorFloatMinMaxInit if signed else Uint8ActPerTensorFloatMaxInit
    bounds = {"min_val": -1.0} if signed else {}
    layer = cls(preset, bit_width=4, max_val=1.0, return_quant_tensor=True, **bounds)
    x = torch.linspace(-4, 4, 101, requires_grad=True)
    y = layer(x)
    low, high, levels = (-8, 7, 8) if signed else (0, 15, 15)
    with torch.no_grad():
        codes = torch.clamp(torch.round(function(x) / (1.0 / levels)), low, high)
    assert torch.equal(y.int(), codes.int()) and y.signed is signed and y.bit_width.item() == 4
    torch.testing.assert_close(y.value, codes / levels)
    y.value.sum().backward()
    twin = x.detach().clone().requires_grad_()
    inside = torch.round(function(twin).detach() / (1.0 / levels)) == codes
    (function(twin) * inside).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)


@pytest.mark.parametrize("cls", [QuantSigmoid, QuantTanh])
def test_sigmoid_and_tanh_do_not_keep_the_grid_of_their_input(cls):
    x = QuantTensor(torch.tensor([0.5, -1.0]), 0.5, 0.0, 4, True)
    y = cls(None)(x)
    assert type(y) is torch.Tensor and torch.equal(y, (torch.sigmoid if cls is QuantSigmoid else torch.tanh)(x.value))
    with pytest.raises(QuantMetadataError, match="act_quant is off"):
        cls(None, return_quant_tensor=True)(x)


def test_hardtanh_clamps_by_the_range_of_its_quantizer():
    layer = QuantHardTanh(min_val=-1.0, max_val=1.0, bit_width=3, return_quant_tensor=True)
    x = torch.tensor([-5.0, -1.0, -0.3, 0.2, 0.75, 0.99, 5.0])
    y = layer(x)
    # The limits give the scale 1 / 4; the largest code is 3. Rounding is half to even.
    assert y.int().tolist() == [-4, -4, -1, 1, 3, 3, 3] and y.scale.item() == 0.25
    assert layer.min_val == -1.0 and layer.max_val == 1.0
    assert isinstance(layer, nn.Hardtanh) and len(list(layer.parameters())) == 1


def test_a_learned_range_wider_than_the_limits_is_not_cut_by_them():
    layer = QuantHardTanh(min_val=-1.0, max_val=1.0, return_quant_tensor=True)
    with torch.no_grad():
        next(layer.parameters()).fill_(4.0)
    assert layer(torch.tensor([3.0])).value.item() == 3.0


def test_hardtanh_without_quantizer_snaps_to_the_grid_of_its_input():
    x = QuantTensor(torch.arange(-8.0, 8.0) * 0.3, 0.3, 0.0, 4, True)
    y = QuantHardTanh(None, min_val=-1.0, max_val=1.0, return_quant_tensor=True)(x)
    # 1 / 0.3 = 3.33: the nearest codes are -3 and 3.
    assert y.int().tolist() == [-3] * 6 + [-2, -1, 0, 1, 2, 3] + [3] * 4
    assert torch.equal(y.scale, x.scale) and y.is_valid


def test_limits_come_from_the_quantizer_too():
    class Mine(Int8ActPerTensorFloatMinMaxInit):
        min_val = -2.0
        max_val = 2.0

    layer = QuantHardTanh(Mine, return_quant_tensor=True)
    assert (layer.min_val, layer.max_val) == (-2.0, 2.0) and layer.quant_act_scale().item() == 2 / 128
    # A keyword comes last, as everywhere.
    assert QuantHardTanh(Mine, min_val=-4.0, max_val=4.0).quant_act_scale().item() == 4 / 128
    shared = QuantHardTanh(layer.act_quant, min_val=-2.0, max_val=2.0)
    assert shared.act_quant is layer.act_quant and shared.max_val == 2.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: QuantHardTanh(), "._val. is required"),
        (lambda: QuantHardTanh(min_val=-1.0), "max_val"),
        (lambda: QuantHardTanh(min_val=1.0, max_val=-1.0), "min_val = 1.0 and max_val = -1.0 leave no range"),
        (lambda: QuantHardTanh(None, min_val="low"), "min_val = 'low' is not legal: expected a number"),
        (lambda: QuantHardTanh(Int8ActPerTensorFloat, min_val=-1.0, max_val=1.0), "m.._val.*no effect"),
        (lambda: QuantSigmoid(bit_width=0), "bit_width"),
        (lambda: QuantTanh(return_quant_tensor=None), "expected True or False"),
        (lambda: QuantTanh(3), "expected None, a quantizer class"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(QuantConfigError, match=message):
        build()


def test_an_identity_has_no_input_quantizer():
    layer = QuantIdentity()
    assert not hasattr(layer, "input_quant") and not hasattr(layer, "quant_input_scale")
    with pytest.raises(UnknownOptionError, match="input_bit_width"):
        QuantIdentity(input_bit_width=4)
    # Checkpoints of the time when it held one that was always off have the same keys.
    prefix = "act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl."
    assert list(layer.state_dict()) == [prefix + n for n in ("value", "running_stats", "counter", "initialised")]


@pytest.mark.parametrize("cls", [QuantReLU, QuantSigmoid, QuantTanh, QuantIdentity])
def test_device_and_dtype_of_construction(cls):
    layer = cls(dtype=torch.float64, device="cpu")
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    assert layer(torch.randn(4, dtype=torch.float64)).dtype == torch.float64
    assert {p.device.type for p in cls(device="meta").parameters()} == {"meta"}
    owner = cls()
    assert cls(owner.act_quant, dtype=torch.float64).act_quant is owner.act_quant
    assert next(owner.parameters()).dtype == torch.float32  # a shared quantizer stays where its owner has it
