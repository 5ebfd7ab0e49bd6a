"""What people do with a layer, for every layer with a weight: copy, load, move to a dtype, compile, export."""

import copy
import pickle

import pytest
import torch
import torch._dynamo.testing
from torch import nn
from weight_layer_cases import build, quantized_input

from brevitas.nn import QuantIdentity
from brevitas.quant import Int8WeightPerTensorFloat, Int32Bias
from brevitas.quant_tensor import QuantTensor

# One case of each class; the geometry changes nothing about state.
NAMES = ["conv1d same", "conv3d", "transposed 1d", "transposed groups", "transposed 3d", "scale bias of any rank"]


def learned(name, **options):
    """A layer that learns its scales, one a channel, and its width."""
    layer, _, shape = build(
        name,
        weight_quant=Int8WeightPerTensorFloat,
        weight_scaling_impl_type="parameter_from_stats",
        weight_scaling_per_output_channel=True,
        weight_bit_width_impl_type="parameter",
        bias_quant=Int32Bias,
        return_quant_tensor=True,
        **options,
    )
    return layer, shape


def fields(y):
    return y.value, y.scale, y.zero_point, y.bit_width


def assert_same(y, expected):
    assert y.signed == expected.signed
    for a, b in zip(fields(y), fields(expected), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_copies_are_equal_and_independent(name):
    layer, shape = learned(name)
    x = quantized_input(shape)
    layer(x).value.square().sum().backward()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same(twin(x), layer(x))
        assert twin.weight_quant.tracked_module_list == [twin]
        with torch.no_grad():
            twin.weight.zero_()
        assert layer.weight.any()


@pytest.mark.parametrize("name", NAMES)
def test_strict_loading(name):
    (layer, shape), (other, _) = learned(name), learned(name)
    keys = set(other.state_dict())
    scaling = "weight_quant.tensor_quant.scaling_impl."
    width = "weight_quant.tensor_quant.msb_clamp_bit_width_impl.bit_width_offset"
    assert keys == {"weight", "bias", f"{scaling}value", f"{scaling}initialised", width}
    x = quantized_input(shape)
    with torch.no_grad():
        layer(x)
        for parameter in layer.parameters():
            parameter.mul_(1.1)
    other.load_state_dict(layer.state_dict())
    assert set(layer.state_dict()) == keys
    assert_same(other(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes(name, dtype):
    layer, shape = learned(name, dtype=dtype)
    x = quantized_input(shape, bits=4, scale=0.125)
    x = QuantTensor(x.value.to(dtype), 0.125, 0.0, 4, True)
    y = layer(x)
    assert y.value.dtype == dtype and {p.dtype for p in layer.parameters()} == {dtype}
    y.value.sum().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in layer.parameters())
    moved = learned(name)[0].to(dtype)
    moved.load_state_dict(layer.state_dict())
    assert torch.equal(moved(x).value, y.value)


@pytest.mark.parametrize("name", NAMES)
def test_the_device_argument(name):
    layer, _, _ = build(name, bias_quant=Int32Bias, device="meta")
    assert {p.device.type for p in (*layer.parameters(), *layer.buffers())} == {"meta"}
    assert not any(layer.to_empty(device="cpu").load_state_dict(build(name, bias_quant=Int32Bias)[0].state_dict()))


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name):
    layer, shape = learned(name)
    model = nn.Sequential(QuantIdentity(return_quant_tensor=True), layer)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(torch.randn(shape))
    y.value.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_compiles_to_one_graph_that_no_step_recompiles(name):
    torch._dynamo.reset()
    layer, shape = learned(name)
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    twin = copy.deepcopy(layer)
    for training, frames in ((True, 1), (False, 2)):
        layer.train(training), twin.train(training)
        for seed in range(3):
            x = quantized_input(shape, seed=seed)
            y, expected = compiled(x), twin(x)
            assert_same(y, expected)
            if training:
                y.value.square().sum().backward(), expected.value.square().sum().backward()
                for mine, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
                    torch.testing.assert_close(mine.grad, theirs.grad)
                with torch.no_grad():
                    layer.weight.mul_(0.9), twin.weight.mul_(0.9)
        assert counter.frame_count == frames


@pytest.mark.parametrize("name", NAMES)
def test_exports_in_eval(name):
    layer, shape = learned(name)
    model = nn.Sequential(QuantIdentity(return_quant_tensor=True), layer)
    x = torch.randn(shape)
    model(x)
    model.eval()
    layer.return_quant_tensor = False
    assert torch.equal(torch.export.export(model, (x,)).module()(x), model(x))


@pytest.mark.parametrize("name", ["transposed", "transposed groups", "transposed 3d"])
def test_the_output_size_of_an_exported_layer(name):
    layer, plain, shape = build(name, weight_quant=None)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(shape)
    largest = [size + stride - 1 for size, stride in zip(plain(x).shape[2:], layer.stride, strict=True)]
    exported = torch.export.export(layer.eval(), (x,), {"output_size": largest}).module()
    y = exported(x, output_size=largest)
    assert list(y.shape[2:]) == largest and torch.equal(y, plain(x, output_size=largest))
