"""The JSON schema says what the library says, and the published one is current."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from brevitas.errors import SpecError
from brevitas.quant import from_spec, json_schema, to_spec
from brevitas.quant.directives import DIRECTIVES
from brevitas.quant.model_spec import read_model_spec, rules_of
from brevitas.quant.registry import presets, register
from brevitas.quant.rule_sets import rule_sets
from brevitas.utils.located import SpecLocation

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "docs" / "schema" / "brevitas-spec-1.json"


def validator(schema=None):
    return jsonschema.Draft202012Validator(schema or json_schema())


def test_the_published_schema_is_current():
    # In a process of its own: tests of this one register names.
    script = "import json, brevitas.quant; print(json.dumps(brevitas.quant.json_schema(), indent=1))"
    current = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert PUBLISHED.read_text(encoding="utf-8") == current, "run `make docs`"


def test_it_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_is_legal(name):
    assert validator().is_valid({"version": 1, **to_spec(presets()[name])})


SAMPLES = [
    *(True, False, None, "int", "INT", "stats", "statz", "zzz", "brevitas.core.zero_point:ZeroZeroPoint"),
    *(-3, -1, 0, 1, 2, 3, 31, 32, 33, 49, 50, 51, 99, 100, 101, 10**6),
    *(-1.5, -1e-6, 1e-6, 0.5, 1.5, 49.5, 99.9, 100.5),
    *([], [1], [2, 3], [1, 0], [0, 1], ["a"]),
]


@pytest.mark.parametrize("name", [d.name for d in DIRECTIVES.values() if not d.check(object())])
def test_what_the_library_takes_is_legal_and_scalars_agree(name):
    check = validator()
    agreed = 0
    for sample in SAMPLES:
        spec = {"version": 1, "base": "some.module:Quantizer", name: sample}
        try:
            value = from_spec({"base": "brevitas.inject:Injector", name: sample, "_role": None})
            taken = value is not None
        except SpecError as error:
            assert "unknown option" not in str(error)
            taken = False
        legal = check.is_valid(spec)
        assert legal or not taken, f"{name}: {sample!r}"
        if not isinstance(sample, list | float):
            assert legal == taken, f"{name}: {sample!r}, legal by the schema: {legal}"
            agreed += 1
    assert agreed > 20


GOOD = """
version: 1
preset: int8
rules:
  - {type: [Conv2d, Linear], where: [first, bias], weight: {base: Int8WeightPerTensorFloat, bit_width: 4}}
  - {match: 'features.**', bias: null, input: Int8ActPerTensorFloat, layer: {return_quant_tensor: true}}
  - {match: head, weight: {bit_width: {value: 'my.module:function'}}, output: {share: relu.act_quant}}
  - {match: tail, keep: float}
"""

BAD = [
    ("version: 1", "version: 2"),
    ("version: 1\n", ""),
    ("preset: int8", "preset: int88"),
    ("where: [first, bias]", "where: [frist, bias]"),
    ("weight: {base: Int8WeightPerTensorFloat, bit_width: 4}", "weight: {base: Int8ActPerTensorFloat, bit_width: 4}"),
    ("bit_width: 4", "bit_width: 40"),
    ("bit_width: 4", "bit_widht: 4"),
    ("bit_width: 4", "signed: 1"),
    ("bias: null", "bias: false"),
    ("keep: float", "keep: int"),
    ("keep: float", "keep: float, weight: null"),
    (", keep: float", ""),
    ("return_quant_tensor: true", "return_quant_tensor: 1"),
    ("match: head", "matches: head"),
    ("rules:", "steps: []\nrules:"),
    ("share: relu.act_quant", "share: relu.act_quant, bit_width: 3"),
    ("Int8ActPerTensorFloat,", "Int8ActPerTensorFloats,"),
]


def reads(text):
    document = read_model_spec(text, SpecLocation("t.py", 1))
    return document and rules_of(document)


def test_a_good_model_spec_is_legal():
    assert validator().is_valid(yaml.safe_load(GOOD))
    assert reads(GOOD.replace("my.module:function", "os.path:join"))


@pytest.mark.parametrize(("before", "after"), BAD)
def test_the_schema_and_the_library_refuse_the_same(before, after):
    assert before in GOOD
    text = GOOD.replace(before, after, 1).replace("my.module:function", "os.path:join")
    assert not validator().is_valid(yaml.safe_load(text))
    if before.startswith("version: 1\n"):
        return  # only files need a version
    with pytest.raises(SpecError):
        reads(text)


def test_registered_names_are_in_the_schema():
    from brevitas.core.stats import AbsMax

    remove = register("scaling_stats_op", "SCHEMA_TEST", AbsMax)
    try:
        assert validator().is_valid(
            {"version": 1, "base": "Int8WeightPerTensorFloat", "scaling_stats_op": "schema_test"}
        )
    finally:
        remove()
    assert not validator().is_valid(
        {"version": 1, "base": "Int8WeightPerTensorFloat", "scaling_stats_op": "schema_test"}
    )
    assert json_schema()["$defs"]["model"]["properties"]["preset"]["anyOf"][0]["enum"] == list(rule_sets())
