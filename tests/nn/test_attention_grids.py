"""Attention layers between quantizers: the formulas, masks, grids and accumulator widths."""

import itertools
import math

import pytest
import torch
from attention_layers import CORE_OFF, attention, trained
from torch import nn

from brevitas.errors import QuantMetadataError
from brevitas.nn import QuantIdentity, QuantScaledDotProductAttention
from brevitas.quant import Int8ActPerTensorFloat
from brevitas.quant_tensor import QuantTensor

# --- Against the formulas ---------------------------------------------------------------------------------------------


def round_ste(x):
    return x + (torch.round(x) - x).detach()


def quantized_to(x, scale, low, high, clamp_gradient=True):
    """clamp(round(x / s)) * s, rounded straight through; a weight's clamp is straight through as well."""
    codes = round_ste(x / scale)
    clamped = codes.clamp(low, high)
    return (clamped if clamp_gradient else codes + (clamped - codes).detach()) * scale


def weight_of(linear):
    scale = linear.weight.abs().max() / 127
    return quantized_to(linear.weight, scale, -127, 127, clamp_gradient=False), scale


def projected(linear, x, input_scale):
    x = quantized_to(x, input_scale, -128, 127)
    weight, weight_scale = weight_of(linear)
    bias_scale = input_scale * weight_scale
    return x @ weight.T + quantized_to(linear.bias, bias_scale, -(2.0**31), 2.0**31 - 1)


def composed(layer, x, mask):
    """The attention of ``x`` (N, L, 8) in two heads, written out; scales are what the quantizers have learned."""
    n, length, _ = x.shape
    packed = projected(layer.in_proj, x, layer.in_proj.quant_input_scale())
    q, k, v = (t.reshape(n, length, 2, 4).transpose(1, 2) for t in packed.split(8, -1))
    q = quantized_to(q / 2.0, layer.quant_q_scaled_scale(), -128, 127)
    k = quantized_to(k, layer.quant_k_transposed_scale(), -128, 127)
    v = quantized_to(v, layer.quant_v_scale(), -128, 127)
    scores = quantized_to(q @ k.transpose(-1, -2), layer.quant_softmax_input_scale(), -128, 127)
    weights = torch.exp(scores) * ~mask
    weights = weights / weights.sum(-1, keepdim=True)
    weights = quantized_to(weights, layer.quant_attn_output_weights_scale(), 0, 255)
    heads = (weights @ v).transpose(1, 2).reshape(n, length, 8)
    return projected(layer.out_proj, heads, layer.out_proj.quant_input_scale()), weights.mean(1)


