"""Presets against the formulas of their definition, computed here in float64 with NumPy."""

import math

import numpy as np
import pytest
import torch

from brevitas import quant
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import (
    Int8ActPerTensorFixedPoint,
    Int8ActPerTensorFloat,
    Int8ActPerTensorFloatMinMaxInit,
    Int8Bias,
    Int8BiasPerTensorFixedPointInternalScaling,
    Int8BiasPerTensorFloatInternalScaling,
    Int8WeightPerChannelFixedPoint,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFixedPoint,
    Int8WeightPerTensorFloat,
    IntBias,
    ShiftedUint8ActPerTensorFixedPoint,
    ShiftedUint8ActPerTensorFloat,
    ShiftedUint8WeightPerChannelFloat,
    ShiftedUint8WeightPerTensorFloat,
    Uint8ActPerTensorFixedPoint,
    Uint8ActPerTensorFloat,
    Uint8ActPerTensorFloatMaxInit,
)


def power_of_two_above(t):
    return 2.0 ** math.ceil(math.log2(t))


def reference(x, threshold, bits, signed, narrow, power_of_two=False, low=None):
    """(value, scale, zero point, codes) of the definition: divide, round half to even, clamp."""
    top = 2 ** (bits - 1) - 1 if signed else 2**bits - 1 - narrow
    bottom = -(2 ** (bits - 1)) + narrow if signed else 0
    if power_of_two:
        threshold = np.vectorize(power_of_two_above)(threshold)
        levels = 2 ** (bits - 1) if signed else 2**bits
    else:
        levels = -bottom if signed else top
    scale = threshold / levels
    zero_point = 0.0 if low is None else np.clip(np.round(-np.minimum(low, 0) / scale), bottom, top)
    codes = np.clip(np.round(x / scale + zero_point), bottom, top)
    return (codes - zero_point) * scale, scale, zero_point, codes


def weight_layer(weight, preset, bits):
    layer = QuantLinear(weight.shape[1], weight.shape[0], weight_quant=preset, weight_bit_width=bits)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
    return layer


WEIGHT_PRESETS = {
    # preset: (signed, narrow, per channel, power of two, shifted)
    Int8WeightPerTensorFloat: (True, True, False, False, False),
    Int8WeightPerChannelFloat: (True, True, True, False, False),
    Int8WeightPerTensorFixedPoint: (True, True, False, True, False),
    Int8WeightPerChannelFixedPoint: (True, True, True, True, False),
    ShiftedUint8WeightPerTensorFloat: (False, False, False, False, True),
    ShiftedUint8WeightPerChannelFloat: (False, False, True, False, True),
}


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("preset", WEIGHT_PRESETS, ids=lambda p: p.__name__)
def test_weight_preset_is_its_formula(preset, bits):
    signed, narrow, per_channel, power_of_two, shifted = WEIGHT_PRESETS[preset]
    weight = np.random.default_rng(bits).normal(0.1, 0.3, (5, 16)).astype(np.float32)
    qt = weight_layer(weight, preset, bits).quant_weight()
    w = weight.astype(np.float64)
    axis = {"axis": 1, "keepdims": True} if per_channel else {}
    low = np.minimum(w.min(**axis), 0)
    threshold = np.maximum(w.max(**axis), 0) - low if shifted else np.abs(w).max(**axis)
    value, scale, zero_point, codes = reference(
        w, threshold, bits, signed, narrow, power_of_two, low if shifted else None
    )
    assert qt.scale.shape == ((5, 1) if per_channel else ())
    np.testing.assert_allclose(qt.scale.detach().numpy(), scale, rtol=1e-6)
    np.testing.assert_array_equal(qt.int().numpy(), codes)
    np.testing.assert_array_equal(np.broadcast_to(qt.zero_point.detach().numpy(), np.shape(zero_point)), zero_point)
    np.testing.assert_allclose(qt.value.detach().numpy(), value, rtol=1e-5, atol=1e-9)
    assert qt.bit_width.item() == bits
    assert qt.signed is signed


