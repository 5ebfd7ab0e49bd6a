"""Mistakes in the spec of a model: each is refused with its place, what stands there, and what is nearest."""

import pytest
import torch
from torch import nn

from brevitas.errors import QuantConfigError, SpecError, UnknownOptionError
from brevitas.graph import apply_spec, register_converter, spec_of
from brevitas.nn import QuantLinear


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.relu1 = nn.ReLU()
        self.block = nn.Sequential(nn.Linear(16, 4), nn.Linear(4, 2, bias=False))
        self.lstm = nn.LSTMCell(2, 2)

    def forward(self, x):
        return self.block(self.relu1(self.bn(self.conv1(x))).flatten(1))


W = "weight: Int8WeightPerTensorFloat"
HEAD = "version: 1\nrules:\n"

# Text, line, column, message.
MISTAKES = [
    ("rules: []", 1, 1, "'version' is missing; a file starts with `version: 1`"),
    ("version: 3\nrules: []", 1, 1, "version 3 is newer than version 1"),
    ("version: 1", 1, 1, "a model spec needs 'rules' or 'preset'"),
    ("version: 1\nrule: []", 2, 1, "unknown key 'rule'; did you mean 'rules'"),
    (
        "version: 1\nsteps: [{gptq: {}}]",
        2,
        1,
        "'steps' is reserved for methods that work on a trained model, and there are none yet",
    ),
    ("version: 1\npreset: int9", 2, 1, "there is no rule set 'int9'; did you mean 'int8'"),
    ("version: 1\npreset: [int8, 3]", 2, 16, "there is no rule set 3; rule sets: int8"),
    ("version: 1\nrules: {a: 1}", 2, 1, "'rules' is a mapping; expected a list of rules"),
    ("version: 1\nrules: [conv1]", 2, 9, r"rules\[0\] is 'conv1'; expected a mapping with selectors and settings"),
    (HEAD + f"  - {{mtach: conv1, {W}}}", 3, 6, r"rules\[0\] has the unknown key 'mtach'; did you mean 'match'"),
    (HEAD + "  - {match: conv1}", 3, 5, r"rules\[0\] does nothing: it needs one of keep, weight"),
    (HEAD + "  - {match: conv1, keep: int8}", 3, 20, "'keep' is 'int8'; the only legal value is float"),
    (HEAD + f"  - {{match: conv1, keep: float, {W}}}", 3, 33, "has 'keep: float', and 'weight' contradicts it"),
    (HEAD + f"  - {{match: [conv1], {W}}}", 3, 6, "'match' is a list; expected a name, a glob or re:"),
    (HEAD + f"  - {{type: [3], {W}}}", 3, 13, "'type' is 3; expected a text"),
    (HEAD + f"  - {{where: second, {W}}}", 3, 6, "'where' is 'second'; known: first, last"),
    (HEAD + f"  - {{where: [depthwize], {W}}}", 3, 14, "'where' is 'depthwize'; did you mean 'depthwise'"),
    (
        HEAD + "  - {match: conv1, weight: false}",
        3,
        20,
        "'weight' is False; expected null, the name of a preset, or a mapping",
    ),
    (HEAD + "  - {match: conv1, weight: {}}", 3, 20, "'weight' is an empty mapping, which says nothing"),
    (
        HEAD + "  - {match: conv1, weight: Int8WeightPerTensorFlot}",
        3,
        20,
        "there is no preset 'Int8WeightPerTensorFlot'; did you mean 'Int8WeightPerTensorFloat'",
    ),
    (
        HEAD + "  - {match: conv1, weight: Int8ActPerTensorFloat}",
        3,
        20,
        "'Int8ActPerTensorFloat' is a quantizer of role 'act', and one of role 'weight' is needed",
    ),
    (HEAD + "  - {match: conv1, weight: {base: IntBias}}", 3, 29, "'IntBias' is a quantizer of role 'bias'"),
    (
        HEAD + "  - {match: conv1, weight: {bit_width: 33}}",
        3,
        29,
        "'bit_width' = 33 is not legal: expected an int from 1 to 32",
    ),
    (
        HEAD + "  - {match: conv1, weight: {base: Int8WeightPerTensorFloat, bitwidth: 3}}",
        3,
        61,
        "unknown option 'bitwidth' .*did you mean 'bit_width'",
    ),
    (
        HEAD + "  - {match: conv1, weight: {bitwidth: 3}}",
        3,
        29,
        "unknown option 'bitwidth' of Int8WeightPerTensorFloat.*did you mean 'bit_width'",
    ),
    (
        HEAD + "  - {match: conv1, weight: {share: x, bit_width: 3}}",
        3,
        39,
        "a shared quantizer is that of another layer, and 'bit_width' cannot change it",
    ),
    (HEAD + "  - {match: conv1, weight: {share: 3}}", 3, 29, "'share' is 3; expected a text"),
    (
        HEAD + "  - {match: conv1, layer: true}",
        3,
        20,
        "'layer' is True; expected a mapping, {return_quant_tensor: true}",
    ),
    (
        HEAD + "  - {match: conv1, layer: {return_quant_tensor: 1}}",
        3,
        28,
        "'return_quant_tensor' is 1; expected true or false",
    ),
    (
        HEAD + "  - {match: conv1, layer: {return_quant_tensr: true}}",
        3,
        28,
        "'layer' has the unknown key 'return_quant_tensr' for Conv2d 'conv1'; did you mean 'return_quant_tensor'",
    ),
    (
        HEAD + "  - {match: conv1, layer: {padding_type: 3}}",
        3,
        28,
        "'padding_type' is 3; expected a text such as standard",
    ),
    (
        HEAD + "  - {match: conv1, layer: {padding_type: sam}}",
        3,
        5,
        "padding_type = 'sam' is not legal: expected 'standard' or 'same'",
    ),
    (
        HEAD + f"  - {{match: conv2, {W}}}",
        3,
        6,
        r"rules\[0\] \(match: conv2\) matches nothing: no layer matches 'conv2'; did you mean 'conv1'",
    ),
    (HEAD + f"  - {{match: 'blok.*', {W}}}", 3, 6, r"no layer matches 'blok.\*'; did you mean 'block.1' or 'block.0'"),
    (HEAD + f"  - {{match: '{{conv1,x', {W}}}", 3, 6, "the brace at character 1 is not closed"),
    (HEAD + f"  - {{match: 're:(', {W}}}", 3, 6, "this is no regular expression: missing \\)"),
    (HEAD + f"  - {{type: Conv2D, {W}}}", 3, 6, "no layer that it selects is a 'Conv2D'; did you mean 'Conv2d'"),
    (
        HEAD + f"  - {{type: [Linear, Conv2D], {W}}}",
        3,
        6,
        "no layer that it selects is a 'Conv2D'; did you mean 'Conv2d'",
    ),
    (HEAD + f"  - {{type: Conv3d, {W}}}", 3, 6, "no layer that it selects is a 'Conv3d'; did you mean 'Conv2d'"),
    (HEAD + f"  - {{where: depthwise, {W}}}", 3, 6, "no layer that it selects is 'depthwise'"),
    (
        HEAD + f"  - {{match: relu1, {W}}}",
        3,
        20,
        "none of the layers that it selects has a quantizer 'weight': ReLU 'relu1'; they have act, input",
    ),
    (
        HEAD + f"  - {{type: [Linear, Conv2d], {W}, act: Uint8ActPerTensorFloat}}",
        3,
        64,
        "has a quantizer 'act': .*they have bias, input, output, weight",
    ),
    (
        HEAD + f"  - {{type: LSTMCell, {W}}}",
        3,
        5,
        "form of LSTMCell 'lstm'; exclude it, keep it by a rule {match: 'lstm', keep: float}",
    ),
    (HEAD + f"  - {{match: bn, {W}}}", 3, 5, "there is no quantized form of BatchNorm2d 'bn'"),
    (
        HEAD + f"  - {{match: block, {W}}}",
        3,
        20,
        "none of the layers that it selects has a quantizer 'weight': Sequential 'block'",
    ),
    (
        HEAD + "  - {match: block, keep: float}",
        3,
        20,
        r"selects Sequential 'block'; write 'block.\*\*' for what is inside",
    ),
    (
        HEAD + f"  - {{type: Linear, {W}}}\n  - {{match: 'block.*', keep: float}}",
        3,
        5,
        r"rules\[0\] \(type: Linear\) has no effect: later rules override .*, rules\[1\] \(match: block.\*\) at .*:4:5",
    ),
    (
        HEAD + "  - {match: conv1, weight: {bit_width: 3}}\n  - {match: conv1, weight: {bit_width: 4}}",
        3,
        5,
        r"rules\[0\] \(match: conv1\) has no effect: .*rules\[1\]",
    ),
    (HEAD + "  - {match: relu1, act: Uint8ActPerTensorFloat}\n  - {match: relu1, act: null}", 3, 5, "has no effect"),
    (
        HEAD + "  - {match: conv1, bias: {bit_width: 8}}",
        3,
        27,
        "'bias' of Conv2d 'conv1' needs 'base', the name of a preset",
    ),
    (
        HEAD + "  - {match: conv1, weight: {percentile_q: 99.0}}",
        3,
        29,
        "'percentile_q' = 99.0 has no effect because scaling_stats_op is MAX",
    ),
    (
        HEAD + "  - {match: conv1, weight: {collect_stats_steps: 9}}",
        3,
        29,
        "'collect_stats_steps' has no effect because it belongs to quantizers of role act",
    ),
    (HEAD + "  - {match: conv1, weight: {quant_type: ternary}}", 3, 29, "'threshold' is required"),
    (
        HEAD + "  - {match: relu1, act: {signed: true, min_val: 1.0, max_val: 0.5, scaling_impl_type: const}}",
        3,
        26,
        "min_val = 1.0 is not below max_val = 0.5",
    ),
    (
        HEAD + "  - {match: conv1, weight: {share: block.0.weight_quant}}",
        3,
        29,
        "there is no quantizer 'block.0.weight_quant' that a rule makes",
    ),
    (
        HEAD
        + "  - {match: conv1, weight: {share: block.0.weight_quant}}\n"
        + "  - {match: block.0, weight: {share: conv1.weight_quant}}",
        3,
        29,
        "the quantizers that these rules share wait for each other",
    ),
]


