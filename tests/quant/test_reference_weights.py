"""Integer weights of every preset and bit width: numbers and gradients against spec/core.md in float64."""

import pytest
import torch
from reference_table import MX_WEIGHTS, WEIGHTS
from reference_weights import (
    assert_near,
    assert_quantized,
    away_from_jumps,
    gradients,
    learned_state,
    quantized_weight,
    weight_layer,
)

DTYPES = [torch.float64, torch.float32]
SHAPE = {"tensor": (4, 15), "channel": (3, 2, 3, 2), "group": (3, 70)}
MSE_SHAPE = {"tensor": (3, 12), "channel": (3, 12), "group": (2, 40)}


def case(preset, bits):
    """(weight, bits as a tensor): a weight that float32 quantizes to the same codes."""
    b = torch.tensor(float(bits), dtype=torch.float64)
    shape = (MSE_SHAPE if preset.search else SHAPE)[preset.per]

    def compute(w):
        quantized_weight(preset, w, b)
        if preset.scaling == "LEARNED":
            state = learned_state(preset, w, b)
            moved(preset, state)
            quantized_weight(preset, w, b, state)

    return away_from_jumps(compute, shape), b


def moved(preset, state):
    """As an optimizer would: a smaller threshold, so that values are clamped, and another low end."""
    with torch.no_grad():
        if preset.restriction == "FP":
            state[0].mul_(0.7)
        else:
            state[0].sub_(1.1)
        if state[1] is not None:
            state[1].mul_(0.8)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", [*WEIGHTS, *MX_WEIGHTS])
def test_weight(name, bits):
    preset = (WEIGHTS | MX_WEIGHTS)[name]
    weight, b = case(preset, bits)
    for dtype in DTYPES:
        layer = weight_layer(name, weight, dtype, bit_width=bits)
        for training in (False, True) if preset.scaling != "LEARNED" else (False,):
            layer.train(training)
            w = weight.clone().requires_grad_()
            expected = quantized_weight(preset, w, b)
            qt = layer.weight_quant(layer.weight)
            assert_quantized(qt, expected, bits, dtype, preset.signed)
            if preset.search:
                continue  # no gradient through the search; that of the learned phase is below
            (g,) = gradients((qt.value, qt.scale, qt.zero_point), w, [layer.weight])
            (g_expected,) = gradients(expected[:3], w, [w])
            assert_near(g, g_expected, dtype, "gradient of the weight")
            assert g_expected.abs().max() > 0


LEARNED = [name for name, preset in (WEIGHTS | MX_WEIGHTS).items() if preset.scaling == "LEARNED"]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", LEARNED)
def test_learned_scale_of_a_weight(name, bits):
    """The first training call stores the statistic and learns from it; then the parameters move."""
    preset = (WEIGHTS | MX_WEIGHTS)[name]
    weight, b = case(preset, bits)
    for dtype in DTYPES:
        layer = weight_layer(name, weight, dtype, bit_width=bits)
        quantizer = layer.weight_quant.tensor_quant
        parameters = [quantizer.scaling_impl.value] + ([quantizer.zero_point_impl.value] if preset.shifted else [])
        w = weight.clone().requires_grad_()
        state = learned_state(preset, w, b)
        leaves = [leaf for leaf in state if leaf is not None]
        for _ in range(2):
            expected = quantized_weight(preset, w, b, state)
            qt = layer.weight_quant(layer.weight)
            assert_quantized(qt, expected, bits, dtype, preset.signed)
            for parameter, leaf in zip(parameters, leaves, strict=True):
                assert_near(parameter.reshape(-1), leaf, dtype, "learned parameter")
            found = gradients((qt.value, qt.scale, qt.zero_point), w, [layer.weight, *parameters])
            wanted = gradients(expected[:3], w, [w, *leaves])
            for what, g, g_expected in zip(("weight", "scale", "low end"), found, wanted, strict=False):
                # Sums over the tensor cancel: what float32 loses is relative to their terms.
                assert_near(g.reshape(g_expected.shape), g_expected, dtype, f"gradient of the {what}", 1e-12, 50.0)
            moved(preset, state)
            with torch.no_grad():
                for parameter, leaf in zip(parameters, leaves, strict=True):
                    parameter.copy_(leaf.reshape(parameter.shape))
        layer.eval()
        qt = layer.weight_quant(layer.weight)
        assert_near(qt.value, quantized_weight(preset, w, b, state)[0], dtype, "value in eval", 1e-12, 1e5)
