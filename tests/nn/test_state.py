"""What people do with a model: load, copy, pickle, share, move, compile, export."""

import copy
import io
import pickle

import pytest
import torch
import torch._dynamo.testing
from torch import nn
from torch.nn import functional as F

from brevitas import config
from brevitas.errors import QuantConfigError
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import (
    Int8ActPerTensorFixedPoint,
    Int8WeightPerTensorFloat,
    Int32Bias,
    IntBias,
    ShiftedUint8ActPerTensorFloat,
)
from brevitas.quant_tensor import QuantTensor
from brevitas.utils.python_utils import patch


class W3(Int8WeightPerTensorFloat):
    bit_width = 3


class LeNet(nn.Module):
    """All four layers, every kind of state."""

    def __init__(self, steps=2):
        super().__init__()
        self.input = QuantIdentity(ShiftedUint8ActPerTensorFloat, return_quant_tensor=True, collect_stats_steps=steps)
        self.conv = QuantConv2d(1, 4, 3, weight_quant=W3, bias_quant=Int32Bias, weight_scaling_per_output_channel=True)
        self.relu = QuantReLU(bit_width=4, return_quant_tensor=True, collect_stats_steps=steps)
        self.fc = QuantLinear(4 * 9, 3, bias_quant=Int32Bias, weight_scaling_impl_type="parameter_from_stats")

    def forward(self, x):
        x = self.relu(self.conv(self.input(x)))
        x = F.max_pool2d(x, 2)
        return self.fc(torch.flatten(x, 1))


def digits(seed=0):
    return torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def train(model, steps, seed=0, lr=0.05):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        model(digits(seed + step)).square().mean().backward()
        optimizer.step()
    return model


KEYS = {
    "input.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl": (
        "value",
        "running_stats",
        "counter",
        "initialised",
    ),
    "input.act_quant.fused_activation_quant_proxy.tensor_quant.zero_point_impl": (
        "value",
        "running_stats",
        "counter",
        "initialised",
    ),
    "relu.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl": (
        "value",
        "running_stats",
        "counter",
        "initialised",
    ),
    "fc.weight_quant.tensor_quant.scaling_impl": ("value", "initialised"),
}


def test_state_dict_has_the_published_keys_from_construction_on():
    expected = {f"{owner}.{leaf}" for owner, leaves in KEYS.items() for leaf in leaves}
    expected |= {"conv.weight", "conv.bias", "fc.weight", "fc.bias"}
    assert set(LeNet().state_dict()) == expected
    assert set(train(LeNet(), 4).state_dict()) == expected


