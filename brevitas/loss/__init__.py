"""Losses on bit widths: what a network with learned widths pays for them.

>>> import torch
>>> from torch import nn
>>> from brevitas.loss import WeightBitWidthWeightedBySize
>>> from brevitas.nn import QuantLinear, QuantReLU
>>> learned = {"weight_bit_width_impl_type": "parameter", "weight_bit_width": 8}
>>> model = nn.Sequential(QuantLinear(8, 16, **learned), QuantReLU(), QuantLinear(16, 2, **learned))
>>> bits = WeightBitWidthWeightedBySize(model)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
>>> for _ in range(3):
...     bits.zero_accumulated_values()
...     optimizer.zero_grad()
...     loss = model(torch.randn(4, 8)).square().mean() + 0.1 * bits.retrieve()
...     loss.backward()
...     optimizer.step()
>>> float(bits.log())
8.0
"""

from brevitas.loss.weighted_bit_width import (
    MEGA,
    ActivationBitWidthWeightedBySize,
    BitWidthWeighted,
    QuantLayerOutputBitWidthWeightedByOps,
    WeightBitWidthWeightedBySize,
)

__all__ = [
    "MEGA",
    "ActivationBitWidthWeightedBySize",
    "BitWidthWeighted",
    "QuantLayerOutputBitWidthWeightedByOps",
    "WeightBitWidthWeightedBySize",
]
