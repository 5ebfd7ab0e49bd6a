"""QuantEmbedding: torch's own behaviour, the grid of the table, and what has no meaning."""

import copy
import pickle

import pytest
import torch
from torch import nn

from brevitas.errors import QuantConfigError, QuantMetadataError, UnknownOptionError
from brevitas.nn import QuantEmbedding, QuantLinear
from brevitas.quant import (
    Int8AccumulatorAwareWeightQuant,
    Int8WeightPerChannelFloat,
    ShiftedUint8WeightPerTensorFloat,
)
from brevitas.quant_tensor import QuantTensor

WORDS = torch.tensor([[1, 4, 4], [0, 2, 9]])
OPTIONS = {
    "plain": {},
    "padding": {"padding_idx": 4},
    "padding from the end": {"padding_idx": -1},
    "max norm": {"max_norm": 0.7, "norm_type": 1.0},
    "frequency": {"scale_grad_by_freq": True},
    "sparse": {"sparse": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_torch_when_the_quantizer_is_off(name):
    quantized, plain = QuantEmbedding(10, 5, weight_quant=None, **OPTIONS[name]), nn.Embedding(10, 5, **OPTIONS[name])
    plain.load_state_dict(quantized.state_dict())
    y, expected = quantized(WORDS), plain(WORDS)
    assert torch.equal(y, expected) and torch.equal(quantized.weight, plain.weight)
    y.square().sum().backward(), expected.square().sum().backward()
    assert quantized.weight.grad.is_sparse == (name == "sparse")
    assert torch.equal(quantized.weight.grad.to_dense(), plain.weight.grad.to_dense())


def test_trains_under_a_gradient_check_without_quantizer():
    layer = QuantEmbedding(10, 5, weight_quant=None, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda w: torch.func.functional_call(layer, {"weight": w}, WORDS), layer.weight)


@pytest.mark.parametrize("per_row", [False, True])
def test_values_and_gradients_are_those_of_the_formulas(per_row):
    layer = QuantEmbedding(
        10, 5, padding_idx=4, weight_bit_width=4, weight_scaling_per_output_channel=per_row, dtype=torch.float64
    )
    weight = layer.weight.detach().clone().requires_grad_()
    scale = (weight.abs().amax(1, keepdim=True) if per_row else weight.abs().max()) / 7
    if per_row:
        scale = torch.where(torch.arange(10).view(-1, 1) == 4, 1.0, scale)  # the zeros of the padding, on any grid
    steps = weight / scale
    expected = ((steps + (steps.round() - steps).detach()) * scale)[WORDS]
    rows = (WORDS != 4).unsqueeze(-1)
    cotangent = torch.linspace(-1, 1, 30, dtype=torch.float64).view(2, 3, 5)
    (expected * rows * cotangent).sum().backward()
    y = layer(WORDS)
    (y * cotangent).sum().backward()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(layer.weight.grad, weight.grad)
    assert not layer.weight.grad[4].any()


@pytest.mark.parametrize("options", [{}, {"weight_bit_width": 3}, {"weight_quant": ShiftedUint8WeightPerTensorFloat}])
def test_the_output_lies_on_the_grid_of_the_table(options):
    layer = QuantEmbedding(10, 5, padding_idx=0, return_quant_tensor=True, **options)
    y, table = layer(WORDS), layer.quant_weight()
    assert y.is_valid and torch.equal(y.int(), table.int()[WORDS]) and torch.equal(y.value, table.value[WORDS])
    for field in ("scale", "zero_point", "bit_width"):
        assert torch.equal(getattr(y, field), getattr(table, field)) and getattr(y, field).numel() == 1
    assert y.signed == table.signed and y.source is table.source
    assert not y.value[1, 0].any()
    assert type(QuantEmbedding(10, 5, **options)(WORDS)) is torch.Tensor


def test_the_output_brings_its_scale_to_the_next_layer():
    words = QuantEmbedding(10, 5, weight_bit_width=4, return_quant_tensor=True)
    y = QuantLinear(5, 3, bias=False, return_quant_tensor=True)(words(WORDS))
    assert y.is_valid and y.scale.numel() == 1


def test_the_table_is_quantized_whatever_is_looked_up():
    layer = QuantEmbedding(10, 5)
    assert torch.equal(layer(torch.tensor(3)), layer(torch.arange(10))[3])


def test_a_vector_beyond_the_norm_is_shortened_before_it_is_quantized():
    layer = QuantEmbedding(3, 4, max_norm=1.0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.1, 0, 0, 0], [30.0, 40.0, 0.0, 0.0]]))
    short = torch.tensor([0.6, 0.8, 0.0, 0.0])
    torch.testing.assert_close(layer(torch.tensor(0)), short, atol=0.8 / 254, rtol=0)
    # The third vector, not looked up, must not set the scale of the first.
    torch.testing.assert_close(layer.weight.data[2], short)
    assert layer.quant_weight_scale().item() == pytest.approx(0.8 / 127)


