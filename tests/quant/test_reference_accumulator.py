"""What concerns accumulators: truncation, clamping, and that accumulator-aware weights never overflow one."""

import itertools

import pytest
import torch
from reference_arithmetic import clamped, int_range, rounded, through
from reference_table import TRUNCATIONS
from reference_weights import assert_near, draw, gradients, weight_layer

from brevitas.nn import QuantIdentity
from brevitas.proxy import ClampQuantProxyFromInjector, TruncQuantProxyFromInjector
from brevitas.quant import registry
from brevitas.quant.base import IntQuant, UintQuant
from brevitas.quant.solver import ClampQuantSolver
from brevitas.quant_tensor import QuantTensor

DTYPES = [torch.float64, torch.float32]
SCALE = 0.03125  # a power of two: codes of either dtype are exact


def codes(bits, signed, zero_point=0):
    low, high = (int(v) for v in int_range(torch.tensor(float(bits)), signed, False))
    return torch.arange(low, high + 1, max((high - low) // 400, 1)).double() - zero_point


def quant_tensor(x, bits, signed, zero_point=0.0, scale=SCALE):
    like = {"dtype": x.dtype}
    return QuantTensor(x, torch.tensor(scale, **like), torch.tensor(zero_point, **like), float(bits), signed)


def truncated(x, scale, zero_point, bits_in, bits_out, signed, rounding, factor=None):
    """spec/core.md 8.5."""
    low, high = int_range(torch.tensor(float(bits_out), dtype=torch.float64), signed, False)
    factor = torch.tensor(2.0 ** max(bits_in - bits_out, 0), dtype=torch.float64) if factor is None else factor
    a = through(x / scale + zero_point, torch.round)
    z = clamped(through(zero_point / factor, torch.round), low, high)
    q = clamped(rounded((a - zero_point) / factor, rounding) + z, low, high)
    return (q - z) * (scale * factor), scale * factor, z, q


@pytest.mark.parametrize("rounding", [None, "CEIL", "ROUND_TO_ZERO", "DPU"])
@pytest.mark.parametrize(("signed", "zero_point"), [(True, 0.0), (False, 0.0), (False, 37.0)])
@pytest.mark.parametrize("bits_out", range(2, 9))
@pytest.mark.parametrize("name", TRUNCATIONS)
def test_truncation(name, bits_out, signed, zero_point, rounding):
    for bits_in, dtype in itertools.product((4, 8, 14, 20), DTYPES):
        if zero_point and bits_in < 8:
            continue
        options = {"bit_width": bits_out} | ({"float_to_int_impl_type": rounding} if rounding else {})
        proxy = TruncQuantProxyFromInjector(torch.nn.Module(), registry.preset(name).let(**options)).to(dtype)
        x64 = (codes(bits_in, signed, zero_point) * SCALE).requires_grad_()
        x = x64.detach().to(dtype).requires_grad_()
        z = torch.tensor(zero_point, dtype=torch.float64)
        scale = torch.tensor(SCALE, dtype=torch.float64)
        expected = truncated(x64, scale, z, bits_in, bits_out, signed, rounding or TRUNCATIONS[name])
        qt = proxy(quant_tensor(x, bits_in, signed, zero_point))
        assert torch.equal(qt.int().double(), expected[3].detach())
        assert torch.equal(qt.value.detach().double(), expected[0].detach())
        assert qt.scale.item() == expected[1].item() and qt.zero_point.item() == expected[2].item()
        assert qt.bit_width.item() == bits_out and qt.signed is signed
        (g,), (wanted,) = gradients((qt.value,), x64, [x]), gradients(expected[:1], x64, [x64])
        assert_near(g, wanted, dtype, "gradient")


def test_truncation_of_the_specification():
    """spec/core.md 8.5: s = 0.01, 8 to 4 bits, ROUND: codes 4, -5, 31, -44 become 0, 0, 2, -3 at 0.16."""
    proxy = TruncQuantProxyFromInjector(torch.nn.Module(), registry.preset("RoundTo8bit").let(bit_width=4))
    qt = proxy(quant_tensor(torch.tensor([0.04, -0.05, 0.31, -0.44]), 8, True, scale=0.01))
    assert qt.int().tolist() == [0, 0, 2, -3]
    assert qt.scale.item() == pytest.approx(0.16)


@pytest.mark.parametrize("given_up", [0.0, 1.2, 2.6, 7.0])
def test_learned_truncation(given_up):
    """WRAPPER: a power of two between 1 and 2^n, straight through; bits given up are clamped where they do not fit."""
    quantizer = registry.preset("RoundTo8bit").let(bit_width=4, trunc_scaling_impl_type="WRAPPER")
    proxy = TruncQuantProxyFromInjector(torch.nn.Module(), quantizer).double()
    (value,) = proxy.parameters()
    with torch.no_grad():
        value.fill_(given_up)
    leaf = torch.tensor(given_up, dtype=torch.float64, requires_grad=True)
    factor = 2.0 ** through(4.0 - leaf, lambda v: torch.round(v.clamp(0, 4)))
    x64 = (codes(8, True) * SCALE).requires_grad_()
    x = x64.detach().clone().requires_grad_()
    zero = torch.zeros((), dtype=torch.float64)
    expected = truncated(x64, torch.tensor(SCALE, dtype=torch.float64), zero, 8, 4, True, "ROUND", factor)
    qt = proxy(quant_tensor(x, 8, True))
    assert torch.equal(qt.int().double(), expected[3].detach())
    found = gradients((qt.value, qt.scale), x64, [x, value])
    for g, wanted in zip(found, gradients(expected[:2], x64, [x64, leaf]), strict=True):
        assert_near(g.reshape(wanted.shape), wanted, torch.float64, "gradient")


class SignedClamp(IntQuant, ClampQuantSolver):
    pass


class UnsignedClamp(UintQuant, ClampQuantSolver):
    pass


@pytest.mark.parametrize("removed", [0, 1, 2, 6])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits_in", [*range(2, 9), 16])
def test_clamping(bits_in, signed, removed):
    """Most significant bits off, at least 2 left; the scale stays; outside, no gradient."""
    quantizer = (SignedClamp if signed else UnsignedClamp).let(bit_width_to_remove=removed)
    bits_out = max(bits_in - removed, 2)
    low, high = int_range(torch.tensor(float(bits_out), dtype=torch.float64), signed, False)
    for dtype in DTYPES:
        proxy = ClampQuantProxyFromInjector(torch.nn.Module(), quantizer).to(dtype)
        x64 = (codes(bits_in, signed) * SCALE).requires_grad_()
        x = x64.detach().to(dtype).requires_grad_()
        q = clamped(through(x64 / SCALE, torch.round), low, high)
        qt = proxy(quant_tensor(x, bits_in, signed))
        assert torch.equal(qt.int().double(), q.detach())
        assert (qt.bit_width.item(), qt.scale.item(), qt.signed) == (bits_out, SCALE, signed)
        (g,), (wanted,) = gradients((qt.value,), x64, [x]), gradients((q * SCALE,), x64, [x64])
        assert_near(g, wanted, dtype, "gradient")


@pytest.mark.parametrize("n", [1, 3])
def test_learned_clamping(n):
    """Bits to remove = 1 / (eps + abs c), c = 1 / n at the start; round(b_in - removed), straight through."""
    quantizer = SignedClamp.let(bit_width_to_remove=n, bit_width_impl_type="PARAMETER")
    proxy = ClampQuantProxyFromInjector(torch.nn.Module(), quantizer).double()
    (coefficient,) = proxy.parameters()
    assert coefficient.item() == pytest.approx(1 / n)
    c = torch.tensor(1 / n, dtype=torch.float64, requires_grad=True)
    b = through(8.0 - 1 / (1e-6 + c.abs()), torch.round)
    low, high = int_range(b, True, False)
    x64 = (codes(8, True) * SCALE).requires_grad_()
    x = x64.detach().clone().requires_grad_()
    q = clamped(through(x64 / SCALE, torch.round), low, high)
    qt = proxy(quant_tensor(x, 8, True))
    assert torch.equal(qt.int().double(), q.detach())
    found = gradients((qt.value, qt.bit_width), x64, [x, coefficient])
    for g, wanted in zip(found, gradients((q * SCALE, b), x64, [x64, c]), strict=True):
        assert_near(g.reshape(wanted.shape), wanted, torch.float64, "gradient", 1e-9)


EXTREME_WEIGHTS = {
    "random": lambda: draw(1, (4, 24)),
    "equal": lambda: torch.full((4, 24), 0.7).double(),
    "one large": lambda: torch.eye(4, 24).double() * 50 + 1e-3,
    "alternating": lambda: torch.tensor([1.0, -1.0]).repeat(12).expand(4, 24).clone().double(),
    "huge": lambda: draw(2, (4, 24)) * 1e30,
    "tiny": lambda: draw(3, (4, 24)) * 1e-30,
    "zero channel": lambda: draw(4, (4, 24)) * torch.tensor([[1.0], [0.0], [2.0], [0.0]]).double(),
    "zero": lambda: torch.zeros(4, 24).double(),
    "one element": lambda: torch.tensor([[0.3]]).double(),
}


@pytest.mark.parametrize("accumulator", [6, 9, 12, 16, 20])
@pytest.mark.parametrize("kind", EXTREME_WEIGHTS)
@pytest.mark.parametrize("name", ["Int8AccumulatorAwareWeightQuant", "Int8AccumulatorAwareZeroCenterWeightQuant"])
def test_no_accumulator_overflows(name, kind, accumulator):
    """The L1 norm of a channel's codes is within its bound, and the worst input of all does not overflow."""
    weight = EXTREME_WEIGHTS[kind]()
    for dtype, input_bits, signed in itertools.product(DTYPES, (1, 4, 8), (False, True)):
        if input_bits == 1 and signed:
            continue
        layer = weight_layer(name, weight, dtype, accumulator_bit_width=accumulator)
        x = quant_tensor(torch.zeros(2, weight.shape[1], dtype=dtype), input_bits, signed)
        quantizer = layer.weight_quant.tensor_quant
        for attempt in range(3):
            layer.train(attempt != 1)
            qt = layer.weight_quant(layer.weight, x)
            assert torch.isfinite(qt.value).all() and torch.isfinite(qt.scale).all() and (qt.scale > 0).all()
            q = (qt.value.double() / qt.scale.double()).round()
            assert q.abs().max() <= 127
            largest = float(2 ** (accumulator - 1) - 1)
            if "ZeroCenter" in name:
                # For inputs of either sign: codes > 0 and codes < 0 each sum to at most half of it.
                assert q.abs().sum(1).max() <= (2.0**accumulator - 2) / (2.0**input_bits - 1)
            else:
                assert q.abs().sum(1).max() <= largest * 2.0 ** (signed - input_bits)
            low, high = (float(v) for v in int_range(torch.tensor(float(input_bits)), signed, False))
            # Of all inputs, the one that meets each code with the bound of its sign is the worst, in both directions.
            top = torch.where(q > 0, q * high, q * low).sum(1)
            bottom = torch.where(q > 0, q * low, q * high).sum(1)
            assert top.max() <= largest and bottom.min() >= -largest - 1
            if weight.any() and kind not in ("tiny", "equal", "one element") and accumulator >= 16:
                assert q.any(), "a bound that is kept by codes of zero only is no bound"
            if kind.startswith("zero"):
                assert not q[~weight.any(dim=1)].any()
            with torch.no_grad():  # norms and steps as far as an optimizer may drive them
                quantizer.pre_scaling_impl.value.add_(20.0)
                quantizer.scaling_impl.value.sub_(7.0)


@pytest.mark.parametrize("name", ["Int8AccumulatorAwareWeightQuant", "Int8AccumulatorAwareZeroCenterWeightQuant"])
@pytest.mark.parametrize("accumulator", [5, 7, 9])
def test_no_accumulator_overflows_for_any_input(name, accumulator):
    """Every one of the 4^4 unsigned 2-bit inputs of four channels, through a real layer."""
    layer = weight_layer(name, draw(5, (6, 4)), torch.float32, accumulator_bit_width=accumulator).train()
    inputs = torch.tensor(list(itertools.product(range(4), repeat=4)), dtype=torch.float32)
    out = layer(QuantTensor(inputs, torch.tensor(1.0), torch.tensor(0.0), 2.0, False))
    scale = layer.weight_quant.tensor_quant.scaling_impl(layer.weight).reshape(-1)
    sums = (out / scale).round()
    assert sums.abs().max() <= 2 ** (accumulator - 1) - 1
    assert sums.any()


def test_a2q_needs_a_quantized_input():
    layer = weight_layer("Int8AccumulatorAwareWeightQuant", draw(1, (3, 4)), torch.float32)
    with pytest.raises(Exception, match="input_quant") as caught:
        layer(torch.zeros(1, 4))
    assert type(caught.value).__name__ == "QuantMetadataError"
    assert layer(QuantIdentity(return_quant_tensor=True)(torch.rand(1, 4))).shape == (1, 3)
