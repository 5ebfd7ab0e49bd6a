"""The table of a model: its numbers by hand, its text, and that it touches nothing."""

import json

import pytest
import torch
from torch import nn

import brevitas
from brevitas.errors import QuantConfigError
from brevitas.graph import summary
from brevitas.graph.table import table
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import (
    Int8AccumulatorAwareWeightQuant,
    Int8ActPerTensorFloat,
    Int8Bias,
    IntBias,
    MXInt8Weight,
    ShiftedUint8WeightPerTensorFloat,
    SignedBinaryWeightPerTensorConst,
)
from brevitas.quant.registry import presets


class Net(nn.Module):
    """Weights whose codes are known: 3 bits narrow, -3..3, scale 1."""

    def __init__(self):
        super().__init__()
        self.input = QuantIdentity(scaling_impl_type="const", min_val=-1.0, max_val=1.0, bit_width=2)
        self.conv = QuantConv2d(1, 2, 2, weight_bit_width=3, bias_quant=Int8Bias, input_quant=Int8ActPerTensorFloat)
        self.norm = nn.BatchNorm2d(2)
        self.relu = QuantReLU(bit_width=4, scaling_impl_type="const", max_val=15.0, min_val=0.0)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(2, 1, dtype=torch.bfloat16)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([-3.0, 3.0, 3.0, 0.0, 1.0, 1.0, 0.0, 0.0]).view(2, 1, 2, 2))
            self.conv.bias.zero_()

    def forward(self, x):
        return self.fc(self.flatten(self.relu(self.norm(self.conv(self.input(x))))).bfloat16())


def image():
    # With 2 bits signed, scale 1/2: codes -2, -1, 0, 1.
    return torch.tensor([[-1.0, 0.5], [0.5, 0.4]]).view(1, 1, 2, 2)


def test_the_numbers_by_hand():
    report = summary(Net())
    rows = {row.path: row for row in report.rows}
    assert list(rows) == ["input", "conv", "conv.input_quant", "norm", "relu", "fc"]
    conv = rows["conv"]
    assert (conv.layer, conv.parameters) == ("QuantConv2d", 10)
    assert (conv.weight_bits, conv.weight_scale, conv.weight_signed) == (3, "tensor", True)
    assert conv.size == 8 * 3 / 8 + 2 * 8 / 8 and conv.float_size == 40
    # Three of eight weights at -3 or 3; of the seven levels, -2, -1 and 2 are unused.
    assert conv.saturated == 3 / 8 and conv.unused == pytest.approx(3 / 7)
    assert (conv.act_bits, conv.act_saturated) == (None, None)
    extra = rows["conv.input_quant"]
    assert (extra.layer, extra.act_bits, extra.act_signed, extra.parameters) == ("Int8ActPerTensorFloat", 8, True, 0)
    assert (rows["relu"].act_bits, rows["relu"].act_signed, rows["relu"].act_scale) == (4, False, "tensor")
    assert (rows["norm"].weight_bits, rows["norm"].size) == (32, 16)
    assert (rows["fc"].weight_bits, rows["fc"].parameters, rows["fc"].size) == (16, 3, 6)
    assert report.parameters == 10 + 4 + 3 and report.size == 5 + 16 + 6 and report.float_size == 40 + 16 + 6


def test_activations_of_an_example():
    rows = {row.path: row for row in summary(Net(), image()).rows}
    assert rows["input"].act_saturated == 1.0  # codes -2, 1, 1, 1
    assert rows["input"].act_unused == 2 / 4
    # No more is known of the output than one batch: zeros at the lower end of an unsigned range are no saturation.
    zeros = {row.path: row for row in summary(Net(), torch.zeros(1, 1, 2, 2)).rows}
    assert zeros["relu"].act_saturated == 0.0 and zeros["relu"].act_unused == 15 / 16


def test_text():
    model = nn.Sequential(Net().conv, QuantReLU(bit_width=4))
    model[0].bias_quant.tensor_quant = None
    model[0].bias_quant.requires_input_scale = False
    expected = """\
layer          class                  weight    scale   output      params  size   sat.  unused  out sat.  out unused
0              QuantConv2d            3 signed  tensor  -               10  11 B  37.5%   42.9%         -           -
0.input_quant  Int8ActPerTensorFloat  -         -       8 signed         -     -      -       -     25.0%       98.8%
1              QuantReLU              -         -       4 unsigned       -     -      -       -     50.0%       87.5%
Sequential: 10 parameters, 11 B, 3.6 times smaller than in float"""
    assert str(summary(model, image())) == expected


