"""Bounds of accumulators: reached by the inputs that are given, and passed by none."""

import json
from itertools import product

import numpy as np
import pytest
import torch
from canonical_graphs import Builder
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_graphs import ConvNet, sum_of_products
from torch import nn

from brevitas import quant
from brevitas.errors import ExportError
from brevitas.export import QONNXManager, StdONNXManager, capture, lower, overflow
from brevitas.export.integer.bounds import linear_bounds
from brevitas.export.integer.network import width
from brevitas.nn import QuantAvgPool2d, QuantConv2d, QuantIdentity, QuantLinear


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    spatial=st.integers(1, 3),
    transposed=st.booleans(),
    group=st.integers(1, 3),
    signed=st.booleans(),
    zero=st.integers(-3, 3),
)
def test_bounds_of_convolutions_are_reached_and_not_passed(seed, spatial, transposed, group, signed, zero):
    rng = np.random.default_rng(seed)
    made = ConvNet(rng, spatial, transposed, group=group, signed=signed, zero=zero if signed else zero % 4)
    row = overflow(made.graph())["conv.out"]
    low, high = made.range
    for greatest in (False, True):
        (codes,) = row.greatest_input() if greatest else row.least_input()
        assert codes.shape == (1, made.channels, *made.size) and low <= codes.min() and codes.max() <= high
        sums = made.accumulators(codes)
        assert np.array_equal(row.run(codes), sums)
        assert (sums.max() if greatest else sums.min()) == (row.high if greatest else row.low)
    x = rng.integers(0, 2, (200, made.channels, *made.size)) * (high - low) + low  # extreme codes alone
    sums = made.accumulators(x)
    axes = (0, *range(2, sums.ndim))
    assert (sums.min(axes) >= row.minimum).all() and (sums.max(axes) <= row.maximum).all()


def test_bounds_of_small_sums_are_those_of_every_input():
    rng = np.random.default_rng(0)
    for _ in range(20):
        w = rng.integers(-3, 4, (2, 3))
        low, high = np.sort(rng.integers(-3, 4, (2, 2, 3)), axis=0)
        bias = rng.integers(-5, 5, 2)
        b = linear_bounds(w, low, high, None, bias)
        for m in range(2):
            inputs = product(*(range(a, c + 1) for a, c in zip(low[m], high[m], strict=True)))
            terms = [[*(w[m] * x), bias[m]] for x in inputs]
            sums = [sum(t) for t in terms]
            subsets = [sum(t for t, one in zip(row, mask, strict=True) if one)
                       for row in terms for mask in product((0, 1), repeat=4)]  # fmt: skip
            assert (b.least[m], b.most[m]) == (min(sums), max(sums))
            assert (b.partial_least[m], b.partial_most[m]) == (min(subsets), max(subsets))