@pytest.mark.parametrize("steps_before", [0, 1, 2, 4])
@pytest.mark.parametrize("steps_of_target", [0, 1, 4])
def test_strict_loading_at_any_moment_continues_identically(steps_before, steps_of_target):
    source, target = train(LeNet(), steps_before), train(LeNet(), steps_of_target, seed=50)
    parameters = dict(target.named_parameters())
    target.load_state_dict(source.state_dict())
    assert all(parameters[name] is p for name, p in target.named_parameters())
    train(source, 3, seed=9), train(target, 3, seed=9)
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), "torch"])
def test_copies_are_equal_and_independent(steps, copier):
    model = train(LeNet(), steps)
    if copier == "torch":
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    else:
        twin = copier(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train(twin, 2, seed=5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    train(model, 2, seed=5)
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in model.state_dict().items())
    assert twin.conv.weight_quant.tracked_module_list[0] is twin.conv


def test_a_used_model_pickles():
    model = train(LeNet(), 2).eval()
    model.input.cache_inference_quant_inp = model.fc.cache_inference_quant_inp = True
    model(digits())
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(twin(digits()), model(digits()))


def test_float_checkpoint_loads_with_ignored_missing_keys():
    model = LeNet()
    checkpoint = {k: v + 1 for k, v in model.state_dict().items() if k.split(".")[-1] in ("weight", "bias")}
    with pytest.raises(RuntimeError, match="scaling_impl.value"):
        model.load_state_dict(checkpoint)
    with patch(config, "IGNORE_MISSING_KEYS", True):
        model.load_state_dict(checkpoint)
        del checkpoint["conv.weight"]
        with pytest.raises(RuntimeError, match="conv.weight"):
            model.load_state_dict(checkpoint)
    assert torch.equal(model.fc.quant_weight_scale(), model.fc.weight.abs().max() / 127)


def test_shared_weight_quantizer_sees_every_weight():
    a, b = QuantLinear(4, 2), QuantLinear(6, 3)
    shared = QuantLinear(6, 3, weight_quant=a.weight_quant)
    with torch.no_grad():
        a.weight.fill_(1.0), shared.weight.fill_(3.0)
    assert a.quant_weight_scale().item() == shared.quant_weight_scale().item() == pytest.approx(3 / 127)
    assert b.quant_weight_scale().item() != a.quant_weight_scale().item()
    assert a.weight_quant.tracked_module_list == [a, shared]
    loss = a.quant_weight().value.sum() + shared.quant_weight().value.sum()
    loss.backward()
    assert a.weight.grad is not None and shared.weight.grad is not None


def test_shared_per_channel_quantizer_covers_each_channel_of_all_layers():
    a = QuantLinear(4, 2, weight_scaling_per_output_channel=True)
    b = QuantLinear(3, 2, weight_quant=a.weight_quant)
    with torch.no_grad():
        a.weight.copy_(torch.tensor([[1.0] * 4, [2.0] * 4]))
        b.weight.copy_(torch.tensor([[5.0] * 3, [1.0] * 3]))
    torch.testing.assert_close(a.quant_weight_scale(), torch.tensor([[5.0], [2.0]]) / 127)
    assert torch.equal(a.quant_weight_scale(), b.quant_weight_scale())


def test_layers_that_cannot_share_a_quantizer_are_refused_and_left_as_they_were():
    a = QuantLinear(4, 3, weight_scaling_per_output_channel=True, bias_quant=Int32Bias)
    before, scale = a.weight_quant.tracked_module_list, a.quant_weight_scale()
    with pytest.raises(QuantConfigError, match=r"QuantLinear in dim 0 of 2 and QuantConv2d in dim 0 of 4.*per-channel"):
        QuantConv2d(4, 3, 1, weight_quant=a.weight_quant)
    with pytest.raises(QuantConfigError, match="2 and 3 output channels"):
        QuantLinear(4, 2, weight_quant=a.weight_quant)
    assert a.weight_quant.tracked_module_list == before and torch.equal(a.quant_weight_scale(), scale)
    with pytest.raises(QuantConfigError, match="QuantLinear and QuantConv2d cannot share a bias quantizer"):
        QuantConv2d(4, 3, 1, bias_quant=a.bias_quant)
    assert a.bias_quant.tracked_module_list == [a]

    class Mine(QuantLinear):
        pass

    assert Mine(2, 3, bias_quant=a.bias_quant).bias_quant is a.bias_quant


def test_a_replaced_weight_is_seen():
    a = QuantLinear(4, 2)
    b = QuantLinear(4, 2, weight_quant=a.weight_quant)
    a.weight = nn.Parameter(torch.full((2, 4), 7.0))
    assert b.quant_weight_scale().item() == pytest.approx(7 / 127)
    b.weight = nn.Parameter(torch.full((2, 4), 9.0))
    assert a.quant_weight_scale().item() == pytest.approx(9 / 127)
    single = QuantLinear(4, 2)
    single.weight = nn.Parameter(torch.full((2, 4), 5.0))
    assert single.quant_weight_scale().item() == pytest.approx(5 / 127)


def test_sharing_survives_deepcopy():
    model = nn.ModuleList([QuantLinear(4, 2)])
    model.append(QuantLinear(4, 2, weight_quant=model[0].weight_quant))
    twin = copy.deepcopy(model)
    assert twin[0].weight_quant is twin[1].weight_quant
    with torch.no_grad():
        twin[1].weight.fill_(4.0)
    assert twin[0].quant_weight_scale().item() == pytest.approx(4 / 127)
    assert model[0].quant_weight_scale().item() < 1 / 127


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    model = train(LeNet(), 3).to(dtype).eval()
    y = model(digits().to(dtype))
    assert y.dtype == dtype and y.isfinite().all()
    model.load_state_dict(model.state_dict())


@pytest.mark.parametrize("bias_quant", [Int32Bias, IntBias])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_scale_of_an_accumulator_does_not_vanish_in_half_precision(dtype, bias_quant):
    model = nn.Sequential(QuantIdentity(return_quant_tensor=True), QuantLinear(4, 2, bias_quant=bias_quant)).to(dtype)
    with torch.no_grad():
        model[1].weight.zero_()
    y = model(torch.randn(3, 4, dtype=dtype))
    y.float().sum().backward()
    assert y.dtype == dtype and y.isfinite().all() and model[1].weight.grad.isfinite().all()
    model.eval()(torch.randn(3, 4, dtype=dtype))
    expected = model[0].quant_act_scale().float() * model[1].quant_weight_scale().float()
    assert torch.equal(model[1].quant_bias_scale(), expected) and expected > 0


def test_dtype_and_device_of_construction():
    layer = QuantLinear(
        4, 2, weight_scaling_impl_type="parameter", weight_scaling_const=0.5, dtype=torch.float64, device="cpu"
    )
    assert layer(torch.randn(2, 4, dtype=torch.float64)).dtype == torch.float64
    assert layer.weight_quant.tensor_quant.scaling_impl.value.dtype == torch.float64
    assert QuantLinear(4, 2, device="meta").weight.device.type == "meta"


def test_autocast():
    model = train(LeNet(), 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(digits()).float().square().mean()
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_inference_mode_and_back():
    model = train(LeNet(), 3)
    with torch.inference_mode():
        model.eval()(digits())
    before = model.conv.weight.detach().clone()
    train(model, 1)
    assert not torch.equal(model.conv.weight, before) and model.conv.weight.grad.isfinite().all()


def test_gradient_checkpointing_gives_equal_gradients():
    model = train(LeNet(), 3)
    twin = copy.deepcopy(model)
    model.zero_grad()
    model(digits()).square().mean().backward()
    torch.utils.checkpoint.checkpoint(twin, digits(), use_reentrant=False).square().mean().backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name


def test_functional_call():
    model = train(LeNet(), 3).eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    assert torch.equal(torch.func.functional_call(model, state, (digits(),)), model(digits()))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiles_as_a_whole_and_trains_like_eager(backend):
    torch._dynamo.reset()
    model = LeNet(steps=3)
    twin = copy.deepcopy(model)
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    train(torch.compile(model, fullgraph=True, backend=counter), 6)
    train(twin, 6)
    assert counter.frame_count <= 2, "recompiled from step to step"
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key].float(), value.float(), rtol=1e-3, atol=1e-4, msg=key)
    model.eval(), twin.eval()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(digits(7)), twin(digits(7)), rtol=1e-3, atol=1e-3)


