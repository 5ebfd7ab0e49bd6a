"""No preset without a reference."""

import reference_table as table

from brevitas.quant import registry

# Each table, and the tests that go through all of its presets.
TABLES = {
    "WEIGHTS": "test_reference_weights.test_weight",
    "MX_WEIGHTS": "test_reference_weights.test_weight",
    "ACTS": "test_reference_acts.test_activation",
    "RANGE_ACTS": "test_reference_acts.test_activation_of_a_declared_range",
    "MX_ACTS": "test_reference_acts.test_groups_of_an_activation",
    "BINARY": "test_reference_special.test_binary",
    "DECOUPLED": "test_reference_special.test_decoupled",
    "NORMALISED": "test_reference_special.test_weight_norm",
    "BIASES": "test_reference_special.test_bias_on_the_accumulators_grid",
    "INTERNAL_BIASES": "test_reference_special.test_bias_with_its_own_scale",
    "TRUNCATIONS": "test_reference_accumulator.test_truncation",
    "OFF": "test_reference_special.test_off_is_the_identity",
    "MINIFLOATS": "test_reference_minifloat.test_minifloat_weight, test_minifloat_activation",
    "MX_FLOATS": "test_reference_minifloat.test_microscaling_floats",
}


def test_every_preset_has_one_reference():
    referenced = [name for key in TABLES for name in getattr(table, key)]
    library = {name for name, preset in registry.presets().items() if preset.__module__.startswith("brevitas.")}
    assert set(referenced) >= library, f"presets without a reference: {sorted(library - set(referenced))}"
    assert set(referenced) <= library, f"references of no preset: {sorted(set(referenced) - library)}"
    assert len(referenced) == len(set(referenced))


def test_every_table_is_tested():
    import test_reference_accumulator as accumulator
    import test_reference_acts as acts
    import test_reference_minifloat as minifloat
    import test_reference_special as special
    import test_reference_weights as weights

    modules = {m.__name__: m for m in (accumulator, acts, minifloat, special, weights)}
    for key, tests in TABLES.items():
        module, _, names = tests.partition(".")
        covered = set()
        for name in names.split(", "):
            for mark in getattr(modules[module], name).pytestmark:
                if mark.name == "parametrize" and "name" in str(mark.args[0]):
                    covered |= {v[0] if isinstance(v, tuple) else v for v in mark.args[1]}
        assert set(getattr(table, key)) <= covered, f"{tests} leaves out presets of {key}"
