"""XINT8, the present form of the DPU's models, as AMD Quark writes it: our QDQ file of the same model is its equal."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from environments import environment, run
from torch import nn

from brevitas.export import StdONNXManager, verify
from brevitas.export.verification.runtimes import open_session
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import (
    Int8ActPerTensorFixedPoint,
    Int8BiasPerTensorFixedPointInternalScaling,
    Int8WeightPerTensorFixedPoint,
)

pytestmark = pytest.mark.slow


def float_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()


def quantized_network(read):
    """The same with the quantizers of XINT8, whose activations have the scales of Quark's file."""
    weight, bias = Int8WeightPerTensorFixedPoint, Int8BiasPerTensorFixedPointInternalScaling

    def act(layer, tensor):
        threshold = 128 * float(read[f"{tensor}_scale"])
        fixed = Int8ActPerTensorFixedPoint.let(scaling_impl_type="const", min_val=-threshold, max_val=threshold)
        return layer(fixed, return_quant_tensor=True)

    return nn.Sequential(
        act(QuantIdentity, "input"),
        QuantConv2d(3, 6, 3, padding=1, weight_quant=weight, bias_quant=bias),
        act(QuantReLU, "1.out"),
        nn.MaxPool2d(2),
        QuantConv2d(6, 8, 3, weight_quant=weight, bias_quant=bias),
        act(QuantReLU, "4.out"),
        nn.Flatten(),
        QuantLinear(32, 10, weight_quant=weight, bias_quant=bias),
        act(QuantIdentity, "output"),
    ).eval()


# Layers of the quantized network by those of the float one, and its quantizers by the tensors of the file.
LAYERS = {"0": "1", "3": "4", "6": "7"}
ACTIVATIONS = {"input": "0", "1.out": "2", "4.out": "5", "output": "8"}


@pytest.fixture(scope="module")
def xint8(tmp_path_factory):
    """What Quark writes of the float network."""
    python = environment("quark", heavy=True)
    folder = tmp_path_factory.mktemp("quark")
    samples = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    np.save(folder / "samples.npy", samples.numpy())
    StdONNXManager.export(
        float_network(), (1, 3, 8, 8), folder / "float.onnx", dynamic_axes={"input": {0: "batch"}, "output": [0]}
    )
    run(python, "run_quark.py", [folder / "float.onnx", folder / "samples.npy", folder / "xint8.onnx"])
    return onnx.load(folder / "xint8.onnx")


def constants(proto):
    return {i.name: onnx.numpy_helper.to_array(i) for i in proto.graph.initializer}


@pytest.fixture(scope="module")
def ours(xint8):
    """The quantized network with the float one's weights."""
    model = quantized_network(constants(xint8))
    model.load_state_dict({f"{LAYERS[k[0]]}{k[1:]}": v for k, v in float_network().state_dict().items()})
    return model


@torch.no_grad()
def test_scales_and_integers_are_quark_s(xint8, ours):
    read, layers = constants(xint8), dict(ours.named_children())
    for tensor, layer in ACTIVATIONS.items():
        assert float(layers[layer].quant_act_scale()) == float(read[f"{tensor}_scale"])
        assert read[f"{tensor}_zero_point"] == 128  # uint8: the same numbers as int8 without one
    for name, layer in LAYERS.items():
        assert float(layers[layer].quant_weight_scale()) == float(read[f"{name}.weight_scale"])
        assert float(layers[layer].quant_bias_scale()) == float(read[f"{name}.bias_scale"])
        assert np.array_equal(layers[layer].int_weight().numpy(), read[f"{name}.weight_quantized"])
        assert np.array_equal(layers[layer].int_bias().numpy(), read[f"{name}.bias_quantized"])


def test_the_files_have_one_form_and_compute_the_same(xint8, ours):
    x = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    proto = StdONNXManager.export(ours, (1, 3, 8, 8), dynamic_axes={"input": {0: "batch"}})
    report = verify(ours, proto, x)
    assert report.diverged == 0 and report.ties == 0, str(report)

    def form(model):
        return Counter(node.op_type for node in model.graph.node)

    assert form(proto) == form(xint8)
    held = constants(proto)
    for node in (n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in held):
        assert held[node.input[0]].dtype == np.int8 and held[node.input[1]].ndim == 0
    theirs = open_session("onnxruntime", xint8)({"input": x.numpy()})["output"]
    for runtime in ("onnxruntime", "onnxruntime-optimized", "reference"):
        assert np.array_equal(open_session(runtime, proto)({"input": x.numpy()})["output"], theirs)
