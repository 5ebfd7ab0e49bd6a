"""Quantizers as data: what is written is read back as the same quantizer."""

import sys
import types

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from brevitas.core.scaling import ConstScaling
from brevitas.core.zero_point import ZeroZeroPoint
from brevitas.errors import QuantConfigError, SpecError
from brevitas.inject import ExtendedInjector, this, value
from brevitas.inject.enum import QuantType, ScalingImplType
from brevitas.nn import QuantLinear, QuantReLU
from brevitas.quant import (
    Int8WeightPerTensorFloat,
    Int32Bias,
    IntBias,
    Uint8ActPerTensorFloat,
    from_spec,
    to_spec,
)
from brevitas.quant.base import MaxStatsScaling, NarrowIntQuant, PerTensorFloatScaling8bit
from brevitas.quant.registry import _presets, presets, register_preset
from brevitas.quant.solver import WeightQuantSolver
from brevitas.quant.spec_check import role_of
from brevitas.quant.spec_version import _migrations, migrated, register_migration
from brevitas.utils.located import read_text
from injector import declarations


class Named(Int8WeightPerTensorFloat):
    bit_width = 6


def width_from_layer(module):
    return 3 if module.in_features == 4 else 8


@value
def decorated_width(module):
    return 5


class Computed(Int8WeightPerTensorFloat):
    @value
    def bit_width(module):
        return 7


class Fragment(ExtendedInjector):
    scaling_min_val = 0.5


def layer_with(quantizer):
    torch.manual_seed(0)
    return QuantLinear(4, 3, weight_quant=quantizer)


def facts(value):
    """A resolved value in a form that can be compared: modules by what they are and hold."""
    if isinstance(value, nn.Module):
        state = {name: tensor.tolist() for name, tensor in [*value.named_parameters(), *value.named_buffers()]}
        return repr(value), state
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
        return [facts(item) for item in value]
    return value


def resolved(quantizer):
    records = layer_with(quantizer).weight_quant.resolution().records
    return {name: facts(record.value) for name, record in records.items() if name != "module"}


def same_quantizer(a, b):
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    return resolved(a) == resolved(b) and torch.equal(layer_with(a)(x), layer_with(b)(x))


@pytest.mark.parametrize("name", sorted(presets()))
def test_a_preset_is_its_name(name):
    preset = presets()[name]
    assert to_spec(preset) == {"base": name}
    assert from_spec({"base": name}) is preset and from_spec(name) is preset


def test_every_preset_has_a_role():
    assert {role_of(preset) for preset in presets().values()} >= {"weight", "bias", "act"}


