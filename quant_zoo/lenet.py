"""The digits network of the demo: float, quantized, and the quantizers that it declares.

    >>> import torch, quant_zoo
    >>> model = quant_zoo.load("lenet", weight_bit_width=4, act_bit_width=4)
    >>> model(torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 10])

Both classes give their parameters the same names, so the weights of one load into the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import Int8WeightPerChannelFloat, IntBias
from injector import value

__all__ = ["LeNet", "LeNetBias", "LeNetWeight", "QuantLeNet"]

KERNEL_SIZE = 5
IMAGE_SIZE = 28


class LeNetWeight(Int8WeightPerChannelFloat):
    """4-bit weights, one scale a channel: the preset with two attributes overridden.

    At two bits the codes are -1, 0 and 1. With the largest weight as threshold nearly all of them round to 0, so the
    threshold is then the mean magnitude.
    """

    bit_width = 4

    @value
    def scaling_stats_op(bit_width):
        """MAX, or AVE where only three codes exist."""
        return "AVE" if bit_width == 2 else "MAX"


class LeNetBias(IntBias):
    """Bias codes in units of the accumulator, as wide as the accumulators of common hardware, so none saturates."""

    bit_width = 32


class LeNet(nn.Module):
    """The network in float. Input (N, 1, 28, 28), values in [0, 1]; output: N rows of ``classes`` logits."""

    def __init__(self, channels: Sequence[int] = (16, 32), hidden_features: int = 64, classes: int = 10) -> None:
        super().__init__()
        first, second = channels
        self.conv1 = nn.Conv2d(1, first, KERNEL_SIZE)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(first, second, KERNEL_SIZE)
        self.relu2 = nn.ReLU()
        self.fc1 = nn.Linear(flat_features(second), hidden_features)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(hidden_features, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of a batch of images."""
        x = F.max_pool2d(self.relu1(self.conv1(image)), 2)
        x = F.max_pool2d(self.relu2(self.conv2(x)), 2)
        x = self.relu3(self.fc1(torch.flatten(x, 1)))
        return self.fc2(x)


class QuantLeNet(nn.Module):
    """The network with quantized input, weights, biases and activations; shapes as :class:`LeNet`.

    Every tensor between two layers is a ``QuantTensor``: codes with the scale that the next layer's bias needs. The
    logits are a plain tensor.

    Args:
        input_quant, weight_quant, bias_quant, act_quant: quantizer classes, each built anew in every layer.
        channels, hidden_features, classes: as in :class:`LeNet`.
    """

    def __init__(
        self,
        input_quant: type,
        weight_quant: type,
        bias_quant: type,
        act_quant: type,
        channels: Sequence[int] = (16, 32),
        hidden_features: int = 64,
        classes: int = 10,
    ) -> None:
        super().__init__()
        first, second = channels
        self.quant_input = QuantIdentity(act_quant=input_quant, return_quant_tensor=True)
        self.conv1 = QuantConv2d(1, first, KERNEL_SIZE, weight_quant=weight_quant, bias_quant=bias_quant)
        self.relu1 = QuantReLU(act_quant=act_quant, return_quant_tensor=True)
        self.conv2 = QuantConv2d(first, second, KERNEL_SIZE, weight_quant=weight_quant, bias_quant=bias_quant)
        self.relu2 = QuantReLU(act_quant=act_quant, return_quant_tensor=True)
        self.fc1 = QuantLinear(flat_features(second), hidden_features, weight_quant=weight_quant, bias_quant=bias_quant)
        self.relu3 = QuantReLU(act_quant=act_quant, return_quant_tensor=True)
        self.fc2 = QuantLinear(hidden_features, classes, weight_quant=weight_quant, bias_quant=bias_quant)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of a batch of images."""
        x = self.quant_input(image)
        x = F.max_pool2d(self.relu1(self.conv1(x)), 2)
        x = F.max_pool2d(self.relu2(self.conv2(x)), 2)
        x = self.relu3(self.fc1(torch.flatten(x, 1)))
        return self.fc2(x)


def flat_features(channels: int) -> int:
    """Features that enter the first linear layer: two convolutions without padding, each followed by 2×2 pooling."""
    size = IMAGE_SIZE
    for _ in range(2):
        size = (size - KERNEL_SIZE + 1) // 2
    return channels * size * size
