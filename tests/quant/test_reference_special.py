"""Binary, decoupled and weight-normalised weights, biases: numbers and gradients against spec/core.md in float64."""

import pytest
import torch
from reference_arithmetic import (
    at_least,
    codes_of,
    int_threshold,
    learned_threshold,
    rounded,
    stored,
    threshold_of,
    through,
)
from reference_table import BIASES, BINARY, DECOUPLED, INTERNAL_BIASES, NORMALISED, OFF
from reference_weights import (
    assert_near,
    assert_quantized,
    away_from_jumps,
    draw,
    gradients,
    layout,
    weight_layer,
)

from brevitas.nn import QuantIdentity, QuantLinear
from brevitas.proxy import BiasQuantProxyFromInjector
from brevitas.quant import registry

DTYPES = [torch.float64, torch.float32]
ZERO = torch.zeros((), dtype=torch.float64)


def bits_of(bits):
    return torch.tensor(float(bits), dtype=torch.float64)


def sign_ste(x):
    return through(x, lambda v: torch.where(v >= 0, 1.0, -1.0).double())


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_binary(name, dtype):
    """1 bit; a weight's gradient passes everywhere, an activation's only inside plus and minus the scale."""
    is_weight = "Weight" in name
    scale = torch.tensor(0.1 if is_weight else 1.0, dtype=torch.float64)
    x64 = draw(4, (5, 8)) * (0.3 if is_weight else 3.0)
    x64.view(-1)[:4] = torch.tensor([0.0, -0.0, float(scale) * 1.5, -float(scale) * 1.5])
    x64 = x64.requires_grad_()
    inside = x64 if is_weight else torch.where(x64.abs() <= scale, x64, x64.detach().clamp(-scale, scale))
    codes = sign_ste(inside)
    if is_weight:
        layer = weight_layer(name, x64.detach(), dtype)
        layer.eval()
        qt, given = layer.weight_quant(layer.weight), layer.weight
    else:
        layer = QuantIdentity(registry.preset(name), return_quant_tensor=True).to(dtype)
        given = x64.detach().to(dtype).requires_grad_()
        qt = layer(given)
    assert_near(qt.value, codes * scale, dtype, "value")
    assert_near(qt.scale, scale, dtype, "scale", 1e-8)
    assert torch.equal((qt.value / qt.scale).round().double(), codes.detach())
    assert qt.bit_width.item() == 1 and qt.zero_point.item() == 0 and qt.signed is True
    (g,), (wanted,) = gradients((qt.value,), x64, [given]), gradients((codes * scale,), x64, [x64])
    assert_near(g, wanted, dtype, "gradient")
    assert bool(wanted.eq(0).any()) is not is_weight


@pytest.mark.parametrize("dtype", DTYPES)
def test_binary_weights_are_clipped_in_training_only(dtype):
    weight = draw(5, (4, 6))
    layer = weight_layer(BINARY[0], weight, dtype)
    layer.eval()
    layer(torch.zeros(1, 6, dtype=dtype))
    layer.quant_weight()
    assert torch.equal(layer.weight.detach(), weight.to(dtype))
    layer.train()
    layer.quant_weight()
    assert torch.equal(layer.weight.detach(), weight.to(dtype)), "reading a weight does not change it"
    layer(torch.zeros(1, 6, dtype=dtype))
    assert_near(layer.weight, weight.clamp(-0.1, 0.1), dtype, "latent weight", 1e-8)


def l2_of_maxima(w):
    maxima = w.reshape(w.shape[0], -1).abs().max(dim=1).values
    return torch.sqrt((maxima**2).sum() / w.shape[0]).reshape(1)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", DECOUPLED)
def test_decoupled(name, bits):
    restriction, per = DECOUPLED[name]
    b = bits_of(bits)

    def statistic(w):
        return layout(w, per)[0].abs().max(dim=1).values if per == "channel" else l2_of_maxima(w)

    def numbers(w, leaf):
        levels, spread = int_threshold(b, True, True, restriction), layout(w, per)[1]
        pre_scale = spread(threshold_of(statistic(w), restriction) / levels)
        s = spread(learned_threshold(leaf, restriction) / levels)
        q = codes_of(w, pre_scale, ZERO, b, True, True, passing=True)
        return q * s, s, ZERO, q

    def leaf_of(w):
        # The post-scale starts from the restricted threshold of the pre-scale.
        return stored(threshold_of(statistic(w.detach()), restriction), restriction)

    shape = (3, 2, 3, 2) if per == "channel" else (5, 9)
    weight = away_from_jumps(lambda w: numbers(w, leaf_of(w) - 0.3), shape)
    for dtype in DTYPES:
        layer = weight_layer(name, weight, dtype, bit_width=bits)
        layer.weight_quant.init_tensor_quant()
        value = layer.weight_quant.tensor_quant.scaling_impl.value
        with torch.no_grad():  # learned from the weight at construction, which was another one
            value.copy_((leaf_of(weight) - 0.3).reshape(value.shape))
        leaf, w = (leaf_of(weight) - 0.3).requires_grad_(), weight.clone().requires_grad_()
        for training in (True, False):
            layer.train(training)
            qt, expected = layer.weight_quant(layer.weight), numbers(w, leaf)
            assert_quantized(qt, expected, bits, dtype, True)
            found, wanted = (
                gradients((qt.value, qt.scale), w, [layer.weight, value]),
                gradients(expected[:2], w, [w, leaf]),
            )
            for g, g_wanted in zip(found, wanted, strict=True):
                assert_near(g.reshape(g_wanted.shape), g_wanted, dtype, "gradient", 1e-12, 50.0)


