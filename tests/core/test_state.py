"""State: keys, which are a contract, and everything that older checkpoints may hold."""

import copy

import pytest
import torch
from core_catalogue import from_runtime, from_weight, rescaling, shifted_act, unsigned
from torch import nn

from brevitas import config
from brevitas.core.bit_width import BitWidthParameter, BitWidthStatefulConst, MsbClampBitWidth, RemoveBitwidthParameter
from brevitas.core.function_wrapper import OverOutputChannelView, OverTensorView
from brevitas.core.quant import IntQuant, PrescaledRestrictIntQuantWithInputBitWidth
from brevitas.core.scaling import (
    ConstScaling,
    ParameterFromStatsFromParameterScaling,
    ParameterScaling,
    RuntimeStatsScaling,
    StatsFromParameterScaling,
)
from brevitas.core.stats import AbsMax, MeanLearnedSigmaStd
from brevitas.core.stats import running as running_module
from brevitas.core.utils import StatelessBuffer
from brevitas.core.zero_point import ParameterZeroPoint

COLLECTED = {"value", "running_stats", "counter", "initialised"}


def keys(module):
    return set(module.state_dict())


def under(prefix, names):
    return {f"{prefix}.{n}" for n in names}


def runtime_stats(stats=None, affine=False):
    return RuntimeStatsScaling(stats or AbsMax(), OverTensorView(), None, (), affine)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: rescaling(ConstScaling(1.0)), set()),
        (lambda: rescaling(from_weight()), set()),
        (lambda: rescaling(from_weight(several=True)), set()),
        (lambda: rescaling(ParameterScaling(1.0)), {"scaling_impl.value"}),
        (
            lambda: rescaling(from_weight(ParameterFromStatsFromParameterScaling)),
            {"scaling_impl.value", "scaling_impl.initialised"},
        ),
        (lambda: rescaling(from_runtime()), under("scaling_impl", COLLECTED)),
        (lambda: rescaling(runtime_stats()), under("scaling_impl.runtime_stats", COLLECTED - {"value"})),
        (
            lambda: rescaling(from_weight(affine_rescaling=True)),
            under("scaling_impl.stats_scaling_impl.affine_rescaling", {"affine_weight", "affine_bias"}),
        ),
        (
            lambda: rescaling(
                StatsFromParameterScaling(
                    MeanLearnedSigmaStd(1, 2.0, (4, 1)), OverOutputChannelView(), 1, None, None, (4, 1)
                )
            ),
            {"scaling_impl.parameter_list_stats.stats.stats_impl.sigma"},
        ),
        (
            lambda: rescaling(runtime_stats(MeanLearnedSigmaStd(None, 2.0, ()))),
            under("scaling_impl.runtime_stats", COLLECTED - {"value"} | {"stats.stats_impl.sigma"}),
        ),
        (
            lambda: rescaling(ConstScaling(1.0), width=BitWidthParameter(4)),
            {"msb_clamp_bit_width_impl.bit_width_offset"},
        ),
        (
            lambda: rescaling(ConstScaling(1.0), width=BitWidthStatefulConst(4)),
            {"msb_clamp_bit_width_impl.bit_width"},
        ),
        (
            lambda: PrescaledRestrictIntQuantWithInputBitWidth(
                IntQuant(False, True), MsbClampBitWidth(RemoveBitwidthParameter(2))
            ),
            {"msb_clamp_bit_width_impl.bit_width_to_remove_impl.bit_width_coeff"},
        ),
        (
            lambda: rescaling(ConstScaling(1.0), zero_point=ParameterZeroPoint(-1.0, unsigned())),
            {"zero_point_impl.value"},
        ),
        (shifted_act, under("scaling_impl", COLLECTED) | under("zero_point_impl", COLLECTED)),
        (
            lambda: rescaling(ConstScaling(1.0), quant_delay_steps=3),
            {"int_quant.delay_wrapper.delay_impl.steps_left"},
        ),
    ],
)
def test_keys(build, expected):
    assert keys(build()) == expected


def test_types_and_shapes_of_the_state():
    state = rescaling(from_runtime()).state_dict()
    assert state["scaling_impl.value"].shape == (1,)
    assert state["scaling_impl.counter"].dtype == torch.int64 and state["scaling_impl.counter"].item() == 0
    assert state["scaling_impl.initialised"].dtype == torch.bool
    assert state["scaling_impl.running_stats"].item() == 1.0


@pytest.mark.parametrize("key", ["value", "learned_value"])
@pytest.mark.parametrize("stored", [torch.tensor(3.0), torch.tensor([3.0])])
def test_a_value_alone_loads_as_initialised(key, stored):
    quant = rescaling(from_runtime(steps=5))
    given = {
        f"scaling_impl.{key}": stored,
        "zero_hw_sentinel": torch.tensor(0.0),
        "scaling_impl.training": torch.tensor(True),
        "int_quant.zero_hw_sentinel": torch.tensor(0.0),
    }
    before = dict(given)
    quant.load_state_dict(given, strict=True)
    assert given == before
    assert quant.scaling_impl.initialised and quant.scaling_impl.value.tolist() == [3.0]
    assert quant(torch.tensor([100.0]))[1].item() == 3.0 / 128
    follower = from_weight(ParameterFromStatsFromParameterScaling)
    follower.load_state_dict({key: stored})
    assert follower.initialised and follower(torch.ones(4, 3, 2, 2)).item() == 3.0
    parameter = ParameterScaling(1.0)
    parameter.load_state_dict({key: stored})
    assert parameter(torch.zeros(1)).item() == 3.0


