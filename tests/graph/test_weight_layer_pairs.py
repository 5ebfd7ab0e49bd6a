"""Rules swap every layer with a weight for its quantized form and back, with all of its geometry."""

import pytest
import torch
from torch import nn

from brevitas.errors import SpecError
from brevitas.graph import apply_spec, spec_of
from brevitas.nn import (
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantConvTranspose3d,
    QuantEmbedding,
    QuantLinear,
    QuantScaleBias,
    ScaleBias,
)

TRANSPOSED = {"stride": 3, "padding": 1, "output_padding": 2, "dilation": 2, "groups": 2}
PAIRS = {
    "linear": (nn.Linear(4, 3, bias=False), QuantLinear, (2, 4)),
    "conv1d": (nn.Conv1d(4, 6, 3, 2, 1, 2, 2, padding_mode="circular"), QuantConv1d, (2, 4, 9)),
    "conv": (nn.Conv2d(4, 6, (3, 2), padding="same", bias=False), QuantConv2d, (2, 4, 5, 5)),
    "conv3d": (nn.Conv3d(2, 4, 2, (1, 2, 1), padding_mode="replicate", padding=1), QuantConv3d, (1, 2, 3, 4, 5)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, **TRANSPOSED), QuantConvTranspose1d, (2, 4, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, (3, 2), bias=False, **TRANSPOSED), QuantConvTranspose2d, (2, 4, 5, 4)),
    "transposed 3d": (nn.ConvTranspose3d(4, 6, 2, **TRANSPOSED), QuantConvTranspose3d, (1, 4, 2, 3, 2)),
    "embedding": (nn.Embedding(9, 4, padding_idx=-1, max_norm=0.7, norm_type=1.0), QuantEmbedding, None),
    "scale bias": (ScaleBias(4, False, (1, -1)), QuantScaleBias, (3, 4)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_there_and_back(name):
    plain, quantized_type, shape = PAIRS[name]
    torch.manual_seed(0)
    with torch.no_grad():
        plain.weight.normal_()
    model = nn.Sequential(plain)
    x = torch.tensor([[1, 4], [8, 0]]) if shape is None else torch.randn(shape)
    expected = model(x)  # shortens the vectors of the embedding, in place
    rule = {"match": "0", "weight": {"base": "Int8WeightPerTensorFloat", "bit_width": 4}}
    quantized = apply_spec(model, {"rules": [rule]})
    assert type(quantized[0]) is quantized_type and quantized[0].quant_weight_bit_width() == 4
    off = apply_spec(quantized, {"rules": [{"match": "0", "weight": None}]})
    torch.testing.assert_close(off(x), expected)  # shortened once more, by a rounding error
    again = apply_spec(model, spec_of(quantized))
    assert type(again[0]) is quantized_type
    torch.testing.assert_close(again(x), quantized(x))
    back = apply_spec(quantized, "rules: [{keep: float}]")
    assert type(back[0]) is type(plain) and repr(back[0]) == repr(plain)
    torch.testing.assert_close(back(x), expected)


def test_the_int8_sets_quantize_every_layer_that_multiplies():
    layers = [pair[0] for pair in PAIRS.values()]
    for preset in ("int8", "int8_per_channel", "int8_fixed_point"):
        quantized = apply_spec(nn.ModuleList(layers), {"preset": preset})
        swapped = [type(layer).__name__ for layer in quantized if hasattr(layer, "weight_quant")]
        assert swapped == [
            *("QuantLinear", "QuantConv1d", "QuantConv2d", "QuantConv3d"),
            *("QuantConvTranspose1d", "QuantConvTranspose2d", "QuantConvTranspose3d"),
        ]


def test_a_sparse_table_is_refused_where_the_rule_is():
    rule = {"match": "0", "weight": "Int8WeightPerTensorFloat"}
    with pytest.raises(SpecError, match="Embedding '0': QuantEmbedding: sparse = True cannot be used"):
        apply_spec(nn.Sequential(nn.Embedding(5, 3, sparse=True)), {"rules": [rule]})
