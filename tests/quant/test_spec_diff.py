"""Differences in words."""

import pytest
from torch import nn

import brevitas
from brevitas.errors import QuantConfigError
from brevitas.graph import apply_spec, spec_of
from brevitas.inject import this, value
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat, Int8WeightPerTensorFloat, diff


def lines(a, b):
    return [line.strip() for line in diff(a, b).splitlines()]


def test_quantizers():
    first, *rest = lines(Int8WeightPerTensorFloat, Int8WeightPerChannelFloat.let(bit_width=4))
    assert first == "Int8WeightPerTensorFloat (a) and Int8WeightPerChannelFloat (b) differ in 2 options:"
    assert rest[0].startswith("bit_width, number of bits of a code: 8 in a (PerTensorFloatScaling8bit, ")
    assert "4 in b (let on Int8WeightPerChannelFloat, " in rest[0] and "test_spec_diff.py" in rest[0]
    assert rest[1].startswith("scaling_per_output_channel, one scale per output channel: False in a (")


def test_what_is_written_differently_and_means_the_same_is_no_difference():
    same = Int8WeightPerTensorFloat.let(quant_type="Int", bit_width=8)
    assert diff(Int8WeightPerTensorFloat, same).endswith("declare the same")


def test_names_of_one_only_links_and_values():
    @value
    def width(module):
        return 4

    text = diff(
        Int8WeightPerTensorFloat.let(my_own=3), Int8WeightPerTensorFloat.let(bit_width=width, signed=this.narrow_range)
    )
    assert "my_own: 3 in a (let on" in text and "not declared in b" in text
    assert "8 in a" in text and "computed in b" in text and "the same as narrow_range in b" in text
    assert "differ in 3 options" in text


def test_roles():
    text = diff(Int8WeightPerTensorFloat, Int8ActPerTensorFloat)
    assert "role: weight in a, act in b" in text and "collect_stats_steps" in text and "300 in b" in text
    assert "scaling_shape" not in text


def net():
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))


def test_models():
    a = spec_of(apply_spec(net(), "preset: int8"))
    b = spec_of(
        apply_spec(
            net(),
            "rules: [{match: '0', weight: {bit_width: 4}, input: Int8ActPerTensorFloat}, "
            "{match: '1', act: Uint8ActPerTensorFloat}]",
        )
    )
    assert diff(a, a) == "the two specs say the same"
    assert lines(a, b) == [
        "the two specs differ in 3 places:",
        "layer '0', weight bit_width: not given in a, 4 in b",
        "layer '0', input base: not given in a, Int8ActPerTensorFloat in b",
        "layer '2': only in a, weight: Int8WeightPerTensorFloat",
    ]


def test_model_specs_as_text(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("version: 1\npreset: int8\nrules:\n- {type: ReLU, keep: float}\n- {where: first, weight: null}\n")
    rules = "- {where: first, weight: null}\n- {type: ReLU, keep: float}\n- {type: Tanh, keep: float}\n"
    other = f"preset: [int8]\nrules:\n{rules}"
    assert lines(path, other) == [
        "the two specs differ in 4 places:",
        "version: 1 in a, not given in b",
        "preset: int8 in a, [int8] in b",
        "rule type: Tanh: only in b, keep: float",
        "the rules that both have stand in another order, and later rules override earlier ones",
    ]


def test_off_differs_from_not_given():
    a, b = ({"rules": [{"match": "x", **rule}]} for rule in ({"weight": None, "bias": None}, {"weight": None}))
    assert lines(a, b)[1] == "layer 'x', bias: off in a, not given in b"


def test_two_of_a_kind():
    for wrong in ((Int8WeightPerTensorFloat, {"rules": []}), (3, 4), (net(), net())):
        with pytest.raises(QuantConfigError, match="expected two quantizer classes or two model specs"):
            diff(*wrong)
    assert brevitas.diff is diff