ACT_PRESETS = {
    # preset: (signed, power of two, shifted)
    Int8ActPerTensorFloat: (True, False, False),
    Uint8ActPerTensorFloat: (False, False, False),
    Int8ActPerTensorFixedPoint: (True, True, False),
    Uint8ActPerTensorFixedPoint: (False, True, False),
    ShiftedUint8ActPerTensorFloat: (False, False, True),
    ShiftedUint8ActPerTensorFixedPoint: (False, True, True),
}


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("preset", ACT_PRESETS, ids=lambda p: p.__name__)
def test_activation_preset_is_its_formula(preset, bits):
    signed, power_of_two, shifted = ACT_PRESETS[preset]
    x = np.random.default_rng(bits).normal(0.4, 1.0, (8, 50)).astype(np.float32)
    layer = QuantIdentity(preset, bit_width=bits, return_quant_tensor=True)
    layer(torch.from_numpy(x))  # one training call: the estimate is the statistic of this batch
    layer.eval()
    qt = layer(torch.from_numpy(x))
    ordered = np.sort(x.astype(np.float64).ravel())
    n = ordered.size

    def kth(values, q):
        return values[min(max(math.floor(q * n / 100 + 0.5), 1), n) - 1]

    low = min(ordered[max(math.ceil(0.001 * n / 100), 1) - 1], 0.0)
    threshold = max(kth(ordered, 99.999), 0.0) - low if shifted else kth(np.sort(np.abs(ordered)), 99.999)
    value, scale, zero_point, codes = reference(
        x.astype(np.float64), threshold, bits, signed, False, power_of_two, low if shifted else None
    )
    np.testing.assert_allclose(qt.scale.item(), scale, rtol=1e-6)
    assert qt.zero_point.item() == zero_point
    assert (qt.int().numpy() != codes).mean() < 0.01  # float32 against float64, at ties only
    np.testing.assert_allclose(qt.value.detach().numpy(), value, rtol=1e-5, atol=2 * float(scale))
    assert qt.signed is signed


@pytest.mark.parametrize(
    ("preset", "options", "scale"),
    [
        (Int8ActPerTensorFloatMinMaxInit, {"min_val": -2.0, "max_val": 1.0}, 2.0 / 128),
        (Uint8ActPerTensorFloatMaxInit, {"max_val": 6.0}, 6.0 / 255),
        (quant.Int8ActPerTensorFixedPointMinMaxInit, {"min_val": -3.0, "max_val": 1.0}, 4.0 / 128),
        (quant.Uint8ActPerTensorFixedPointMaxInit, {"max_val": 6.0}, 8.0 / 256),
    ],
)
def test_range_presets_start_from_the_declared_range(preset, options, scale):
    layer = QuantIdentity(preset, **options)
    assert layer.quant_act_scale().item() == pytest.approx(scale, rel=1e-6)
    assert [name for name, _ in layer.named_parameters()] == [
        "act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.value"
    ]


def layer_of_range(low, high, preset):
    layer = QuantLinear(3, 1, weight_quant=preset)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[low, (low + high) / 2, high]]))
    return layer


def test_golden_values():
    assert layer_of_range(-1.27, 1.0, Int8WeightPerTensorFloat).quant_weight_scale().item() == pytest.approx(
        0.01, rel=1e-6
    )
    assert layer_of_range(-0.3, 0.1, Int8WeightPerTensorFixedPoint).quant_weight_scale().item() == 2.0**-8
    shifted = layer_of_range(-1.0, 3.0, ShiftedUint8WeightPerTensorFloat)
    assert shifted.quant_weight_scale().item() == pytest.approx(4 / 255, rel=1e-6)
    assert shifted.quant_weight_zero_point().item() == 64
    positive = layer_of_range(1.0, 3.0, ShiftedUint8WeightPerTensorFloat)
    assert positive.quant_weight_scale().item() == pytest.approx(3 / 255, rel=1e-6)
    assert positive.quant_weight_zero_point().item() == 0


@pytest.mark.parametrize("preset", WEIGHT_PRESETS, ids=lambda p: p.__name__)
def test_all_zero_weight_has_a_finite_scale_and_gradient(preset):
    layer = QuantConv2d(2, 3, 1, weight_quant=preset)
    torch.nn.init.zeros_(layer.weight)
    qt = layer.quant_weight()
    qt.value.sum().backward()
    assert (qt.value == 0).all()
    assert (qt.scale > 0).all() and qt.scale.isfinite().all()
    assert layer.weight.grad.isfinite().all()
    threshold = 2.0**-33 if "FixedPoint" in preset.__name__ else 1e-10
    levels = {"Shifted": 255.0}.get(preset.__name__[:7], 128.0 if "FixedPoint" in preset.__name__ else 127.0)
    assert qt.scale.flatten()[0].item() == pytest.approx(threshold / levels, rel=1e-5)