class TwoCallSites(nn.Module):
    """The idiom of equal scales: one activation quantizer at two places, and one weight quantizer in two layers."""

    def __init__(self):
        super().__init__()
        self.shared = QuantIdentity(return_quant_tensor=True, collect_stats_steps=3)
        self.a = QuantLinear(4, 4, weight_scaling_impl_type="parameter_from_stats")
        self.b = QuantLinear(4, 4, weight_quant=self.a.weight_quant)

    def forward(self, x):
        y = self.shared(self.a(x)) + self.shared(self.b(2 * x))
        assert isinstance(y, QuantTensor)
        return y.value


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_shared_quantizers_train_compiled_like_eager(backend):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = TwoCallSites()
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for step in range(5):
        x = torch.randn(5, 4) * (step + 1)
        model.train(step > 0), twin.train(step > 0)  # an eval forward with a gradient comes first
        for run, owner in ((compiled, model), (twin, twin)):
            owner.zero_grad()
            run(x).square().sum().backward()
            torch.optim.SGD(owner.parameters(), lr=1e-3).step()
        for (key, mine), theirs in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, msg=f"{key} in step {step}")


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_the_quant_tensor_of_a_weight_layer_leaves_compiled_code(training):
    torch._dynamo.reset()
    layers = [QuantConv2d(1, 2, 3, bias_quant=Int32Bias, return_quant_tensor=True), QuantLinear(6, 3, bias=False)]
    layers[1].return_quant_tensor = True
    model = nn.Sequential(QuantIdentity(return_quant_tensor=True), *layers)
    model(torch.rand(2, 1, 8, 8))
    model.train(training)
    twin, x = copy.deepcopy(model), torch.rand(2, 1, 8, 8)
    y, expected = torch.compile(model, fullgraph=True, backend="eager")(x), twin(x)
    assert torch.equal(y.value, expected.value) and torch.equal(y.scale, expected.scale)
    assert y.bit_width == expected.bit_width and y.signed


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
def test_exports_in_eval(strict):
    model = train(LeNet(), 3).eval()
    program = torch.export.export(model, (digits(),), strict=strict)
    torch.testing.assert_close(program.module()(digits(3)), model(digits(3)))


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
def test_a_shared_quantizer_exports(strict):
    first = QuantLinear(4, 4)
    model = nn.Sequential(first, QuantLinear(4, 4, weight_quant=first.weight_quant)).eval()
    x = torch.randn(2, 4)
    assert torch.equal(torch.export.export(model, (x,), strict=strict).module()(x), model(x))


def test_jit_trace():
    model = train(LeNet(), 3).eval()
    traced = torch.jit.trace(model, (digits(),))
    assert torch.equal(traced(digits(3)), model(digits(3)))


def test_power_of_two_scale_in_every_phase():
    layer = QuantIdentity(Int8ActPerTensorFixedPoint, collect_stats_steps=2)
    scales = []
    for step in range(4):
        layer(torch.randn(32) * (step + 1))
        scales.append(layer.quant_act_scale().item())
    assert all(torch.frexp(torch.tensor(s))[0] == 0.5 for s in scales)


def test_repr_names_the_quantizers():
    text = repr(LeNet())
    assert "W3" in text and "ShiftedUint8ActPerTensorFloat" in text and "NoneActQuant, off" in text
