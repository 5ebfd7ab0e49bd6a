"""Mistakes in the spec of a quantizer: each is refused with its place, what stands there, and what is nearest."""

import re

import pytest

from brevitas.errors import QuantConfigError, SpecError
from brevitas.quant import from_spec
from brevitas.utils.located import as_located, read_text
from injector import SourceLocation

BASE = "version: 1\nbase: Int8WeightPerTensorFloat\n"


def text_at(line, column, message):
    return rf"q\.yaml:{line}:{column}: {message}"


MISTAKES = [
    ("base: Int8WeightPerTensorFloat", 1, 1, r"'version' is missing; a file starts with `version: 1`"),
    ("version: 2\nbase: IntBias", 1, 1, r"version 2 is newer than version 1, which this library reads; update it"),
    ("version: one\nbase: IntBias", 1, 1, r"'version' is 'one'; expected 1"),
    ("version: true\nbase: IntBias", 1, 1, r"'version' is True; expected 1"),
    (
        "version: 1\nbase: Int8WeigthPerTensorFloat",
        2,
        1,
        r"there is no preset 'Int8WeigthPerTensorFloat'; did you mean 'Int8WeightPerTensorFloat'",
    ),
    ("version: 1\nbase: []", 2, 1, r"'base' is an empty list"),
    ("version: 1\nbase: [IntBias,  Zzz]", 2, 18, r"there is no preset 'Zzz'; presets: .*Int8WeightPerTensorFloat"),
    ("version: 1\nbase: {a: 1}", 2, 1, r"'base' is \{'a': 1\}; expected the name of a preset or package.module:Class"),
    (
        "version: 1\nbase: nosuch.module:Q",
        2,
        1,
        r"'base': 'nosuch.module:Q' cannot be imported: No module named 'nosuch'",
    ),
    ("version: 1\nbase: brevitas.quant:IntBiass", 2, 1, r"'brevitas.quant' has no 'IntBiass'; did you mean 'IntBias'"),
    ("version: 1\nbase: torch.nn:Linear", 2, 1, r"'base' = 'torch.nn:Linear' is no quantizer class but type"),
    (
        "version: 1\nbas: IntBias",
        1,
        1,
        r"'base' is missing: the name of a preset or package.module:Class; is 'bas' meant to be it",
    ),
    (
        BASE + "bit_widht: 4",
        3,
        1,
        r"unknown option 'bit_widht' of Int8WeightPerTensorFloat: nothing reads it; did you mean 'bit_width'",
    ),
    (BASE + "bit_width: 4.5", 3, 1, r"'bit_width' = 4.5 is not legal: expected an int from 1 to 32"),
    (BASE + "bit_width: true", 3, 1, r"'bit_width' = True is not legal: expected an int"),
    (BASE + "bit_width: '4'", 3, 1, r"'bit_width' = '4' is not legal: expected an int"),
    (BASE + "bit_width: 0", 3, 1, r"'bit_width' = 0 is not legal: expected an int from 1 to 32"),
    (
        BASE + "bit_width: 2020-01-01",
        3,
        1,
        r"'bit_width' is datetime.date\(2020, 1, 1\), a date, which no directive can be",
    ),
    (BASE + "signed: 1", 3, 1, r"'signed' = 1 is not legal: expected True or False"),
    (BASE + "scaling_min_val: -1e-3", 3, 1, r"'scaling_min_val' = -0.001 is not legal: expected a number > 0"),
    (BASE + "quant_type: integer", 3, 1, r"'quant_type' = 'integer' is not legal: expected one of .*INT"),
    (BASE + "scaling_impl_type: statz", 3, 1, r"'scaling_impl_type' = 'statz' is not legal: .*did you mean 'STATS'"),
    (BASE + "scaling_shape: [3, x]", 3, 1, r"'scaling_shape' = \(3, 'x'\) is not legal: expected a tuple of ints"),
    (
        BASE + "zero_point_impl: ZeroZeroPoint",
        3,
        1,
        r"it is written as package.module:Class, for example brevitas.core.zero_point:ZeroZeroPoint",
    ),
    (
        BASE + "zero_point_impl: 'brevitas.core.zero_point:ZeroPoint'",
        3,
        1,
        r"'zero_point_impl': .* has no 'ZeroPoint'; did you mean 'ZeroZeroPoint'",
    ),
    (BASE + "scaling_init: {tensr: [1.0]}", 3, 16, r"'scaling_init' has the key 'tensr': .*did you mean 'tensor'"),
    (BASE + "scaling_init: {tensor: [1.0], link: this.x}", 3, 16, r"'scaling_init' has the key 'tensor'"),
    (BASE + "scaling_init: {tensor: [[1.0], [1.0, 2.0]]}", 3, 16, r"not nested lists of numbers of one shape"),
    (
        BASE + "scaling_init: {tensor: [1.0], dtype: flot32}",
        3,
        16,
        r"'flot32' is no dtype of torch; did you mean 'float32'",
    ),
    (BASE + "_device: {device: gpu}", 3, 11, r"'gpu' is no device: "),
    (BASE + "bit_width: {value: 'math:pi'}", 3, 13, r"'math:pi' is no function, and a @value is one"),
    (BASE + "bit_width: {value: 'math'}", 3, 13, r"'math' is no reference; expected package.module:Name"),
    (BASE + "bit_width: {link: 'this.x +'}", 3, 13, r"'this.x \+' is no link; expected this.name"),
    (BASE + "bit_width: {link: 'that.x'}", 3, 13, r"'that.x' is no link"),
    (BASE + "bit_width: {link: 'this'}", 3, 1, r"attribute 'bit_width' .*which names no attribute to start from"),
    (BASE + "_a: {list: 3}", 3, 6, r"expected a list under 'list', found 3"),
    (BASE + "_a: {dict: 3}", 3, 6, r"expected a mapping under 'dict', found 3"),
    (BASE + "_a: {text: 3}", 3, 6, r"expected a text under 'text', found 3"),
    (BASE + "let: 3", 3, 1, r"attribute 'let' .*cannot be declared"),
    (BASE + "scaling_impl_class: 3", 3, 1, r"which is no class; a name that ends in '_class'"),
    (BASE + "bit_width: 3\nbit_width: 4", 4, 1, r"the key 'bit_width' is here twice; first at .*q.yaml:3:1"),
    (BASE + "3: 4", 3, 1, r"the key 3 is not a text; write it in quotes"),
    (BASE + "<<: {a: 1}", 3, 1, r"merge keys \('<<'\) are not supported; write the keys out"),
    (BASE + "bit_width: [4", 3, 14, r"expected ',' or '\]'"),
    (BASE + "bit_width: !!python/object/apply:os.getcwd []", 3, 12, r"could not determine a constructor for the tag"),
    (BASE + "_sub: {base: Int8Weight}", 3, 8, r"there is no preset 'Int8Weight'; did you mean"),
    ("", 1, 1, "expected a mapping, found nothing"),
    ("- 1", 1, 1, "expected a mapping, found list"),
    ("just text", 1, 1, "expected a mapping, found str"),
]


