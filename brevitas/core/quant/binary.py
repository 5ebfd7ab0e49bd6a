"""Quantization to plus and minus one scale.

    >>> import torch
    >>> from brevitas.core.scaling import ConstScaling
    >>> BinaryQuant(ConstScaling(0.1))(torch.tensor([-2.0, 0.0, 0.3]))[0]
    tensor([-0.1000,  0.1000,  0.1000])

The scale equals the threshold: there is no integer threshold to divide by.
"""

from typing import Tuple  # noqa: UP035 - TorchScript reads annotations of this kind

import torch
from torch import Tensor, nn

import brevitas.jit
from brevitas.core._checks import check_module
from brevitas.core.bit_width import BitWidthConst
from brevitas.core.function_wrapper import TensorClamp
from brevitas.core.quant.delay import DelayWrapper
from brevitas.core.utils import StatefulModule, StatelessBuffer
from brevitas.function.ops_ste import binary_sign_ste

__all__ = ["BinaryQuant", "ClampedBinaryQuant"]


class BinaryQuant(StatefulModule):
    """``binary_sign(x) * scale``; gradient ``g * scale`` to ``x`` everywhere, ``g * sign`` to the scale.

    Args:
        scaling_impl: scale of an input.
        quant_delay_steps: training calls that return the input as it is.
    """

    def __init__(self, scaling_impl: nn.Module, quant_delay_steps: int = 0) -> None:
        super().__init__()
        self.scaling_impl = check_module("BinaryQuant", "scaling_impl", scaling_impl)
        self.bit_width = BitWidthConst(1)
        self.zero_point = StatelessBuffer(torch.tensor(0.0))
        self.delay_wrapper = DelayWrapper(quant_delay_steps)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: UP006
        """Quantized ``x``, scale, zero point 0, bit width 1."""
        scale = self.scaling_impl(x)
        y = (binary_sign_ste(x) * scale).to(x.dtype)
        return self.delay_wrapper(x, y), scale, self.zero_point(), self.bit_width()


class ClampedBinaryQuant(StatefulModule):
    """As :class:`BinaryQuant`, without gradient to values outside plus and minus one scale.

    Args:
        scaling_impl: scale of an input.
        tensor_clamp_impl: clamping module; a straight-through one passes the gradient outside as well.
        quant_delay_steps: training calls that return the input as it is.
    """

    def __init__(
        self, scaling_impl: nn.Module, tensor_clamp_impl: nn.Module | None = None, quant_delay_steps: int = 0
    ) -> None:
        super().__init__()
        self.scaling_impl = check_module("ClampedBinaryQuant", "scaling_impl", scaling_impl)
        clamp = TensorClamp() if tensor_clamp_impl is None else tensor_clamp_impl
        self.tensor_clamp_impl = check_module("ClampedBinaryQuant", "tensor_clamp_impl", clamp)
        self.bit_width = BitWidthConst(1)
        self.zero_point = StatelessBuffer(torch.tensor(0.0))
        self.delay_wrapper = DelayWrapper(quant_delay_steps)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: UP006
        """Quantized ``x``, scale, zero point 0, bit width 1."""
        scale = self.scaling_impl(x)
        clamped = self.tensor_clamp_impl(x, -scale, scale)
        y = (binary_sign_ste(clamped) * scale).to(x.dtype)
        return self.delay_wrapper(x, y), scale, self.zero_point(), self.bit_width()
