"""Roundings, learned widths, HE, dead zones: choices that no preset makes, against spec/core.md in float64."""

import itertools
import math

import pytest
import torch
from reference_arithmetic import (
    clamped,
    codes_of,
    int_range,
    int_threshold,
    magnitude,
    rounded,
    threshold_of,
    through,
)
from reference_weights import (
    assert_near,
    assert_quantized,
    away_from_jumps,
    draw,
    gradients,
    layout,
    weight_layer,
)

from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear
from brevitas.quant import registry

DTYPES = [torch.float64, torch.float32]
ZERO = torch.zeros((), dtype=torch.float64)
FLOAT, CHANNEL = "Int8WeightPerTensorFloat", "Int8WeightPerChannelFloat"


def bits_of(bits):
    return torch.tensor(float(bits), dtype=torch.float64)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("rounding", ["ROUND", "CEIL", "FLOOR", "ROUND_TO_ZERO", "DPU"])
@pytest.mark.parametrize("role", ["weight", "act", "bias"])
def test_rounding(role, rounding, bits):
    b = bits_of(bits)
    narrow = role == "weight"
    scale = torch.tensor(0.5, dtype=torch.float64) / int_threshold(b, True, narrow, "FP")

    def numbers(x):
        q = codes_of(x, scale, ZERO, b, True, narrow, rounding, passing=role != "act")
        return q * scale, scale, ZERO, q

    shape = (13,) if role == "bias" else (4, 9)
    x64 = away_from_jumps(numbers, shape)
    for dtype in DTYPES:
        constant = {"scaling_impl_type": "CONST", "float_to_int_impl_type": rounding, "bit_width": bits}
        if role == "weight":
            layer = weight_layer(FLOAT, x64, dtype, scaling_const=0.5, **constant)
            given, qt = layer.weight, layer.weight_quant(layer.weight)
        elif role == "bias":
            preset = registry.preset("Int8BiasPerTensorFloatInternalScaling")
            layer = QuantLinear(2, 13, bias_quant=preset.let(scaling_const=0.5, **constant)).to(dtype)
            with torch.no_grad():
                layer.bias.copy_(x64)
            given, qt = layer.bias, layer.bias_quant(layer.bias)
        else:
            layer = QuantIdentity(min_val=-0.5, max_val=0.25, return_quant_tensor=True, **constant).to(dtype)
            given = x64.to(dtype).requires_grad_()
            qt = layer(given)
        x = x64.clone().requires_grad_()
        expected = numbers(x)
        assert_quantized(qt, expected, bits, dtype, True)
        (g,), (wanted,) = gradients((qt.value,), x64, [given]), gradients(expected[:1], x64, [x])
        assert_near(g, wanted, dtype, "gradient")


