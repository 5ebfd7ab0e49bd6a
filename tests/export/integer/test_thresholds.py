"""Thresholds reproduce the float32 chain at every integer that an accumulator can hold."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from canonical_graphs import Builder
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_graphs import ROUND, ConvNet, quantized

from brevitas.errors import ExportError
from brevitas.export import to_integer
from brevitas.export.integer.floatops import KINDS, FloatOp


def scalar_net(make, scale, low_high=(-4, 4), out=(0.5, 3, True), rounding="ROUND", zero=0, weight=1, channels=1):
    """Every code of one 12-bit input, times a weight, through the nodes that ``make`` adds, quantized."""
    b = Builder()
    shape = (1, channels, 1)
    q = b.quant("input", "first", shape, scale, 12)
    w = b.weight("conv.weight", np.full((channels, 1, 1), weight), np.float32(1))
    y = b.node("Conv", [q, w], "conv.out", shape, kernel_shape=[1], group=channels)
    y = make(b, y, shape)
    result = b.quant(y, "second", shape, *out, zero_point=zero, rounding=rounding)
    return to_integer(b.model({"input": shape}, [result]))


def every_code(net, channels=1):
    codes = np.arange(-2048, 2048)
    return codes, net.run(np.repeat(codes.reshape(-1, 1, 1), channels, 1)).codes["second.out"][..., 0]


def same(b, y, shape):
    return y


def test_by_hand():
    # value = 0.25 a; code = round(value / 0.5) = round(a / 2): ties at odd a, half to even; 3 bits signed
    net = scalar_net(same, 0.25)
    # -7 / 2 rounds to -4, so that -3 begins at -6; -5 / 2 rounds to -2 already; and so on
    assert net.layer("second_quant").thresholds.tolist() == [[-6, -5, -2, -1, 2, 3, 6]]
    codes, out = every_code(net)
    assert np.array_equal(out[:, 0], np.clip(np.rint(codes / 2), -4, 3))


@pytest.mark.parametrize("rounding", list(ROUND))
@pytest.mark.parametrize("zero", [0, 1, -2])
def test_rounding_modes_and_zero_points(rounding, zero):
    codes, out = every_code(scalar_net(same, 0.25, rounding=rounding, zero=zero))
    expected = ROUND[rounding](torch.from_numpy(codes) * 0.25 / 0.5 + zero).clamp(-4, 3)
    assert np.array_equal(out[:, 0], expected.numpy())


CHAINS = {
    "relu": (lambda b, y, s: b.node("Relu", [y], "f", s), torch.relu),
    "sigmoid": (lambda b, y, s: b.node("Sigmoid", [y], "f", s), torch.sigmoid),
    "tanh": (lambda b, y, s: b.node("Tanh", [y], "f", s), torch.tanh),
    "leaky": (lambda b, y, s: b.node("LeakyRelu", [y], "f", s, alpha=0.1), lambda x: F.leaky_relu(x, 0.1)),
    "neg": (lambda b, y, s: b.node("Neg", [y], "f", s), torch.neg),
    "clip": (
        lambda b, y, s: b.node("Clip", [y, b.constant("a", -0.7), b.constant("c", 0.9)], "f", s),
        lambda x: x.clamp(-0.7, 0.9),
    ),
    "add": (lambda b, y, s: b.node("Add", [y, b.constant("a", [0.3])], "f", s), lambda x: x + 0.3),
    "sub": (lambda b, y, s: b.node("Sub", [y, b.constant("a", [0.3])], "f", s), lambda x: x - 0.3),
    "from": (lambda b, y, s: b.node("Sub", [b.constant("a", [0.3]), y], "f", s), lambda x: 0.3 - x),
    "mul": (lambda b, y, s: b.node("Mul", [y, b.constant("a", [-1.7])], "f", s), lambda x: x * -1.7),
    "div": (lambda b, y, s: b.node("Div", [y, b.constant("a", [1.3])], "f", s), lambda x: x / 1.3),
    "nothing": (lambda b, y, s: b.node("Mul", [y, b.constant("a", [0.0])], "f", s), lambda x: x * 0.0),
}


@pytest.mark.parametrize("name", CHAINS)
def test_float_chains(name):
    make, function = CHAINS[name]
    scale = np.float32(0.0041)
    codes, out = every_code(scalar_net(make, scale, out=(np.float32(0.13), 4, True)))
    x = function((torch.from_numpy(codes).double() * float(scale)).float())
    assert np.array_equal(out[:, 0], quantized(x, np.float32(0.13), 0, -8, 7).numpy())


def test_batch_norm_as_torch_computes_it_with_channels_that_fall():
    rng = np.random.default_rng(0)
    weight, bias, mean = (rng.normal(0, 1, 6).astype(np.float32) for _ in range(3))
    var = rng.uniform(0.2, 2, 6).astype(np.float32)
    weight[2] = 0

    def make(b, y, shape):
        arrays = [b.constant(n, a) for n, a in zip("wbmv", (weight, bias, mean, var), strict=True)]
        return b.node("BatchNormalization", [y, *arrays], "bn", shape, epsilon=1e-5)

    scale = np.float32(0.0013)
    net = scalar_net(make, scale, out=(np.float32(0.11), 5, True), channels=6)
    codes, out = every_code(net, 6)
    x = (torch.from_numpy(codes).double() * float(scale)).float().reshape(-1, 1).expand(-1, 6).contiguous()
    y = F.batch_norm(x, *(torch.from_numpy(a) for a in (mean, var, weight, bias)))
    assert np.array_equal(out, quantized(y, np.float32(0.11), 0, -16, 15).numpy())
    sign = net.layer("second_quant").step.arrays["sign"]
    assert {1, -1} == set(sign) and len(sign) == 6
    assert (np.diff(net.layer("second_quant").thresholds) >= 0).all()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    spatial=st.integers(1, 3),
    transposed=st.booleans(),
    group=st.integers(1, 2),
    bits=st.integers(2, 8),
    signed=st.booleans(),
    rounding=st.sampled_from(list(ROUND)),
    shifted=st.booleans(),
    bias=st.booleans(),
)
def test_convolutions(seed, spatial, transposed, group, bits, signed, rounding, shifted, bias):
    rng = np.random.default_rng(seed)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    zeros = {k: int(rng.integers(low, high + 1)) for k in ("zero", "out_zero")} if shifted else {}
    options = {"group": group, "bits": bits, "signed": signed, "rounding": rounding, "bias": bias, **zeros}
    made = ConvNet(rng, spatial, transposed, weight_zero=int(shifted) * 2, **options)
    net = to_integer(made.graph())
    x = rng.integers(low, high + 1, (5, made.channels, *made.size))
    result = net.run(x)
    assert np.array_equal(result.codes["second.out"], made.codes(x))
    expected = ((result.codes["second.out"] - made.out_zero) * np.float64(made.out_scale)).astype(np.float32)
    assert np.array_equal(result.values["second.out"], expected)


TURNING = {
    "gelu": (lambda b, y, s: b.node("Gelu", [y], "f", s), F.gelu),
    "gelu, tanh": (
        lambda b, y, s: b.node("Gelu", [y], "f", s, approximate="tanh"), lambda x: F.gelu(x, approximate="tanh")
    ),
    "hard swish": (lambda b, y, s: b.node("HardSwish", [y], "f", s), F.hardswish),
    "abs": (lambda b, y, s: b.node("Abs", [y], "f", s), torch.abs),
    "silu": (
        lambda b, y, s: b.node("Mul", [y, b.node("Sigmoid", [y], "g", s)], "f", s), lambda x: x * torch.sigmoid(x)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TURNING)
def test_functions_that_turn_are_tables(name):
    make, function = TURNING[name]
    scale = np.float32(0.0041)
    net = scalar_net(make, scale, out=(np.float32(0.13), 5, True))
    assert net.layer("second_quant").step.op == "table"
    codes, out = every_code(net)
    x = function((torch.from_numpy(codes).double() * float(scale)).float())
    assert np.array_equal(out[:, 0], quantized(x, np.float32(0.13), 0, -16, 15).numpy())


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul"])
def test_pairs_of_unrelated_scales_are_tables(op):
    b = Builder()
    x = b.quant("x", "p", (1, 1), 0.11, 5, zero_point=3)
    y = b.node("Tanh", [b.quant("y", "q", (1, 1), 0.07, 6)], "t", (1, 1))
    z = b.node("Mul", [b.node(op, [x, y], "z", (1, 1)), b.constant("c", 0.9)], "scaled", (1, 1))
    net = to_integer(b.model({"x": (1, 1), "y": (1, 1)}, [b.quant(z, "r", (1, 1), 0.09, 5, zero_point=-1)]))
    assert [s.op for s in net.steps] == ["table"]
    p, q = (a.reshape(-1, 1) for a in np.meshgrid(np.arange(-16, 16), np.arange(-32, 32)))
    u = (torch.from_numpy(p) - 3).float() * np.float32(0.11)
    v = torch.tanh(torch.from_numpy(q).float() * np.float32(0.07))
    joined = {"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul}[op](u, v) * np.float32(0.9)
    assert np.array_equal(net.run(p, q).codes["r.out"], quantized(joined, 0.09, -1, -16, 15).numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_and_torch_compute_the_same_function(kind):
    """NumPy dequantizes outputs, torch decides thresholds."""
    rng = np.random.default_rng(0)
    count = {"add": 1, "mul": 1, "div": 1, "mean": 1, "clip": 2, "batch_norm": 4}.get(kind, 0)
    constants = [np.sort(rng.uniform(0.5, 2, (3, 1)).astype(np.float32) + i, axis=0) for i in range(count)]
    x = rng.normal(0, 3, (3, 1000)).astype(np.float32)
    op = FloatOp(kind, tuple(constants), {"leaky_relu": 0.1, "batch_norm": 1e-5}.get(kind, 0.0))
    ours, exact = op.numpy(x), op.exact(x, constants)
    assert ours.dtype == exact.dtype == np.float32 and np.abs(ours - exact).max() < 4e-6
    if op.is_monotone:
        order = np.argsort(x, axis=1)
        assert (
            np.diff(np.take_along_axis(exact, order, 1), axis=1) * np.broadcast_to(op.direction(), (3, 1)) >= 0
        ).all()


def test_thresholds_beyond_reach_are_never_met():
    # codes -8..7 times 1, scale 1, into 8 bits of scale 1: only -8..7 are reached
    b = Builder()
    q = b.quant("input", "first", (1, 1), 1.0, 4)
    y = b.node("MatMul", [q, b.weight("w", [[1]], 1.0)], "y", (1, 1))
    net = to_integer(b.model({"input": (1, 1)}, [b.quant(y, "second", (1, 1), 1.0, 8)]))
    (t,) = net.layer("second_quant").thresholds
    assert t.min() == -8 and t.max() == 8 and list(t).count(8) == 127 - 7
    x = np.arange(-8, 8).reshape(-1, 1)
    assert np.array_equal(net.run(x).codes["second.out"], x)


def test_positions_with_their_own_constants_have_their_own_rows():
    b = Builder()
    q = b.quant("input", "first", (1, 2, 3), 0.1, 8)
    shift = np.float32([[0, 1, 2], [2, 1, 0]])
    y = b.node("Add", [q, b.constant("c", shift)], "y", (1, 2, 3))
    net = to_integer(b.model({"input": (1, 2, 3)}, [b.quant(y, "second", (1, 2, 3), 0.3, 6)]))
    assert net.layer("second_quant").thresholds.shape == (3, 63)
    x = np.random.default_rng(0).integers(-128, 128, (50, 2, 3))
    scaled = (torch.from_numpy(x).double() * float(np.float32(0.1))).float() + torch.from_numpy(shift)
    assert np.array_equal(net.run(x).codes["second.out"], quantized(scaled, 0.3, 0, -32, 31).numpy())


def test_a_chain_that_falls_is_refused(monkeypatch):
    from brevitas.export.integer import floatops

    monkeypatch.setitem(floatops._TORCH, "tanh", lambda torch, x, number: torch.sin(3 * x))
    with pytest.raises(ExportError, match=r"E04 .*'second_quant'.*falls near the integer|E04 .*falls near the integer"):
        scalar_net(CHAINS["tanh"][0], 0.01)
