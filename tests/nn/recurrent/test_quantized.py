"""The formulas, written in plain torch beside the layers: values and gradients."""

import pytest
import torch
from torch import Tensor

from brevitas.core.stats.running import CollectThenLearn
from brevitas.nn import QuantGRU, QuantIdentity, QuantLSTM, QuantRNN
from brevitas.quant import Int8WeightPerChannelFloat
from brevitas.quant_tensor import QuantTensor


def learned(layer, x, steps=2):
    """The layer after statistics were collected, with learned scales, in training mode."""
    with torch.no_grad():
        for _ in range(steps):
            layer(x)
    for module in layer.modules():
        if isinstance(module, CollectThenLearn):
            module.finish_collecting()
    return layer


def rounded(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


class Reference:
    """One layer and direction, with the parameters of ``layer``, of which it makes leaves of its own."""

    def __init__(self, layer):
        self.p = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}

    def act(self, name: str, x: Tensor, low: int, high: int) -> Tensor:
        key = f"{name}.fused_activation_quant_proxy.tensor_quant.scaling_impl.value"
        scale = self.p[key] / max(-low, high)
        return rounded(x / scale).clamp(low, high) * scale

    def int8(self, name: str, x: Tensor) -> Tensor:
        return self.act(f"{name}_quant", x, -128, 127)

    def sigmoid(self, gate: str, x: Tensor) -> Tensor:
        return self.act(f"layers.0.{gate}.sigmoid_quant", torch.sigmoid(self.acc(gate, x)), 0, 255)

    def tanh(self, name: str, x: Tensor) -> Tensor:
        return self.int8(f"layers.0.{name}tanh", torch.tanh(x))

    def acc(self, gate: str, x: Tensor) -> Tensor:
        return self.int8(f"layers.0.{gate}.gate_acc", x)

    def weight(self, gate: str) -> tuple[Tensor, Tensor, Tensor]:
        both = [self.p[f"layers.0.{gate}.{part}.weight"] for part in ("input", "hidden")]
        scale = torch.cat([w.flatten() for w in both]).abs().max() / 127
        return *(rounded(w / scale) * scale for w in both), scale

    def bias(self, name: str, gate: str) -> Tensor:
        io = self.p["io_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.value"] / 128
        scale = self.weight(gate)[2] * io
        return rounded(self.p[f"layers.0.{name}bias"] / scale) * scale

    def sum(self, gate: str, x: Tensor, h: Tensor) -> Tensor:
        w_ih, w_hh, _ = self.weight(gate)
        return x @ w_ih.T + h @ w_hh.T + self.bias(f"{gate}.", gate)

    def run(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        x = self.int8("io", x)
        outputs = []
        for t in range(len(x)):
            state = self.step(x[t], *state)
            outputs.append(state[0])
        return torch.stack(outputs), state


class RNN(Reference):
    nonlinearity = torch.tanh

    def step(self, x, h):
        return (self.int8("io", type(self).nonlinearity(self.acc("gate", self.sum("gate", x, h)))),)


class ReluRNN(RNN):
    nonlinearity = torch.relu


class LSTM(Reference):
    def forget(self, x, h, i):
        return self.sigmoid("forget_gate", self.sum("forget_gate", x, h))

    def step(self, x, h, c):
        i = self.sigmoid("input_gate", self.sum("input_gate", x, h))
        f = self.forget(x, h, i)
        g = self.tanh("cell_gate.", self.acc("cell_gate", self.sum("cell_gate", x, h)))
        o = self.sigmoid("output_gate", self.sum("output_gate", x, h))
        c = self.int8("cell_state", self.int8("cell_state", f * c) + self.int8("cell_state", i * g))
        return self.int8("io", o * self.tanh("", c)), c


class CoupledLSTM(LSTM):
    def forget(self, x, h, i):
        key = "layers.0.input_gate.sigmoid_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.value"
        scale = self.p[key] / 255
        one = 1 / scale  # moved onto the grid straight through, clamp included, as QuantTensor.requantize does
        return (one + (one.round().clamp(0, 255) - one).detach()) * scale - i


class GRU(Reference):
    def step(self, x, h):
        r = self.sigmoid("reset_gate", self.sum("reset_gate", x, h))
        z = self.sigmoid("update_gate", self.sum("update_gate", x, h))
        w_in, w_hn, _ = self.weight("new_gate")
        inputs = self.acc("new_gate", x @ w_in.T + self.bias("new_gate.", "new_gate"))
        hidden = self.acc("new_gate", h @ w_hn.T + self.bias("new_gate.hidden.", "new_gate"))
        n = self.tanh("new_gate.", inputs + self.acc("new_gate", r * hidden))
        return (self.int8("io", self.int8("io", (1 - z) * n) + self.int8("io", z * h)),)


CASES = [
    pytest.param(QuantRNN, {}, RNN, id="rnn"),
    pytest.param(QuantRNN, {"nonlinearity": "relu"}, ReluRNN, id="rnn with relu"),
    pytest.param(QuantLSTM, {}, LSTM, id="lstm"),
    pytest.param(QuantLSTM, {"coupled_input_forget_gates": True}, CoupledLSTM, id="lstm, coupled"),
    pytest.param(QuantGRU, {}, GRU, id="gru"),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("cls", "options", "reference"), CASES)
def test_values_and_gradients_of_the_formulas(cls, options, reference, training):
    torch.manual_seed(1)
    layer = cls(3, 4, **options, dtype=torch.float64)
    x = 2 * torch.randn(5, 2, 3, dtype=torch.float64)
    learned(layer, x).train(training)
    plain = reference(layer)
    zeros = torch.zeros(2, 4, dtype=torch.float64)
    state = (zeros, zeros) if cls is QuantLSTM else (zeros,)
    output, states = layer(x)
    states = states if isinstance(states, tuple) else (states,)
    expected, expected_states = plain.run(x, state)
    for a, b in zip((output, *(s[0] for s in states)), (expected, *expected_states), strict=True):
        assert (a - b).abs().max() < 1e-12
    cotangent = torch.randn_like(output)
    names = list(plain.p)
    parameters = dict(layer.named_parameters())
    (output * cotangent).sum().backward()
    wanted = torch.autograd.grad((expected * cotangent).sum(), [plain.p[n] for n in names], allow_unused=True)
    for name, gradient in zip(names, wanted, strict=True):
        ours = parameters[name].grad
        assert (gradient is None) == (ours is None), name
        if gradient is not None:
            assert (ours - gradient.reshape(ours.shape)).abs().max() < 1e-10 * max(1, gradient.abs().max()), name
    assert sum(g is not None and bool(g.abs().max() > 0) for g in wanted) > len(names) - 3


def test_given_states_are_quantized_by_their_quantizers():
    layer = learned(QuantLSTM(3, 4, dtype=torch.float64), torch.randn(5, 2, 3).double())
    x, h, c = torch.randn(5, 2, 3).double(), torch.rand(1, 2, 4).double(), torch.rand(1, 2, 4).double()
    plain = LSTM(layer)
    expected, (h_n, c_n) = plain.run(x, (plain.int8("io", h[0]), plain.int8("cell_state", c[0])))
    output, states = layer(x, (h, c))
    assert (output - expected).abs().max() < 1e-12
    assert (states[1][0] - c_n).abs().max() < 1e-12
    # A state that a layer has returned goes back into it.
    layer.return_quant_tensor = True
    _, states = layer(x[:2])
    output, _ = layer(x[2:], *states)
    assert torch.equal(output.value, layer(x)[0].value[2:])


@pytest.mark.parametrize("cls", [QuantRNN, QuantLSTM, QuantGRU])
@pytest.mark.parametrize("form", [{}, {"batch_first": True}])
def test_layers_and_directions_are_single_layers_in_sequence(cls, form):
    """The stack against cells run one by one, each as a layer of its own with the same quantizers."""
    layer = cls(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64, return_quant_tensor=True, **form)
    x = torch.randn(5, 2, 3).double()
    learned(layer, x.transpose(0, 1) if form else x).eval()
    output, states = layer(x.transpose(0, 1) if form else x)
    hidden = states[0] if cls is QuantLSTM else states
    y = x
    for index in range(0, 4, 2):
        parts = []
        for direction in range(2):
            single = cls(y.shape[-1], 4, dtype=torch.float64, return_quant_tensor=True)
            single.layers[0] = layer.layers[index + direction]
            single.io_quant = layer.io_quant
            if cls is QuantLSTM:
                single.cell_state_quant = layer.cell_state_quant
            part, state = single.eval()(y.flip(0) if direction else y)
            state = state[0] if cls is QuantLSTM else state
            assert torch.equal(state.value[0], hidden.value[index + direction])
            parts.append(part.value.flip(0) if direction else part.value)
        y = torch.cat(parts, -1)
    assert torch.equal(y, output.value.transpose(0, 1) if form else output.value)


@pytest.mark.filterwarnings("ignore:.*evaluated before it has seen any data")
@pytest.mark.parametrize("cls", [QuantRNN, QuantLSTM, QuantGRU])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_states_lie_on_one_grid(cls, training):
    layer = cls(3, 4, num_layers=2, bidirectional=True, return_quant_tensor=True, io_bit_width=6)
    x = torch.randn(5, 2, 3)
    for _ in range(2):
        output, states = layer.train(training)(x)
        hidden = states[0] if cls is QuantLSTM else states
        for result in (output, hidden):
            assert isinstance(result, QuantTensor) and result.is_valid
            assert result.signed and int(result.bit_width) == 6 and not result.zero_point.any()
        assert torch.equal(output.scale, hidden.scale)
        if cls is QuantLSTM:
            assert isinstance(states[1], QuantTensor) and states[1].is_valid and int(states[1].bit_width) == 8
    layer.return_quant_tensor = False
    output, states = layer(x)
    assert type(output) is Tensor and type(states[0]) is Tensor


@pytest.mark.filterwarnings("ignore:.*evaluated before it has seen any data")
def test_a_quant_tensor_is_quantized_again():
    coarse = QuantIdentity(bit_width=3, return_quant_tensor=True).eval()
    layer = QuantGRU(3, 4, io_quant=None, bias_quant=None).eval()
    x = torch.rand(5, 2, 3)
    assert torch.equal(layer(coarse(x))[0], layer(coarse(x).value)[0])
    layer = QuantGRU(3, 4).eval()
    assert torch.equal(layer(coarse(x))[0], layer(coarse(x).value)[0])


def test_shared_weight_quantizers():
    one = QuantLSTM(3, 4, shared_intra_layer_weight_quant=True, shared_intra_layer_gate_acc_quant=True)
    gates = one.layers[0].gates()
    assert len({id(g.input.weight_quant) for g in gates} | {id(g.hidden.weight_quant) for g in gates}) == 1
    assert len({id(g.gate_acc_quant) for g in gates}) == 1
    assert len({id(g.sigmoid_quant) for g in gates if hasattr(g, "sigmoid_quant")}) == 3
    with torch.no_grad():
        gates[2].hidden.weight[0, 0] = 5.0
    assert all(g.input.quant_weight_scale() == 5.0 / 127 for g in gates)
    own = QuantLSTM(3, 4, num_layers=2)
    gates = [g for cell in own.layers for g in cell.gates()]
    assert len({id(g.input.weight_quant) for g in gates}) == 8
    assert all(g.input.weight_quant is g.hidden.weight_quant for g in gates)


def test_one_scale_for_both_weights_of_a_gate_per_channel_too():
    layer = QuantRNN(3, 4, weight_quant=Int8WeightPerChannelFloat, dtype=torch.float64)
    gate = layer.layers[0].gate
    largest = torch.cat([gate.input.weight, gate.hidden.weight], 1).abs().amax(1, keepdim=True)
    assert torch.equal(gate.hidden.quant_weight_scale(), largest / 127)
    assert torch.equal(gate.input.quant_weight_scale(), largest / 127)
    x = torch.randn(5, 2, 3).double()
    learned(layer, x).eval()
    layer(x)
    assert torch.equal(gate.accumulator_scale(), largest / 127 * layer.quant_io_scale())
    assert (gate.quant_bias().value - gate.bias).abs().max() <= gate.accumulator_scale().max() / 2
    assert torch.equal(gate.int_bias().double() * gate.accumulator_scale().flatten(), gate.quant_bias().value)


def test_input_weights_of_both_directions():
    layer = QuantLSTM(3, 4, bidirectional=True, shared_input_hidden_weights=True)
    forward, backward = (cell.forget_gate for cell in layer.layers)
    assert forward.input is backward.input and forward.hidden is not backward.hidden
    assert backward.hidden.weight_quant is forward.input.weight_quant
    assert forward.bias is not backward.bias
    layer(torch.randn(5, 2, 3))[0].sum().backward()
    assert forward.input.weight.grad is not None


def test_cell_states_with_quantizers_of_their_own():
    layer = QuantLSTM(
        3,
        4,
        num_layers=2,
        shared_cell_state_quant=False,
        cat_output_cell_states=False,
        return_quant_tensor=True,
    )
    x = torch.randn(5, 2, 3)
    learned(layer, x).eval()
    output, (h, c) = layer(x)
    assert isinstance(c, list) and [tuple(each.shape) for each in c] == [(2, 4)] * 2
    assert c[0].scale != c[1].scale and all(each.is_valid for each in c)
    assert layer.layers[0].cell_state_quant is not layer.layers[1].cell_state_quant
    again, _ = layer(x, (h, c))
    assert not torch.equal(again.value, output.value)
    _, (_, alone) = layer(x[:, 0])
    assert [tuple(each.shape) for each in alone] == [(4,)] * 2
    together = QuantLSTM(3, 4, num_layers=2, cat_output_cell_states=False)
    assert isinstance(together(x)[1][1], list)


def test_a_quantizer_of_another_layer():
    identity = QuantIdentity(return_quant_tensor=True)
    layer = QuantLSTM(3, 4, io_quant=identity.act_quant, return_quant_tensor=True)
    x = torch.randn(5, 2, 3)
    layer(x)
    assert layer.io_quant is identity.act_quant
    identity.eval()
    assert torch.equal(identity(x).scale, layer.eval()(x)[0].scale)


@pytest.mark.filterwarnings("ignore:.*evaluated before it has seen any data")
def test_getters():
    layer = QuantGRU(3, 4, io_bit_width=5, weight_bit_width=4)
    gate = layer.layers[0].new_gate
    assert layer.is_io_quant_enabled and layer.is_input_quant_enabled and layer.is_output_quant_enabled
    assert int(layer.quant_io_bit_width()) == int(layer.quant_output_bit_width()) == 5
    assert gate.hidden.int_weight().abs().max() <= 7 and int(gate.input.quant_weight_bit_width()) == 4
    assert gate.is_bias_quant_enabled and gate.accumulator_scale() is None and gate.accumulator_bit_width() is None
    layer.eval()(torch.randn(5, 2, 3))
    scale = layer.quant_io_scale() * gate.input.quant_weight_scale()
    assert torch.equal(gate.accumulator_scale(), scale)
    assert torch.equal(gate.int_bias().float() * scale, gate.quant_bias().value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("cls", [QuantRNN, QuantLSTM, QuantGRU])
def test_other_dtypes(cls, dtype):
    layer = cls(3, 4, dtype=dtype)
    assert all(p.dtype == dtype for p in layer.parameters())
    output, _ = layer(torch.randn(5, 2, 3, dtype=dtype))
    output.sum().backward()
    assert output.dtype == dtype and output.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


def test_autocast():
    layer = QuantLSTM(3, 4)
    x = torch.randn(5, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = layer(x)
    output.float().sum().backward()
    reference, _ = layer(x)
    assert (output.float() - reference).abs().max() < 0.1
