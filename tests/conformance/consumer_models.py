"""Networks that the readers of QDQ files are tried on: each has one thing that some of them do not take.

Those with power-of-two scales compute every product and sum exactly in float32, in whatever order: a reader's outputs
are the model's bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from export_networks import LENETS, LeNet, calibrated
from torch import Tensor, nn

from brevitas.nn import (
    QuantAvgPool2d,
    QuantConv1d,
    QuantConv2d,
    QuantConvTranspose2d,
    QuantIdentity,
    QuantLinear,
    QuantReLU,
    QuantSigmoid,
)
from brevitas.quant import (
    Int8ActPerTensorFixedPoint,
    Int8Bias,
    Int8WeightPerChannelFixedPoint,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFixedPoint,
    IntBias,
    TruncTo8bit,
    Uint8ActPerTensorFixedPoint,
)

__all__ = ["NETWORKS", "Network", "images_of", "trained"]


@dataclass(frozen=True)
class Network:
    """How a network is made, the shape of its input, whether its arithmetic is exact in float32, keywords of export."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    exact: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def qt(*args, **kwargs):
    return QuantIdentity(*args, return_quant_tensor=True, **kwargs)


class Residual(nn.Module):
    """A residual block: two convolutions, batch norm, an addition of two branches that share a quantizer."""

    def __init__(self):
        super().__init__()
        self.stem = QuantConv2d(3, 8, 3, padding=1, bias=False, weight_quant=Int8WeightPerChannelFloat)
        self.shared = qt()
        self.relu = QuantReLU(return_quant_tensor=True)
        self.first = QuantConv2d(8, 8, 3, padding=1, bias=False, weight_quant=Int8WeightPerChannelFloat)
        self.bn = nn.BatchNorm2d(8)
        self.second = QuantConv2d(8, 8, 3, padding=1, bias_quant=IntBias)
        self.last = QuantReLU(return_quant_tensor=True)
        self.fc = QuantLinear(8 * 16, 5, bias_quant=IntBias)
        self.inp = qt()

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.stem(self.inp(x)))
        y = self.shared(self.second(self.relu(self.bn(self.first(x)))))
        x = F.max_pool2d(self.last(x + y), 2)
        return self.fc(torch.flatten(x, 1))


def separable() -> nn.Module:
    """Depthwise and pointwise convolutions, strides, and windows whose averages are rounded to 8 bits: many ties."""
    act, signed = {"act_quant": Uint8ActPerTensorFixedPoint, "return_quant_tensor": True}, Int8ActPerTensorFixedPoint
    rounded = TruncTo8bit.let(float_to_int_impl_type="round")
    product = {"weight_quant": Int8WeightPerTensorFixedPoint, "bias_quant": IntBias}
    return nn.Sequential(
        qt(signed),
        QuantConv2d(3, 6, 3, stride=2, padding=1, **product),
        QuantReLU(**act),
        QuantConv2d(6, 6, 3, padding=1, groups=6, weight_quant=Int8WeightPerChannelFixedPoint, bias_quant=IntBias),
        QuantReLU(**act),
        QuantConv2d(6, 8, 1, **product),
        QuantReLU(**act),
        QuantAvgPool2d(2, trunc_quant=rounded, return_quant_tensor=True),
        nn.Flatten(),
        QuantLinear(8 * 4, 5, **product),
    )


def fixed_point() -> nn.Module:
    """Power-of-two scales everywhere, and a quantized output."""
    weight, act, signed = Int8WeightPerTensorFixedPoint, Uint8ActPerTensorFixedPoint, Int8ActPerTensorFixedPoint
    return nn.Sequential(
        qt(signed),
        QuantConv2d(3, 6, 3, padding=1, weight_quant=weight, bias_quant=Int8Bias),
        QuantReLU(act, return_quant_tensor=True),
        nn.MaxPool2d(2),
        QuantConv2d(6, 8, 3, weight_quant=weight, bias_quant=Int8Bias),
        QuantReLU(act, return_quant_tensor=True),
        nn.Flatten(),
        QuantLinear(8 * 4, 10, weight_quant=weight, bias_quant=Int8Bias),
        qt(signed),
    )


def transposed() -> nn.Module:
    """An encoder and a decoder: a transposed convolution doubles the size."""
    return nn.Sequential(
        qt(),
        QuantConv2d(3, 6, 3, stride=2, padding=1, bias_quant=IntBias),
        QuantReLU(return_quant_tensor=True),
        QuantConvTranspose2d(6, 4, 4, stride=2, padding=1, bias_quant=IntBias),
        QuantReLU(return_quant_tensor=True),
        QuantConv2d(4, 2, 3, padding=1, bias_quant=IntBias),
        QuantSigmoid(bit_width=8),
    )


def sixteen_bits() -> nn.Module:
    """Activations of 12 bits and weights of 10: stored in 16."""
    return nn.Sequential(
        qt(bit_width=12),
        QuantConv2d(3, 4, 3, weight_bit_width=10, bias_quant=IntBias),
        QuantReLU(bit_width=12, return_quant_tensor=True),
        nn.Flatten(),
        QuantLinear(4 * 36, 5, bias_quant=IntBias),
    )


def one_dimension() -> nn.Module:
    return nn.Sequential(
        qt(),
        QuantConv1d(3, 8, 5, stride=2, padding=2, bias_quant=IntBias, weight_quant=Int8WeightPerChannelFloat),
        QuantReLU(return_quant_tensor=True),
        QuantConv1d(8, 4, 3, dilation=2, bias_quant=IntBias),
        qt(),
    )


def lenet(name: str, **options: Any) -> Network:
    return Network(lambda: LeNet(**LENETS[name]), (32, 1, 12, 12), options=options)


NETWORKS = {
    "W8A8": lenet("Int8Bias"),
    "per channel": lenet("IntBias, per channel"),
    "zero points": lenet("shifted activations"),
    "W4A4": lenet("W4A4"),
    "W2A2": lenet("W2A2"),
    "W4A4 in int4": lenet("W4A4", sub_byte_types=True),
    "W2A2 in int2": lenet("W2A2", sub_byte_types=True),
    "float bias": lenet("float bias"),
    "power-of-two scales": Network(fixed_point, (32, 3, 8, 8), exact=True),
    "residual": Network(Residual, (32, 3, 8, 8)),
    "depthwise, average pool": Network(separable, (32, 3, 8, 8), exact=True),
    "transposed convolution": Network(transposed, (32, 3, 8, 8)),
    "one dimension": Network(one_dimension, (32, 3, 16)),
    "16 bits": Network(sixteen_bits, (32, 3, 8, 8)),
}


def trained(name: str) -> nn.Module:
    """The network, its statistics collected."""
    torch.manual_seed(7)
    network = NETWORKS[name]
    return calibrated(network.make(), network.shape)


def images_of(name: str) -> Tensor:
    """Inputs that it was not calibrated on."""
    return torch.randn(NETWORKS[name].shape, generator=torch.Generator().manual_seed(3))