@pytest.mark.parametrize(
    ("text", "line", "column", "message"), MISTAKES, ids=[f"{i}-{m[3][:30]}" for i, m in enumerate(MISTAKES)]
)
def test_a_mistake_in_a_file(tmp_path, text, line, column, message):
    path = tmp_path / "net.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=rf"(?s)^\S*net\.yaml:{line}:{column}\b.*{message}"):
        apply_spec(Net(), path)


def test_there_are_many():
    assert len(MISTAKES) >= 40


def test_a_mistake_in_python_names_the_line_and_the_key():
    with pytest.raises(
        SpecError, match=r"test_apply_spec_mistakes\.py:\d+, rules\[0\]\.weight\.bit_width: 'bit_width' = 0"
    ):
        apply_spec(Net(), {"rules": [{"match": "conv1", "weight": {"bit_width": 0}}]})
    with pytest.raises(
        SpecError, match=r"test_apply_spec_mistakes\.py:\d+, rules\[0\]\.match: rules\[0\] \(match: x\)"
    ):
        apply_spec(Net(), {"rules": [{"match": "x", "weight": None}]})
    for wrong in (3, None, [{"match": "conv1"}], "rules"):
        with pytest.raises(
            SpecError, match=r"test_apply_spec_mistakes\.py:\d+: expected a mapping, YAML text or a path"
        ):
            apply_spec(Net(), wrong)


