"""Networks of every form that the FINN dialect has, for tests against the programs that read it."""

import torch
import torch.nn.functional as F
from export_networks import LENETS, Composed, LeNet, calibrated
from torch import nn

from brevitas.nn import (
    QuantAdaptiveAvgPool2d,
    QuantAvgPool2d,
    QuantConv1d,
    QuantConv2d,
    QuantHardTanh,
    QuantIdentity,
    QuantLinear,
    QuantMaxPool2d,
    QuantReLU,
)
from brevitas.quant import (
    Int8ActPerTensorFixedPoint,
    Int8Bias,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFixedPoint,
    IntBias,
    SignedBinaryActPerTensorConst,
    SignedBinaryWeightPerTensorConst,
    SignedTernaryWeightPerTensorConst,
    TruncTo8bit,
    Uint8ActPerTensorFixedPoint,
)


def qt(*args, **kwargs):
    return QuantIdentity(*args, return_quant_tensor=True, **kwargs)


class Residual(nn.Module):
    """Depthwise convolution, batch norm, and an addition of two branches of one quantizer."""

    def __init__(self):
        super().__init__()
        self.shared = qt(bit_width=4)
        self.conv = QuantConv2d(4, 4, 3, padding=1, groups=4, bias=False, weight_quant=Int8WeightPerChannelFloat)
        self.bn = nn.BatchNorm2d(4)
        self.relu = QuantReLU(return_quant_tensor=True, bit_width=5)
        self.last = QuantConv2d(4, 2, 1, bias_quant=IntBias)

    def forward(self, x):
        x = self.shared(x)
        return self.last(self.relu(x + self.shared(self.bn(self.conv(x)))))


def pooling(trunc_bits, act, kernel, **kwargs):
    trunc = TruncTo8bit.let(bit_width=trunc_bits)
    return nn.Sequential(
        qt(bit_width=8),
        QuantConv2d(2, 4, 3, padding=1, weight_bit_width=4, bias_quant=IntBias),
        act,
        QuantAvgPool2d(kernel, trunc_quant=trunc, return_quant_tensor=True),
        QuantConv2d(4, 3, 1, weight_bit_width=4, bias_quant=IntBias),
        QuantReLU(bit_width=4, return_quant_tensor=True),
        QuantAdaptiveAvgPool2d(1, trunc_quant=trunc, return_quant_tensor=True),
        nn.Flatten(),
        QuantLinear(3, 2, bias_quant=Int8Bias),
    )


def fixed_point(bits):
    """Power-of-two scales: every product is exact, and many values lie on ties."""
    weight, act = Int8WeightPerTensorFixedPoint, Uint8ActPerTensorFixedPoint
    return nn.Sequential(
        qt(Int8ActPerTensorFixedPoint, bit_width=bits),
        QuantLinear(12, 10, bias=False, weight_quant=weight, weight_bit_width=bits),
        QuantReLU(act, bit_width=bits, return_quant_tensor=True),
        QuantLinear(10, 8, bias_quant=Int8Bias, weight_quant=weight, weight_bit_width=bits),
        qt(Int8ActPerTensorFixedPoint, bit_width=bits),
        QuantLinear(8, 4, bias=True, weight_quant=weight, weight_bit_width=bits),
        qt(Int8ActPerTensorFixedPoint, bit_width=bits),
    )


