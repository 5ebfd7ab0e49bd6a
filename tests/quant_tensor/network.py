"""A small model whose forward runs through every kind of function of a QuantTensor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brevitas.function import int_quant
from brevitas.quant_tensor import QuantTensor, Source


class Quantizer(nn.Module):
    """Signed 8-bit quantization to a scale that is learned, one or one a channel."""

    def __init__(self, *scale: float, name: str = "Quantizer") -> None:
        super().__init__()
        shape = (1, -1, 1, 1) if len(scale) > 1 else ()
        self.scale = nn.Parameter(torch.tensor(scale).reshape(shape))
        self.register_buffer("zero_point", torch.zeros(()))
        self.register_buffer("bit_width", torch.tensor(8.0))
        self.source = Source.new(name, shifted=False)

    def forward(self, x: Tensor) -> QuantTensor:
        value = int_quant(x, self.scale, self.zero_point, self.bit_width, True, False)
        return QuantTensor(
            value, self.scale, self.zero_point, self.bit_width, True, training=self.training, source=self.source
        )


class Network(nn.Module):
    """Input (N, 4, 8, 8); gives logits, a reduction of all metadata, and a QuantTensor."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.other = Quantizer(0.05), Quantizer(0.05)
        self.channels = Quantizer(0.025, 0.05, 0.1, 0.2)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.body = nn.Sequential(
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.ReLU6(),
            nn.ZeroPad2d(1),
            nn.Dropout(0.0),
            nn.Upsample(scale_factor=2),
        )
        self.head = nn.Linear(576, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, QuantTensor]:
        a, b = self.shared(self.conv(x)), self.shared(x)
        total = a + b + self.other(x) - (-a)
        product = abs(total) * b
        channels = self.channels(x).permute(0, 2, 3, 1).unsqueeze(1).squeeze(1).movedim(-1, 1)
        first, second = channels.chunk(2, 1)
        channels = torch.cat([second, first[:, :1], self.channels(x)[:, :1]], 1).reshape(x.shape[0], 2, 2, 8, 8)
        image = self.body(self.shared(product.value) + self.shared(x))
        inner = torch.matmul(image, image.transpose(-1, -2))
        stacked = torch.stack([a, b], 1)
        seen = [total, product, channels, image, inner, stacked]
        metadata = sum(qt.bit_width + qt.scale.sum() + qt.zero_point.sum() for qt in seen)
        codes = stacked.clamp(-1, 0.5).int(float_datatype=True).sum()
        logits = self.head(torch.flatten(image, 1)) + F.softmax(channels, 1).mean()
        return logits, metadata + codes + inner.mean(), image


def outputs(result: tuple[Tensor, Tensor, QuantTensor]) -> list[Tensor]:
    """Every tensor in what the network returns."""
    logits, metadata, image = result
    assert isinstance(image, QuantTensor)
    return [logits, metadata, image.value, image.scale, image.zero_point, image.bit_width]