def test_a_learned_sigma_of_old():
    module = MeanLearnedSigmaStd(None, 2.0, ())
    module.load_state_dict({"learned_sigma": torch.tensor(5.0)})
    assert module.sigma.tolist() == [5.0]


def test_a_running_estimate_without_counter_is_in_use():
    scaling = runtime_stats()
    scaling.load_state_dict({"runtime_stats.running_stats": torch.tensor(4.0)})
    assert scaling.eval()(torch.zeros(1)).item() == 4.0 and scaling.runtime_stats.initialised
    scaling.train()(torch.tensor([8.0]))
    assert scaling.runtime_stats.running_stats.item() == pytest.approx(4.4)


def test_shapes_that_do_not_match_are_errors():
    scaling = from_runtime(per_channel=True)
    state = copy.deepcopy(scaling.state_dict())
    state["value"] = torch.ones(3)
    with pytest.raises(RuntimeError, match="size mismatch for value"):
        scaling.load_state_dict(state)


def test_missing_keys_are_forgiven_only_on_request(monkeypatch):
    model = nn.ModuleDict({"quant": rescaling(from_runtime()), "layer": nn.Linear(2, 2)})
    layer = {k: v for k, v in model.state_dict().items() if k.startswith("layer")}
    with pytest.raises(RuntimeError, match="scaling_impl.value"):
        model.load_state_dict(layer)
    monkeypatch.setattr(config, "IGNORE_MISSING_KEYS", True)
    model.load_state_dict(layer)
    assert not model["quant"].scaling_impl.initialised
    with pytest.raises(RuntimeError, match="layer.weight"):
        model.load_state_dict({})


def test_stateless_buffers_move_with_the_module_and_are_not_saved():
    buffer = StatelessBuffer(torch.tensor(2.0, requires_grad=True))
    assert not buffer.state_dict() and not buffer().requires_grad
    assert buffer.double()().dtype == torch.float64
    meta = copy.deepcopy(buffer).to("meta")
    assert meta().device.type == "meta"


def test_tracked_parameters_follow_their_layer_when_it_is_copied():
    layer = nn.Linear(3, 2)
    layer.scaling = StatsFromParameterScaling(
        AbsMax(), OverTensorView(), 0, [layer.weight, nn.Parameter(torch.zeros(1))], None, ()
    )
    twin = copy.deepcopy(layer)
    assert twin.scaling.parameter_list_stats.tracked_parameters[0] is twin.weight
    with torch.no_grad():
        twin.weight.fill_(9.0)
    assert twin.scaling(twin.weight).item() == 9.0 and layer.scaling(layer.weight).item() < 9.0
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_a_set_flag_is_remembered_until_something_writes_to_it():
    owner, reads = nn.Module(), []

    class Flag(torch.Tensor):
        """Counts how often it is looked at, which on a device costs a synchronisation."""

        def __bool__(self):
            reads.append(1)
            return super().__bool__()

    flag = torch.tensor(False).as_subclass(Flag)
    is_set = running_module._is_set_remembered
    assert not is_set(owner, flag) and not is_set(owner, flag) and len(reads) == 2
    flag.fill_(True)
    assert all(is_set(owner, flag) for _ in range(5)) and len(reads) == 3
    flag.copy_(torch.tensor(False))  # as load_state_dict does
    assert not is_set(owner, flag)
    flag.fill_(True)
    assert is_set(owner, flag) and is_set(owner, flag) and len(reads) == 5
    assert is_set(owner, torch.tensor(True).as_subclass(Flag)) and len(reads) == 6  # another tensor in its place


@pytest.mark.parametrize("restrict", ["fp", "power_of_two"])
@pytest.mark.parametrize("learned_from", ["parameter", "parameter_from_stats"])
def test_a_running_estimate_becomes_the_learned_value(learned_from, restrict):
    from brevitas.nn import QuantIdentity
    from brevitas.quant import Int8ActPerTensorFloat

    options = {"restrict_scaling_type": restrict}
    source = QuantIdentity(Int8ActPerTensorFloat, scaling_impl_type="stats", **options)
    source(torch.tensor([1.0, -3.0]))
    ranged = {"min_val": -1.0, "max_val": 1.0} if learned_from == "parameter" else {}
    target = QuantIdentity(Int8ActPerTensorFloat, scaling_impl_type=learned_from, **ranged, **options)
    target.load_state_dict(source.state_dict())
    assert target.quant_act_scale().item() == pytest.approx((4.0 if restrict == "power_of_two" else 3.0) / 128)
    target(torch.tensor([100.0]))  # no longer collecting
    assert target.quant_act_scale().item() == pytest.approx((4.0 if restrict == "power_of_two" else 3.0) / 128)
