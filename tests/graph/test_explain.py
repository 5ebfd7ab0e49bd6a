"""``explain`` prints where every resolved value comes from."""

import inspect

import pytest
from torch import nn

import brevitas
from brevitas.errors import QuantConfigError
from brevitas.graph import explain
from brevitas.nn import QuantConv2d, QuantReLU
from brevitas.quant import Int8WeightPerTensorFloat


class W3(Int8WeightPerTensorFloat):
    bit_width = 3


def test_every_value_has_its_class_file_and_line():
    text = explain(QuantConv2d(1, 2, 3, weight_quant=W3).weight_quant)
    line = next(entry for entry in text.splitlines() if entry.strip().startswith("bit_width ="))
    lines, start = inspect.getsourcelines(W3)
    number = start + next(i for i, source in enumerate(lines) if "bit_width" in source)
    assert f"W3, {__file__}:{number}" in line
    assert "overrides 8" in line and "PerTensorFloatScaling8bit" in line
    body = text.splitlines()[1:]
    for name in ("tensor_quant", "scaling_impl", "scaling_stats_op", "signed", "narrow_range", "zero_point_impl"):
        assert any(entry.strip().startswith(f"{name} =") for entry in body), name
    assert all(".py:" in entry for entry in body)


def test_keyword_of_a_layer_is_named_with_the_line_of_the_call():
    layer = QuantConv2d(1, 2, 3, weight_bit_width=5)
    line = next(entry for entry in explain(layer.weight_quant).splitlines() if entry.strip().startswith("bit_width ="))
    assert line.strip().startswith("bit_width = 5") and __file__ in line


def test_explains_by_path_and_for_a_whole_model():
    model = nn.Sequential(QuantConv2d(1, 2, 3, weight_quant=W3), QuantReLU())
    assert "W3" in explain(model, "0.weight_quant")
    whole = explain(model)
    for path in ("0.weight_quant", "0.bias_quant", "1.act_quant"):
        assert f"{path}: " in whole


def test_a_class_alone_lists_its_declarations():
    assert "bit_width = 3" in explain(W3)


def test_is_reachable_from_the_top():
    assert brevitas.explain is explain


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ((3,), "expected a proxy"),
        ((nn.Linear(1, 1),), "expected a proxy"),
        ((nn.Sequential(QuantReLU()), "0.act_qant"), "nearest: 0.act_quant"),
    ],
)
def test_bad_input(arguments, fragment):
    with pytest.raises(QuantConfigError, match=fragment):
        explain(*arguments)