@pytest.mark.parametrize(
    ("quantizer", "spec"),
    [
        (Int8WeightPerTensorFloat.let(bit_width=4), {"base": "Int8WeightPerTensorFloat", "bit_width": 4}),
        (Int8WeightPerTensorFloat.let(bit_width=8), {"base": "Int8WeightPerTensorFloat"}),
        (
            Int8WeightPerTensorFloat.let(scaling_per_output_channel=True).let(bit_width=4),
            {"base": "Int8WeightPerTensorFloat", "bit_width": 4, "scaling_per_output_channel": True},
        ),
        (Int8WeightPerTensorFloat.let(quant_type="int"), {"base": "Int8WeightPerTensorFloat"}),
        (
            Int8WeightPerTensorFloat.let(quant_type="binary"),
            {"base": "Int8WeightPerTensorFloat", "quant_type": "BINARY"},
        ),
        (Named, {"base": f"{__name__}:Named"}),
        (Named.let(bit_width=2), {"base": f"{__name__}:Named", "bit_width": 2}),
        (Computed, {"base": f"{__name__}:Computed"}),
        (Int32Bias.let(bit_width=12), {"base": "Int32Bias", "bit_width": 12}),
        (IntBias.let(bit_width=32), {"base": "IntBias", "bit_width": 32}),
        (
            Uint8ActPerTensorFloat.let(scaling_stats_momentum=None),
            {"base": "Uint8ActPerTensorFloat", "scaling_stats_momentum": None},
        ),
        (
            Int8WeightPerTensorFloat.let(scaling_shape=(3, 1), bit_width=value(width_from_layer)),
            {
                "base": "Int8WeightPerTensorFloat",
                "bit_width": {"value": f"{__name__}:width_from_layer"},
                "scaling_shape": [3, 1],
            },
        ),
        (
            Int8WeightPerTensorFloat.let(bit_width=decorated_width, zero_point_shape=this.scaling_shape),
            {
                "base": "Int8WeightPerTensorFloat",
                "bit_width": {"value": f"{__name__}:decorated_width"},
            },
        ),
        (
            Int8WeightPerTensorFloat.let(bit_width=(this << 1).widths[0]["a"]),
            {"base": "Int8WeightPerTensorFloat", "bit_width": {"link": "(this << 1).widths[0]['a']"}},
        ),
        (
            Int8WeightPerTensorFloat.let(tensor_quant=nn.ReLU),
            {"base": "Int8WeightPerTensorFloat", "tensor_quant": "torch.nn.modules.activation:ReLU"},
        ),
        (
            Int8WeightPerTensorFloat.let(_nested=Int8WeightPerTensorFloat.let(bit_width=2)),
            {"base": "Int8WeightPerTensorFloat", "_nested": {"base": "Int8WeightPerTensorFloat", "bit_width": 2}},
        ),
        (
            Int8WeightPerTensorFloat.let(
                _dtype=torch.float16, _device=torch.device("cuda:1"), _note="a.b:c", _more=[1, {"k": 2.5}]
            ),
            {
                "base": "Int8WeightPerTensorFloat",
                "_device": {"device": "cuda:1"},
                "_dtype": "torch:float16",
                "_more": {"list": [1, {"dict": {"k": 2.5}}]},
                "_note": {"text": "a.b:c"},
            },
        ),
    ],
)
def test_the_smallest_mapping(quantizer, spec):
    assert to_spec(quantizer) == spec
    assert next(iter(to_spec(quantizer))) == "base"
    again = from_spec(yaml.safe_dump(spec))
    declared = declarations(again)
    for name, declaration in declarations(quantizer).items():
        if isinstance(declaration.obj, bool | int | float | str | tuple | list | torch.dtype | torch.device | None):
            assert declared[name].obj == declaration.obj, name
            assert type(declared[name].obj) is type(declaration.obj) or isinstance(declaration.obj, str), name
    assert to_spec(again) == spec


def test_values_are_the_same_objects_of_their_kind():
    tensor = torch.tensor([[0.1], [1e-8], [3.0]])
    quantizer = Int8WeightPerTensorFloat.let(
        scaling_impl_type=ScalingImplType.PARAMETER,
        scaling_init=tensor,
        scaling_shape=(3, 1),
        zero_point_impl=ZeroZeroPoint,
    )
    again = from_spec(yaml.safe_dump(to_spec(quantizer)))
    table = declarations(again)
    assert torch.equal(table["scaling_init"].obj, tensor) and table["scaling_init"].obj.dtype == tensor.dtype
    assert table["scaling_impl_type"].obj is ScalingImplType.PARAMETER
    assert table["scaling_shape"].obj == (3, 1)
    assert "zero_point_impl" not in to_spec(quantizer)
    assert same_quantizer(quantizer, again)


def test_local_classes_are_written_out():
    class Local(Int8WeightPerTensorFloat):
        bit_width = 3

    class Assembled(NarrowIntQuant, MaxStatsScaling, PerTensorFloatScaling8bit, WeightQuantSolver):
        scaling_min_val = 0.1

    class Mixed(Fragment, Int8WeightPerTensorFloat):
        pass

    assert to_spec(Local) == {"base": "Int8WeightPerTensorFloat", "bit_width": 3}
    # A preset that comes to the same is named.
    assert to_spec(Assembled) == {"base": "Int8WeightPerTensorFloat", "scaling_min_val": 0.1}
    # The mixin can be imported, so nothing need be written out.
    assert to_spec(Mixed) == {"base": [f"{__name__}:Fragment", "Int8WeightPerTensorFloat"]}
    for quantizer in (Local, Assembled, Mixed):
        assert same_quantizer(quantizer, from_spec(to_spec(quantizer)))


