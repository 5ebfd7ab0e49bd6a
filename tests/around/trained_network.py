"""The network of these tests: every kind of layer and of quantizer state that the library has."""

import torch
from torch import nn
from torch.nn import functional as F

from brevitas.nn import (
    QuantAvgPool2d,
    QuantConv2d,
    QuantConvTranspose2d,
    QuantEltwiseAdd,
    QuantIdentity,
    QuantLinear,
    QuantLSTM,
    QuantMultiheadAttention,
    QuantReLU,
    QuantSigmoid,
)
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int32Bias,
    IntBias,
    ShiftedUint8ActPerTensorFloat,
    Uint8ActPerTensorFloat,
)

STEPS = 3


class MaxAct(Int8ActPerTensorFloat):
    """Collects maxima, whose order does not count."""

    scaling_stats_op = "max"


class Network(nn.Module):
    """Convolutions with a residual branch, on a grid that both branches share, then linear layers.

    Scales: learned after statistics (activations, weights), from statistics at every call, from statistics that run
    forever, learned from the start, constant.
    """

    def __init__(self, steps: int = STEPS) -> None:
        super().__init__()
        collect = {"collect_stats_steps": steps}
        self.input = QuantIdentity(ShiftedUint8ActPerTensorFloat, return_quant_tensor=True, **collect)
        self.conv = QuantConv2d(
            1, 4, 3, padding=1, bias_quant=Int32Bias, weight_bit_width=4, weight_scaling_per_output_channel=True
        )
        self.relu = QuantReLU(Uint8ActPerTensorFloat, bit_width=6, return_quant_tensor=True, **collect)
        self.branch = QuantConv2d(
            4, 4, 3, padding=1, bias_quant=IntBias, weight_scaling_impl_type="parameter_from_stats"
        )
        self.grid = QuantIdentity(MaxAct, return_quant_tensor=True, **collect)
        self.running = QuantReLU(scaling_impl_type="stats", return_quant_tensor=True)
        self.hidden = QuantLinear(4 * 4, 8, bias_quant=Int32Bias, return_quant_tensor=False)
        self.fixed = QuantReLU(scaling_impl_type="parameter", max_val=4.0, bit_width=5, return_quant_tensor=True)
        self.head = QuantLinear(8, 3, bias_quant=Int32Bias, weight_scaling_impl_type="affine_stats")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.conv(self.input(x)))
        x = self.grid(x) + self.grid(self.branch(x))
        x = self.running(x)
        x = torch.flatten(F.max_pool2d(x, 4), 1)
        return self.head(self.fixed(self.hidden(x)))


class Sequence(nn.Module):
    """What the other lacks: a transposed convolution, an average pool, recurrence, attention, an addition."""

    def __init__(self, steps: int = STEPS) -> None:
        super().__init__()
        collect = {"collect_stats_steps": steps}
        self.input = QuantIdentity(MaxAct, return_quant_tensor=True, **collect)
        self.up = QuantConvTranspose2d(1, 2, 2, stride=2, bias_quant=Int32Bias, return_quant_tensor=False)
        self.act = QuantSigmoid(return_quant_tensor=True, **collect)
        self.pool = QuantAvgPool2d(4, return_quant_tensor=False)
        self.lstm = QuantLSTM(8, 8, batch_first=True, io_collect_stats_steps=steps, tanh_collect_stats_steps=steps)
        self.attention = QuantMultiheadAttention(8, 2, batch_first=True)
        self.add = QuantEltwiseAdd(return_quant_tensor=True, input_collect_stats_steps=steps)
        self.head = QuantLinear(8, 3, weight_scaling_impl_type="parameter_from_stats")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.act(self.up(self.input(x)))).flatten(2)[..., :8]
        y, _ = self.lstm(x)
        z, _ = self.attention(y, y, y)
        return self.head(self.add(y, z)).mean(1)


def sequence(dtype: torch.dtype = torch.float32) -> Sequence:
    """The network with the same weights each time."""
    torch.manual_seed(0)
    return Sequence().to(dtype)


def images(seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A batch of eight."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 1, 8, 8, generator=generator, dtype=torch.float64).to(dtype) * (1 + seed % 3)


def targets(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 3, (8,), generator=torch.Generator().manual_seed(seed + 1000))


def network(dtype: torch.dtype = torch.float32, steps: int = STEPS) -> Network:
    """The network with the same weights each time."""
    torch.manual_seed(0)
    return Network(steps).to(dtype)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)


def train(model: nn.Module, steps: int, seed: int = 0, run: nn.Module | None = None) -> nn.Module:
    """Train ``model``, called through ``run`` where that is another object."""
    dtype = next(model.parameters()).dtype
    optimizer = optimizer_of(model)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        out = (model if run is None else run)(images(seed + step, dtype))
        F.cross_entropy(out, targets(seed + step)).backward()
        optimizer.step()
    return model
