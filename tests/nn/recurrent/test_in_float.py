"""Without quantizers the layers are torch's own: values, gradients, states, checkpoints."""

import warnings

import pytest
import torch
from torch import nn

from brevitas.nn import QuantGRU, QuantLSTM, QuantRNN

PAIRS = [(QuantRNN, nn.RNN), (QuantLSTM, nn.LSTM), (QuantGRU, nn.GRU)]
FORMS = [
    {},
    {"bias": False},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"num_layers": 3, "batch_first": True},
]
QUANTIZERS = ("weight", "bias", "io", "gate_acc", "sigmoid", "tanh", "cell_state")


def in_float(cls, *args, **kwargs):
    """The layer with every quantizer off."""
    names = [f"{name}_quant" for name in QUANTIZERS]
    parameters = cls.__init__.__code__.co_varnames
    return cls(*args, **{name: None for name in names if name in parameters}, **kwargs)


def twins(cls, torch_cls, *args, **kwargs):
    torch.manual_seed(0)
    ours = in_float(cls, *args, **kwargs)
    torch.manual_seed(0)
    return ours, torch_cls(*args, **kwargs)


def flat(result):
    """Output and states as a list of tensors."""
    output, states = result
    return [output, *(states if isinstance(states, tuple) else (states,))]


def assert_equal(ours, theirs, tolerance):
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= tolerance


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("cls", "torch_cls"), PAIRS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_equal_to_torch_from_the_same_seed(cls, torch_cls, form, dtype, tolerance):
    ours, theirs = twins(cls, torch_cls, 5, 7, **form, dtype=dtype)
    assert isinstance(ours, torch_cls)
    x = torch.randn(6, 4, 5, dtype=dtype)
    assert_equal(ours(x), theirs(x), tolerance)
    assert_equal(ours(x[:, 0]), theirs(x[:, 0]), tolerance)  # without a batch
    assert_equal(ours.eval()(x), theirs.eval()(x), tolerance)


@pytest.mark.parametrize(("cls", "torch_cls"), PAIRS)
def test_relu_and_states_as_torch(cls, torch_cls):
    form = {"nonlinearity": "relu"} if cls is QuantRNN else {}
    ours, theirs = twins(cls, torch_cls, 5, 7, num_layers=2, bidirectional=True, **form, dtype=torch.float64)
    x, h, c = torch.randn(6, 3, 5).double(), torch.randn(4, 3, 7).double(), torch.randn(4, 3, 7).double()
    given = (h, c) if cls is QuantLSTM else h
    assert_equal(ours(x, given), theirs(x, given), 1e-12)
    alone = (h[:, 0], c[:, 0]) if cls is QuantLSTM else h[:, 0]
    assert_equal(ours(x[:, 0], alone), theirs(x[:, 0], alone), 1e-12)
    if cls is QuantLSTM:
        assert_equal(ours(x, h, c), theirs(x, (h, c)), 1e-12)


@pytest.mark.parametrize(("cls", "torch_cls"), PAIRS)
def test_dropout_between_layers_as_torch(cls, torch_cls):
    ours, theirs = twins(cls, torch_cls, 5, 7, num_layers=2, dropout=1.0, dtype=torch.float64)
    x = torch.randn(6, 3, 5).double()
    assert_equal(ours(x), theirs(x), 1e-12)  # with p = 1 nothing is left to chance
    assert_equal(ours.eval()(x), theirs.eval()(x), 1e-12)
    half = in_float(cls, 5, 7, num_layers=2, dropout=0.5)
    assert not torch.equal(half(x.float())[0], half(x.float())[0])
    with pytest.warns(UserWarning, match="non-zero dropout expects num_layers greater than 1"):
        in_float(cls, 5, 7, dropout=0.5)


@pytest.mark.parametrize(("cls", "form"), [(QuantRNN, {}), (QuantLSTM, {"bidirectional": True}), (QuantGRU, {})])
def test_gradients(cls, form):
    layer = in_float(cls, 2, 2, **form, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *parameters):
        return flat(torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,)))

    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *given: tuple(run(*given)), (x, *layer.parameters()))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("cls", "torch_cls"), PAIRS)