@pytest.mark.parametrize(("text", "line", "column", "message"), MISTAKES, ids=[m[3][:40] for m in MISTAKES])
def test_a_mistake_in_a_file(tmp_path, text, line, column, message):
    path = tmp_path / "q.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=text_at(line, column, ".*" + message)):
        from_spec(path)


def test_there_are_many():
    assert len(MISTAKES) >= 25 and len({m[3] for m in MISTAKES}) == len(MISTAKES)


def test_a_mistake_in_python_names_the_line_and_the_key():
    with pytest.raises(SpecError, match=r"test_spec_mistakes\.py:\d+, bit_widht: unknown option 'bit_widht'"):
        from_spec({"base": "IntBias", "bit_widht": 3})
    with pytest.raises(SpecError, match=r"test_spec_mistakes\.py:\d+, scaling_init\.tensr: 'scaling_init' has the key"):
        from_spec({"base": "Int8WeightPerTensorFloat", "scaling_init": {"tensr": [1]}})
    with pytest.raises(
        SpecError, match=r"test_spec_mistakes\.py:\d+: expected a quantizer, a preset name or a mapping"
    ):
        from_spec(3)
    with pytest.raises(SpecError, match=r"the key 3 is not a text"):
        from_spec({3: 4})


def test_a_class_in_a_dict_is_not_data():
    from brevitas.core.zero_point import ZeroZeroPoint

    with pytest.raises(SpecError, match="'zero_point_impl' is <class .*, which no directive can be"):
        from_spec({"base": "Int8WeightPerTensorFloat", "zero_point_impl": ZeroZeroPoint})


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "lenet.yaml").write_text("base: IntBias")
    with pytest.raises(SpecError, match=r"lennet\.yaml: there is no such file; nearest: lenet\.yaml"):
        from_spec(str(tmp_path / "lennet.yaml"))
    with pytest.raises(SpecError, match="there is no such file"):
        from_spec(tmp_path / "none" / "x.yaml")
    with pytest.raises(SpecError, match="Is a directory"):
        from_spec(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"binary\.yaml: .*codec can't decode"):
        from_spec(tmp_path / "binary.yaml")
    with pytest.raises(SpecError, match="this is not text: special characters are not allowed at character 3"):
        from_spec("a: \x00")


def test_errors_are_of_the_family():
    assert issubclass(SpecError, QuantConfigError) and issubclass(SpecError, ValueError)


def test_numbers_are_those_of_yaml_1_2():
    document = read_text("{a: 1e-3, b: 1.5E+2, c: -2e3, d: 1_000, e: 0x10, f: .5e1, g: 1e3x}", "n.yaml")
    assert [document[k] for k in "abcef"] == [0.001, 150.0, -2000.0, 16, 5.0] and document["g"] == "1e3x"


def test_anchors_are_read_and_circles_refused():
    assert read_text("{a: &x {b: 1}, c: *x}", "a.yaml")["c"] == {"b": 1}
    with pytest.raises(SpecError, match=re.escape("a.yaml:1:4: found unconstructable recursive node")):
        read_text("a: &x [*x]", "a.yaml")


def test_located_data_stay_located():
    located = as_located({"a": [1, {"b": 2}]}, SourceLocation("f.py", 3))
    assert as_located(located, SourceLocation("g.py", 9)) is located
    assert located["a"][1].where("b") == "f.py:3, a[1].b" and str(located["a"].places[0]) == "f.py:3, a[0]"
