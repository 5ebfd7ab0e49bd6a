"""QuantReLU and QuantIdentity."""

import warnings

import pytest
import torch
from torch import nn

from brevitas.errors import QuantMetadataError
from brevitas.nn import QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import Fp8e4m3OCPActPerTensorFloat, Int8ActPerTensorFloat, ShiftedUint8ActPerTensorFloat
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
