"""Rules for recurrent layers, whose quantizers and parameters belong to their gates."""

import pytest
import torch
from torch import nn

import brevitas
from brevitas.errors import SpecError, UnknownOptionError
from brevitas.graph import apply_spec, spec_of
from brevitas.nn import QuantGRU, QuantIdentity, QuantLSTM, QuantRNN

LAYERS = [(nn.RNN, QuantRNN), (nn.LSTM, QuantLSTM), (nn.GRU, QuantGRU)]
ALL = {
    "weight": "Int8WeightPerTensorFloat",
    "bias": "Int32Bias",
    "io": "Int8ActPerTensorFloat",
    "gate_acc": {"base": "Int8ActPerTensorFloat", "bit_width": 12},
}
GATED = {"sigmoid": "Uint8ActPerTensorFloat", "tanh": "Int8ActPerTensorFloat"}


class Net(nn.Module):
    def __init__(self, cls=nn.LSTM, **options):
        super().__init__()
        self.body = cls(3, 4, num_layers=2, batch_first=True, **options)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.body(x)[0][:, -1])


def rule(cls):
    roles = ALL if cls is nn.RNN else ALL | GATED
    return {"type": cls.__name__, **(roles | {"cell_state": "Int8ActPerTensorFloat"} if cls is nn.LSTM else roles)}


@pytest.mark.parametrize(("cls", "quantized"), LAYERS)
def test_a_float_layer_becomes_a_quantized_one_with_its_weights(cls, quantized):
    model = Net(cls, bidirectional=False, dropout=0.1).eval()
    x = torch.randn(5, 6, 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = apply_spec(model, {"rules": [rule(cls)]})
    body = result.body
    assert type(body) is quantized and type(result.head) is nn.Linear and not body.training
    assert (body.num_layers, body.batch_first, body.dropout) == (2, True, 0.1)
    assert int(body.layers[1].gates()[0].gate_acc_quant.bit_width()) == 12
    result.train()
    body.dropout = 0.0
    assert (result(x) - model(x)).abs().max() < 0.05
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    back = apply_spec(result.eval(), {"rules": [{"type": cls.__name__, "keep": "float"}]})
    assert type(back.body) is cls
    assert (back(x) - model(x)).abs().max() < 1e-6


def test_roles_that_no_rule_sets_are_off():
    model = Net().eval()
    result = apply_spec(model, {"rules": [{"type": "LSTM", "weight": "Int8WeightPerTensorFloat"}]})
    gate = result.body.layers[0].forget_gate
    assert gate.input.is_weight_quant_enabled and not gate.is_bias_quant_enabled
    assert not result.body.is_io_quant_enabled and not gate.sigmoid_quant.is_quant_enabled
    x = torch.randn(5, 6, 3)
    assert 0 < (result(x) - model(x)).abs().max() < 0.05


def test_overrides_with_the_prefix_of_a_role():
    spec = {"rules": [rule(nn.LSTM)]}
    body = apply_spec(Net(), spec, gate_acc_bit_width=10, cell_state_bit_width=9, io_bit_width=5).body
    assert int(body.layers[0].cell_gate.gate_acc_quant.bit_width()) == 10
    assert int(body.cell_state_quant.bit_width()) == 9 and int(body.quant_io_bit_width()) == 5
    with pytest.raises(UnknownOptionError, match="'gate_bit_width'.*gate_acc_bit_width"):
        apply_spec(Net(), spec, gate_bit_width=10)


def test_options_of_the_layer():
    options = {
        "coupled_input_forget_gates": False,
        "shared_intra_layer_weight_quant": True,
        "return_quant_tensor": True,
    }
    body = apply_spec(Net(), {"rules": [rule(nn.LSTM) | {"layer": options}]}).body
    gates = body.layers[0].gates()
    assert body.return_quant_tensor and gates[0].input.weight_quant is gates[3].hidden.weight_quant
    with pytest.raises(SpecError, match="'layer' has the unknown key 'num_layers'"):
        apply_spec(Net(), {"rules": [rule(nn.LSTM) | {"layer": {"num_layers": 1}}]})
    with pytest.raises(SpecError, match="no place for 'layers.0.forget_gate.*coupled_input_forget_gates=True"):
        apply_spec(Net(), {"rules": [rule(nn.LSTM) | {"layer": {"coupled_input_forget_gates": True}}]})


def test_a_projection_is_refused():
    model = nn.Sequential(nn.LSTM(3, 4, proj_size=2))
    with pytest.raises(SpecError, match="LSTM '0': QuantLSTM: proj_size = 2 is not supported"):
        apply_spec(model, {"rules": [rule(nn.LSTM)]})


@pytest.mark.parametrize(("cls", "quantized"), LAYERS)
def test_spec_of_describes_what_it_was_built_from(cls, quantized):
    options = {"nonlinearity": "relu"} if cls is nn.RNN else {"shared_intra_layer_gate_acc_quant": True}
    model = nn.Sequential(quantized(3, 4, weight_bit_width=5, io_bit_width=7, return_quant_tensor=True, **options))
    spec = spec_of(model)
    (written,) = spec["rules"]
    assert written["weight"] == {"base": "Int8WeightPerTensorFloat", "bit_width": 5}
    assert written["io"] == {"base": "Int8ActPerTensorFloat", "bit_width": 7}
    assert written["layer"] == {"return_quant_tensor": True} | ({} if cls is nn.RNN else options)
    float_options = options if cls is nn.RNN else {}
    again = apply_spec(nn.Sequential(cls(3, 4, **float_options)), spec)
    again.load_state_dict(model.state_dict())
    x = torch.randn(5, 2, 3)
    model(x)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x)[0].value, model.eval()(x)[0].value)


def test_a_quantized_layer_keeps_its_quantizers_unless_it_is_built_anew():
    model = apply_spec(Net(), {"rules": [rule(nn.LSTM)]})
    same = apply_spec(model, {"rules": [rule(nn.LSTM)]}, inplace=True)
    assert same.body is model.body
    with pytest.raises(SpecError, match="'io' of QuantLSTM 'body' cannot change: the quantizers belong to the parts"):
        apply_spec(model, {"rules": [{"type": "LSTM", "io": {"bit_width": 4}}]})


def test_a_shared_quantizer_of_the_input():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp = QuantIdentity(return_quant_tensor=True)
            self.body = QuantGRU(3, 4, io_quant=self.inp.act_quant)

        def forward(self, x):
            return self.body(self.inp(x))[0]

    spec = spec_of(Shared())
    assert spec["rules"][1]["io"] == {"share": "inp.act_quant"}


def test_frozen_parameters_devices_and_hooks_survive():
    model = Net().double()
    model.body.requires_grad_(False)
    calls = []
    model.body.register_forward_hook(lambda *given: calls.append(1))
    model.body.note = "mine"
    body = apply_spec(model, {"rules": [rule(nn.LSTM)]}).body
    assert not any(p.requires_grad for weights in body.all_weights for p in weights)
    assert body.io_quant.tensor_quant.scaling_impl.value.requires_grad
    assert all(p.dtype == torch.float64 for p in body.parameters())
    body(torch.randn(2, 5, 3).double())
    assert calls == [1] and body.note == "mine"


def test_explain_finds_the_quantizers_of_gates():
    model = apply_spec(Net(), {"rules": [rule(nn.LSTM)]})
    assert "bit_width = 12" in str(brevitas.explain(model, "body.layers.0.forget_gate.gate_acc_quant"))