def test_every_line_fits():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.a_module_with_a_very_long_name_indeed = nn.Sequential()
            self.a_module_with_a_very_long_name_indeed.add_module("and_one_more_inside_it", QuantLinear(2048, 2048))
            self.another_module_with_a_very_long_name = MXLinearWithALongClassName(2048, 64, weight_quant=MXInt8Weight)

    class MXLinearWithALongClassName(QuantLinear):
        pass

    report = summary(Deep())
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 120 and "…" in lines[1]
    assert report.rows[1].path == "another_module_with_a_very_long_name" and "group of 32" in lines[2]
    assert "4.0 MiB" in lines[1]


def test_plain_data():
    data = json.loads(json.dumps(summary(Net(), image()).to_dict()))
    assert data["model"] == "Net" and data["parameters"] == 17 and len(data["rows"]) == 6
    assert data["rows"][1]["path"] == "conv" and data["rows"][1]["weight_bits"] == 3


@pytest.mark.parametrize(
    ("quant", "bits", "levels"),
    [
        (SignedBinaryWeightPerTensorConst, 1, 2),
        (presets()["SignedTernaryWeightPerTensorConst"], 2, 3),
        (ShiftedUint8WeightPerTensorFloat, 8, 256),
    ],
)
def test_levels_of_other_grids(quant, bits, levels):
    layer = QuantLinear(3, 1, bias=False, weight_quant=quant)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1.0, 1.0]]))
    row = summary(layer).rows[0]
    assert (row.path, row.weight_bits, row.saturated, row.unused) == ("", bits, 1.0, pytest.approx(1 - 1 / levels))


def test_what_is_not_known_without_an_input():
    layer = QuantLinear(4, 2, weight_quant=Int8AccumulatorAwareWeightQuant, bias_quant=IntBias)
    row = summary(layer).rows[0]
    assert (row.saturated, row.unused, row.weight_bits, row.size) == (None, None, 8, 8 + 2 * 4)


def test_minifloats_have_no_levels():
    layer = QuantLinear(4, 2, bias=False, weight_quant=presets()["Fp8e4m3OCPWeightPerTensorFloat"])
    row = summary(layer).rows[0]
    assert (row.weight_bits, row.saturated, row.size, row.weight_scale) == (8, None, 8, "tensor")


def test_shared_parameters_and_quantizers_count_once():
    first = QuantLinear(4, 4, bias=False)
    second = QuantLinear(4, 4, bias=False, weight_quant=first.weight_quant)
    second.weight = first.weight
    assert summary(nn.Sequential(first, second, first)).parameters == 16


def test_nothing_is_touched():
    model = Net()
    model.conv.eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    flags, hooks = [m.training for m in model.modules()], [len(m._forward_hooks) for m in model.modules()]
    seed, x = torch.get_rng_state(), image()
    summary(model), summary(model, x)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), seed) and torch.equal(x, image())


def test_a_model_without_layers_and_one_on_the_meta_device():
    assert str(summary(nn.ReLU())).endswith("ReLU: 0 parameters, 0 B")
    row = summary(QuantLinear(4, 2, device="meta")).rows[0]
    assert (row.parameters, row.saturated) == (10, None)


def test_names():
    assert brevitas.summary is summary and "summary" in dir(brevitas) and "summary" in brevitas.graph.__all__
    with pytest.raises(AttributeError, match="module 'brevitas.graph' has no attribute 'sumary'"):
        _ = brevitas.graph.sumary


@pytest.mark.parametrize("model", [3, "net", nn.ReLU])
def test_bad_arguments(model):
    with pytest.raises(QuantConfigError, match="summary: expected a torch.nn.Module, got "):
        summary(model)


def test_a_table_that_cannot_be_narrower():
    text = table(["a", "n"], [["abcdefgh", "1234567890"]], right_from=1, shrink={0: 4}, width=5)
    assert text == "a              n\nab…h  1234567890"