@pytest.mark.parametrize(
    ("keywords", "kind", "message"),
    [
        (
            {"wieght_bit_width": 3},
            UnknownOptionError,
            "'wieght_bit_width' of apply_spec starts with none of weight_, .*'weight_bit_width'",
        ),
        ({"inplce": True}, UnknownOptionError, "'inplce' of apply_spec .*did you mean 'inplace'"),
        ({"bit_width": 3}, UnknownOptionError, "'bit_width' of apply_spec starts with none of"),
        ({"weight": 3}, UnknownOptionError, "'weight' of apply_spec starts with none of"),
        (
            {"output_bit_width": 3},
            SpecError,
            "'output_bit_width' has no effect: no rule gives a layer a quantizer for 'output'",
        ),
        ({"weight_bit_widht": 3}, SpecError, "unknown option 'bit_widht' = 3: nothing reads it"),
        ({"weight_bit_width": 99}, SpecError, "'bit_width' = 99 is not legal"),
    ],
)
def test_keywords(keywords, kind, message):
    with pytest.raises(kind, match="(?s)test_apply_spec_mistakes.*" + message):
        apply_spec(Net(), {"rules": [{"match": "conv1", "weight": "Int8WeightPerTensorFloat"}]}, **keywords)


def test_only_models():
    with pytest.raises(QuantConfigError, match="expected a torch.nn.Module, got 3"):
        apply_spec(3, "preset: int8")
    with pytest.raises(QuantConfigError, match="spec_of: expected a torch.nn.Module, got 3"):
        spec_of(3)


def test_what_a_swap_would_lose_is_refused():
    rules = {"rules": [{"match": "0", "weight": {"bit_width": 4}}]}

    class Holder(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.inner = nn.ReLU()

    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.gain = nn.Parameter(torch.ones(1))

    with pytest.raises(SpecError, match=r"Holder '0' holds further modules \(inner\), which would be lost"):
        apply_spec(nn.Sequential(Holder()), rules)
    with pytest.raises(SpecError, match="Scaled '0' cannot become a QuantLinear: 'gain', which would be lost"):
        apply_spec(nn.Sequential(Scaled()), rules)
    parametrized = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    with pytest.raises(SpecError, match="is parametrized, .*remove_parametrizations first"):
        apply_spec(parametrized, rules)


def test_register_converter_checks_its_classes():
    class Plain(nn.Linear):
        pass

    with pytest.raises(QuantConfigError, match="the constructor of Plain has no parameter <role>_quant"):
        register_converter(nn.Bilinear, Plain)
    with pytest.raises(QuantConfigError, match="Linear has a converter already"):
        register_converter(nn.Linear, QuantLinear)
