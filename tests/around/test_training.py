"""What people do with a model around training, on a network that has every kind of layer and quantizer state.

The rest of the table in docs/around-training.md: copies and loading in tests/nn/test_state.py, ranks in test_ranks.py,
the meta device in test_meta_device.py.
"""

import copy
import io

import pytest
import torch
import torch._dynamo.testing
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint
from trained_network import STEPS, images, network, optimizer_of, sequence, targets, train

from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear
from brevitas.nn.utils import init_scales

TRAINING = 2 * STEPS
SIXTEEN_BIT = (torch.float16, torch.bfloat16)


def assert_equal_state(model, expected):
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def assert_finite_gradients(model):
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


# ---- modes


def test_inference_mode_between_training_steps_changes_nothing():
    model, expected = network(), network()
    for step in range(TRAINING):
        with torch.inference_mode():
            model.eval()(images(50 + step))
        train(model, 1, step), train(expected, 1, step)
    assert_equal_state(model, expected)


def test_a_model_that_was_calibrated_in_inference_mode_trains():
    model = network()
    model.train()
    with torch.inference_mode():
        for step in range(TRAINING):
            model(images(step))
    assert init_scales(model) == []
    train(model, 2)
    assert_finite_gradients(model)


@pytest.mark.parametrize("build", [network, sequence])
def test_torch_save_of_the_whole_model_in_every_phase(build):
    for steps in (0, 1, TRAINING):
        model = train(build(), steps)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
        train(model, 2, 7), train(twin, 2, 7)
        assert_equal_state(twin, model)


# ---- number formats


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
@pytest.mark.parametrize("steps", [0, 1, TRAINING])
def test_a_state_dict_in_sixteen_bits_loads_and_trains_on(dtype, steps):
    model = train(network(), steps)
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    twin = network()
    twin.load_state_dict(state)
    for key, value in twin.state_dict().items():
        assert value.dtype == model.state_dict()[key].dtype and torch.equal(value, state[key].to(value.dtype)), key
    train(twin, 3)
    assert_finite_gradients(twin)
    assert twin.relu.act_quant.is_learning() == (steps > 0)  # the fourth call ends collection


@pytest.mark.parametrize("build", [network, sequence])
@pytest.mark.parametrize("dtype", [*SIXTEEN_BIT, torch.float64])
def test_a_model_moved_to_another_dtype_trains_and_comes_back(dtype, build):
    model = train(build(), 1).to(dtype)
    assert all(p.dtype == dtype for p in model.parameters())
    train(model, TRAINING)
    assert_finite_gradients(model)
    assert model.eval()(images(0, dtype)).dtype == dtype
    model.float()
    train(model, 1)
    assert_finite_gradients(model)
    assert model.input.quant_act_bit_width().item() == 8.0


