"""What the tests of attention share: layers with quantizers off, drawn from one seed, and calibrated ones."""

import torch

from brevitas.nn import QuantMultiheadAttention

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
