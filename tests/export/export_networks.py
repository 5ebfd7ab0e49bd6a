"""Small calibrated networks for the export tests, and helpers to look into exported graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import (
    Int8ActPerTensorFixedPoint,
    Int8ActPerTensorFloat,
    Int8Bias,
    Int8BiasPerTensorFloatInternalScaling,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFixedPoint,
    Int8WeightPerTensorFloat,
    IntBias,
    ShiftedUint8ActPerTensorFloat,
    ShiftedUint8WeightPerTensorFloat,
    Uint8ActPerTensorFixedPoint,
    Uint8ActPerTensorFloat,
)

IMAGE = (1, 1, 12, 12)


class LeNet(nn.Module):
    """Two convolutions with pooling and two linear layers, as in the LeNet of the demo, on 12 x 12 images."""

    def __init__(
        self,
        weight: Any = Int8WeightPerTensorFloat,
        act: Any = Uint8ActPerTensorFloat,
        inputs: Any = Int8ActPerTensorFloat,
        bias: Any = None,
        weight_bits: int | None = None,
        act_bits: int | None = None,
        first_bias: Any = "same",
    ) -> None:
        super().__init__()
        w = {} if weight_bits is None else {"weight_bit_width": weight_bits}
        a = {} if act_bits is None else {"bit_width": act_bits}
        self.quant_inp = QuantIdentity(act_quant=inputs, return_quant_tensor=True)
        first = bias if first_bias == "same" else first_bias
        self.conv1 = QuantConv2d(1, 4, 3, padding=1, weight_quant=weight, bias_quant=first, **w)
        self.relu1 = QuantReLU(act_quant=act, return_quant_tensor=True, **a)
        self.conv2 = QuantConv2d(4, 8, 3, weight_quant=weight, bias_quant=bias, **w)
        self.relu2 = QuantReLU(act_quant=act, return_quant_tensor=True, **a)
        self.fc1 = QuantLinear(8 * 2 * 2, 24, weight_quant=weight, bias_quant=bias, **w)
        self.relu3 = QuantReLU(act_quant=act, return_quant_tensor=True, **a)
        self.fc2 = QuantLinear(24, 10, weight_quant=weight, bias_quant=bias, **w)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.relu1(self.conv1(self.quant_inp(x))), 2)
        x = F.max_pool2d(self.relu2(self.conv2(x)), 2)
        return self.fc2(self.relu3(self.fc1(torch.flatten(x, 1))))


LENETS: dict[str, dict[str, Any]] = {
    "float bias": {},
    "IntBias, per channel": {"weight": Int8WeightPerChannelFloat, "bias": IntBias},
    "Int8Bias": {"bias": Int8Bias},
    "bias with its own scale": {"bias": Int8BiasPerTensorFloatInternalScaling},
    "shifted activations": {
        "act": ShiftedUint8ActPerTensorFloat,
        "inputs": ShiftedUint8ActPerTensorFloat,
        "bias": IntBias,
    },
    "shifted weights": {"weight": ShiftedUint8WeightPerTensorFloat},
    "fixed point": {
        "weight": Int8WeightPerTensorFixedPoint,
        "act": Uint8ActPerTensorFixedPoint,
        "inputs": Int8ActPerTensorFixedPoint,
        "bias": Int8Bias,
    },
    "W4A4": {"weight_bits": 4, "act_bits": 4, "bias": IntBias},
    "W2A2": {"weight_bits": 2, "act_bits": 2, "bias": IntBias},
    "W3A7": {"weight_bits": 3, "act_bits": 7},
}


def calibrated(model: nn.Module, *shapes: tuple[int, ...], seed: int = 0) -> nn.Module:
    """The model after three batches in training mode and one in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(*(torch.randn(shape, generator=generator) for shape in shapes))
        model.eval()
        model(*(torch.randn(shape, generator=generator) for shape in shapes))
    return model


def lenet(name: str) -> nn.Module:
    torch.manual_seed(7)
    return calibrated(LeNet(**LENETS[name]), (32, *IMAGE[1:]))


class Composed(nn.Module):
    """A model from parts and a function of (parts, inputs)."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self._function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *inputs: Any) -> Any:
        return self._function(self, *inputs)


def images(count: int, seed: int = 3) -> Tensor:
    return torch.randn((count, *IMAGE[1:]), generator=torch.Generator().manual_seed(seed))


def op_types(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def initializers(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {i.name: onnx.numpy_helper.to_array(i) for i in proto.graph.initializer}


def node_named(proto: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in proto.graph.node if node.name == name)


def attribute(node: onnx.NodeProto, name: str) -> Any:
    return next(onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name)


def metadata(node: onnx.NodeProto) -> dict[str, str]:
    return {p.key: p.value for p in node.metadata_props}