@pytest.mark.parametrize("build", [network, sequence])
@pytest.mark.parametrize("steps", [0, TRAINING])
def test_autocast_trains_and_evaluates(steps, build):
    model = train(build(), steps)
    optimizer = optimizer_of(model)
    for step in range(4):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(images(step)).float(), targets(step))
        loss.backward()
        optimizer.step()
        assert_finite_gradients(model)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(b.dtype != torch.bfloat16 for b in model.buffers())
    model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        low = model(images(9)).float()
    exact = model(images(9))
    assert (low - exact).abs().max() < 0.1 * exact.abs().max().clamp_min(1.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_moved_to_a_gpu_and_back_trains_on():
    model = train(network(), 1).cuda()
    for seed in range(TRAINING):
        F.cross_entropy(model(images(seed).cuda()), targets(seed).cuda()).backward()
    model.cpu()
    train(model, 1)
    assert_finite_gradients(model)


# ---- steps of another shape


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_state_of_plain_training(reentrant):
    model, expected = network(torch.float64), network(torch.float64)

    def checkpointed(x):
        return checkpoint(model, x.requires_grad_(), use_reentrant=reentrant)

    for step in range(TRAINING):  # the call that ends collection is among them, at a quantizer with two call sites
        train(model, 1, step, run=checkpointed), train(expected, 1, step)
        assert_equal_state(model, expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_of_recurrence_and_attention(reentrant):
    model, expected = sequence(torch.float64), sequence(torch.float64)

    def checkpointed(x):
        return checkpoint(model, x.requires_grad_(), use_reentrant=reentrant)

    for step in range(TRAINING):
        train(model, 1, step, run=checkpointed), train(expected, 1, step)
    for key, value in expected.state_dict().items():
        # torch's attention rounds otherwise where no gradient is asked for, as in a reentrant forward.
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-12, atol=1e-14, msg=key)


def test_two_checkpointed_forwards_before_a_backward():
    model, expected = network(torch.float64), network(torch.float64)
    for step in range(STEPS):
        for owner, through in ((model, True), (expected, False)):
            owner.zero_grad()
            x, y = images(step, torch.float64), images(step + 10, torch.float64)
            outs = [checkpoint(owner, b, use_reentrant=False) if through else owner(b) for b in (x, y)]
            sum(out.square().mean() for out in outs).backward()
        for (name, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad), (step, name)
        assert_equal_state(model, expected)


def test_accumulated_gradients_are_those_of_the_micro_batches():
    model = train(network(torch.float64), TRAINING)
    model.zero_grad()
    expected = [torch.zeros_like(p) for p in model.parameters()]
    for seed in range(3):
        single = copy.deepcopy(model)
        single(images(seed, torch.float64)).square().mean().backward()
        for total, p in zip(expected, single.parameters(), strict=True):
            total += p.grad
    for seed in range(3):
        model(images(seed, torch.float64)).square().mean().backward()
    for (name, p), total in zip(model.named_parameters(), expected, strict=True):
        if "running" not in name:
            torch.testing.assert_close(p.grad, total, rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_exponential_average_of_the_weights(use_buffers):
    model = nn.Sequential(nn.BatchNorm2d(1), network())
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=use_buffers)
    weights = []
    for step in range(TRAINING):
        train(model, 1, step)
        averaged.update_parameters(model)
        weights.append(model[1].conv.weight.detach().clone())
    expected = weights[0]
    for weight in weights[1:]:
        expected = 0.5 * expected + 0.5 * weight
    assert torch.allclose(averaged.module[1].conv.weight, expected, atol=1e-6)
    assert averaged.module[1].relu.act_quant.is_learning()
    update_bn([images(seed) for seed in range(3)], averaged)
    assert averaged.module[0].running_mean.isfinite().all() and averaged.module[0].num_batches_tracked == 3
    out = averaged.eval()(images(20))
    again = copy.deepcopy(averaged)
    assert torch.equal(again(images(20)), out)


# ---- graphs


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_as_a_whole_in_training_and_eval_without_recompilation(backend):
    torch._dynamo.reset()
    model, expected = network(torch.float64), network(torch.float64)
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    train(model, 1, 0, run=compiled), train(expected, 1, 0)
    first = counter.frame_count
    train(model, TRAINING, 1, run=compiled), train(expected, TRAINING, 1)
    assert counter.frame_count == first, "compiled again from step to step"
    rtol = 1e-9 if backend == "aot_eager" else 1e-3
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=rtol, atol=rtol, msg=key)
    model.eval(), expected.eval()
    torch.testing.assert_close(
        compiled(images(30, torch.float64)), expected(images(30, torch.float64)), rtol=rtol, atol=rtol
    )
    of_eval = counter.frame_count
    for seed in range(3):
        compiled(images(seed, torch.float64))
    assert counter.frame_count == of_eval


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
def test_exported_in_eval(strict):
    model = train(network(), TRAINING).eval()
    program = torch.export.export(model, (images(),), strict=strict)
    torch.testing.assert_close(program.module()(images(3)), model(images(3)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced_in_eval():
    model = train(network(), TRAINING).eval()
    traced = torch.jit.trace(model, (images(),))
    assert torch.equal(traced(images(3)), model(images(3)))


@pytest.mark.parametrize("build", [network, sequence])
def test_called_with_other_weights(build):
    model, other = train(build(), TRAINING).eval(), train(build(), TRAINING, seed=40).eval()
    # Not the state dict, whose names are torch's where a layer holds its weights otherwise, as recurrent ones do.
    state = dict(other.named_parameters()) | dict(other.named_buffers())
    assert torch.equal(torch.func.functional_call(model, state, (images(),), strict=True), other(images()))
    assert not torch.equal(model(images()), other(images()))


# ---- weights


@pytest.mark.parametrize(
    "parametrization", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
@pytest.mark.parametrize("name", ["conv", "branch", "hidden", "head"])
def test_a_parametrized_weight_is_quantized(parametrization, name):
    model = network(torch.float64)
    layer = getattr(model, name)
    parametrization(layer)
    before = {k: v.detach().clone() for k, v in layer.parametrizations.named_parameters()}
    train(model, TRAINING)
    for key, value in layer.parametrizations.named_parameters():
        if key in before and value.requires_grad:
            assert not torch.equal(value, before[key]), key
    model.eval()
    weight = layer.weight.detach()
    scale = layer.quant_weight_scale()
    top = 2 ** (layer.quant_weight_bit_width().item() - 1) - 1
    codes = torch.clamp(torch.round(weight / scale), -top, top)
    assert torch.equal(layer.quant_weight().value, codes * scale)
    out = model(images(0, torch.float64))
    twin = network(torch.float64)
    parametrization(getattr(twin, name))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.eval()(images(0, torch.float64)), out)
    parametrize.remove_parametrizations(layer, "weight")
    torch.testing.assert_close(model(images(0, torch.float64)), out)


def test_tied_weights_receive_both_gradients():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = QuantLinear(4, 4, bias=False), QuantLinear(4, 4, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    model = Tied().double()
    assert len(list(model.parameters())) == 1
    x = torch.randn(3, 4, dtype=torch.float64)
    model(x).sum().backward()
    w = model.a.quant_weight().value.detach().requires_grad_()
    v = w.detach().clone().requires_grad_()
    F.linear(F.linear(x, w), v).sum().backward()
    # Straight through, except at the maximum, which also moves the scale.
    inside = model.a.weight.abs() < model.a.weight.abs().max()
    torch.testing.assert_close(model.a.weight.grad[inside], (w.grad + v.grad)[inside])
    twin = copy.deepcopy(model)
    assert twin.a.weight is twin.b.weight
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(x), model(x))


def test_a_layer_that_is_called_twice():
    torch.manual_seed(0)
    shared = QuantConv2d(2, 2, 3, padding=1, weight_scaling_impl_type="parameter_from_stats")
    act = QuantIdentity(collect_stats_steps=4)
    twin_conv, twin_act = copy.deepcopy(shared), copy.deepcopy(act)
    x = torch.randn(2, 2, 5, 5)
    for _ in range(3):
        y = act(shared(act(shared(x))))
        y.sum().backward()
    z = x
    for _ in range(3):
        z = twin_act(twin_conv(twin_act(twin_conv(x))))
    assert torch.equal(y, z)
    assert act.act_quant.tensor_quant.scaling_impl.counter == 4 and act.act_quant.is_learning()
    assert shared.weight.grad.isfinite().all()


def test_sync_batch_norm_conversion_leaves_quantizers_alone():
    model = nn.Sequential(nn.BatchNorm2d(1), network())
    keys = list(model.state_dict())
    quantizers = [m for m in model.modules() if hasattr(m, "quant_injector")]
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(converted[0], nn.SyncBatchNorm)
    assert list(converted.state_dict()) == keys
    assert [m for m in converted.modules() if hasattr(m, "quant_injector")] == quantizers
