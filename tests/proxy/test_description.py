"""A printed model: one line a quantizer."""

import pytest
import torch
from torch import nn

from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import (
    Int8AccumulatorAwareWeightQuant,
    Int8ActPerTensorFloat,
    Int8WeightPerTensorFloat,
    Int32Bias,
    IntBias,
    MXInt8Act,
    ShiftedUint8ActPerTensorFloat,
    SignedBinaryWeightPerTensorConst,
    TruncTo8bit,
)
from brevitas.quant.registry import presets
from injector import declarations


class W3(Int8WeightPerTensorFloat):
    bit_width = 3


def test_a_model_is_printed_with_one_line_a_quantizer():
    model = nn.Sequential(
        QuantIdentity(ShiftedUint8ActPerTensorFloat, collect_stats_steps=30),
        QuantConv2d(3, 4, 3, weight_quant=W3, weight_scaling_per_output_channel=True, bias_quant=Int32Bias),
        QuantReLU(bit_width=4, bit_width_impl_type="parameter", scaling_impl_type="stats"),
    )
    for _ in range(3):
        model[0](torch.rand(2))
    assert (
        repr(model)
        == """\
Sequential(
  (0): QuantIdentity(
    (act_quant): ShiftedUint8ActPerTensorFloat(8 bits, unsigned, scale per tensor collecting 3/30, zero point \
collecting 3/30)
  )
  (1): QuantConv2d(
    3, 4, kernel_size=(3, 3), stride=(1, 1)
    (weight_quant): W3(3 bits, signed, narrow, scale per channel from the weight)
    (bias_quant): Int32Bias(32 bits, signed, scale of the accumulator)
    (input_quant): NoneActQuant, off
    (output_quant): NoneActQuant, off
  )
  (2): QuantReLU(
    (act_quant): Uint8ActPerTensorFloat(4 bits learned, unsigned, scale per tensor running, 0 collected)
    (input_quant): NoneActQuant, off
  )
)"""
    )


def test_the_phases_of_a_collected_scale():
    layer = QuantIdentity(collect_stats_steps=2)
    seen = []
    for _ in range(4):
        seen.append(repr(layer.act_quant).partition("scale per tensor ")[2])
        layer(torch.ones(3))
    assert seen == ["collecting 0/2)", "collecting 1/2)", "collecting 2/2)", "learned)"]


def test_the_phases_of_a_learned_weight_scale():
    layer = QuantLinear(2, 2, weight_scaling_impl_type="parameter_from_stats")
    assert "scale per tensor from the weight, then learned)" in repr(layer.weight_quant)
    layer(torch.ones(1, 2))
    assert "scale per tensor learned)" in repr(layer.weight_quant)


@pytest.mark.parametrize(
    ("proxy", "text"),
    [
        (
            lambda: QuantLinear(2, 2, weight_quant=SignedBinaryWeightPerTensorConst).weight_quant,
            "(1 bit, signed, narrow,",
        ),
        (lambda: QuantLinear(2, 2, bias_quant=IntBias).bias_quant, "IntBias(bits of the accumulator, signed, scale of"),
        (lambda: QuantIdentity(MXInt8Act).act_quant, "scale per group of 32 from each input)"),
        (
            lambda: QuantLinear(2, 2, weight_quant=Int8AccumulatorAwareWeightQuant).weight_quant,
            "scale per channel from the weight, then learned",
        ),
        (lambda: QuantIdentity(quant_delay_steps=7).act_quant, "delayed for 7 more steps)"),
        (lambda: QuantIdentity(presets()["Fp8e4m3OCPActPerTensorFloat"]).act_quant, "(8 bits e4m3, signed, scale per"),
        (lambda: QuantIdentity(presets()["Fp8e5m2Act"]).act_quant, "(8 bits e5m2, signed, scale 1)"),
        (lambda: QuantIdentity(None).act_quant, "NoneActQuant, off"),
        (
            lambda: QuantIdentity().to("meta").act_quant,
            "(? bits, s",
        ),
    ],
)
def test_what_a_line_says(proxy, text):
    assert text in repr(proxy())


def test_a_shared_quantizer_says_so():
    first = QuantLinear(2, 2)
    QuantLinear(2, 2, weight_quant=first.weight_quant)
    assert repr(first.weight_quant).endswith("from the weight, shared by 2 layers)")


def test_truncation():
    from brevitas.proxy import TruncQuantProxyFromInjector

    assert repr(TruncQuantProxyFromInjector(nn.Module(), TruncTo8bit)) == "TruncTo8bit(8 bits, rounding FLOOR)"


def test_printing_changes_nothing():
    layer = QuantIdentity(Int8ActPerTensorFloat, collect_stats_steps=2)
    layer(torch.ones(3))
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    repr(layer), str(layer.act_quant)
    assert all(torch.equal(v, state[k]) for k, v in layer.state_dict().items()) and layer.training


def role_of(preset):
    return declarations(preset)["_role"].obj


@pytest.mark.parametrize("name", [name for name, p in presets().items() if role_of(p) in ("weight", "bias")])
def test_every_preset_of_parameters_has_its_line(name):
    preset = presets()[name]
    if name.startswith(("FpOCP", "FpFNUZ")):
        preset = preset.let(bit_width=6, exponent_bit_width=3, mantissa_bit_width=2)
    layer = QuantLinear(40, 3, **{f"{role_of(preset)}_quant": preset})
    line = repr(getattr(layer, f"{role_of(preset)}_quant"))
    assert line.startswith(preset.__name__) and "\n" not in line and "?" not in line
    if not name.startswith("None"):
        assert ("per channel" in line) == ("PerChannel" in name or "AccumulatorAware" in name)
