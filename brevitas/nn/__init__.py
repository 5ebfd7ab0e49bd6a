"""Layers: those of ``torch.nn`` with handles for quantizers.

>>> import torch
>>> from brevitas.nn import QuantIdentity, QuantLinear, QuantReLU
>>> model = torch.nn.Sequential(
...     QuantIdentity(return_quant_tensor=True), QuantLinear(8, 4, weight_bit_width=4), QuantReLU(bit_width=4)
... )
>>> model(torch.randn(2, 8)).shape
torch.Size([2, 4])
"""

from brevitas.nn.hadamard_classifier import HadamardClassifier
from brevitas.nn.quant_activation import QuantIdentity, QuantNonLinearActLayer, QuantReLU
from brevitas.nn.quant_conv import QuantConv1d, QuantConv2d, QuantConv3d
from brevitas.nn.quant_conv_transpose import QuantConvTranspose1d, QuantConvTranspose2d, QuantConvTranspose3d
from brevitas.nn.quant_embedding import QuantEmbedding
from brevitas.nn.quant_linear import QuantLinear
from brevitas.nn.quant_scale_bias import (
    BatchNorm1dToQuantScaleBias,
    BatchNorm2dToQuantScaleBias,
    QuantScaleBias,
    ScaleBias,
)
from brevitas.nn.weight_layer import QuantWeightBiasInputOutputLayer

__all__ = [
    "BatchNorm1dToQuantScaleBias",
    "BatchNorm2dToQuantScaleBias",
    "HadamardClassifier",
    "QuantConv1d",
    "QuantConv2d",
    "QuantConv3d",
    "QuantConvTranspose1d",
    "QuantConvTranspose2d",
    "QuantConvTranspose3d",
    "QuantEmbedding",
    "QuantIdentity",
    "QuantLinear",
    "QuantNonLinearActLayer",
    "QuantReLU",
    "QuantScaleBias",
    "QuantWeightBiasInputOutputLayer",
    "ScaleBias",
]
