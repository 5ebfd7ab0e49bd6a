"""QuantMultiheadAttention and QuantScaledDotProductAttention: torch's results, the formulas, grids, masks, state."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from brevitas import config
from brevitas.errors import QuantConfigError, QuantMetadataError, UnknownOptionError
from brevitas.nn import QuantIdentity, QuantLinear, QuantMultiheadAttention, QuantScaledDotProductAttention
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat, Uint8ActPerTensorFloat
from brevitas.quant_tensor import QuantTensor
from brevitas.utils.python_utils import patch

CORE_OFF = dict.fromkeys(("attn_output_weights_quant", "q_scaled_quant", "k_transposed_quant", "v_quant"))
OFF = CORE_OFF | dict.fromkeys(
    f"{side}_proj_{part}_quant" for side in ("in", "out") for part in ("input", "weight", "bias")
)
CAUSAL = torch.nn.Transformer.generate_square_subsequent_mask


def attention(*arguments, **options):
    torch.manual_seed(0)
    return QuantMultiheadAttention(*arguments, **options)


def trained(layer, *inputs, steps=3, **keywords):
    """The layer in eval mode, after some steps that collect statistics and a forward in eval mode."""
    for _ in range(steps):
        layer(*inputs, **keywords)
    layer.eval()(*inputs, **keywords)
    return layer


# --- Equal to torch with all quantizers off ---------------------------------------------------------------------------

FORMS = {
    "plain": ({}, {}),
    "batch first": ({"batch_first": True}, {}),
    "no bias": ({"bias": False}, {}),
    "bias_kv": ({"add_bias_kv": True}, {}),
    "zero_attn": ({"add_zero_attn": True, "add_bias_kv": True, "batch_first": True}, {}),
    "separate": ({"packed_in_proj": False}, {}),
    "kdim, vdim": ({"packed_in_proj": False, "kdim": 6, "vdim": 10, "add_bias_kv": True}, {}),
    "no weights": ({}, {"need_weights": False}),
    "weights per head": ({}, {"average_attn_weights": False}),
}


def inputs_of(options, dtype, length=5, sources=7, batch=3):
    """Query, key and value for a layer with these options; the packed projection takes one tensor."""
    generator = torch.Generator().manual_seed(1)

    def draw(size, steps):
        shape = (batch, steps, size) if options.get("batch_first") else (steps, batch, size)
        return torch.randn(shape, dtype=dtype, generator=generator, requires_grad=True)

    if options.get("packed_in_proj", True):
        x = draw(8, sources)
        return x, x, x
    return draw(8, length), draw(options.get("kdim", 8), sources), draw(options.get("vdim", 8), sources)


def masks_of(query, key, batch_first):
    length, sources = (x.shape[1 if batch_first else 0] for x in (query, key))
    padding = torch.zeros(3, sources, dtype=torch.bool)
    padding[1, -2:] = True
    block = torch.zeros(length, sources, dtype=torch.bool)
    block[0, 1:3] = True
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(6, length, sources, dtype=query.dtype, generator=generator)
    return {
        "no mask": {},
        "bool": {"attn_mask": block},
        "padding": {"key_padding_mask": padding},
        "float per head": {"attn_mask": scores.masked_fill(block, -math.inf)},
        "both bool": {"attn_mask": block, "key_padding_mask": padding},
        "both float": {
            "attn_mask": scores,
            "key_padding_mask": torch.zeros(3, sources, dtype=query.dtype).masked_fill(padding, -math.inf),
        },
    }


def float_twin(quantized, options, dtype):
    shared = {name: value for name, value in options.items() if name != "packed_in_proj"}
    plain = nn.MultiheadAttention(8, 2, dtype=dtype, **shared)
    with torch.no_grad():
        for parameter in plain.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)
    quantized.load_state_dict(plain.state_dict())
    return plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_equals_torch_with_all_quantizers_off(form, dtype):
    options, keywords = FORMS[form]
    layer = attention(8, 2, dtype=dtype, **options, **OFF)
    plain = float_twin(layer, options, dtype)
    tolerance = {"rtol": 0.0, "atol": 1e-12 if dtype == torch.float64 else 1e-6}
    query, key, value = inputs_of(options, dtype)
    for masks in masks_of(query, key, options.get("batch_first")).values():
        out, weights = layer(query, key, value, **keywords, **masks)
        expected, expected_weights = plain(query, key, value, **keywords, **masks)
        torch.testing.assert_close(out, expected, **tolerance)
        assert (weights is None) == (expected_weights is None)
        if weights is not None:
            torch.testing.assert_close(weights, expected_weights, **tolerance)
        # x^2 rather than the sum, whose gradient does not depend on the output.
        ours = torch.autograd.grad(out.square().sum(), [query, layer.out_proj.weight])
        theirs = torch.autograd.grad(expected.square().sum(), [query, plain.out_proj.weight])
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=20 * tolerance["atol"])


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"add_bias_kv": True, "add_zero_attn": True}])
def test_inputs_without_a_batch(options):
    layer = attention(8, 2, **options, **OFF)
    plain = float_twin(layer, options, torch.float32)
    x = torch.randn(5, 8)
    padding = torch.tensor([False, False, True, False, False])
    for masks in ({}, {"key_padding_mask": padding}, {"attn_mask": torch.randn(2, 5, 5)}, {"attn_mask": CAUSAL(5)}):
        for ours, theirs in zip(layer(x, x, x, **masks), plain(x, x, x, **masks), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-6)


def test_is_causal_says_what_the_mask_is():
    layer = attention(8, 2, **OFF)
    plain = float_twin(layer, {}, torch.float32)
    x = torch.randn(5, 3, 8)
    for need_weights in (True, False):
        keywords = {"attn_mask": CAUSAL(5), "is_causal": True, "need_weights": need_weights}
        torch.testing.assert_close(layer(x, x, x, **keywords)[0], plain(x, x, x, **keywords)[0], rtol=0.0, atol=1e-6)
    with pytest.raises(QuantConfigError, match="says that attn_mask is causal, and there is none"):
        layer(x, x, x, is_causal=True)


@pytest.mark.parametrize("options", [{}, {"packed_in_proj": False, "kdim": 4, "vdim": 6, "add_bias_kv": True}])
def test_gradients_in_float64(options):
    layer = attention(4, 2, dtype=torch.float64, **options, **OFF)
    sizes = (4, options.get("kdim", 4), options.get("vdim", 4))
    shared = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    separate = [torch.randn(3, 2, size, dtype=torch.float64, requires_grad=True) for size in sizes]
    inputs = separate if options else [shared]
    mask = CAUSAL(3, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]

    def call(*arguments):
        given, values = arguments[: len(inputs)], arguments[len(inputs) :]
        given = given if options else given * 3
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, state, tuple(given), {"attn_mask": mask})[0]

    assert torch.autograd.gradcheck(call, (*inputs, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_the_core_equals_torchs_function(causal, scale):
    core = QuantScaledDotProductAttention(**CORE_OFF)
    query, key, value = (torch.randn(2, 3, n, 4, requires_grad=True) for n in (5, 7, 7))
    masks = [None] if causal else [None, torch.rand(5, 7) < 0.8, torch.randn(2, 1, 5, 7)]
    for mask in masks:
        keywords = {"attn_mask": mask, "is_causal": causal, "scale": scale}
        out, expected = (
            core(query, key, value, **keywords),
            F.scaled_dot_product_attention(query, key, value, **keywords),
        )
        torch.testing.assert_close(out, expected, rtol=0.0, atol=1e-6)
        ours, theirs = (torch.autograd.grad(y.square().sum(), [query, key, value]) for y in (out, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    double = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *x: core(*x, is_causal=causal, scale=scale), double)


def test_dropout_acts_on_the_weights_in_training_only():
    layer = attention(8, 2, dropout=0.5, **OFF)
    x = torch.randn(40, 3, 8)
    torch.manual_seed(3)
    _, weights = layer(x, x, x, average_attn_weights=False)
    dropped = weights == 0
    assert 0.4 < dropped.float().mean() < 0.6
    _, kept = layer.eval()(x, x, x, average_attn_weights=False)
    torch.testing.assert_close(weights[~dropped], 2.0 * kept[~dropped])
    core = QuantScaledDotProductAttention(**CORE_OFF).eval()
    assert not torch.equal(core(x, x, x, dropout_p=0.5), core(x, x, x))


# --- Parameters and checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
def test_one_seed_gives_torchs_parameters(packed):
    layer = attention(8, 2, add_bias_kv=True, packed_in_proj=packed)
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, add_bias_kv=True)
    rows = [layer.in_proj] if packed else [layer.q_proj, layer.k_proj, layer.v_proj]
    assert torch.equal(torch.cat([row.weight for row in rows]), plain.in_proj_weight)
    assert torch.equal(torch.cat([row.bias for row in rows]), plain.in_proj_bias)
    for name in ("out_proj.weight", "out_proj.bias", "bias_k", "bias_v"):
        assert torch.equal(layer.state_dict()[name], plain.state_dict()[name])
    assert (layer.in_proj_weight is None) == (not packed)
    assert isinstance(layer, nn.MultiheadAttention) and layer.head_dim == plain.head_dim


@pytest.mark.parametrize("form", ["plain", "no bias", "separate", "kdim, vdim"])
def test_a_checkpoint_of_torch_loads_below_any_name(form):
    options, _ = FORMS[form]
    shared = {name: value for name, value in options.items() if name != "packed_in_proj"}
    plain = nn.ModuleDict({"block": nn.ModuleList([nn.MultiheadAttention(8, 2, **shared)])})
    quantized = nn.ModuleDict({"block": nn.ModuleList([attention(8, 2, **options)])})
    checkpoint = plain.state_dict()
    keys = list(checkpoint)
    with pytest.raises(RuntimeError, match="Missing key.*block.0.*scaling_impl.value"):
        quantized.load_state_dict(checkpoint)
    with patch(config, "IGNORE_MISSING_KEYS", True):
        quantized.load_state_dict(checkpoint)
    assert list(checkpoint) == keys
    layer, theirs = quantized["block"][0], plain["block"][0]
    rows = layer.in_proj.weight if layer.packed_in_proj else layer.q_proj.weight
    expected = theirs.in_proj_weight if theirs.in_proj_weight is not None else theirs.q_proj_weight
    assert torch.equal(rows, expected[: len(rows)])
    if layer.packed_in_proj:
        # The quantizer's scale follows the weight that was loaded: Int8 weights are narrow, |code| <= 127.
        assert layer.in_proj.quant_weight_scale() == expected.abs().max() / 127


def test_wrong_checkpoints_are_refused():
    layer = attention(8, 2, **OFF)
    plain = nn.MultiheadAttention(8, 2).state_dict()
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "in_proj.weight"'):
        layer.load_state_dict({key: value for key, value in plain.items() if key != "in_proj_weight"})
    with pytest.raises(RuntimeError, match="size mismatch for in_proj.weight"):
        layer.load_state_dict(nn.MultiheadAttention(16, 2).state_dict())
    with pytest.raises(RuntimeError, match='Unexpected key.*"in_proj_weight"'):
        layer.load_state_dict(layer.state_dict() | plain)


def test_state_copies_and_pickles():
    x = torch.randn(5, 3, 8)
    layer = trained(attention(8, 2, softmax_input_quant=Int8ActPerTensorFloat), x, x, x)
    again = attention(8, 2, softmax_input_quant=Int8ActPerTensorFloat).eval()
    again.load_state_dict(layer.state_dict())
    for other in (again, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x, x, x)[0], layer(x, x, x)[0])
    assert all(
        name.partition(".")[0] in ("in_proj", "out_proj") for name in dict(layer.named_parameters()) if "bias" in name
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype(dtype):
    layer = attention(8, 2, dtype=dtype)
    x = torch.randn(5, 3, 8, dtype=dtype)
    out, weights = layer(x, x, x)
    assert out.dtype == weights.dtype == dtype and out.isfinite().all()
    assert all(p.dtype == dtype for p in layer.parameters())
    meta = QuantMultiheadAttention(8, 2, device="meta")
    assert all(p.is_meta for p in meta.parameters())


def test_autocast():
    layer, x = attention(8, 2), torch.randn(5, 3, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = layer(x, x, x)
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


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


# --- Options and mistakes ---------------------------------------------------------------------------------------------


def test_keywords_reach_their_quantizers():
    bits = {
        "in_proj_weight": 2,
        "in_proj_bias": 9,
        "in_proj_input": 3,
        "q_scaled": 4,
        "k_transposed": 5,
        "v": 6,
        "attn_output_weights": 7,
        "out_proj_weight": 10,
        "out_proj_bias": 11,
        "out_proj_input": 12,
    }
    layer = attention(8, 2, **{f"{name}_bit_width": width for name, width in bits.items()})
    x = torch.randn(5, 3, 8)
    trained(layer, x, x, x)
    for name, width in bits.items():
        side, _, part = name.rpartition("_")
        owner = getattr(layer, side) if side in ("in_proj", "out_proj") else layer
        part = part if owner is not layer else name
        assert int(getattr(owner, f"quant_{part}_bit_width")()) == width, name
    softmax = attention(8, 2, softmax_input_quant=Int8ActPerTensorFloat, softmax_input_bit_width=4)
    output = attention(8, 2, out_proj_output_quant=Int8ActPerTensorFloat, out_proj_output_bit_width=6)
    assert int(softmax.quant_softmax_input_bit_width()) == 4 and int(output.out_proj.quant_output_bit_width()) == 6


MISTAKES = [
    (
        {"in_proj_wieght_bit_width": 3},
        "unknown option 'in_proj_wieght_bit_width' = 3. Did you mean 'in_proj_weight_bit_",
    ),
    ({"in_proj_weight_bit_widht": 3}, "in_proj_weight_quant=Int8Weight.*Did you mean 'in_proj_weight_bit_width'"),
    ({"bit_width": 3}, "unknown option 'bit_width' = 3.*quantizer options start with in_proj_weight_… "),
    ({"v_signd": True}, "v_quant=Int8ActPerTensorFloat: unknown option 'v_signd' = True.*'v_signed'"),
    ({"softmax_input_bit_width": 4}, "softmax_input_quant=NoneActQuant: 'softmax_input_bit_width' = 4 has no effect"),
    ({"q_scaled_quant": Int8WeightPerTensorFloat}, "q_scaled_quant=Int8WeightPerTensorFloat"),
    ({"v_quant": 8}, "v_quant=8: expected None, a quantizer class such as brevitas.quant.Int8ActPerTensorFloat"),
    ({"kdim": 4}, "kdim = 4 and vdim = 8 differ from embed_dim = 8.*set packed_in_proj=False"),
    ({"dropout": 1.5}, "dropout = 1.5 is not legal: expected a number from 0 to below 1"),
    ({"return_quant_tensor": None}, "return_quant_tensor = None is not legal: expected True or False"),
]


@pytest.mark.parametrize(("options", "text"), MISTAKES, ids=[next(iter(options)) for options, _ in MISTAKES])
def test_mistakes_in_the_constructor(options, text):
    with pytest.raises(QuantConfigError, match=f"(?s)QuantMultiheadAttention.*{text}"):
        QuantMultiheadAttention(8, 2, **options)


def test_more_mistakes_in_the_constructor():
    for sizes in ((8, 3), (0, 1), (8, 0)):
        with pytest.raises(QuantConfigError, match="embed_dim a multiple of num_heads"):
            QuantMultiheadAttention(*sizes)
    with pytest.raises(UnknownOptionError, match="Did you mean 'q_scaled_bit_width'"):
        QuantScaledDotProductAttention(q_scald_bit_width=3)
    with pytest.raises(TypeError, match="positional"):
        QuantMultiheadAttention(8, 2, 0.0, True, False, False, None, None, False, None, None, True)


def test_mistakes_in_the_inputs():
    model = nn.ModuleDict({"attn": attention(8, 2)})
    layer = model["attn"]
    x, other = torch.randn(5, 3, 8), torch.randn(4, 3, 8)

    def refused(text, *inputs, layer=layer, **keywords):
        with pytest.raises(QuantConfigError, match=text):
            layer(*inputs, **keywords)

    refused("not the same tensor; set packed_in_proj=False", x, other, other)
    refused("not the same tensor; set packed_in_proj=False", x, x, x.clone())
    refused(r"query has shape \(5, 3, 7\); expected .* the last of size 8", *[torch.randn(5, 3, 7)] * 3)
    refused(r"query has shape \(1, 5, 3, 8\); expected 3 dims", *[x.unsqueeze(0)] * 3)
    refused(r"attn_mask has shape \(5, 4\); expected \(5, 5\) or \(6, 5, 5\)", x, x, x, attn_mask=torch.zeros(5, 4))
    refused(r"key_padding_mask has shape \(5, 3\); expected \(3, 5\)", x, x, x, key_padding_mask=torch.zeros(5, 3))
    refused("attn_mask is torch.int64; expected bool", x, x, x, attn_mask=torch.zeros(5, 5, dtype=torch.long))
    separate = attention(8, 2, packed_in_proj=False)
    refused("key and value need one length", x, x, other, layer=separate)
    refused("all one batch size", x, x[:, :2], x[:, :2], layer=separate)
    nested = torch.nested.nested_tensor([x[0], x[1, :2]])
    refused("nested tensors are not supported.*enable_nested_tensor=False", nested, nested, nested)
    core = QuantScaledDotProductAttention()
    refused("query and key need the same last dim", x, x[..., :4], x, layer=core)
    refused("need at least 2 dims, and have 1", x[0, 0], x, x, layer=core)
    refused("exclude each other", x, x, x, layer=core, is_causal=True, attn_mask=torch.ones(3, 3))
    refused("dropout_p = 1.0 is not legal", x, x, x, layer=core, dropout_p=1.0)


def test_quantizers_can_be_shared():
    first = attention(8, 2)
    second = QuantMultiheadAttention(8, 2, v_quant=first.v_quant, in_proj_weight_quant=first.in_proj.weight_quant)
    assert second.v_quant is first.v_quant
    scale = max(layer.in_proj.weight.abs().max() for layer in (first, second)) / 127
    assert second.in_proj.quant_weight_scale() == first.in_proj.quant_weight_scale() == scale
    with pytest.raises(QuantConfigError, match="v_bit_width cannot change a quantizer that is shared"):
        QuantMultiheadAttention(8, 2, v_quant=first.v_quant, v_bit_width=4)
    with pytest.raises(QuantConfigError, match="got a QuantLinear, which is no quantizer proxy"):
        QuantMultiheadAttention(8, 2, in_proj_weight_quant=QuantLinear(8, 24))


# --- Inside torch's layers, compiled, exported ------------------------------------------------------------------------


def encoder(**options):
    torch.manual_seed(0)
    plain = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    quantized = copy.deepcopy(plain)
    quantized.self_attn = QuantMultiheadAttention(8, 2, batch_first=True, **options)
    with patch(config, "IGNORE_MISSING_KEYS", True):
        quantized.load_state_dict(plain.state_dict())
    return plain, quantized


@pytest.mark.parametrize("grad", [True, False])
def test_torchs_encoder_layer_evaluates_the_quantizers(grad):
    plain, quantized = encoder(q_scaled_bit_width=2)
    x = torch.randn(3, 5, 8)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 3:] = True
    for _ in range(3):
        quantized(x, src_key_padding_mask=padding)
    plain.eval(), quantized.eval()
    calls = []
    quantized.self_attn.q_scaled_quant.register_forward_hook(lambda *a: calls.append(1))
    with torch.set_grad_enabled(grad):
        out = quantized(x, src_key_padding_mask=padding)
        # In the same mode with and without gradients: torch's fast path would skip our layer without.
        assert calls and not torch.allclose(out, plain(x, src_key_padding_mask=padding), atol=1e-3)
        off = encoder(**OFF)[1].eval()
        torch.testing.assert_close(off(x), plain(x), rtol=0.0, atol=1e-5)


def test_torchs_encoder_and_decoder_layers_train():
    _, layer = encoder()
    decoder = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    decoder.self_attn = QuantMultiheadAttention(8, 2, batch_first=True)
    decoder.multihead_attn = QuantMultiheadAttention(8, 2, batch_first=True, packed_in_proj=False)
    x, y = torch.randn(3, 5, 8), torch.randn(3, 4, 8)
    out = decoder(y, layer(x), tgt_mask=CAUSAL(4), tgt_is_causal=True)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in (*layer.parameters(), *decoder.parameters()))
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    assert stack(x).shape == x.shape


def test_a_stack_that_makes_nested_tensors_is_told_so():
    plain, quantized = encoder()
    stack = nn.TransformerEncoder(plain, 1)
    stack.layers[0] = quantized
    x = torch.randn(3, 5, 8)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 3:] = True
    stack(x, src_key_padding_mask=padding)
    with torch.no_grad(), pytest.raises(QuantConfigError, match="'layers.0.self_attn': nested tensors"):
        stack.eval()(x, src_key_padding_mask=padding)


class Block(nn.Module):
    """Attention with a causal mask between a quantizer and a linear layer."""

    def __init__(self, **options):
        super().__init__()
        self.attn = QuantMultiheadAttention(8, 2, batch_first=True, **options)
        self.head = QuantLinear(8, 3, input_quant=Int8ActPerTensorFloat)

    def forward(self, x):
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        return self.head(self.attn(x, x, x, attn_mask=mask, need_weights=False)[0])


BLOCKS = {
    "packed": {},
    "separate": {"packed_in_proj": False},
    "scores": {"softmax_input_quant": Int8ActPerTensorFloat},
    "grids": {"out_proj_input_quant": None, "return_quant_tensor": True},
}


EXPORTS = list(itertools.product(BLOCKS, ("qonnx", "qdq")))


def block(name):
    torch.manual_seed(0)
    return Block(**BLOCKS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_compiled_in_one_graph_without_recompilation(name):
    model, x = block(name), torch.randn(3, 5, 8)
    eager = copy.deepcopy(model)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            out, expected = compiled(x), eager(x)
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
            out.square().sum().backward()
    model.eval(), eager.eval()
    torch.compiler.reset()
    torch.testing.assert_close(
        torch.compile(model, fullgraph=True, backend="aot_eager")(x), eager(x), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", BLOCKS)
def test_exported_by_torch(name):
    x = torch.randn(3, 5, 8)
    model = trained(block(name), x)
    program = torch.export.export(model, (x,))
    assert torch.equal(program.module()(x), model(x))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("packed", "qdq"),
        *(
            pytest.param(name, target, marks=pytest.mark.slow)
            for name, target in EXPORTS
            if (name, target) != ("packed", "qdq")
        ),
    ],
)
def test_exported_and_verified(name, target):
    from brevitas.export import capture, lower, verify

    x = torch.randn(3, 5, 8)
    model = trained(block(name), x)
    graph = capture(model, [x], batch_names=["batch"])
    report = verify(model, lower(graph, target), torch.randn(4, 5, 8))
    assert report.ok, str(report)
    quantizers = {row.quantizer.rpartition(".")[2] for row in report.rows}
    assert {"q_scaled_quant", "k_transposed_quant", "attn_output_weights_quant", "v_quant"} <= quantizers


def test_the_classes_are_public_and_have_defaults_of_the_specification():
    import inspect

    parameters = inspect.signature(QuantMultiheadAttention).parameters
    defaults = {name: p.default for name, p in parameters.items() if name.endswith("_quant")}
    assert defaults["softmax_input_quant"] is None and defaults["out_proj_output_quant"] is None
    assert defaults["attn_output_weights_quant"] is Uint8ActPerTensorFloat
    acts = ("in_proj_input", "q_scaled", "k_transposed", "v", "out_proj_input")
    assert all(defaults[f"{name}_quant"] is Int8ActPerTensorFloat for name in acts)
    torch_names = list(inspect.signature(nn.MultiheadAttention).parameters)
    assert list(parameters)[: len(torch_names)] == torch_names