@pytest.mark.parametrize(
    ("preset", "scale"),
    [(Int8BiasPerTensorFloatInternalScaling, 0.3 / 128), (Int8BiasPerTensorFixedPointInternalScaling, 0.5 / 128)],
)
def test_bias_with_a_scale_of_its_own(preset, scale):
    layer = QuantLinear(2, 3, bias_quant=preset)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.3, -0.1, 0.05]))
    expected = np.clip(np.round(np.array([0.3, -0.1, 0.05], dtype=np.float32) / np.float32(scale)), -128, 127)
    np.testing.assert_array_equal(layer.int_bias().numpy(), expected)
    assert layer.quant_bias_scale().item() == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize(
    ("preset", "options", "bits"), [(Int8Bias, {}, 8), (IntBias, {"bias_bit_width": 20}, 20), (IntBias, {}, 17)]
)
def test_bias_on_the_accumulator_grid(preset, options, bits):
    layer = QuantLinear(4, 2, input_quant=Int8ActPerTensorFloat, bias_quant=preset, **options)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.5, -0.25]))
    layer(torch.randn(16, 4))
    layer.eval()
    layer(torch.randn(16, 4))
    scale = layer.quant_input_scale() * layer.quant_weight_scale()
    assert torch.equal(layer.quant_bias_scale(), scale)
    # Without a width of its own: 4 products of [-128, 127] and [-127, 127] reach 65 024, which takes 17 signed bits.
    assert layer.quant_bias_bit_width().item() == bits
    limit = 2 ** (bits - 1)
    reference = torch.clamp(torch.round(layer.bias.detach() / scale.detach()), -limit, limit - 1)
    assert torch.equal(layer.int_bias(), reference.to(torch.int32))
    assert layer.quant_bias_zero_point().item() == 0


def test_subclass_and_keyword_say_the_same():
    class W3(Int8WeightPerTensorFloat):
        bit_width = 3

    torch.manual_seed(0)
    by_class = QuantLinear(8, 4, weight_quant=W3)
    by_keyword = QuantLinear(8, 4, weight_bit_width=3)
    by_let = QuantLinear(8, 4, weight_quant=Int8WeightPerTensorFloat.let(bit_width=3))
    with torch.no_grad():
        for layer in (by_keyword, by_let):
            layer.weight.copy_(by_class.weight)
    assert torch.equal(by_class.quant_weight().value, by_keyword.quant_weight().value)
    assert torch.equal(by_class.quant_weight().value, by_let.quant_weight().value)
    assert by_class.int_weight().abs().max() == 3


@pytest.mark.parametrize("op", ["ave", "max_ave", "mean_sigma_std", "mean_learn_sigma_std", "percentile", "min_max"])
def test_every_statistic_can_be_stated(op):
    options = {"weight_sigma": 2.0} if "sigma" in op else {}
    layer = QuantLinear(8, 4, weight_scaling_stats_op=op, **options)
    w = layer.weight.detach().double()
    a = w.abs()
    expected = {
        "ave": a.mean(),
        "max_ave": a.amax(1).mean(),
        "mean_sigma_std": a.mean() + 2 * torch.sqrt(a.var() + 1e-8),
        "mean_learn_sigma_std": a.mean() + 2 * torch.sqrt(a.var() + 1e-8),
        "percentile": a.flatten().sort().values[-1],
        "min_max": w.max().clamp(min=0) - w.min().clamp(max=0),
    }[op]
    assert layer.quant_weight_scale().item() == pytest.approx(expected.item() / 127, rel=1e-5)


def test_percentile_of_a_weight_takes_its_q():
    layer = QuantLinear(10, 1, weight_scaling_stats_op="percentile", weight_percentile_q=90.0)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(1.0, 11.0).view(1, 10))
    assert layer.quant_weight_scale().item() == pytest.approx(9 / 127, rel=1e-6)


def test_relu_starts_from_the_percentile_and_learns():
    relu = QuantReLU(bit_width=4, collect_stats_steps=2)
    x = torch.linspace(-1, 3, 41)
    for _ in range(3):
        relu(x)
    value = relu.act_quant.tensor_quant.scaling_impl.value
    assert value.item() == pytest.approx(3.0, rel=1e-6)
    relu(x).sum().backward()
    assert value.grad is not None and value.grad.abs() > 0