def test_getters():
    layer = QuantEmbedding(10, 5, weight_quant=Int8WeightPerChannelFloat, weight_bit_width=4)
    assert layer.quant_weight_scale().shape == (10, 1) and layer.output_channel_dim == 0
    assert layer.is_weight_quant_enabled and layer.is_quant_weight_signed and layer.is_quant_weight_narrow_range
    assert layer.int_weight().abs().amax(1).tolist() == [7] * 10
    assert layer.weights_per_output == 1 and not list(layer.weight_quant.state_dict())


def test_tied_to_a_linear_layer():
    words = QuantEmbedding(10, 5, weight_quant=Int8WeightPerChannelFloat)
    scores = QuantLinear(5, 10, bias=False, weight_quant=words.weight_quant)
    scores.weight = words.weight
    assert torch.equal(words.quant_weight().value, scores.quant_weight().value)


def test_from_pretrained():
    table = torch.randn(6, 4)
    layer = QuantEmbedding.from_pretrained(table, padding_idx=1, weight_bit_width=3, return_quant_tensor=True)
    assert not layer.weight.requires_grad and layer.padding_idx == 1 and torch.equal(layer.weight, table)
    assert layer(WORDS.clamp(max=5)).bit_width == 3
    assert QuantEmbedding.from_pretrained(table, freeze=False).weight.requires_grad
    with pytest.raises(QuantConfigError, match=r"embeddings of shape \(4,\); expected two dims"):
        QuantEmbedding.from_pretrained(table[0])


def test_bad_arguments():
    with pytest.raises(QuantConfigError, match="sparse = True cannot be used with a weight quantizer"):
        QuantEmbedding(10, 5, sparse=True)
    with pytest.raises(QuantConfigError, match="Int8AccumulatorAwareWeightQuant bounds what a layer accumulates"):
        QuantEmbedding(10, 5, weight_quant=Int8AccumulatorAwareWeightQuant)
    with pytest.raises(UnknownOptionError, match="'weight_bitwidth' = 4.*'weight_bit_width'"):
        QuantEmbedding(10, 5, weight_bitwidth=4)
    with pytest.raises(QuantConfigError, match="return_quant_tensor = None"):
        QuantEmbedding(10, 5, return_quant_tensor=None)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"weight_quant": Int8WeightPerChannelFloat}, r"one scale for the whole table, .*shape \(10, 1\)"),
        ({"weight_quant": None}, "needs weight quantization, and weight_quant is off"),
    ],
)
def test_a_quant_tensor_needs_one_scale(options, fragment):
    model = nn.Sequential(QuantEmbedding(10, 5, return_quant_tensor=True, **options))
    with pytest.raises(QuantMetadataError, match=fragment) as caught:
        model(WORDS)
    assert "QuantEmbedding '0'" in str(caught.value) and "return_quant_tensor=False here" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype(dtype):
    layer = QuantEmbedding(10, 5, weight_scaling_impl_type="parameter_from_stats", dtype=dtype)
    assert layer(WORDS).dtype == dtype and {p.dtype for p in layer.parameters()} == {dtype}


def test_copies_compiles_and_exports():
    layer = QuantEmbedding(10, 5, padding_idx=0, weight_scaling_impl_type="parameter_from_stats")
    layer(WORDS).sum().backward()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(WORDS), layer(WORDS)) and twin.weight_quant.tracked_module_list == [twin]
    fresh = QuantEmbedding(10, 5, padding_idx=0, weight_scaling_impl_type="parameter_from_stats")
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(WORDS), layer(WORDS))
    torch._dynamo.reset()
    for training in (True, False):
        layer.train(training)
        compiled = torch.compile(layer, fullgraph=True, backend="eager")
        assert torch.equal(compiled(WORDS), layer(WORDS))
    exported = torch.export.export(layer.eval(), (WORDS,)).module()
    assert torch.equal(exported(WORDS + 0), layer(WORDS))


def test_a_quant_tensor_leaves_compiled_code():
    layer = QuantEmbedding(10, 5, return_quant_tensor=True)
    y = torch.compile(layer, fullgraph=True, backend="eager")(WORDS)
    assert isinstance(y, QuantTensor) and torch.equal(y.value, layer(WORDS).value)
