"""Attention layers: options and mistakes, inside torch's layers, compiled and exported."""

import copy
import itertools

import pytest
import torch
from attention_layers import CAUSAL, OFF, attention, trained
from torch import nn

from brevitas import config
from brevitas.errors import QuantConfigError, UnknownOptionError
from brevitas.nn import QuantLinear, QuantMultiheadAttention, QuantScaledDotProductAttention
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat, Uint8ActPerTensorFloat
from brevitas.utils.python_utils import patch

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


class Padded(nn.Module):
    """The padding is an input of the exported model, and the weights are an output."""

    def __init__(self):
        super().__init__()
        self.attn = attention(8, 2, batch_first=True, softmax_input_quant=Int8ActPerTensorFloat)

    def forward(self, x, padding):
        return self.attn(x, x, x, key_padding_mask=padding)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["qonnx", "qdq"])
def test_masks_and_weights_of_exported_models(target):
    from brevitas.export import capture, lower, verify

    x, padding = torch.randn(2, 5, 8), torch.tensor([[False] * 3 + [True] * 2, [False] * 5])
    model = trained(Padded(), x, padding)
    report = verify(model, lower(capture(model, [x, padding]), target), [x, padding])
    assert report.ok and len([row for row in report.rows if row.quantizer.startswith("output")]) == 2, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["qonnx", "qdq"])
def test_torchs_encoder_layer_is_exported_and_verified(target):
    from brevitas.export import capture, lower, verify

    x = torch.randn(3, 5, 8)
    model = trained(encoder()[1], x)
    assert verify(model, lower(capture(model, [x]), target), x).ok


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
