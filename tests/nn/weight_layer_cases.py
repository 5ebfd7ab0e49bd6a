"""Every layer with a weight, its float counterpart and an input, for tests that hold for all of them."""

import torch
from torch import nn

from brevitas.nn import (
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantConvTranspose3d,
    QuantLinear,
    QuantScaleBias,
    ScaleBias,
)
from brevitas.quant_tensor import QuantTensor

LINEAR = (QuantLinear, nn.Linear)
CONV1 = (QuantConv1d, nn.Conv1d)
CONV2 = (QuantConv2d, nn.Conv2d)
CONV3 = (QuantConv3d, nn.Conv3d)
TRANSPOSED1 = (QuantConvTranspose1d, nn.ConvTranspose1d)
TRANSPOSED2 = (QuantConvTranspose2d, nn.ConvTranspose2d)
TRANSPOSED3 = (QuantConvTranspose3d, nn.ConvTranspose3d)
SCALE_BIAS = (QuantScaleBias, ScaleBias)

# quantized class, float class, arguments, options, shape of the input
LAYERS = {
    "linear": (*LINEAR, (6, 4), {}, (3, 6)),
    "linear 3d": (*LINEAR, (6, 4), {}, (2, 3, 6)),
    "conv1d": (*CONV1, (4, 6, 3), {"stride": 2, "padding": 1}, (2, 4, 9)),
    "conv1d same": (*CONV1, (4, 6, 4), {"padding": "same", "groups": 2}, (2, 4, 9)),
    "conv1d padded by circular": (*CONV1, (4, 6, 3), {"padding": 2, "padding_mode": "circular"}, (2, 4, 9)),
    "conv1d unbatched": (*CONV1, (4, 6, 3), {}, (4, 9)),
    "conv": (*CONV2, (4, 6, 3), {"stride": 2, "padding": 1}, (2, 4, 9, 8)),
    "conv groups": (*CONV2, (4, 8, (3, 2)), {"groups": 2, "dilation": 2}, (2, 4, 9, 8)),
    "conv depthwise": (*CONV2, (4, 8, 3), {"groups": 4}, (2, 4, 9, 8)),
    "conv padded by reflect": (*CONV2, (4, 6, 3), {"padding": 1, "padding_mode": "reflect"}, (2, 4, 9, 8)),
    "conv same": (*CONV2, (4, 6, 4), {"padding": "same"}, (2, 4, 9, 8)),
    "conv unbatched": (*CONV2, (4, 6, 3), {}, (4, 9, 8)),
    "conv3d": (*CONV3, (2, 4, (1, 3, 2)), {"stride": (1, 2, 1), "padding": (0, 1, 1)}, (2, 2, 3, 5, 4)),
    "conv3d depthwise": (*CONV3, (2, 4, 2), {"groups": 2, "dilation": (1, 1, 2)}, (1, 2, 3, 4, 4)),
    "conv3d padded by replicate": (*CONV3, (2, 6, 3), {"padding": 1, "padding_mode": "replicate"}, (1, 2, 3, 3, 2)),
    "conv3d unbatched": (*CONV3, (2, 6, 2), {}, (2, 3, 4, 3)),
    "transposed 1d": (*TRANSPOSED1, (4, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1}, (2, 4, 5)),
    "transposed": (*TRANSPOSED2, (4, 6, (3, 2)), {"stride": (2, 1), "dilation": (1, 2)}, (2, 4, 4, 3)),
    "transposed groups": (*TRANSPOSED2, (4, 6, 3), {"stride": 2, "groups": 2}, (2, 4, 4, 3)),
    "transposed depthwise": (*TRANSPOSED2, (4, 8, 3), {"groups": 4}, (2, 4, 4, 3)),
    "transposed unbatched": (*TRANSPOSED2, (4, 6, 3), {"groups": 2}, (4, 4, 3)),
    "transposed 3d": (*TRANSPOSED3, (2, 4, (1, 2, 3)), {"stride": (1, 2, 2), "groups": 2}, (1, 2, 2, 3, 2)),
    "scale bias": (*SCALE_BIAS, (4, True), {}, (2, 4, 3, 3)),
    "scale bias of vectors": (*SCALE_BIAS, (4, True), {"runtime_shape": (1, -1)}, (3, 4)),
    "scale bias of any rank": (*SCALE_BIAS, (4, True), {"runtime_shape": None}, (2, 4, 5)),
}


def build(name, **options):
    """The quantized layer with random parameters, the float one, and the shape of an input."""
    quant_class, float_class, arguments, geometry, shape = LAYERS[name]
    torch.manual_seed(0)
    quantized, plain = quant_class(*arguments, **geometry, **options), float_class(*arguments, **geometry)
    if isinstance(plain, ScaleBias):
        nn.init.normal_(quantized.weight), nn.init.normal_(quantized.bias)
    return quantized, plain, shape


def quantized_input(shape, bits=8, signed=True, scale=0.02, zero_point=0.0, seed=0):
    """Random codes over the whole range."""
    generator = torch.Generator().manual_seed(seed)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    codes = torch.randint(low, high + 1, shape, generator=generator).float()
    return QuantTensor((codes - zero_point) * scale, scale, zero_point, bits, signed)