def test_a_checkpoint_of_torch_loads_strictly_and_is_not_changed(cls, torch_cls, form):
    source, layer = torch_cls(5, 7, **form), in_float(cls, 5, 7, **form)
    checkpoint = source.state_dict()
    before = {key: value.clone() for key, value in checkpoint.items()}
    identities = {name: id(p) for name, p in layer.named_parameters()}
    result = layer.load_state_dict(checkpoint)
    assert not result.missing_keys and not result.unexpected_keys
    assert list(checkpoint) == list(before)
    assert all(torch.equal(checkpoint[key], before[key]) for key in before)
    assert {name: id(p) for name, p in layer.named_parameters()} == identities
    x = torch.randn(6, 4, 5)
    assert_equal(layer(x), source(x), 1e-6)


@pytest.mark.parametrize(("cls", "torch_cls"), PAIRS)
def test_a_checkpoint_inside_a_model_loads_and_goes_back(cls, torch_cls):
    source, model = nn.Sequential(torch_cls(5, 7)), nn.Sequential(in_float(cls, 5, 7))
    model.load_state_dict(source.state_dict())
    x = torch.randn(6, 4, 5)
    assert_equal(model(x), source(x), 1e-6)
    back = torch_cls(5, 7)
    back.load_state_dict(model[0].torch_parameters())
    assert_equal(back(x), source(x), 1e-6)


def test_what_a_checkpoint_lacks_or_has_too_much_is_named():
    layer, checkpoint = in_float(QuantLSTM, 5, 7), nn.LSTM(5, 7).state_dict()
    del checkpoint["weight_hh_l0"]
    with pytest.raises(RuntimeError, match=r"Missing key.*layers\.0\.input_gate\.hidden\.weight"):
        layer.load_state_dict(checkpoint)
    with pytest.raises(RuntimeError, match='Unexpected key.*"weight_ih_l1"'):
        layer.load_state_dict(nn.LSTM(5, 7, num_layers=2).state_dict())
    with pytest.raises(RuntimeError, match='Unexpected key.*"bias_ih_l0"'):
        in_float(QuantLSTM, 5, 7, bias=False).load_state_dict(nn.LSTM(5, 7).state_dict())
    with pytest.raises(RuntimeError, match=r"size mismatch for layers\.0\.input_gate\.hidden\.weight"):
        layer.load_state_dict(nn.LSTM(5, 8).state_dict())
    with pytest.raises(RuntimeError, match=r"weight_ih_l0 has shape \(21, 5\); expected the rows of 4 gates"):
        layer.load_state_dict(nn.GRU(5, 7).state_dict())


def test_rows_that_have_no_place_are_refused():
    coupled = in_float(QuantLSTM, 5, 7, coupled_input_forget_gates=True)
    with pytest.raises(RuntimeError, match="no place for 'layers.0.forget_gate.*coupled_input_forget_gates=True"):
        coupled.load_state_dict(nn.LSTM(5, 7).state_dict())
    shared = in_float(QuantLSTM, 5, 7, bidirectional=True, shared_input_hidden_weights=True)
    source = nn.LSTM(5, 7, bidirectional=True)
    with pytest.raises(RuntimeError, match="one parameter.*shared_input_hidden_weights=True.*differ"):
        shared.load_state_dict(source.state_dict())
    with torch.no_grad():
        source.weight_ih_l0_reverse.copy_(source.weight_ih_l0)
    shared.load_state_dict(source.state_dict())
    x = torch.randn(6, 4, 5)
    assert_equal(shared(x), source(x), 1e-6)
    assert shared.layers[1].cell_gate.input.weight is shared.layers[0].cell_gate.input.weight


@pytest.mark.parametrize(("cls", "torch_cls"), PAIRS)
def test_code_that_expects_torch_layers_works(cls, torch_cls):
    layer = cls(5, 7, num_layers=2, bidirectional=True)
    layer.flatten_parameters()
    assert (layer.input_size, layer.hidden_size, layer.num_layers, layer.bidirectional) == (5, 7, 2, True)
    gates = {QuantRNN: 1, QuantLSTM: 4, QuantGRU: 3}[cls]
    biases = 4 if cls is QuantGRU else gates  # one more where two biases stay apart
    assert [len(weights) for weights in layer.all_weights] == [2 * gates + biases] * 4
    assert "5, 7, num_layers=2" in repr(layer)
    before = [p.clone() for weights in layer.all_weights for p in weights]
    layer.reset_parameters()
    after = [p for weights in layer.all_weights for p in weights]
    assert all(p.abs().max() <= 7**-0.5 for p in after)
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_no_warning_from_torch_when_built_or_moved():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        QuantLSTM(3, 4, num_layers=2, dropout=0.5).double().to("meta")
