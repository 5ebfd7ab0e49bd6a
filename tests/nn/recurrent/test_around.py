"""Copies, state, compilation and export of recurrent layers."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from brevitas import config
from brevitas.export import QONNXManager, StdONNXManager, verify
from brevitas.nn import QuantGRU, QuantLinear, QuantLSTM, QuantRNN
from brevitas.quant import Int8WeightPerTensorFloat
from brevitas.utils.python_utils import patch

LAYERS = [QuantRNN, QuantLSTM, QuantGRU]


class LearnedScale(Int8WeightPerTensorFloat):
    scaling_impl_type = "PARAMETER_FROM_STATS"


def train(layer, steps, seed=0):
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        layer(torch.randn(4, 2, 3))[0].square().sum().backward()
        optimizer.step()
    return layer


def through_torch_save(layer):
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_torch_save])
@pytest.mark.parametrize("steps", [0, 2, 4])
@pytest.mark.parametrize("cls", LAYERS)
def test_copies_are_equal_and_independent(cls, steps, copier):
    layer = train(cls(3, 4, bidirectional=True, weight_quant=LearnedScale, io_collect_stats_steps=3), steps)
    twin = copier(layer)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    train(twin, 2, seed=5)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    train(layer, 2, seed=5)
    assert all(torch.equal(value, twin.state_dict()[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("cls", LAYERS)
def test_strict_loading_at_any_moment_continues_identically(cls):
    keys = set(cls(3, 4).state_dict())
    for before in (0, 2, 4):
        source = train(cls(3, 4, io_collect_stats_steps=3), before)
        target = train(cls(3, 4, io_collect_stats_steps=3), 4 - before, seed=7)
        assert set(source.state_dict()) == keys
        target.load_state_dict(source.state_dict())
        train(source, 2, seed=9), train(target, 2, seed=9)
        for key, value in source.state_dict().items():
            assert torch.equal(target.state_dict()[key], value), key


def test_keys():
    expected = {"gate.bias", "gate.input.weight", "gate.hidden.weight"}
    act = "fused_activation_quant_proxy.tensor_quant.scaling_impl"
    leaves = ("value", "running_stats", "counter", "initialised")
    wanted = {f"layers.0.{name}" for name in expected}
    wanted |= {f"layers.0.gate.gate_acc_quant.{act}.{leaf}" for leaf in leaves}
    wanted |= {f"io_quant.{act}.{leaf}" for leaf in leaves}
    assert set(QuantRNN(3, 4).state_dict()) == wanted


@pytest.mark.parametrize(("cls", "torch_cls"), [(QuantRNN, nn.RNN), (QuantLSTM, nn.LSTM), (QuantGRU, nn.GRU)])
def test_a_float_checkpoint_into_quantized_layers(cls, torch_cls):
    layer, source = cls(3, 4, weight_quant=LearnedScale), torch_cls(3, 4)
    with pytest.raises(RuntimeError, match="io_quant.*scaling_impl.value"):
        layer.load_state_dict(source.state_dict())
    with patch(config, "IGNORE_MISSING_KEYS", True):
        layer.load_state_dict(source.state_dict())
    gate = layer.layers[0].gates()[0]
    rows = slice(0, 4)
    both = torch.cat([source.weight_ih_l0[rows].flatten(), source.weight_hh_l0[rows].flatten()])
    assert torch.equal(gate.input.quant_weight_scale(), both.abs().max() / 127)
    x = torch.randn(6, 2, 3)
    assert (layer(x)[0] - source(x)[0]).abs().max() < 0.05  # 8 bits, and ranges collected from this very input


def test_inference_mode_and_back_and_meta():
    layer = train(QuantLSTM(3, 4), 2)
    x = torch.randn(4, 2, 3)
    with torch.inference_mode():
        layer(x)
    train(layer, 1)
    assert QuantLSTM(3, 4, device="meta").layers[0].input_gate.hidden.weight.is_meta


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("cls", LAYERS)
def test_gradient_checkpointing_gives_the_state_of_plain_training(cls, reentrant):
    torch.manual_seed(0)
    layer = cls(3, 4, io_collect_stats_steps=3, dtype=torch.float64)
    expected = copy.deepcopy(layer)

    def repeated(x):
        return checkpoint(lambda y: layer(y)[0], x, use_reentrant=reentrant)

    for step in range(6):  # collecting, the first learned one, and after it
        x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
        for run, owner in ((repeated, layer), (lambda y: expected(y)[0], expected)):
            optimizer = torch.optim.SGD(owner.parameters(), 0.1)
            optimizer.zero_grad()
            run(x).square().sum().backward()
            optimizer.step()
        for key, value in expected.state_dict().items():
            assert torch.equal(layer.state_dict()[key], value), (step, key)


@pytest.mark.parametrize(
    ("cls", "form", "length"),
    [
        (QuantRNN, {}, 2),
        pytest.param(QuantLSTM, {}, 2, marks=pytest.mark.slow),
        pytest.param(QuantGRU, {}, 2, marks=pytest.mark.slow),
    ],
)
def test_compiled_in_one_graph(cls, form, length):
    torch.manual_seed(0)
    layer = cls(3, 4, **form, io_collect_stats_steps=2, return_quant_tensor=True)
    reference = copy.deepcopy(layer)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for step in range(4):
        x = torch.randn(length, 2, 3)
        for model, net in ((compiled, layer), (reference, reference)):
            net.zero_grad()
            output = model(x)[0]
            output.value.square().sum().backward()
            kept = (output.value.detach(), {name: p.grad.clone() for name, p in net.named_parameters()})
            values = kept if net is layer else values  # noqa: F821
        assert torch.equal(values[0], kept[0]), step
        for name, gradient in kept[1].items():
            torch.testing.assert_close(values[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[key], value, rtol=1e-6, atol=1e-7, msg=key)
    # The first forward, which starts the statistics, and all others.
    assert counter.frame_count == 2
    layer.eval(), reference.eval()
    for _ in range(2):
        x = torch.randn(length, 2, 3)
        assert torch.equal(compiled(x)[0].value, reference(x)[0].value)
    assert counter.frame_count == 3


@pytest.mark.parametrize("cls", LAYERS)
def test_exported_program(cls):
    layer = train(cls(3, 4, num_layers=2), 2).eval()
    x = torch.randn(3, 2, 3)
    program = torch.export.export(layer, (x,))
    assert torch.equal(program.module()(x)[0], layer(x)[0])


class Classifier(nn.Module):
    """A recurrent layer and a classifier on its last output."""

    def __init__(self, cls, **options):
        super().__init__()
        self.body = cls(3, 4, batch_first=True, return_quant_tensor=True, **options)
        self.head = QuantLinear(4, 2, weight_bit_width=4)

    def forward(self, x):
        return self.head(self.body(x)[0][:, -1])


@pytest.mark.parametrize(("manager", "name"), [(QONNXManager, "qonnx"), (StdONNXManager, "qdq")])
@pytest.mark.parametrize(
    ("cls", "options"),
    [(QuantRNN, {}), (QuantLSTM, {}), (QuantLSTM, {"coupled_input_forget_gates": True}), (QuantGRU, {})],
)
def test_exported_to_onnx_and_verified(cls, options, manager, name, tmp_path):
    torch.manual_seed(0)
    model = Classifier(cls, **options)
    x = torch.randn(8, 3, 3)
    for _ in range(2):
        model(x)
    model.eval()
    path = tmp_path / f"{name}.onnx"
    manager.export(model, input_t=x, export_path=path)
    report = verify(model, path, x, mode="isolated")
    assert sum(row.diverged for row in report.rows) == 0, report
    compared = {row.quantizer for row in report.rows}
    assert any(quantizer.endswith("gate_acc_quant") for quantizer in compared)
    assert any(quantizer.startswith("body.io_quant") for quantizer in compared)
