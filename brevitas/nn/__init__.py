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
from brevitas.nn.quant_accumulator import ClampQuantAccumulator, TruncQuantAccumulator
from brevitas.nn.quant_activation import (
    QuantHardTanh,
    QuantIdentity,
    QuantNonLinearActLayer,
    QuantReLU,
    QuantSigmoid,
    QuantTanh,
)
from brevitas.nn.quant_attention import QuantMultiheadAttention, QuantScaledDotProductAttention
from brevitas.nn.quant_avg_pool import (
    QuantAdaptiveAvgPool2d,
    QuantAvgPool2d,
    TruncAdaptiveAvgPool2d,
    TruncAvgPool2d,
)
from brevitas.nn.quant_conv import QuantConv1d, QuantConv2d, QuantConv3d
from brevitas.nn.quant_conv_transpose import QuantConvTranspose1d, QuantConvTranspose2d, QuantConvTranspose3d
from brevitas.nn.quant_dropout import QuantDropout
from brevitas.nn.quant_eltwise import Cat, EltwiseAdd, QuantCat, QuantEltwiseAdd
from brevitas.nn.quant_embedding import QuantEmbedding
from brevitas.nn.quant_linear import QuantLinear
from brevitas.nn.quant_max_pool import QuantMaxPool1d, QuantMaxPool2d, QuantMaxPool3d
from brevitas.nn.quant_scale_bias import (
    BatchNorm1dToQuantScaleBias,
    BatchNorm2dToQuantScaleBias,
    QuantScaleBias,
    ScaleBias,
)
from brevitas.nn.quant_upsample import QuantUpsample, QuantUpsamplingBilinear2d, QuantUpsamplingNearest2d
from brevitas.nn.recurrent import QuantGRU, QuantLSTM, QuantRNN
from brevitas.nn.weight_layer import QuantWeightBiasInputOutputLayer

__all__ = [
    "BatchNorm1dToQuantScaleBias",
    "BatchNorm2dToQuantScaleBias",
    "Cat",
    "ClampQuantAccumulator",
    "EltwiseAdd",
    "HadamardClassifier",
    "QuantAdaptiveAvgPool2d",
    "QuantAvgPool2d",
    "QuantCat",
    "QuantConv1d",
    "QuantConv2d",
    "QuantConv3d",
    "QuantConvTranspose1d",
    "QuantConvTranspose2d",
    "QuantConvTranspose3d",
    "QuantDropout",
    "QuantEltwiseAdd",
    "QuantEmbedding",
    "QuantGRU",
    "QuantHardTanh",
    "QuantIdentity",
    "QuantLSTM",
    "QuantLinear",
    "QuantMaxPool1d",
    "QuantMaxPool2d",
    "QuantMaxPool3d",
    "QuantMultiheadAttention",
    "QuantNonLinearActLayer",
    "QuantRNN",
    "QuantReLU",
    "QuantScaleBias",
    "QuantScaledDotProductAttention",
    "QuantSigmoid",
    "QuantTanh",
    "QuantUpsample",
    "QuantUpsamplingBilinear2d",
    "QuantUpsamplingNearest2d",
    "QuantWeightBiasInputOutputLayer",
    "ScaleBias",
    "TruncAdaptiveAvgPool2d",
    "TruncAvgPool2d",
    "TruncQuantAccumulator",
]