@pytest.mark.parametrize("name", DECOUPLED)
def test_decoupled_post_scale_starts_from_the_weight(name):
    restriction, per = DECOUPLED[name]
    layer = QuantLinear(6, 4, bias=False, weight_quant=registry.preset(name)).double()
    w = layer.weight.detach()
    stat = layout(w, per)[0].abs().max(dim=1).values if per == "channel" else l2_of_maxima(w)
    bits = bits_of(8 if per == "channel" else 4)
    scale = threshold_of(stat, restriction) / int_threshold(bits, True, True, restriction)
    assert_near(layer.quant_weight_scale().reshape(-1), scale, torch.float32, "scale")


@pytest.mark.parametrize("accumulator", [12, 32])
@pytest.mark.parametrize(("input_bits", "input_signed"), [(8, False), (4, True)])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", NORMALISED)
def test_weight_norm(name, bits, input_bits, input_signed, accumulator):
    kind, restriction = NORMALISED[name]
    b = bits_of(bits)

    def numbers(w, g, s_leaf):
        rows = w.reshape(w.shape[0], -1)
        centred = rows - rows.mean(dim=1, keepdim=True) if kind == "A2Q+" else rows
        norm = torch.sqrt((rows**2).sum(1)) if kind == "L2" else centred.abs().sum(1)
        norm = at_least(norm, 1e-10)
        s = learned_threshold(s_leaf, restriction)
        ratio = learned_threshold(g, "LOG_FP") / s
        if kind == "A2Q":
            ratio = torch.minimum(
                ratio, torch.tensor((2.0 ** (accumulator - 1) - 1) * 2.0 ** (input_signed - input_bits))
            )
        elif kind == "A2Q+":
            ratio = torch.minimum(ratio, torch.tensor((2.0**accumulator - 2) / (2.0**input_bits - 1)))
        rounding = "ROUND" if kind == "L2" else "ROUND_TO_ZERO"
        codes = rounded(centred * (ratio / norm)[:, None], rounding)
        high = 2.0 ** (b - 1) - 1
        codes = torch.where(codes > high, high, torch.where(codes < -high, -high, codes)).reshape(w.shape)
        s = s.reshape(-1, *[1] * (w.ndim - 1))
        return codes * s, s, ZERO, codes

    def leaves_of(w):
        rows = w.detach().reshape(w.shape[0], -1)
        centred = rows - rows.mean(dim=1, keepdim=True) if kind == "A2Q+" else rows
        norm = torch.sqrt((rows**2).sum(1)) if kind == "L2" else centred.abs().sum(1)
        return stored(norm, "LOG_FP"), stored(rows.abs().max(dim=1).values / (2.0 ** (b - 1) - 1), restriction)

    # Off the statistic, on whose grid the largest weight lies exactly where codes jump.
    shift = (0.21, -0.37)

    def start(w):
        g, s = leaves_of(w)
        return (g + shift[0]).requires_grad_(), (s + shift[1]).requires_grad_()

    weight = away_from_jumps(lambda w: numbers(w, *start(w)), (3, 2, 3, 2), outliers=False)
    options = {"bit_width": bits} | ({} if kind == "L2" else {"accumulator_bit_width": accumulator})
    for dtype in DTYPES:
        layer = weight_layer(name, weight, dtype, **options)
        quantizer = layer.weight_quant.tensor_quant
        x = QuantIdentity(
            registry.preset("Int8ActPerTensorFloat" if input_signed else "Uint8ActPerTensorFloat"),
            bit_width=input_bits,
            return_quant_tensor=True,
        ).to(dtype)(torch.rand(2, 2, 5, 4, dtype=dtype))
        layer.weight_quant(layer.weight, x)  # the first training call stores norm and step
        parameters = [quantizer.pre_scaling_impl.value, quantizer.scaling_impl.value]
        for parameter, leaf in zip(parameters, leaves_of(weight), strict=True):
            assert_near(parameter.reshape(-1), leaf, dtype, "stored statistic", 1e-5)
        leaves, w = start(weight), weight.clone().requires_grad_()
        with torch.no_grad():
            for parameter, leaf in zip(parameters, leaves, strict=True):
                parameter.copy_(leaf.reshape(parameter.shape))
        qt, expected = layer.weight_quant(layer.weight, x), numbers(w, *leaves)
        assert_quantized(qt, expected, bits, dtype, True)
        found = gradients((qt.value, qt.scale), w, [layer.weight, *parameters])
        for g, wanted in zip(found, gradients(expected[:2], w, [w, *leaves]), strict=True):
            assert_near(g.reshape(wanted.shape), wanted, dtype, "gradient", 1e-12, 50.0)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", INTERNAL_BIASES)
