"""Attention layers with their quantizers off equal torch's; parameters, checkpoints, dtypes."""

import copy
import math
import pickle

import pytest
import torch
from attention_layers import CAUSAL, CORE_OFF, OFF, attention, trained
from torch import nn
from torch.nn import functional as F

from brevitas import config
from brevitas.errors import QuantConfigError
from brevitas.nn import QuantMultiheadAttention, QuantScaledDotProductAttention
from brevitas.quant import Int8ActPerTensorFloat
from brevitas.utils.python_utils import patch

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
    layer = attention(8, 2, dtype=dtype, softmax_input_quant=Int8ActPerTensorFloat)
    x = torch.randn(5, 3, 8, dtype=dtype)
    out, weights = layer(x, x, x)
    assert out.dtype == weights.dtype == dtype and out.isfinite().all()
    assert all(p.dtype == dtype for p in layer.parameters())
    block = torch.ones(5, 5, dtype=torch.bool).triu(1)
    block[4] = True  # a row in which nothing is open
    masked, weights = layer(x, x, x, attn_mask=torch.zeros(5, 5).masked_fill(block, torch.finfo(torch.float32).min))
    assert masked.dtype == dtype and masked.isfinite().all() and not weights[:, block].any()
    meta = QuantMultiheadAttention(8, 2, device="meta")
    assert all(p.is_meta for p in meta.parameters())


def test_autocast():
    layer, x = attention(8, 2), torch.randn(5, 3, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = layer(x, x, x)
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
