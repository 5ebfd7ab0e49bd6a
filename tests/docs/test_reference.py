"""The reference is what the generator writes, and says of each option and preset what is true."""

import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from brevitas.errors import QuantConfigError
from brevitas.export import Violation, list_targets
from brevitas.inject import value
from brevitas.nn import QuantConv2d, QuantIdentity
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat
from brevitas.quant.directives import DIRECTIVES
from brevitas.quant.registry import meanings, presets, register

ROOT = Path(__file__).resolve().parents[2]
GENERATOR = ROOT / "docs" / "generate"


@pytest.fixture(scope="module")
def generator():
    """Loads a module of the generator."""
    sys.path.insert(0, str(GENERATOR))
    yield importlib.import_module
    sys.path.remove(str(GENERATOR))


def committed(name: str) -> str:
    return (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")


@pytest.mark.slow
def test_committed_pages_are_what_the_generator_writes(generator):
    spec = importlib.util.spec_from_file_location("generate_reference", GENERATOR / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for path, text in module.pages().items():
        assert (ROOT / "docs" / path).read_text(encoding="utf-8") == text, f"docs/{path} is old; run `make docs`"


def test_every_option_and_preset_has_a_section():
    assert re.findall(r"^## `(\w+)`$", committed("options.md"), re.MULTILINE) == list(DIRECTIVES)
    sections = re.findall(r"^### `(\w+)`$", committed("presets.md"), re.MULTILINE)
    assert sorted(sections) == sorted(presets())


def test_links_lead_to_sections():
    for page, other in (("options.md", "options.md"), ("presets.md", "presets.md"), ("presets.md", "options.md")):
        prefix = "" if page == other else other
        slugs = {name.lower() for name in re.findall(r"^##+ `(\w+)`$", committed(other), re.MULTILINE)}
        linked = set(re.findall(rf"\({re.escape(prefix)}#(\w+)\)", committed(page)))
        assert linked <= slugs
    assert re.search(r"\(options.md#max_val\)", committed("presets.md"))


@pytest.mark.parametrize("name", [d.name for d in DIRECTIVES.values() if d.enum is not None])
def test_every_member_is_explained(generator, name):
    directive = DIRECTIVES[name]
    docs = generator("ref_options").member_docs(directive.enum)
    assert set(docs) == set(directive.enum.__members__)
    section = committed("options.md").split(f"\n## `{name}`\n")[1].split("\n## ")[0]
    for member in directive.enum:
        if directive.check(member.name):
            assert f"| `{member.name}` | {docs[member.name]} |" in section


def test_registered_values_appear_with_what_their_class_says(generator):
    options = generator("ref_options")

    class AbsThird(torch.nn.Module):
        """A third of the largest magnitude. For this test."""

        def forward(self, x):
            return x.abs().max() / 3

    remove = register("scaling_stats_op", "ABS_THIRD", AbsThird, roles=["weight"])
    try:
        text = options._value_table(DIRECTIVES["scaling_stats_op"], {})
    finally:
        remove()
    assert "| `ABS_THIRD` | A third of the largest magnitude | `AbsThird` |" in text


def test_meanings_are_the_modules_that_a_layer_gets():
    for name, meaning in meanings("scaling_stats_op", "weight").items():
        if isinstance(meaning, str):
            continue
        layer = QuantConv2d(2, 2, 1, weight_quant=Int8WeightPerTensorFloat.let(scaling_stats_op=name, **extra(name)))
        assert type(layer.weight_quant.resolution().records["scaling_stats_impl"].value) is meaning
    assert isinstance(meanings("scaling_impl_type", "act")["HE"], str)
    with pytest.raises(QuantConfigError, match="Did you mean 'scaling_impl_type'"):
        meanings("scaling_imp_type", "act")


def extra(name: str) -> dict:
    return {"sigma": 3.0} if "SIGMA" in name else {}


# What a preset is, read off its resolution


def entry(generator, quantizer):
    module = generator("ref_presets")
    records, needs = generator("ref_common").completed(quantizer, generator("ref_common").records_of)
    role = generator("ref_common").role_of(quantizer)
    return module, module.Entry(quantizer.__name__, quantizer, role, records, tuple(needs))


def test_missing_options_are_found_and_named(generator):
    class Fixed(Int8ActPerTensorFloat):
        scaling_impl_type = "const"

    _, found = entry(generator, Fixed)
    assert sorted(found.needs) == ["max_val", "min_val"]

    class Wrong(Int8ActPerTensorFloat):
        bit_width = 0

    with pytest.raises(QuantConfigError, match="bit_width"):
        entry(generator, Wrong)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("width", [2, 5, 8])
def test_ranges_are_those_of_the_layer(generator, signed, narrow, width):
    quantizer = Int8ActPerTensorFloat.let(
        signed=signed,
        narrow_range=narrow,
        bit_width=width,
        scaling_impl_type="const",
        min_val=-1.0 * signed,
        max_val=1.0,
    )
    module, found = entry(generator, quantizer)
    layer = QuantIdentity(act_quant=quantizer, return_quant_tensor=True).eval()
    low, high = (layer(torch.tensor(x)).int().item() for x in (-100.0, 100.0))
    assert module.codes(found) == f"[{low}, {high}]" and module.bits(found) == str(width)


def test_computed_settings_have_no_value_of_one_layer(generator):
    class Computed(Int8WeightPerTensorFloat):
        @value
        def bit_width(module):
            return module.out_channels

    module, found = entry(generator, Computed)
    assert "`bit_width = ...`" in module._settings(found) and "`quant_type = INT`" in module._settings(found)


# Verdicts


@pytest.mark.slow
def test_verdicts_are_those_of_single_layers(generator):
    exports = generator("ref_exports")
    layers = {
        "plain": exports.layer_with("weight", Int8WeightPerTensorFloat),
        "floor": exports.layer_with("act", Int8ActPerTensorFloat.let(float_to_int_impl_type="floor")),
    }
    found = exports.verdicts(layers)
    assert found["plain"].takes == ["finn", "qdq", "qonnx"] and found["plain"].refuses["qop"].code == "E28"
    assert found["floor"].takes == ["finn", "qonnx"] and found["floor"].refuses["qdq"].code == "E27"
    told = generator("ref_common").told
    assert told(found["plain"]).startswith("finn, qdq, qonnx; not dpuv1, dpuv2 (E14: scale ")
    assert told(found["floor"]) == "finn, qonnx; not dpuv1, dpuv2, qdq, qop, torch (E27: rounding FLOOR)"


@pytest.mark.slow
@pytest.mark.parametrize("place", ["layers.bad.act_quant", ""], ids=["named", "found by halves"])
def test_a_layer_that_cannot_be_captured_is_refused_by_all_and_spares_the_others(generator, monkeypatch, place):
    exports = generator("ref_exports")
    real, captured = exports.capture, []

    def refuse(bench, *args, **kwargs):
        captured.append(set(bench.layers))
        if "bad" in bench.layers:
            error = exports.ExportError("refused")
            error.violations = [Violation("E24", "qdq", "a kind", "another", "none", layer=place)]
            raise error
        return real(bench, *args, **kwargs)

    monkeypatch.setattr(exports, "capture", refuse)
    layers = {name: exports.layer_with("act", Int8ActPerTensorFloat) for name in ("bad", "like_bad")}
    layers["good"] = exports.layer_with("weight", Int8WeightPerTensorFloat)
    found = exports.verdicts(layers)
    for name in ("bad", "like_bad"):
        assert not found[name].takes and sorted(found[name].refuses) == list_targets()
    assert not any("like_bad" in names for names in captured)
    assert found["good"].takes == ["finn", "qdq", "qonnx"]