def test_bias_with_its_own_scale(name, bits):
    restriction, b = INTERNAL_BIASES[name], bits_of(bits)

    def numbers(bias):
        s = threshold_of(bias.abs().max().reshape(1), restriction).reshape(()) / 2.0 ** (b - 1)
        q = codes_of(bias, s, ZERO, b, True, False, passing=True)
        return q * s, s, ZERO, q

    bias = away_from_jumps(numbers, (17,))
    for dtype in DTYPES:
        layer = QuantLinear(3, 17, bias_quant=registry.preset(name), bias_bit_width=bits).to(dtype)
        with torch.no_grad():
            layer.bias.copy_(bias)
        given = bias.clone().requires_grad_()
        qt, expected = layer.bias_quant(layer.bias), numbers(given)
        assert_quantized(qt, expected, bits, dtype, True)
        (g,), (wanted,) = gradients((qt.value, qt.scale), bias, [layer.bias]), gradients(expected[:2], bias, [given])
        assert_near(g, wanted, dtype, "gradient", 1e-12, 5.0)


@pytest.mark.parametrize("scales", [1, 17])
@pytest.mark.parametrize("name", BIASES)
def test_bias_on_the_accumulators_grid(name, scales):
    widths = [BIASES[name]] if BIASES[name] else [*range(2, 9), 21]
    for bits, dtype in [(bits, dtype) for bits in [*widths, *range(2, 9)] for dtype in DTYPES]:
        declared = bits != BIASES[name] and name != "IntBias"
        b = bits_of(bits)
        scale = torch.tensor([0.01], dtype=torch.float64) if scales == 1 else draw(9, (17,), False).abs() * 0.05 + 0.001
        scale = scale.float().double()

        def numbers(bias, s):
            q = codes_of(bias, s, ZERO, b, True, False, passing=True)  # noqa: B023
            return q * s, s, ZERO, q

        bias = away_from_jumps(lambda v: numbers(v, scale), (17,))  # noqa: B023
        quantizer = registry.preset(name)
        proxy = BiasQuantProxyFromInjector(QuantLinear(3, 17), quantizer.let(bit_width=bits) if declared else quantizer)
        given, given_scale = (v.to(dtype).clone().requires_grad_() for v in (bias, scale))
        x64, s64 = (v.clone().requires_grad_() for v in (bias, scale))
        qt = proxy(given, given_scale, torch.tensor(float(bits)) if name == "IntBias" else None)
        expected = numbers(x64, s64)
        assert_quantized(qt, expected, bits, dtype, True)
        found = gradients((qt.value, qt.scale), bias, [given, given_scale])
        for g, wanted in zip(found, gradients(expected[:2], bias, [x64, s64]), strict=True):
            assert_near(g, wanted, dtype, "gradient", 1e-12, 50.0)


@pytest.mark.parametrize("name", OFF)
def test_off_is_the_identity(name):
    quantizer = registry.preset(name)
    assert quantizer.tensor_quant is None
    x = draw(1, (2, 4)).float()
    if name == "NoneWeightQuant":
        layer = QuantLinear(4, 3, weight_quant=quantizer)
        assert layer.weight_quant(layer.weight) is layer.weight
    elif name == "NoneActQuant":
        assert QuantIdentity(quantizer)(x) is x
    elif name == "NoneBiasQuant":
        layer = QuantLinear(4, 3, bias_quant=quantizer)
        assert layer.bias_quant(layer.bias) is layer.bias
        assert not layer.bias_quant.requires_input_scale and not layer.bias_quant.requires_input_bit_width
    else:
        from brevitas.proxy import ClampQuantProxyFromInjector, TruncQuantProxyFromInjector

        proxy_class = TruncQuantProxyFromInjector if "Trunc" in name else ClampQuantProxyFromInjector
        assert proxy_class(torch.nn.Module(), quantizer)(x) is x
