"""Networks as C, compiled with gcc with undefined behaviour trapped, give the integers of NumPy."""

import re

import numpy as np
import pytest
from canonical_graphs import Builder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from integer_graphs import ROUND, ConvNet, compiled

from brevitas.errors import ExportError
from brevitas.export import to_integer


def equal(net, folder, *codes):
    result = net.run(*codes)
    outputs = compiled(net, folder, list(codes))
    for output, ours in zip(net.outputs, outputs, strict=True):
        assert np.array_equal(ours, result.codes[output.name].reshape(len(codes[0]), -1))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    spatial=st.integers(1, 3),
    transposed=st.booleans(),
    group=st.integers(1, 2),
    bits=st.integers(2, 8),
    rounding=st.sampled_from(list(ROUND)),
    zero=st.integers(0, 3),
    form=st.sampled_from(["thresholds", "multiplier"]),
)
def test_convolutions(tmp_path, seed, spatial, transposed, group, bits, rounding, zero, form):
    rng = np.random.default_rng(seed)
    options = {"group": group, "bits": bits, "signed": False, "zero": zero, "weight_zero": zero, "rounding": rounding}
    made = ConvNet(rng, spatial, transposed, **options)
    x = rng.integers(0, 2**bits, (3, made.channels, *made.size))
    equal(to_integer(made.graph(), requantize=form), tmp_path, x)


def test_every_other_kernel(tmp_path):
    """Pools, sums, products, concatenations, padding and moves, one after another."""
    b = Builder()
    a, c = (1, 4, 6, 6), (1, 4, 3, 3)
    x = b.quant("input", "first", a, 0.1, 6, zero_point=2)
    padded = b.node("Pad", [x, b.constant("pads", [0, 0, 1, 0, 0, 0, 0, 1], np.int64)], "pad", (1, 4, 7, 7))
    window = {"kernel_shape": [3, 3], "strides": [2, 2]}
    highest = b.node("MaxPool", [padded], "max", c, **window)
    falling = b.node("MaxPool", [b.node("Neg", [padded], "neg", (1, 4, 7, 7))], "low", c, **window)
    q = b.quant(falling, "q", c, 0.1, 6, zero_point=1)
    total = b.node("Add", [highest, q], "add", c)
    product = b.node("Mul", [total, highest], "mul", c)
    requantized = b.quant(b.node("Relu", [product], "relu", c), "r", c, 0.3, 5, signed=False)
    half = b.node("AveragePool", [requantized], "avg", (1, 4, 2, 2), kernel_shape=[2, 2])
    mean = b.node("ReduceMean", [requantized, b.constant("axes", [2, 3], np.int64)], "mean", (1, 4, 1, 1))
    side = b.node("Concat", [highest, q], "cat", (1, 8, 3, 3), axis=1)
    turned = b.node("Transpose", [side], "turn", (1, 3, 3, 8), perm=[0, 2, 3, 1])
    flipped = b.node("Transpose", [turned], "turn2", (1, 3, 8, 3), perm=[0, 1, 3, 2])
    again = b.node("MatMul", [turned, flipped], "mm", (1, 3, 3, 3))
    less = b.node("Sub", [again, b.weight("k", [[1], [2], [3]], 0.01)], "sub", (1, 3, 3, 3))
    gelu = b.quant(b.node("Gelu", [less], "gelu", (1, 3, 3, 3)), "t", (1, 3, 3, 3), 0.5, 6)
    row = b.quant(b.node("Transpose", [mean], "row", (1, 1, 1, 4), perm=[0, 2, 3, 1]), "u", (1, 1, 1, 4), 0.23, 4)
    column = b.quant(mean, "v", (1, 4, 1, 1), 0.31, 5)
    pairs = b.quant(b.node("Sub", [row, column], "pairs", (1, 4, 1, 4)), "w", (1, 4, 1, 4), 0.2, 5)
    outputs = [half, mean, gelu, pairs, b.quant(less, "s", (1, 3, 3, 3), 0.7, 8)]
    net = to_integer(b.model({"input": a}, outputs))
    used = {s.op for s in net.steps}
    assert used >= {"gather", "max_pool", "add", "mul", "sum_pool", "sum", "matmul", "threshold", "table"}
    equal(net, tmp_path, np.random.default_rng(0).integers(-32, 32, (4, *a[1:])))


def test_two_inputs_and_an_output_that_is_an_input(tmp_path):
    b = Builder()
    x, y = b.quant("x", "p", (1, 3), 0.1, 4), b.quant("y", "q", (1, 3), 0.1, 4)
    net = to_integer(b.model({"x": (1, 3), "y": (1, 3)}, [b.node("Add", [x, y], "z", (1, 3)), x]))
    rng = np.random.default_rng(0)
    equal(net, tmp_path, rng.integers(-8, 8, (3, 3)), rng.integers(-8, 8, (3, 3)))


def test_wide_accumulators_are_64_bits(tmp_path):
    b = Builder()
    x = b.quant("input", "first", (1, 40), 0.1, 16)
    w = b.weight("w", np.full((40, 2), 30000), 0.1, 16)
    net = to_integer(b.model({"input": (1, 40)}, [b.node("MatMul", [x, w], "y", (1, 2))]))
    codes = np.stack([np.full(40, 32767), np.full(40, -32768)])
    equal(net, tmp_path, codes)
    assert net.run(codes).codes["y"][0, 0] == 40 * 30000 * 32767
    assert "typedef int64_t net_int;" in (tmp_path / "net.h").read_text()


def test_the_header_names_its_grids_and_has_a_prefix(tmp_path):
    net = to_integer(ConvNet(np.random.default_rng(0), zero=1).graph())
    net.write_c(tmp_path / "my-net.h")
    text = (tmp_path / "my-net.h").read_text()
    assert "static void my_net_run(const my_net_int *in0, my_net_int *out0)" in text
    assert re.search(r"in0: first_quant, shape .*, codes -8..7, scale 0\.\d+, zero 1", text)
    assert "stdio" not in text and "INT32" not in text and "typedef int32_t my_net_int;" in text
    net.write_c(tmp_path / "other.h", name="abc")
    assert "abc_run(" in (tmp_path / "other.h").read_text()
    with pytest.raises(ExportError, match="'2 nets' is no C identifier"):
        net.write_c(tmp_path / "x.h", name="2 nets")
    with pytest.raises(FileNotFoundError):
        net.write_c(tmp_path / "nowhere" / "x.h")
