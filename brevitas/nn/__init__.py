"""Layers: those of ``torch.nn`` with handles for quantizers.

>>> import torch
>>> from brevitas.nn import QuantIdentity, QuantLinear, QuantReLU
>>> model = torch.nn.Sequential(
...     QuantIdentity(return_quant_tensor=True), QuantLinear(8, 4, weight_bit_width=4), QuantReLU(bit_width=4)
... )
>>> model(torch.randn(2, 8)).shape
torch.Size([2, 4])
"""

from brevitas.nn.quant_activation import QuantIdentity, QuantNonLinearActLayer, QuantReLU
from brevitas.nn.quant_conv import QuantConv2d
from brevitas.nn.quant_linear import QuantLinear
from brevitas.nn.weight_layer import QuantWeightBiasInputOutputLayer

__all__ = [
    "QuantConv2d",
    "QuantIdentity",
    "QuantLinear",
    "QuantNonLinearActLayer",
    "QuantReLU",
    "QuantWeightBiasInputOutputLayer",
]