def test_the_quantized_layer_is_the_composition_of_the_formulas():
    acts = ("in_proj_input", "q_scaled", "k_transposed", "v", "softmax_input", "attn_output_weights", "out_proj_input")
    steps = {f"{name}_collect_stats_steps": 2 for name in acts}  # from then on scales are learned
    layer = attention(8, 2, batch_first=True, dtype=torch.float64, softmax_input_quant=Int8ActPerTensorFloat, **steps)
    nn.init.uniform_(layer.in_proj.bias, -0.3, 0.3)
    nn.init.uniform_(layer.out_proj.bias, -0.3, 0.3)
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        data = torch.randn(3, 5, 8, dtype=torch.float64, generator=generator)
        layer(data, data, data, attn_mask=mask)
    layer.eval()
    # Larger than what was seen, so that values are clamped.
    x = (1.5 * torch.randn(3, 5, 8, dtype=torch.float64, generator=generator)).requires_grad_()
    out, weights = layer(x, x, x, attn_mask=mask)
    expected, expected_weights = composed(layer, x, mask)
    torch.testing.assert_close(out, expected, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(weights, expected_weights, rtol=0.0, atol=1e-12)
    learned = [x, *layer.parameters()]
    cotangent = torch.randn(out.shape, dtype=torch.float64, generator=generator)
    ours = torch.autograd.grad((out * cotangent).sum(), learned)
    theirs = torch.autograd.grad((expected * cotangent).sum(), learned)
    for mine, true, name in zip(ours, theirs, ["x", *dict(layer.named_parameters())], strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
        assert true.abs().max() > 0, name


def test_separate_projections_have_quantizers_of_their_own():
    layer = attention(8, 2, packed_in_proj=False, kdim=6, vdim=10, in_proj_weight_bit_width=4)
    query, key, value = (factor * torch.randn(5, 3, size) for size, factor in ((8, 1.0), (6, 10.0), (10, 100.0)))
    trained(layer, query, key, value)
    scales = [proj.quant_input_scale() for proj in (layer.q_proj, layer.k_proj, layer.v_proj)]
    assert 5 * scales[0] < scales[1] and 5 * scales[1] < scales[2]
    for proj in (layer.q_proj, layer.k_proj, layer.v_proj):
        assert int(proj.quant_weight_bit_width()) == 4 and proj.int_weight().abs().max() == 7
        assert proj.weight_quant.tracked_module_list == [proj]


# --- Masks and quantized scores ---------------------------------------------------------------------------------------


class MaxScore(Int8ActPerTensorFloat):
    """The scale is the largest score seen over 128."""

    scaling_stats_op = "max"


def only_scores(**options):
    return QuantScaledDotProductAttention(softmax_input_quant=MaxScore, **CORE_OFF, **options)


@pytest.mark.parametrize("never", [-math.inf, -1e4, torch.finfo(torch.float32).min, "bool", "causal"])
def test_blocked_places_have_weight_zero_and_no_say_in_the_statistics(never):
    core = only_scores()
    query, key = torch.eye(3).unsqueeze(0), torch.tensor([[[1.0, 0.5, -2.0], [9.0, 1.0, 2.0], [9.0, 9.0, -1.5]]])
    value = torch.eye(3).unsqueeze(0)  # so that the output is the weights
    block = torch.ones(3, 3, dtype=torch.bool).triu(1)
    keywords = {"is_causal": True} if never == "causal" else {"attn_mask": ~block}
    if isinstance(never, float):
        keywords["attn_mask"] = torch.zeros(3, 3).masked_fill(block, never)
    weights = core(query, key, value, scale=1.0, **keywords)
    # Open scores are 1, 0.5, 1, -2, 2, -1.5; the largest of them, 2, is the threshold, and 9 is nowhere.
    step = 2.0 / 128
    scores = torch.tensor([[1.0, 0, 0], [0.5, 1.0, 0], [-2.0, 127 * step, -1.5]])
    expected = torch.softmax(scores.masked_fill(block, -math.inf), -1)
    assert torch.equal(weights[0][block], torch.zeros(3))
    torch.testing.assert_close(weights[0], expected)


def test_other_mask_values_are_added_before_the_quantizer():
    core = only_scores()
    query, key, value = torch.ones(1, 1, 1), torch.tensor([[[1.0], [0.0]]]), torch.eye(2).unsqueeze(0)
    weights = core(query, key, value, attn_mask=torch.tensor([[3.0, -100.0]]), scale=1.0)
    step = 100.0 / 128
    expected = torch.softmax(torch.tensor([[round(4.0 / step) * step, -100.0]]), -1)
    torch.testing.assert_close(weights[0], expected)


@pytest.mark.parametrize("softmax_input_quant", [None, MaxScore])
def test_a_row_without_an_open_place_attends_to_nothing(softmax_input_quant):
    layer = attention(8, 2, softmax_input_quant=softmax_input_quant, out_proj_bias_quant=None)
    nn.init.uniform_(layer.out_proj.bias, -0.3, 0.3)
    x = torch.randn(4, 2, 8, requires_grad=True)
    padding = torch.zeros(2, 4, dtype=torch.bool)
    padding[1] = True
    # In training the statistics, and with them the scales, depend on every position of the input.
    trained(layer, x, x, x, key_padding_mask=padding)
    for mask in (padding, torch.zeros(2, 4).masked_fill(padding, -math.inf)):
        out, weights = layer(x, x, x, key_padding_mask=mask)
        assert torch.equal(weights[1], torch.zeros(4, 4))
        torch.testing.assert_close(out[:, 1], layer.out_proj.bias.expand(4, 8))
        (grad,) = torch.autograd.grad(out.square().sum(), [x])
        assert grad.isfinite().all() and not grad[:, 1].any() and grad[:, 0].any()
    assert all(value.isfinite().all() for value in layer.state_dict().values())


# --- Grids ------------------------------------------------------------------------------------------------------------


def grid(codes, scale, bits, signed):
    return QuantTensor(codes * scale, scale, 0.0, bits, signed)


WIDTHS = list(itertools.product((2, 8), (2, 4, 8), (1, 3, 16, 100)))


def smallest_width(low, high):
    """Bits of the smallest signed, or unsigned, integer range that holds both."""
    if low >= 0:
        return max(1, math.ceil(math.log2(high + 1)))
    return 1 + math.ceil(math.log2(max(-low, high + 1)))


@pytest.mark.parametrize(("bits", "v_bits", "sources"), WIDTHS)
def test_the_accumulator_width_suffices_and_is_minimal(bits, v_bits, sources):
    core = QuantScaledDotProductAttention(
        q_scaled_quant=None,
        k_transposed_quant=None,
        attn_output_weights_bit_width=bits,
        v_bit_width=v_bits,
        return_quant_tensor=True,
    ).double()
    # Equal scores give equal weights, all of which are then the largest code; values at either end of their range.
    query, key = (torch.zeros(1, n, 2, dtype=torch.float64) for n in (1, sources))
    low, high = -(2 ** (v_bits - 1)), 2 ** (v_bits - 1) - 1
    ends = torch.tensor([low, high], dtype=torch.float64).expand(1, sources, 2)
    trained(core, query, key, ends)
    out = core(query, key, ends * core.quant_v_scale().detach() * 1.5)
    scale = core.quant_attn_output_weights_scale() * core.quant_v_scale()
    torch.testing.assert_close(out.scale, scale)
    assert not out.zero_point.any() and out.signed and out.is_valid
    reached = [round(code) for code in (out.value / out.scale).flatten().tolist()]
    largest = 2**bits - 1
    assert reached == [largest * low * sources, largest * high * sources]
    assert int(out.bit_width) == smallest_width(min(reached), max(reached))
    assert out.int().flatten().tolist() == reached


@pytest.mark.parametrize(("q_bits", "k_bits", "size"), WIDTHS)
def test_the_width_of_scores_suffices_and_is_minimal(q_bits, k_bits, size):
    def ends(bits):
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1

    corners = [a * b * size for a in ends(q_bits) for b in ends(k_bits)]
    query, key = (
        torch.tensor([[end] * size for end in ends(bits)], dtype=torch.float64).unsqueeze(0)
        for bits in (q_bits, k_bits)
    )
    q, k = grid(query, 0.1, q_bits, True), grid(key, 0.2, k_bits, True)
    scores = torch.matmul(q, k.transpose(-2, -1))
    assert scores.int().flatten().tolist() == corners
    assert int(scores.bit_width) == smallest_width(min(corners), max(corners))


def test_grids_pass_through_the_heads_to_the_output():
    x = torch.randn(5, 3, 8)
    inputs = QuantIdentity(return_quant_tensor=True)
    layer = attention(8, 2, in_proj_input_quant=None, out_proj_input_quant=None, return_quant_tensor=True)
    for _ in range(3):
        x8 = inputs(x)
        layer(x8, x8, x8)
    x8 = inputs.eval()(x)
    out, weights = layer.eval()(x8, x8, x8)
    attended = layer.quant_attn_output_weights_scale() * layer.quant_v_scale()
    torch.testing.assert_close(out.scale, attended * layer.out_proj.quant_weight_scale())
    # Five 8-bit weights times signed 8-bit values, then eight of those times 8-bit weights, then a 32-bit bias.
    span = 5 * 255 * 128
    attended_bits = smallest_width(-span, span)
    product = 8 * 2 ** (attended_bits - 1) * 127
    assert int(out.bit_width) == smallest_width(-product - 2**31, product + 2**31)
    assert out.is_valid and isinstance(weights, torch.Tensor)
    assert out.shape == (5, 3, 8)
    layer.return_quant_tensor = False
    assert torch.equal(layer(x8, x8, x8)[0], out.value) and layer.out_proj.return_quant_tensor is False


def test_a_plain_tensor_and_a_quant_tensor_give_the_same_result():
    x = torch.randn(5, 3, 8)
    layer = trained(attention(8, 2), x, x, x)
    on_grid = layer.in_proj.input_quant(x)
    for ours, theirs in zip(layer(on_grid, on_grid, on_grid), layer(x, x, x), strict=True):
        assert torch.equal(ours, theirs)
    core = trained(QuantScaledDotProductAttention(), x, x, x)
    value = core.v_quant(x)
    assert torch.equal(core(x, x, value), core(x, x, x))


def test_what_has_no_grid_is_said():
    x = torch.randn(5, 3, 8)
    core = QuantScaledDotProductAttention(v_quant=None, return_quant_tensor=True)
    with pytest.raises(QuantMetadataError, match="v_quant is off. Fix: set attn_output_weights_quant= and v_quant="):
        core(x, x, x)
    model = nn.ModuleDict({"attn": attention(8, 2, v_quant=None, out_proj_input_quant=None)})
    model.forward = lambda x: model["attn"](x, x, x)
    with pytest.raises(QuantMetadataError, match="QuantLinear 'out_proj': Int32Bias needs the input scale"):
        model["attn"](x, x, x)
    layer = attention(8, 2, out_proj_bias_quant=None, return_quant_tensor=True)
    with pytest.raises(QuantMetadataError, match="QuantLinear 'out_proj': .* a bias on the accumulator grid"):
        layer(x, x, x)


def test_getters():
    x = torch.randn(5, 3, 8)
    layer = trained(attention(8, 2, q_scaled_bit_width=5), x, x, x)
    assert layer.is_q_scaled_quant_enabled and layer.is_v_quant_enabled and not layer.is_softmax_input_quant_enabled
    assert int(layer.quant_q_scaled_bit_width()) == 5 and layer.quant_softmax_input_scale() is None
    assert layer.is_quant_attn_output_weights_signed is False and layer.is_quant_v_signed is True
    assert layer.is_quant_v_narrow_range is False and not layer.quant_k_transposed_zero_point().any()
    assert layer.in_proj.is_weight_quant_enabled and layer.in_proj.int_bias() is not None
    assert layer.in_proj_weight_quant is layer.in_proj.weight_quant
    assert layer.out_proj_output_quant is layer.out_proj.output_quant
    separate = attention(8, 2, packed_in_proj=False)
    assert separate.in_proj_bias_quant is separate.q_proj.bias_quant