@pytest.mark.parametrize("rounding", ["ROUND", "CEIL", "FLOOR", "ROUND_TO_ZERO", "DPU"])
def test_rounding_of_ties(rounding):
    """Exact halves, at a scale of 1/8: half to even, and half up below 0 for DPU."""
    x = torch.arange(-14, 15).double() / 16
    halves = range(-14, 15)
    even = [(2 * round(h / 4) if h % 2 else h // 2) for h in halves]  # of an odd h, h / 2 is a tie between neighbours
    codes = {
        "ROUND": even,
        "CEIL": [-(-h // 2) for h in halves],
        "FLOOR": [h // 2 for h in halves],
        "ROUND_TO_ZERO": [int(h / 2) for h in halves],
        "DPU": [e if h >= 0 else (h + 1) // 2 for h, e in zip(halves, even, strict=True)],
    }[rounding]
    layer = weight_layer(
        FLOAT,
        x[None],
        torch.float64,
        scaling_impl_type="CONST",
        scaling_const=127 / 8,
        float_to_int_impl_type=rounding,
    )
    assert layer.quant_weight().int().flatten().tolist() == codes


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("role", ["weight", "act"])
def test_stochastic_rounding(role, bits):
    """Floor or ceil, right on average, straight through; half to even in eval."""
    b, draws = bits_of(bits), 2000
    narrow = role == "weight"
    scale = torch.tensor(0.5, dtype=torch.float64) / int_threshold(b, True, narrow, "FP")
    x = away_from_jumps(lambda v: codes_of(v, scale, ZERO, b, True, narrow), (3, 5))
    options = {"scaling_impl_type": "CONST", "float_to_int_impl_type": "stochastic_round", "bit_width": bits}
    torch.manual_seed(1)
    if role == "weight":
        layer = weight_layer(FLOAT, x, torch.float64, scaling_const=0.5, **options)
        call, given = lambda: layer.weight_quant(layer.weight), layer.weight
    else:
        layer = QuantIdentity(min_val=-0.5, max_val=0.5, return_quant_tensor=True, **options).double()
        given = x.clone().requires_grad_()
        call = lambda: layer(given)  # noqa: E731
    low, high = codes_of(x, scale, ZERO, b, True, narrow, "FLOOR"), codes_of(x, scale, ZERO, b, True, narrow, "CEIL")
    codes = torch.stack([(call().value.detach() / scale).round() for _ in range(draws)])
    assert ((codes == low) | (codes == high)).all()
    fraction = x / scale - torch.floor(x / scale)
    expected = torch.where(low == high, low, low + fraction)
    assert ((codes.mean(0) - expected).abs() < 5 * 0.5 / math.sqrt(draws)).all()
    (g,) = gradients((call().value,), x, [given])
    (everywhere,) = gradients((x64 := x.clone().requires_grad_(),), x, [x64])
    bottom, top = int_range(b, True, narrow)
    down, up = torch.floor(x / scale), torch.ceil(x / scale)
    inside = torch.ones_like(x, dtype=torch.bool) if narrow else (down >= bottom) & (up <= top)
    assert torch.equal(g[inside], everywhere[inside])
    beyond = (up < bottom) | (down > top)
    assert narrow or not g[beyond].any()
    layer.eval()
    assert torch.equal((call().value / scale).round(), codes_of(x, scale, ZERO, b, True, narrow))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", ["HARD_SIGMOID", "SIGMOID", "IDENTITY"])
def test_learned_rounding(kind, bits):
    b = bits_of(bits)
    weight = draw(bits, (4, 6)) * 0.7
    generator = torch.Generator().manual_seed(bits)
    p0 = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    scale = torch.tensor(0.5, dtype=torch.float64) / int_threshold(b, True, True, "FP")
    layer = weight_layer(
        FLOAT,
        weight,
        torch.float64,
        bit_width=bits,
        scaling_impl_type="CONST",
        scaling_const=0.5,
        float_to_int_impl_type="LEARNED_ROUND",
        learned_round_impl_type=kind,
    )
    parameter = layer.weight_quant.tensor_quant.int_quant.float_to_int_impl.value
    assert parameter.shape == weight.shape
    with torch.no_grad():
        parameter.copy_(p0)
    for training in (True, False):
        layer.train(training)
        w, p = weight.clone().requires_grad_(), p0.clone().requires_grad_()
        v = w / scale
        if kind == "IDENTITY":
            code = rounded(v + torch.clamp(p, -0.5, 0.5))
        elif not training:
            code = rounded(v, "FLOOR") + (p > 0).double()
        elif kind == "HARD_SIGMOID":
            code = rounded(v, "FLOOR") + torch.clamp(torch.sigmoid(p) * 1.2 - 0.1, 0, 1)
        else:
            code = rounded(v, "FLOOR") + torch.sigmoid(p)
        high = 2.0 ** (b - 1) - 1
        y = through(code, lambda c: clamped(c, -high, high)) * scale  # noqa: B023
        qt = layer.weight_quant(layer.weight)
        assert_near(qt.value, y, torch.float64, "value")
        found, wanted = gradients((qt.value,), w, [layer.weight, parameter]), gradients((y,), w, [w, p])
        for what, g, g_wanted in zip(("weight", "rounding"), found, wanted, strict=True):
            assert_near(g, g_wanted, torch.float64, f"gradient of the {what}, training={training}")


@pytest.mark.parametrize("rounding", ["CEIL", "ROUND", "FLOOR"])
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_rounding_of_a_power_of_two(per, rounding):
    for bits in range(2, 9):
        b = bits_of(bits)

        def numbers(w):
            rows, spread = layout(w, per)
            s = spread(threshold_of(rows.abs().max(dim=1).values, "POWER_OF_TWO", rounding)) / 2.0 ** (b - 1)  # noqa: B023
            q = codes_of(w, s, ZERO, b, True, True, passing=True)  # noqa: B023
            return q * s, s, ZERO, q

        weight = away_from_jumps(numbers, (4, 7))
        layer = weight_layer(
            CHANNEL if per == "channel" else FLOAT,
            weight,
            torch.float32,
            bit_width=bits,
            restrict_scaling_type="POWER_OF_TWO",
            restrict_value_float_to_int_impl_type=rounding,
        )
        w = weight.clone().requires_grad_()
        expected, qt = numbers(w), layer.weight_quant(layer.weight)
        assert_quantized(qt, expected, bits, torch.float32, True)
        (g,), (wanted,) = gradients((qt.value, qt.scale), w, [layer.weight]), gradients(expected[:2], w, [w])
        assert_near(g, wanted, torch.float32, "gradient", 1e-12, 5.0)


def test_integer_thresholds():
    weight = draw(2, (4, 7)) * 20
    layer = weight_layer(FLOAT, weight, torch.float64, restrict_scaling_type="INT")
    assert layer.quant_weight_scale().item() == pytest.approx(round(weight.abs().max().item()) / 127, rel=1e-12)


@pytest.mark.parametrize(("bits", "scaling"), itertools.product(range(2, 9), ["STATS", "CONST"]))
def test_learned_bit_width(bits, scaling):
    """Gradient to the width through the range and the integer threshold; values outside get none."""

    def numbers(w, offset):
        b = through(magnitude(offset) + 2, torch.round)
        t = threshold_of(w.abs().max().reshape(1)) if scaling == "STATS" else torch.full((1,), 0.5).double()
        s = t.reshape(()) / int_threshold(b, True, True, "FP")
        q = codes_of(w, s, ZERO, b, True, True)
        return q * s, s, ZERO, q, b

    offset0 = torch.tensor([bits - 2 + (0.3 if bits < 8 else -0.3)], dtype=torch.float64)
    weight = away_from_jumps(lambda w: numbers(w, offset0), (4, 9))
    options = {"scaling_impl_type": "CONST", "scaling_const": 0.5} if scaling == "CONST" else {}
    for dtype in DTYPES:
        layer = weight_layer(FLOAT, weight, dtype, bit_width=bits, bit_width_impl_type="PARAMETER", **options)
        parameter = layer.weight_quant.tensor_quant.msb_clamp_bit_width_impl.bit_width_offset
        assert parameter.item() == bits - 2
        with torch.no_grad():
            parameter.copy_(offset0.reshape(parameter.shape))
        w, offset = weight.clone().requires_grad_(), offset0.clone().requires_grad_()
        *expected, b = numbers(w, offset)
        qt = layer.weight_quant(layer.weight)
        assert_quantized(qt, expected, bits, dtype, True)
        found = gradients((qt.value, qt.scale, qt.bit_width), w, [layer.weight, parameter])
        wanted = gradients((*expected[:2], b.reshape(())), w, [w, offset])
        for g, g_wanted in zip(found, wanted, strict=True):
            assert_near(g.reshape(g_wanted.shape), g_wanted, dtype, "gradient", 1e-12, 50.0)


def test_he_threshold():
    conv = QuantConv2d(6, 4, (3, 2), groups=2, weight_scaling_impl_type="HE")
    assert conv.quant_weight_scale().item() == pytest.approx(math.sqrt(2 / (3 * 3 * 2)) / 127, rel=1e-6)


@pytest.mark.parametrize("role", ["weight", "act"])
def test_ternary_with_a_dead_zone(role):
    """quant_type TERNARY: codes -1, 0, 1 with a dead zone relative to the scale; no gradient inside it."""
    x64 = draw(6, (4, 9)).requires_grad_()
    scale = torch.tensor(0.4, dtype=torch.float64)
    options = {"quant_type": "TERNARY", "bit_width": 2, "threshold": 0.3, "scaling_impl_type": "CONST"}
    for dtype in DTYPES:
        y = (x64.detach().abs() > 0.3 * scale).double() * through(x64, torch.sign) * scale
        if role == "weight":
            layer = weight_layer(FLOAT, x64.detach(), dtype, scaling_const=0.4, **options)
            given, qt = layer.weight, layer.weight_quant(layer.weight)
        else:
            layer = QuantIdentity(min_val=-0.4, max_val=0.4, return_quant_tensor=True, **options).to(dtype)
            given = x64.detach().to(dtype).requires_grad_()
            qt = layer(given)
        assert_near(qt.value, y, dtype, "value", 1e-7)
        assert (qt.bit_width.item(), qt.zero_point.item()) == (2, 0)
        (g,), (wanted,) = gradients((qt.value,), x64, [given]), gradients((y,), x64, [x64])
        assert_near(g, wanted, dtype, "gradient", 1e-7)
        assert wanted.eq(0).any()