def test_a_position_on_the_edge_can_be_the_extreme_one():
    # codes 1..15 less a zero point of 0: the least sum has as few taps as possible, on the corner
    weight = np.ones((1, 1, 3, 3), np.int64)
    b = Builder()
    x = b.quant("input", "first", (1, 1, 4, 4), 1.0, 4, signed=False)
    y = b.node("Conv", [x, b.weight("w", weight, 1.0)], "y", (1, 1, 4, 4), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    assert (overflow(b.model({"input": (1, 1, 4, 4)}, [y]))["y"].low, 9 * 15) == (0, 9 * 15)
    from brevitas.export.integer.bounds import Geometry

    g = Geometry((4, 4), (4, 4), (3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
    bounds = linear_bounds(weight, np.array([[1]]), np.array([[15]]), g, None)
    assert (bounds.least[0], bounds.most[0]) == (4, 9 * 15)
    assert bounds.where[0][0].tolist() == [0, 0] and bounds.where[1][0].tolist() == [1, 1]


def test_a_bias_on_the_accumulator_grid_is_part_of_the_sum():
    b = Builder()
    x = b.quant("input", "first", (1, 2), 0.5, 4)
    bias = b.weight("bias", [100, -100], 0.5 * 0.25, 16, role="bias")
    y = b.node("Gemm", [x, b.weight("w", [[3, 1], [1, 0]], 0.25), bias], "y", (1, 2), transB=1)
    row = overflow(b.model({"input": (1, 2)}, [y]))["y"]
    assert row.minimum.tolist() == [100 - 4 * 8, -100 - 8] and row.maximum.tolist() == [100 + 4 * 7, -100 + 7]
    assert row.partial_minimum.tolist() == [-32, -108] and row.partial_maximum.tolist() == [128, 7]
    (codes,) = row.greatest_input()
    assert row.run(codes).max() == 128 == row.high


def test_products_of_two_computed_tensors_and_pools():
    b = Builder()
    x = b.quant("input", "first", (1, 2, 4, 4), 1.0, 4)
    turned = b.node("Transpose", [x], "t", (1, 2, 4, 4), perm=[0, 1, 3, 2])
    y = b.node("MatMul", [x, turned], "mm", (1, 2, 4, 4))
    avg = b.node("AveragePool", [x], "avg", (1, 2, 2, 2), kernel_shape=[2, 2], strides=[2, 2])
    mean = b.node("ReduceMean", [x, b.constant("axes", [2, 3], np.int64)], "mean", (1, 2, 1, 1))
    report = overflow(b.model({"input": (1, 2, 4, 4)}, [y, avg, mean]))
    assert [(r.low, r.high, r.terms) for r in report] == [
        (4 * -56, 4 * 64, 4),
        (4 * -8, 4 * 7, 4),
        (16 * -8, 16 * 7, 16),
    ]
    for row in report:
        assert row.run(*row.least_input()).min() == row.low and row.run(*row.greatest_input()).max() == row.high


@pytest.mark.parametrize(
    ("low", "high", "bits"), [(0, 1, 1), (0, 2, 2), (-1, 0, 1), (-1, 1, 2), (-128, 127, 8), (-129, 0, 9), (0, 255, 8)]
)
def test_width(low, high, bits):
    assert width(low, high) == bits


def test_claims_are_those_of_the_library_and_suffice():
    model = nn.Sequential(
        QuantIdentity(bit_width=4, return_quant_tensor=True),
        QuantConv2d(2, 3, 3, padding=1, weight_bit_width=3, bias_quant=quant.Int16Bias, return_quant_tensor=True),
        QuantIdentity(quant.ShiftedUint8ActPerTensorFloat, return_quant_tensor=True),
        QuantAvgPool2d(2, trunc_quant=None, return_quant_tensor=True),
        nn.Flatten(),
        QuantLinear(12, 4, bias=False, return_quant_tensor=True),
    )
    x = torch.randn(8, 2, 4, 4) + 1
    model.train()(x)
    model.eval()
    with torch.no_grad():
        widths = [int(model[: i + 1](x).bit_width) for i in (1, 3)]
        # The pool's own claim takes no zero point into account, and the last layer's input is the pool's sum.
    report = overflow(model, x)
    assert [r.layer for r in report] == ["1", "3", "5"]
    assert report["1"].claimed == widths[0] and report["1"].bits <= widths[0]
    assert report["3"].claimed is not None and report["5"].claimed is None
    text = str(report).splitlines()
    assert text[0].split() == "layer operation terms minimum maximum bits bits in any order claimed".split()
    cells = text[1].split()
    row = report["1"]
    assert cells[:6] == ["1", "conv", "18", str(row.low), str(row.high), str(row.bits)] and cells[-1] == str(
        row.claimed
    )
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["rows"][0]["maximum"] == row.maximum.tolist() and plain["rows"][0]["layer_class"] == "QuantConv2d"
    with pytest.raises(KeyError, match="no accumulator of '2'; there are 1, 3, 5"):
        report["2"]


def test_layers_without_integers_have_no_row():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.fc = nn.Linear(4, 4), QuantIdentity(return_quant_tensor=True), QuantLinear(4, 2)

        def forward(self, x):
            return torch.softmax(self.fc(self.act(torch.sin(self.first(x)))), 1)

    model = Half()
    model.train()(torch.randn(8, 4))
    report = overflow(model.eval(), input_shape=(3, 4))
    assert [r.layer for r in report] == ["fc"]
    low, high = -128, 127
    codes = model.fc.int_weight().numpy().astype(np.int64)
    assert report["fc"].maximum.tolist() == np.maximum(codes * low, codes * high).sum(1).tolist()


def test_exports_are_annotated_in_every_target():
    act, weight = quant.Int8ActPerTensorFixedPoint, quant.Int8WeightPerTensorFixedPoint
    options = {"weight_quant": weight, "bias": False, "output_quant": act, "return_quant_tensor": True}
    model = nn.Sequential(
        QuantIdentity(act, return_quant_tensor=True), QuantConv2d(2, 3, 3, padding=1, **options), nn.Flatten(),
        QuantLinear(48, 4, **options),
    )  # fmt: skip
    model.train()(torch.randn(8, 2, 4, 4))
    graph = capture(model.eval(), [torch.zeros(1, 2, 4, 4)])
    expected = {r.layer: f"{r.low},{r.high},{r.bits}" for r in overflow(graph)}
    assert set(expected) == {"1", "3"}
    for target in ("dpuv1", "dpuv2", "finn", "qdq", "qonnx", "qop"):
        found = {}
        for node in lower(graph, target).graph.node:
            props = {p.key: p.value for p in node.metadata_props}
            if "brevitas.accumulator" in props:
                found[props["brevitas.layer"]] = props["brevitas.accumulator"]
        assert found == expected, target
    for manager in (StdONNXManager, QONNXManager):
        proto = manager.export(model, (2, 2, 4, 4))
        notes = [p.value for n in proto.graph.node for p in n.metadata_props if p.key == "brevitas.accumulator"]
        assert notes == list(expected.values())


def test_without_inputs_it_says_which_argument_is_missing():
    with pytest.raises(ExportError, match="E01 .*neither input_shape nor input_t"):
        overflow(nn.Sequential(QuantLinear(2, 2)))
    with pytest.raises(TypeError, match="a torch.nn.Module or a captured graph, got str"):
        overflow("model")
    assert sum_of_products(np.ones((1, 1, 2)), np.ones((1, 1, 2))).tolist() == [[[2]]]