def test_a_value_in_the_body_of_an_importable_class_is_data():
    class Local(Computed):
        scaling_min_val = 0.1

    table = declarations(Local)
    assert to_spec(Int8WeightPerTensorFloat.let(bit_width=table["bit_width"].obj)) == {
        "base": "Int8WeightPerTensorFloat",
        "bit_width": {"value": f"{__name__}:Computed.bit_width"},
    }
    assert from_spec({"base": "Int8WeightPerTensorFloat", "bit_width": {"value": f"{__name__}:Computed.bit_width"}})


def test_a_script_has_no_importable_classes():
    script = types.ModuleType("__main__")
    exec(
        "from brevitas.quant import Int8WeightPerTensorFloat\nclass Mine(Int8WeightPerTensorFloat):\n  bit_width = 5",
        script.__dict__,
    )
    old = sys.modules["__main__"]
    sys.modules["__main__"] = script
    try:
        assert to_spec(script.Mine) == {"base": "Int8WeightPerTensorFloat", "bit_width": 5}
    finally:
        sys.modules["__main__"] = old


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"bit_width": value(lambda module: 4)}, r"\.bit_width .*the @value function .*<lambda>.*cannot be imported"),
        (
            {"scaling_impl": nn.Linear(1, 1)},
            r"\.scaling_impl .*a module instance with state, Linear, cannot be written",
        ),
        (
            {"float_to_int_impl": nn.Identity()},
            "a module instance, Identity, cannot be written as data; declare its class",
        ),
        ({"scaling_init": nn.Parameter(torch.ones(1))}, "a Parameter is state, not a declaration"),
        ({"helper": lambda x: x}, "the function .*<lambda>.* cannot be imported by its name"),
        ({"zero_point_impl": type("Local", (nn.Module,), {})}, "the class 'Local' cannot be imported by its name"),
        ({"extra": object()}, "a object cannot be written as data"),
        ({"extra": {1: 2}}, "the key 1 of a dict is no text"),
        ({"base": 3}, "the name 'base' is reserved in specs"),
    ],
)
def test_what_cannot_be_data_is_named(overrides, message):
    with pytest.raises(QuantConfigError, match=message) as error:
        to_spec(Int8WeightPerTensorFloat.let(**overrides))
    assert "test_spec.py" in str(error.value) and f"Int8WeightPerTensorFloat.{next(iter(overrides))}" in str(
        error.value
    )


def test_to_spec_takes_quantizers():
    for wrong in (3, nn.Linear, Int8WeightPerTensorFloat.let):
        with pytest.raises(QuantConfigError, match="expected a quantizer class"):
            to_spec(wrong)


def test_registered_presets_are_names():
    class Special(Int8WeightPerTensorFloat):
        bit_width = 5

    register_preset(Special, "SpecialForThisTest")
    try:
        assert to_spec(Special.let(signed=False)) == {"base": "SpecialForThisTest", "signed": False}
        assert from_spec("base: SpecialForThisTest") is Special
    finally:
        del _presets["SpecialForThisTest"]


@given(
    base=st.sampled_from(
        ["Int8WeightPerTensorFloat", "Int8WeightPerChannelFloat", "Int8WeightPerTensorFixedPoint", f"{__name__}:Named"]
    ),
    options=st.fixed_dictionaries(
        {},
        optional={
            "bit_width": st.integers(2, 32),
            "signed": st.booleans(),
            "narrow_range": st.booleans(),
            "scaling_per_output_channel": st.booleans(),
            "float_to_int_impl_type": st.sampled_from(["ROUND", "ceil", "FLOOR", "Round_To_Zero"]),
            "scaling_impl_type": st.sampled_from(["STATS", "AFFINE_STATS", "PARAMETER_FROM_STATS"]),
            "scaling_min_val": st.one_of(st.none(), st.floats(1e-20, 10, allow_subnormal=False)),
            "restrict_scaling_type": st.sampled_from(["FP", "LOG_FP", "POWER_OF_TWO"]),
            "quant_delay_steps": st.integers(0, 2**40),
        },
    ),
)
@settings(max_examples=60)
def test_any_spec_goes_round(base, options):
    quantizer = from_spec({"base": base, **options})
    spec = to_spec(quantizer)
    again = from_spec(yaml.safe_dump(spec))
    assert to_spec(again) == spec
    for name, written in options.items():
        assert declarations(quantizer)[name].obj == written
        # Left out where the base that the spec names, perhaps a shorter one, says the same.
        assert name in spec or declarations(from_spec({"base": spec["base"]}))[name].obj == written
    assert {n: facts(d.obj) for n, d in declarations(again).items()} == {
        n: facts(d.obj) for n, d in declarations(quantizer).items()
    }
    assert same_quantizer(quantizer, again)