MODELS = {
    "residual, depthwise, batch norm": (Residual, [(4, 4, 6, 6)]),
    "average pools, unsigned": (
        lambda: pooling(4, QuantReLU(bit_width=4, return_quant_tensor=True), 2),
        [(4, 2, 8, 8)],
    ),
    "average pools, signed": (lambda: pooling(4, qt(bit_width=6), 2), [(4, 2, 8, 8)]),
    "average pools, overlapping odd windows": (
        lambda: nn.Sequential(qt(bit_width=8), QuantAvgPool2d(3, 2, trunc_quant=TruncTo8bit.let(bit_width=6))),
        [(4, 2, 9, 9)],
    ),
    "binary": (
        lambda: nn.Sequential(
            qt(SignedBinaryActPerTensorConst, max_val=1.0),
            QuantLinear(12, 8, bias=False, weight_quant=SignedBinaryWeightPerTensorConst, weight_scaling_const=0.125),
            qt(SignedBinaryActPerTensorConst, max_val=0.5),
            QuantLinear(8, 4, bias=False, weight_quant=SignedTernaryWeightPerTensorConst),
        ),
        [(16, 12)],
    ),
    "one dimension": (
        lambda: nn.Sequential(
            qt(bit_width=5),
            QuantConv1d(3, 4, 3, stride=2, padding=1, bias_quant=Int8Bias, weight_bit_width=4),
            QuantReLU(bit_width=3, return_quant_tensor=True),
            QuantConv1d(4, 2, 2, dilation=2, bias=False, weight_bit_width=2),
            qt(bit_width=7),
        ),
        [(8, 3, 16)],
    ),
    "signed relu, hardtanh, rounding modes": (
        lambda: nn.Sequential(
            qt(bit_width=6, float_to_int_impl_type="floor"),
            QuantLinear(12, 8, bias_quant=IntBias, weight_quant=Int8WeightPerChannelFloat),
            QuantReLU(Int8ActPerTensorFixedPoint, bit_width=4, return_quant_tensor=True),
            QuantLinear(8, 8),
            QuantHardTanh(min_val=-1.0, max_val=1.0, bit_width=4, float_to_int_impl_type="ceil"),
            QuantLinear(8, 4),
            qt(bit_width=4, float_to_int_impl_type="round_to_zero"),
            QuantLinear(4, 4),
            qt(bit_width=4, float_to_int_impl_type="dpu", restrict_scaling_type="power_of_two"),
        ),
        [(32, 12)],
    ),
    "functions on codes": (
        lambda: Composed(
            lambda m, x: m.fc(torch.cat([F.relu(F.max_pool2d(m.act(x), 2)).flatten(1), m.act(x).flatten(1)[:, :8]], 1)),
            act=qt(bit_width=4),
            fc=QuantLinear(16, 3, bias_quant=Int8Bias),
        ),
        [(6, 2, 4, 4)],
    ),
    "two inputs and two outputs": (
        lambda: Composed(
            lambda m, x, y: (m.fc(m.act(x)), m.out(m.act(x) + m.act(y))),
            act=qt(bit_width=3),
            fc=QuantLinear(6, 3, bias_quant=Int8Bias),
            out=qt(bit_width=3),
        ),
        [(8, 6), (8, 6)],
    ),
    "one layer twice": (
        lambda: Composed(
            lambda m, x: m.fc(m.act(m.fc(m.act(x)))),
            act=qt(bit_width=4),
            fc=QuantLinear(6, 6, bias=False, weight_bit_width=3),
        ),
        [(8, 6)],
    ),
    "fixed point, linear layers": (lambda: fixed_point(4), [(64, 12)]),
    "float average, split, upsampling": (
        lambda: Composed(
            lambda m, x: m.fc(
                F.adaptive_avg_pool2d(
                    m.relu(m.conv(F.interpolate(m.act(x), scale_factor=2).chunk(2, 3)[1])), 1
                ).flatten(1)
            ),
            act=qt(bit_width=4),
            conv=QuantConv2d(2, 4, 3, bias=False, weight_bit_width=4),
            relu=QuantReLU(bit_width=4, return_quant_tensor=True),
            fc=QuantLinear(4, 3, weight_bit_width=4),
        ),
        [(4, 2, 4, 4)],
    ),
    "max pool": (
        lambda: nn.Sequential(
            qt(bit_width=4),
            QuantMaxPool2d(3, 2, padding=1),
            QuantConv2d(2, 3, 3, bias_quant=Int8Bias, weight_bit_width=4),
            QuantReLU(bit_width=4, return_quant_tensor=True),
        ),
        [(4, 2, 9, 9)],
    ),
}

# Those of the LeNets that the dialect has: symmetric, and with biases on the accumulator grid or in float.
LEGAL_LENETS = [name for name in LENETS if "shifted" not in name and name != "bias with its own scale"]


def make(name):
    """A calibrated model and inputs that it was not calibrated on."""
    torch.manual_seed(11)
    if name in LENETS:
        return calibrated(LeNet(**LENETS[name]), (32, 1, 12, 12)), (torch.randn(6, 1, 12, 12),)
    build, shapes = MODELS[name]
    return calibrated(build(), *shapes), tuple(torch.randn(shape) for shape in shapes)
