"""What recurrent layers refuse, and what they say."""

import pytest
import torch
from torch import nn

from brevitas.errors import QuantConfigError, QuantMetadataError, UnknownOptionError
from brevitas.nn import QuantGRU, QuantIdentity, QuantLSTM, QuantRNN, QuantSigmoid
from brevitas.quant import (
    Int8AccumulatorAwareWeightQuant,
    Int8ActPerTensorFixedPoint,
    Int8BiasPerTensorFloatInternalScaling,
    Int8WeightPerTensorFloat,
)

LAYERS = [QuantRNN, QuantLSTM, QuantGRU]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"io_bit_widht": 4}, "unknown option 'io_bit_widht' = 4: nothing reads it. Did you mean 'io_bit_width'"),
        ({"bit_width": 4}, "unknown option 'bit_width' = 4"),
        ({"cell_bit_width": 4}, "unknown option 'cell_bit_width' = 4. Did you mean 'cell_state_bit_width'"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(UnknownOptionError, match=f"(?s)QuantLSTM.*{message}"):
        QuantLSTM(3, 4, **options)


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (QuantLSTM, {"proj_size": 2}, "proj_size = 2 is not supported.*QuantLinear"),
        (
            QuantLSTM,
            {"shared_cell_state_quant": False},
            "cat_output_cell_states=True.*set cat_output_cell_states=False",
        ),
        (QuantLSTM, {"coupled_input_forget_gates": 1}, "coupled_input_forget_gates = 1 is not legal: expected True or"),
        (QuantGRU, {"shared_input_hidden_weights": "yes"}, "shared_input_hidden_weights = 'yes' is not legal"),
        (QuantRNN, {"return_quant_tensor": None}, "return_quant_tensor = None is not legal"),
        (QuantRNN, {"weight_quant": Int8ActPerTensorFixedPoint}, "weight_quant"),
        (QuantRNN, {"io_quant": Int8WeightPerTensorFloat}, "io_quant"),
        (QuantRNN, {"weight_bit_width": 0}, "weight_bit_width"),
        (
            QuantLSTM,
            {"weight_quant": Int8AccumulatorAwareWeightQuant},
            "bounds the sum of the products of one weight, and a gate adds those of two",
        ),
    ],
)
def test_illegal_options(cls, options, message):
    with pytest.raises(QuantConfigError, match=f"(?s){cls.__name__}.*{message}"):
        cls(3, 4, **options)


@pytest.mark.parametrize("cls", LAYERS)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 4), ValueError, "input_size must be greater than zero"),
        ((3, -1), ValueError, "hidden_size must be greater than zero"),
        ((3, 4.0), TypeError, "hidden_size should be of type int"),
        ((3, 4, 0), ValueError, "num_layers must be greater than zero"),
    ],
)
def test_arguments_that_torch_refuses(cls, arguments, error, message):
    with pytest.raises(error, match=message):
        cls(*arguments)


def test_nonlinearity():
    with pytest.raises(ValueError, match="Unknown nonlinearity 'gelu'"):
        QuantRNN(3, 4, nonlinearity="gelu")


def test_a_quantizer_of_a_layer_with_another_activation():
    with pytest.raises(
        QuantConfigError, match="sigmoid_quant is the quantizer of another layer, which applies no acti"
    ):
        QuantGRU(3, 4, sigmoid_quant=QuantIdentity().act_quant)
    with pytest.raises(QuantConfigError, match="io_quant is the quantizer.*which applies Sigmoid.*expected none"):
        QuantGRU(3, 4, io_quant=QuantSigmoid().act_quant)
    QuantGRU(3, 4, sigmoid_quant=QuantSigmoid().act_quant)
    with pytest.raises(QuantConfigError, match="io_bit_width cannot change a quantizer that is shared"):
        QuantGRU(3, 4, io_quant=QuantIdentity().act_quant, io_bit_width=4)


@pytest.mark.parametrize("cls", LAYERS)
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5,), r"the input has 1 dims, shape \(5,\); expected 3, or 2 without a batch"),
        ((5, 2, 4), r"the input has 4 features, shape \(5, 2, 4\); expected input_size=3"),
        ((0, 2, 3), r"the input has no time steps, shape \(0, 2, 3\)"),
    ],
)
def test_inputs_of_another_shape(cls, shape, message):
    model = nn.ModuleDict({"body": cls(3, 4)})
    with pytest.raises(QuantConfigError, match=f"{cls.__name__}: {message}"):
        model["body"](torch.zeros(shape))


