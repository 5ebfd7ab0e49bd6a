"""Loggers of bit widths, questions about quantizers, containers, enums, patches, TorchScript helpers."""

import copy
import pickle
from collections import namedtuple
from enum import auto
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from brevitas.errors import QuantConfigError
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantMultiheadAttention, QuantReLU
from brevitas.quant import (
    Fp8e4m3WeightPerTensorFloat,
    Int8ActPerTensorFloat,
    Int8Bias,
    SignedBinaryWeightPerTensorConst,
)
from brevitas.utils.jit_utils import is_scripted
from brevitas.utils.logging import LogActivationBitWidth, LogWeightBitWidth
from brevitas.utils.python_utils import AutoName, patch
from brevitas.utils.quant_utils import has_learned_activation_bit_width, has_learned_weight_bit_width
from brevitas.utils.recording import Recording
from brevitas.utils.torch_utils import TupleSequential


def learned(bits, prefix=""):
    return {f"{prefix}bit_width_impl_type": "parameter", f"{prefix}bit_width": bits}


def net():
    return nn.Sequential(
        QuantIdentity(**learned(6)),
        QuantLinear(3, 4, **learned(5, "weight_")),
        QuantReLU(),
        QuantLinear(4, 2, input_quant=Int8ActPerTensorFloat, **learned(7, "input_")),
    )


# --- Learned bit widths -----------------------------------------------------------------------------------------------


def test_which_widths_are_learned():
    model = net()
    names = dict(model.named_modules())
    assert [n for n, m in names.items() if has_learned_weight_bit_width(m)] == ["1.weight_quant"]
    assert [n for n, m in names.items() if has_learned_activation_bit_width(m)] == ["0.act_quant", "3.input_quant"]


@pytest.mark.parametrize(
    "layer",
    [
        QuantLinear(3, 2, weight_quant=None),
        QuantLinear(3, 2, weight_quant=SignedBinaryWeightPerTensorConst),
        QuantLinear(3, 2, weight_quant=Fp8e4m3WeightPerTensorFloat),
        QuantLinear(3, 2, weight_bit_width_impl_type="const", input_quant=Int8ActPerTensorFloat, bias_quant=Int8Bias),
        QuantReLU(act_quant=None),
    ],
)
def test_other_widths_are_not_learned(layer):
    assert not any(has_learned_weight_bit_width(m) or has_learned_activation_bit_width(m) for m in layer.modules())
    assert not has_learned_weight_bit_width(None) and not has_learned_activation_bit_width("act")


def test_quantizers_inside_a_layer_count_too():
    attention = QuantMultiheadAttention(4, 2, **learned(4, "in_proj_weight_"), **learned(3, "v_"))
    names = dict(attention.named_modules())
    assert [n for n, m in names.items() if has_learned_weight_bit_width(m)] == ["in_proj.weight_quant"]
    assert [n for n, m in names.items() if has_learned_activation_bit_width(m)] == ["v_quant"]


# --- Loggers ----------------------------------------------------------------------------------------------------------


def test_loggers_tell_the_widths_of_the_last_forward():
    model = net()
    weights, activations = LogWeightBitWidth(model), LogActivationBitWidth(model)
    assert weights.log() == {} and activations.log() == {}
    model(torch.randn(2, 3))
    assert weights.log() == {"1.weight_quant": 5.0}
    assert activations.log() == {"0.act_quant": 6.0, "3.input_quant": 7.0}
    with torch.no_grad():
        # The offset counts from 2, the least width.
        model[1].weight_quant.tensor_quant.msb_clamp_bit_width_impl.bit_width_offset.fill_(1.2)
    assert weights.log() == {"1.weight_quant": 5.0}
    model(torch.randn(2, 3))
    assert weights.log() == {"1.weight_quant": 3.0}
    assert not weights.bit_width_dict["1.weight_quant"].requires_grad
    weights.remove()
    model(torch.randn(2, 3))
    assert len(model[1].weight_quant._forward_hooks) == 0


@pytest.mark.parametrize("logger", [LogWeightBitWidth, LogActivationBitWidth])
def test_loggers_want_something_to_log(logger):
    with pytest.raises(
        QuantConfigError, match=f"{logger.__name__}: no quantizer of QuantConv2d has a learned .*; set bit"
    ):
        logger(QuantConv2d(1, 1, 1))
    with pytest.raises(QuantConfigError, match="expected a torch.nn.Module, got None"):
        logger(None)


def test_a_recording_stays_with_its_model_and_counts_once():
    seen = []
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    recording = Recording({"relu": model[1]}, lambda name, module, out: seen.append((name, module)))
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        each(torch.randn(3, 2))
    assert seen == [("relu", model[1])]
    checkpoint(model, torch.randn(3, 2), use_reentrant=False).sum().backward()
    assert len(seen) == 2
    recording.remove()
    model(torch.randn(3, 2))
    assert len(seen) == 2


# --- Containers, enums, patches ---------------------------------------------------------------------------------------


class Swap(nn.Module):
    def forward(self, a, b):
        return b, a


class Join(nn.Module):
    def forward(self, a, b):
        return torch.cat([a, b], -1)


Pair = namedtuple("Pair", "a b")


class MakePair(nn.Module):
    def forward(self, a, b):
        return Pair(a, b)


def test_tuple_sequential():
    a, b = torch.zeros(1, 2), torch.ones(1, 3)
    assert torch.equal(TupleSequential(Swap(), Join(), nn.Identity())(a, b), torch.cat([b, a], -1))
    assert TupleSequential()(a) is a and TupleSequential()(a, b) == (a, b)
    assert isinstance(TupleSequential(MakePair(), nn.Identity())(a, b), Pair)
    with pytest.raises(TypeError):
        TupleSequential(Join(), Join())(a, b)
    model = TupleSequential(Swap(), Join(), nn.Linear(5, 2))
    assert list(model.state_dict()) == ["2.weight", "2.bias"] and len(model[1:]) == 2
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(a, b), model(a, b))


class Colour(AutoName):
    RED = auto()
    DARK_BLUE = auto()


def test_auto_name():
    assert [c.value for c in Colour] == ["RED", "DARK_BLUE"] and str(Colour.RED) == "RED"
    assert Colour.RED == "red" and "Dark_Blue" == Colour.DARK_BLUE and Colour.RED != "blue"
    assert Colour.RED != Colour.DARK_BLUE and {Colour.RED: 1}[Colour.RED] == 1
    assert Colour("RED") is Colour.RED and pickle.loads(pickle.dumps(Colour.RED)) is Colour.RED
    with pytest.raises(ValueError, match="GREEN"):
        Colour("GREEN")


def test_patch_restores_what_was_there_even_after_an_error():
    place = SimpleNamespace(a=1)
    with patch(place, "a", 2) as same:
        assert same is place and place.a == 2
    assert place.a == 1
    with pytest.raises(KeyError), patch(place, "a", 3):
        raise KeyError
    assert place.a == 1
    with pytest.raises(AttributeError, match="no attribute 'b'"), patch(place, "b", 3):
        pass
    assert not hasattr(place, "b")


# --- TorchScript ------------------------------------------------------------------------------------------------------


def twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def test_scripted_and_traced_things_are_told_apart_from_plain_ones():
    relu = nn.ReLU()
    assert is_scripted(torch.jit.script(relu)) and is_scripted(torch.jit.trace(relu, torch.zeros(2)))
    assert is_scripted(torch.jit.script(twice))
    assert not is_scripted(relu) and not is_scripted(twice) and not is_scripted(torch.compile(relu))