def test_the_base_list_wins_from_left_to_right():
    quantizer = from_spec({"base": [f"{__name__}:Fragment", f"{__name__}:Named"], "quant_type": "int"})
    assert (quantizer.scaling_min_val, quantizer.bit_width) == (0.5, 6)


def test_declarations_belong_to_their_lines(tmp_path):
    path = tmp_path / "q.yaml"
    path.write_text("version: 1\nbase: Int8WeightPerTensorFloat\nbit_width: 4\nsigned:   true\n", encoding="utf-8")
    table = declarations(from_spec(path))
    assert str(table["bit_width"].location) == f"{path}:3:1" and str(table["signed"].location) == f"{path}:4:1"
    assert str(declarations(from_spec({"base": "IntBias", "bit_width": 4}))["bit_width"].location).startswith(__file__)
    layer_error = from_spec({"base": "Int8WeightPerTensorFloat", "percentile_q": 99.0})
    with pytest.raises(
        QuantConfigError, match=r"'percentile_q' = 99.0 has no effect(.|\n)*test_spec.py:\d+, percentile_q"
    ):
        layer_with(layer_error)


def test_an_activation_goes_round():
    quantizer = from_spec("{base: Uint8ActPerTensorFloat, bit_width: 3, percentile_q: 9.5e1, collect_stats_steps: 1}")
    x = torch.linspace(-1, 4, 50)
    first, second = QuantReLU(quantizer), QuantReLU(from_spec(to_spec(quantizer)))
    assert torch.equal(first(x), second(x)) and quantizer.percentile_q == 95.0


def test_names_that_only_the_users_own_parts_read_are_legal():
    spec = {"base": "Int8WeightPerTensorFloat", "scaling_impl": f"{__name__}:FactorScaling", "my_factor": 0.5}
    quantizer = from_spec(spec)
    assert to_spec(quantizer) == spec
    assert float(layer_with(quantizer).quant_weight_scale()) == pytest.approx(0.5 / 127)
    with pytest.raises(SpecError, match="unknown option 'my_facto' .*did you mean 'my_factor'"):
        from_spec({**{k: v for k, v in spec.items() if k != "my_factor"}, "my_facto": 0.5})


class FactorScaling(ConstScaling):
    def __init__(self, my_factor):
        super().__init__(my_factor)


def test_migrations_run_in_order():
    with pytest.raises(
        SpecError, match="a.yaml:1:1: version 0 is older than 1, and no migration from it is registered"
    ):
        migrated(read_text("version: 0", "a.yaml"))

    @register_migration(0)
    def rename(document):
        document.put("base", document.pop("preset"), document.place("preset"))
        return document

    try:
        document = migrated(read_text("version: 0\npreset: IntBias", "a.yaml"))
        assert dict(document) == {"version": 1, "base": "IntBias"} and document.where("base") == "a.yaml:2:1"
        assert from_spec("version: 0\npreset: IntBias") is IntBias
        with pytest.raises(QuantConfigError, match="a step from this version already"):
            register_migration(0)
    finally:
        del _migrations[0]
    with pytest.raises(QuantConfigError, match=r"register_migration\(1\): expected a version from 0 to 0"):
        register_migration(1)


def test_enum_members_in_a_dict():
    quantizer = from_spec({"base": "Int8WeightPerTensorFloat", "quant_type": QuantType.BINARY})
    assert declarations(quantizer)["quant_type"].obj is QuantType.BINARY