def test_other_inputs():
    packed = nn.utils.rnn.pack_sequence([torch.zeros(5, 3), torch.zeros(2, 3)])
    with pytest.raises(QuantConfigError, match="PackedSequence is not supported; pad the sequences to one length"):
        QuantLSTM(3, 4)(packed)
    with pytest.raises(QuantConfigError, match="the input is a list; expected a Tensor or a QuantTensor"):
        QuantLSTM(3, 4)([torch.zeros(5, 3)])


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (
            (torch.zeros(1, 2, 5),) * 2,
            r"h0 has shape \(1, 2, 5\); expected \(1, 2, 4\): \(num_layers \* directions, batch",
        ),
        ((torch.zeros(1, 2, 4), torch.zeros(2, 4)), r"c0 has shape \(2, 4\); expected \(1, 2, 4\)"),
        ((torch.zeros(1, 2, 4), [torch.zeros(2, 4)] * 2), r"c0 is a list of 2 with shapes .*; expected 1 of \(2, 4\)"),
        ((torch.zeros(1, 2, 4), 0), "c0 is a int; expected a Tensor"),
        ((torch.zeros(1, 2, 4),), "hx is a tuple of 1; expected the pair"),
        (torch.zeros(1, 2, 4), "the initial cell state is missing"),
    ],
)
def test_states_of_another_form(states, message):
    with pytest.raises(QuantConfigError, match=message):
        QuantLSTM(3, 4)(torch.zeros(5, 2, 3), states)


def test_two_pairs_and_half_a_pair():
    h = torch.zeros(1, 2, 4)
    with pytest.raises(QuantConfigError, match="hx is a tuple of 2 beside cx; expected the pair"):
        QuantLSTM(3, 4)(torch.zeros(5, 2, 3), (h, h), h)
    with pytest.raises(QuantConfigError, match="the initial hidden state is missing"):
        QuantLSTM(3, 4)(torch.zeros(5, 2, 3), None, h)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"io_quant": None}, "Int32Bias needs the scale of the gates' sums, and io_quant is off. Fix: set io_quant="),
        (
            {"weight_quant": None},
            "Int32Bias needs the scale of the gates' sums, and weight_quant is off.*bias_quant=None",
        ),
        (
            {"io_quant": None, "bias_quant": None, "return_quant_tensor": True},
            "return_quant_tensor=True needs the grid of input and state, and io_quant is off.*tensor=False",
        ),
    ],
)
def test_metadata_that_no_quantizer_gives(options, message, training):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = QuantLSTM(3, 4, **options)

        def forward(self, x):
            return self.body(x)

    with pytest.raises(QuantMetadataError, match=f"QuantLSTM 'body': {message}"):
        Net().train(training)(torch.zeros(5, 2, 3))


def test_a_scale_per_channel_of_input_and_state():
    layer = QuantRNN(4, 4, io_scaling_per_output_channel=True, io_per_channel_broadcastable_shape=(1, 4))
    with pytest.raises(
        QuantMetadataError, match="per-tensor scale of input and state, and io_quant gives one of shape"
    ):
        layer(torch.randn(5, 2, 4))


def test_what_needs_no_scale_works_without():
    x = torch.randn(5, 2, 3)
    QuantLSTM(3, 4, io_quant=None, bias_quant=None)(x)
    QuantLSTM(3, 4, weight_quant=None, bias_quant=Int8BiasPerTensorFloatInternalScaling)(x)
    QuantLSTM(3, 4, io_quant=None, bias=False)(x)


def test_parameters_that_do_not_belong():
    layer, parameters = QuantGRU(3, 4), QuantGRU(3, 4).torch_parameters()
    with pytest.raises(QuantConfigError, match="QuantGRU: 'weight_ih_l1' is no parameter of the layer"):
        layer.take_torch_parameters(parameters | {"weight_ih_l1": parameters["weight_ih_l0"]})
    del parameters["bias_hh_l0"]
    with pytest.raises(QuantConfigError, match="QuantGRU: 'bias_hh_l0' is missing"):
        layer.take_torch_parameters(parameters)
    coupled = QuantLSTM(3, 4, coupled_input_forget_gates=True)
    with pytest.raises(QuantConfigError, match="coupled_input_forget_gates=True, which no layer of torch.nn can"):
        coupled.torch_parameters()


def test_a_refused_forward_changes_nothing():
    layer = QuantLSTM(3, 4)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with pytest.raises(QuantConfigError):
        layer(torch.randn(5, 2, 3), (torch.zeros(1, 2, 4), torch.zeros(1, 3, 4)))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert all(module.training for module in layer.modules())
