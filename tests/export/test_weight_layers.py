"""Layers with a weight export: the artifact computes the layer's integers, and the grids lie in the right dims."""

import numpy as np
import pytest
import torch
from export_networks import attribute, calibrated, initializers, node_named, op_types
from torch import nn

from brevitas.export import capture, lower, verify
from brevitas.nn import (
    BatchNorm1dToQuantScaleBias,
    HadamardClassifier,
    QuantConv1d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantConvTranspose3d,
    QuantEmbedding,
    QuantIdentity,
    QuantLinear,
    QuantReLU,
    QuantScaleBias,
)
from brevitas.quant import (
    Int8AccumulatorAwareWeightQuant,
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    Int32Bias,
    ShiftedUint8WeightPerTensorFloat,
)

BIAS = {"bias_quant": Int32Bias}
CHANNELS = {"weight_quant": Int8WeightPerChannelFloat, **BIAS}
CIRCULAR = {"padding": 2, "padding_mode": "circular"}
ENLARGED = {"stride": 2, "padding": 1, "output_padding": 1}
LAYERS = {
    "conv1d": (QuantConv1d, (4, 6, 3), {"padding": 1, **BIAS}, (2, 4, 9)),
    "conv1d same": (QuantConv1d, (4, 6, 4), {"padding": "same", **CHANNELS}, (2, 4, 9)),
    "conv1d circular": (QuantConv1d, (4, 6, 3), {**CIRCULAR, **CHANNELS}, (2, 4, 9)),
    "conv3d": (QuantConv3d, (2, 3, 3), {"weight_bit_width": 3, **CHANNELS}, (2, 2, 4, 4, 4)),
    "transposed 1d": (QuantConvTranspose1d, (4, 6, 3), {"stride": 2, **BIAS}, (2, 4, 5)),
    "transposed": (QuantConvTranspose2d, (4, 6, 3), {**ENLARGED, **BIAS}, (2, 4, 5, 5)),
    "transposed groups": (QuantConvTranspose2d, (4, 6, 3), {"stride": 2, "groups": 2, **CHANNELS}, (2, 4, 5, 5)),
    "transposed 3d": (QuantConvTranspose3d, (2, 4, 2), {"stride": 2, **CHANNELS}, (1, 2, 3, 3, 3)),
    "transposed, shifted": (
        QuantConvTranspose2d,
        (4, 6, 3),
        {"weight_quant": ShiftedUint8WeightPerTensorFloat, **BIAS},
        (2, 4, 5, 5),
    ),
    "transposed, accumulator-aware": (
        QuantConvTranspose2d,
        (4, 6, 3),
        {"weight_quant": Int8AccumulatorAwareWeightQuant, "weight_accumulator_bit_width": 14, **BIAS},
        (2, 4, 5, 5),
    ),
    "scale bias": (QuantScaleBias, (4, True), BIAS, (2, 4, 3, 3)),
    "scale bias per channel": (QuantScaleBias, (4, True), CHANNELS, (2, 4, 3, 3)),
    "batch norm": (BatchNorm1dToQuantScaleBias, (4,), CHANNELS, (2, 4, 3)),
    "hadamard": (HadamardClassifier, (8, 6), {}, (3, 8)),
}


def network(name):
    cls, arguments, options, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = cls(*arguments, **options)
    if isinstance(layer, QuantScaleBias):
        nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    model = nn.Sequential(QuantIdentity(return_quant_tensor=True), layer, QuantReLU(bit_width=4))
    return calibrated(model, shape), torch.randn(shape)


@pytest.mark.parametrize("name", LAYERS)
def test_the_artifacts_compute_the_integers_of_the_layer(name):
    model, x = network(name)
    graph = capture(model, [x])
    quantizers = ["0.act_quant", "1.weight_quant", "1.bias_quant", "2.act_quant"]
    for target in ("qdq", "qonnx"):
        report = verify(model, lower(graph, target), x)
        assert report.ok
        rows = {row.quantizer: row for row in report.rows if row.quantizer != "output"}
        assert list(rows) == (quantizers if name != "hadamard" else quantizers[::3])
        for row in rows.values():
            assert row.equal + row.ties == row.total and row.equal > 0.9 * row.total


def test_a_transposed_weight_has_its_scales_in_dim_1():
    model, x = network("transposed groups")
    proto = lower(capture(model, [x]), "qdq")
    node = node_named(proto, "1.weight_quant")
    values = initializers(proto)
    codes, scale = values[node.input[0]], values[node.input[1]]
    assert attribute(node, "axis") == 1 and codes.shape == (4, 3, 3, 3) and scale.shape == (3,)
    assert np.array_equal(codes, model[1].int_weight().numpy())
    # The bias has one scale a channel: those of the weight for each of the two groups.
    bias = node_named(proto, "1.bias_quant")
    assert values[bias.input[1]].shape == (6,)
    np.testing.assert_allclose(values[bias.input[1]], np.tile(scale, 2) * model[0].quant_act_scale().item(), rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{"max_norm": 0.5}, {"weight_quant": Int8WeightPerChannelFloat, "weight_bit_width": 4}]
)
def test_an_embedding_is_a_lookup_in_integers(options):
    torch.manual_seed(0)
    linear = QuantLinear(4, 3, input_quant=Int8ActPerTensorFloat, **BIAS)
    model, words = nn.Sequential(QuantEmbedding(10, 4, **options), linear), torch.tensor([[1, 2, 9], [0, 2, 2]])
    model(words)
    model.eval()
    graph = capture(model, [words])
    for target in ("qdq", "qonnx"):
        proto = lower(graph, target)
        assert "Gather" in op_types(proto)
        report = verify(model, proto, torch.arange(9).view(3, 3))
        assert report.ok
        row = next(row for row in report.rows if row.quantizer == "0.weight_quant")
        assert row.equal == row.total == 40
