"""The causes that verify names, on artifacts that were changed on purpose."""

import numpy as np
import onnx
import pytest
import torch
from export_networks import node_named
from onnx import numpy_helper
from torch import nn

from brevitas import quant
from brevitas.export import StdONNXManager, verify
from brevitas.export.verification.causes import cause_of
from brevitas.nn import QuantConv2d, QuantIdentity, QuantReLU


@pytest.fixture(scope="module")
def exported():
    torch.manual_seed(0)
    model = nn.Sequential(
        QuantIdentity(return_quant_tensor=True),
        QuantConv2d(2, 3, 3, padding=1, bias_quant=quant.Int16Bias, weight_bit_width=4),
        QuantReLU(bit_width=4),
    )
    x = torch.randn(4, 2, 9, 9)
    model.train()(x)
    model.eval()(x)
    model[2].act_quant.tensor_quant.scaling_impl.running_stats.mul_(0.5)  # so that codes are clamped
    return model, StdONNXManager.export(model, input_t=x), x


def changed(proto, change):
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    change(copy)
    return copy


def cause(exported, change):
    model, proto, x = exported
    report = verify(model, changed(proto, change), x)
    row = report.first_divergence
    assert row.quantizer == "2.act_quant" and not report.ok
    return set(row.causes) - {"rounding tie"}


def replaced(proto, name, function):
    (tensor,) = [t for t in proto.graph.initializer if t.name == name]
    tensor.CopyFrom(numpy_helper.from_array(function(numpy_helper.to_array(tensor)), name))


def test_a_missing_clip(exported):
    def change(proto):
        clip = node_named(proto, "2.act_quant.clip")
        for node in proto.graph.node:
            for i, name in enumerate(node.input):
                if name == clip.output[0]:
                    node.input[i] = clip.input[0]
        proto.graph.node.remove(clip)

    assert cause(exported, change) == {"clip: codes outside 0..15"}


def test_a_clip_that_is_too_tight(exported):
    found = cause(exported, lambda proto: replaced(proto, "2.act_max", lambda a: a - 4))
    assert found == {"clip: codes stop at 0..11, those of the model reach further"}


def test_padding(exported):
    def change(proto):
        pad = np.array([0, 0, 1, 1, 0, 0, 1, 1])
        proto.graph.initializer.append(numpy_helper.from_array(pad, "pads"))
        proto.graph.initializer.append(numpy_helper.from_array(np.float32(1.0), "one"))
        conv = node_named(proto, "1")
        node = onnx.helper.make_node("Pad", [conv.input[0], "pads", "one"], ["padded"])
        proto.graph.node.insert(list(proto.graph.node).index(conv), node)
        conv.input[0] = "padded"
        for attribute in conv.attribute:
            if attribute.name == "pads":
                attribute.ints[:] = [0, 0, 0, 0]

    assert cause(exported, change) == {"padding: only values at the border differ"}


def test_a_bias_of_another_scale(exported):
    model, proto, x = exported
    with torch.no_grad():
        shift = 3.0 / float(model[1].quant_bias_scale().detach()) * float(model[2].quant_act_scale().detach())

    def change(copy):
        name = next(
            t.name for t in copy.graph.initializer if t.name.startswith("1.bias") and t.dims and t.data_type == 6
        )
        replaced(copy, name, lambda a: (a + np.int32(shift)).astype(np.int32))

    report = verify(model, changed(proto, change), x)
    row = next(r for r in report.rows if r.quantizer == "2.act_quant")
    assert set(row.causes) - {"rounding tie"} == {"bias or its scale: channels are moved by one number"}


def test_noise_has_no_name():
    rng = np.random.default_rng(0)
    ours = rng.integers(0, 16, (2, 3, 8, 8))
    theirs = np.clip(ours + rng.integers(-3, 4, ours.shape), 0, 15)
    assert cause_of(ours, theirs, ours != theirs, 0, 15) == "off a tie"