def test_binary_weight_and_its_latent_clipping():
    layer = QuantLinear(4, 2, weight_quant=quant.SignedBinaryWeightPerTensorConst)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.3, -0.3, 0.05, 0.0], [-0.05, 0.0, 0.2, -0.2]]))
    latent = layer.weight.detach().clone()
    expected = torch.tensor([[1, -1, 1, 1], [-1, 1, 1, -1]])
    assert torch.equal(layer.int_weight(), expected.int())
    assert layer.quant_weight_scale().item() == pytest.approx(0.1) and layer.quant_weight_bit_width().item() == 1
    assert torch.equal(layer.weight, latent)  # a getter does not clip
    layer.eval()(torch.randn(1, 4))
    assert torch.equal(layer.weight, latent)  # nor does eval
    layer.train()(torch.randn(1, 4)).sum().backward()
    torch.testing.assert_close(layer.weight.detach(), latent.clamp(-0.1, 0.1))
    assert (layer.weight.grad != 0).any()


def test_ternary_weight_is_a_narrow_two_bit_integer():
    layer = QuantLinear(5, 1, weight_quant=quant.SignedTernaryWeightPerTensorConst)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.3, -0.3, 0.05, 0.051, -0.02]]))
    # 0.05 / 0.1 is exactly half: it rounds to the even code 0.
    assert layer.int_weight().tolist() == [[1, -1, 0, 1, 0]]
    assert layer.quant_weight_bit_width().item() == 2 and layer.quant_weight_scale().item() == pytest.approx(0.1)


@pytest.mark.parametrize("preset", [quant.SignedBinaryActPerTensorConst, quant.SignedTernaryActPerTensorConst])
def test_binary_and_ternary_activations(preset):
    layer = QuantIdentity(preset, return_quant_tensor=True)
    x = torch.tensor([-3.0, -0.6, -0.4, 0.0, 0.4, 0.6, 3.0], requires_grad=True)
    y = layer(x)
    binary = preset is quant.SignedBinaryActPerTensorConst
    assert y.int().tolist() == ([-1, -1, -1, 1, 1, 1, 1] if binary else [-1, -1, 0, 0, 0, 1, 1])
    y.value.sum().backward()
    # Inputs beyond the range get no gradient: for the integer quantizer, beyond it after rounding.
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]
    assert y.scale.item() == 1 and y.bit_width.item() == (1 if binary else 2)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(
    "preset", [quant.Int4WeightPerTensorFloatDecoupled, quant.Int4WeightPerTensorFixedPointDecoupled]
)
def test_decoupled_weight_is_its_formula(preset, bits):
    weight = np.random.default_rng(bits).normal(0.1, 0.3, (5, 16)).astype(np.float32)
    torch.manual_seed(0)
    layer = QuantLinear(16, 5, weight_quant=preset, weight_bit_width=bits)
    power_of_two = "FixedPoint" in preset.__name__
    levels = 2 ** (bits - 1) if power_of_two else 2 ** (bits - 1) - 1

    def threshold(w):
        t = np.sqrt((np.abs(w).max(axis=1) ** 2).sum() / len(w))
        return power_of_two_above(t) if power_of_two else t

    post = (
        threshold(layer.weight.detach().numpy().astype(np.float64)) / levels
    )  # learned, from the weight at construction
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
    pre = threshold(weight.astype(np.float64)) / levels
    limit = 2 ** (bits - 1) - 1
    codes = np.clip(np.round(weight.astype(np.float64) / pre), -limit, limit)
    qt = layer.quant_weight()
    np.testing.assert_allclose(qt.scale.item(), post, rtol=1e-6)
    np.testing.assert_array_equal(qt.int().numpy(), codes)
    np.testing.assert_allclose(qt.value.detach().numpy(), codes * post, rtol=1e-5, atol=1e-9)


def test_quantizers_at_one_bit():
    unsigned = QuantReLU(bit_width=1, return_quant_tensor=True)(torch.tensor([-1.0, 0.2, 0.8, 1.0]))
    assert unsigned.int().tolist() == [0, 0, 1, 1]
    shifted = weight_layer(np.array([[-0.2, 0.0, 0.4, 0.6]], np.float32), ShiftedUint8WeightPerTensorFloat, 1)
    assert shifted.int_weight().unique().numel() == 2


def test_learned_bit_width_trains_with_the_weight():
    layer = QuantLinear(8, 4, weight_bit_width=4, weight_bit_width_impl_type="parameter")
    layer(torch.randn(2, 8)).square().sum().backward()
    names = dict(layer.named_parameters())
    offset = names["weight_quant.tensor_quant.msb_clamp_bit_width_impl.bit_width_offset"]
    assert offset.grad is not None and layer.quant_weight_bit_width().item() == 4


def test_he_threshold():
    conv = QuantConv2d(4, 8, 3, weight_scaling_impl_type="he")
    assert conv.quant_weight_scale().item() == pytest.approx((2 / 36) ** 0.5 / 127, rel=1e-6)


def test_affine_statistics_learn_a_factor_and_a_summand():
    layer = QuantLinear(8, 4, weight_scaling_impl_type="affine_stats")
    names = [n for n, _ in layer.named_parameters() if n.startswith("weight_quant")]
    prefix = "weight_quant.tensor_quant.scaling_impl.stats_scaling_impl.affine_rescaling."
    assert names == [prefix + "affine_weight", prefix + "affine_bias"]
    assert layer.quant_weight_scale().item() == pytest.approx(layer.weight.abs().max().item() / 127, rel=1e-6)


@pytest.mark.parametrize("restrict", ["fp", "log_fp", "int", "power_of_two"])
def test_every_restriction_can_be_stated(restrict):
    layer = QuantLinear(8, 4, weight_restrict_scaling_type=restrict)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-5.4, 5.4, 32).view(4, 8))
    threshold = {"fp": 5.4, "log_fp": 5.4, "int": 5.0, "power_of_two": 8.0}[restrict]
    levels = 128 if restrict == "power_of_two" else 127
    assert layer.quant_weight_scale().item() == pytest.approx(threshold / levels, rel=1e-6)


def test_per_channel_activation():
    layer = QuantIdentity(
        Int8ActPerTensorFloat,
        scaling_per_output_channel=True,
        per_channel_broadcastable_shape=(1, 3, 1, 1),
        return_quant_tensor=True,
    )
    x = torch.randn(4, 3, 5, 5) * torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1)
    y = layer(x)
    assert y.scale.shape == (1, 3, 1, 1) and y.is_valid
    torch.testing.assert_close(y.scale.flatten(), x.abs().amax((0, 2, 3)) / 128, rtol=1e-5, atol=0)


def test_delayed_quantization():
    layer = QuantIdentity(Int8ActPerTensorFloat, bit_width=2, quant_delay_steps=2)
    x = torch.randn(16)
    assert torch.equal(layer(x), x) and torch.equal(layer(x), x)
    assert not torch.equal(layer(x), x)
    fresh = QuantLinear(4, 2, weight_quant_delay_steps=5, weight_bit_width=2)
    assert torch.equal(fresh.weight_quant(fresh.weight).value, fresh.weight)
    assert not torch.equal(fresh.quant_weight().value, fresh.weight)  # as in eval


@pytest.mark.parametrize("kind", ["hard_sigmoid", "sigmoid", "identity"])
@pytest.mark.parametrize("per", ["tensor", "channel", "group"])
def test_learned_rounding_starts_as_rounding_to_nearest(per, kind):
    granularity = {"weight_scaling_per_output_type": per, "weight_bit_width": 4}
    granularity |= {"weight_group_size": 4} if per == "group" else {}
    nearest = QuantLinear(8, 4, **granularity)
    learned = QuantLinear(
        8, 4, weight_float_to_int_impl_type="learned_round", weight_learned_round_impl_type=kind, **granularity
    )
    again = QuantLinear(8, 4, weight_float_to_int_impl_type="learned_round", **granularity)
    nearest.load_state_dict({"weight": learned.weight, "bias": learned.bias})
    assert torch.equal(learned.int_weight(), nearest.int_weight())
    assert set(again.state_dict()) == set(learned.state_dict())
    if kind != "identity":
        # In training it is a soft rounding that reproduces the weight, up to what a sigmoid reaches.
        error = (learned.weight_quant(learned.weight).value - learned.weight).abs()
        assert (error <= 2e-4 * learned.quant_weight_scale() + 1e-7).all()
