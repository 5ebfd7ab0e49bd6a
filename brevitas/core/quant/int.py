"""Tensor quantizers to integers: scale, zero point and bit width joined with the quantizer itself.

    >>> import torch
    >>> from brevitas.core.bit_width import BitWidthConst
    >>> from brevitas.core.scaling import ConstScaling, IntScaling
    >>> from brevitas.core.zero_point import ZeroZeroPoint
    >>> quant = RescalingIntQuant(
    ...     IntQuant(narrow_range=True, signed=True), ConstScaling(1.27), IntScaling(True, True), ZeroZeroPoint(),
    ...     BitWidthConst(8))
    >>> y, scale, zero_point, bit_width = quant(torch.tensor([0.123, -5.0]))
    >>> y, scale
    (tensor([ 0.1200, -1.2700]), tensor(0.0100))

Each returns ``(y, scale, zero_point, bit_width)``.
"""

from typing import Tuple  # noqa: UP035 - TorchScript reads annotations of this kind

import torch
from torch import Tensor, nn

import brevitas.jit
from brevitas.core._checks import check_module
from brevitas.core.quant.int_base import DecoupledIntQuant, IntQuant
from brevitas.core.quant.trunc import TruncIntQuant
from brevitas.core.utils import StatefulModule, StatelessBuffer
from brevitas.function.ops import divide
from brevitas.function.ops_ste import scalar_clamp_min_ste

__all__ = [
    "DecoupledIntQuant",
    "DecoupledRescalingIntQuant",
    "IntQuant",
    "PrescaledRestrictIntQuant",
    "PrescaledRestrictIntQuantWithInputBitWidth",
    "RescalingIntQuant",
    "TruncIntQuant",
]


def rescaled(threshold: Tensor, int_threshold: Tensor) -> Tensor:
    """``threshold / int_threshold`` in the dtype of the threshold; in float16 not below its smallest normal number."""
    scale = divide(threshold, int_threshold)
    if threshold.dtype == torch.float16:
        scale = scalar_clamp_min_ste(scale, 2.0**-14)
    return scale.to(threshold.dtype)


class RescalingIntQuant(StatefulModule):
    """Scale from a threshold and the integer threshold of the bit width.

    Args:
        int_quant: :class:`IntQuant` or a module with its methods.
        scaling_impl: threshold of an input.
        int_scaling_impl: integer threshold of a bit width.
        zero_point_impl: zero point of an input, a scale and a bit width.
        bit_width_impl: bit width; stored as ``msb_clamp_bit_width_impl``.
    """

    def __init__(
        self,
        int_quant: nn.Module,
        scaling_impl: nn.Module,
        int_scaling_impl: nn.Module,
        zero_point_impl: nn.Module,
        bit_width_impl: nn.Module,
    ) -> None:
        super().__init__()
        owner = "RescalingIntQuant"
        self.int_quant = check_module(owner, "int_quant", int_quant)
        self.scaling_impl = check_module(owner, "scaling_impl", scaling_impl)
        self.int_scaling_impl = check_module(owner, "int_scaling_impl", int_scaling_impl)
        self.zero_point_impl = check_module(owner, "zero_point_impl", zero_point_impl)
        self.msb_clamp_bit_width_impl = check_module(owner, "bit_width_impl", bit_width_impl)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: UP006
        """Quantized ``x``, scale, zero point, bit width."""
        bit_width = self.msb_clamp_bit_width_impl()
        scale = rescaled(self.scaling_impl(x), self.int_scaling_impl(bit_width))
        zero_point = self.zero_point_impl(x, scale, bit_width)
        y = self.int_quant(scale, zero_point, bit_width, x)
        return y, scale, zero_point, bit_width


class PrescaledRestrictIntQuant(StatefulModule):
    """A given scale, a bit width of its own, zero point 0.

    Args:
        int_quant: :class:`IntQuant` or a module with its methods.
        bit_width_impl: bit width; stored as ``msb_clamp_bit_width_impl``.
    """

    def __init__(self, int_quant: nn.Module, bit_width_impl: nn.Module) -> None:
        super().__init__()
        owner = "PrescaledRestrictIntQuant"
        self.int_quant = check_module(owner, "int_quant", int_quant)
        self.msb_clamp_bit_width_impl = check_module(owner, "bit_width_impl", bit_width_impl)
        self.zero_point = StatelessBuffer(torch.tensor(0.0))

    @brevitas.jit.script_method
    def forward(self, x: Tensor, scale: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: UP006
        """Quantized ``x``, scale, zero point, bit width."""
        bit_width = self.msb_clamp_bit_width_impl()
        zero_point = self.zero_point()
        y = self.int_quant(scale, zero_point, bit_width, x)
        return y, scale, zero_point, bit_width


class PrescaledRestrictIntQuantWithInputBitWidth(StatefulModule):
    """A given scale and a bit width that follows from a given one, zero point 0.

    Args:
        int_quant: :class:`IntQuant` or a module with its methods.
        bit_width_impl: bit width of the input's bit width; stored as ``msb_clamp_bit_width_impl``.
    """

    def __init__(self, int_quant: nn.Module, bit_width_impl: nn.Module) -> None:
        super().__init__()
        owner = "PrescaledRestrictIntQuantWithInputBitWidth"
        self.int_quant = check_module(owner, "int_quant", int_quant)
        self.msb_clamp_bit_width_impl = check_module(owner, "bit_width_impl", bit_width_impl)
        self.zero_point = StatelessBuffer(torch.tensor(0.0))

    @brevitas.jit.script_method
    def forward(self, x: Tensor, scale: Tensor, input_bit_width: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: UP006
        """Quantized ``x``, scale, zero point, bit width."""
        bit_width = self.msb_clamp_bit_width_impl(input_bit_width)
        zero_point = self.zero_point()
        y = self.int_quant(scale, zero_point, bit_width, x)
        return y, scale, zero_point, bit_width


class DecoupledRescalingIntQuant(StatefulModule):
    """One scale and zero point to quantize with, another to return to the real axis with.

    Args:
        decoupled_int_quant: :class:`DecoupledIntQuant` or a module with its methods.
        pre_scaling_impl: threshold to quantize with.
        scaling_impl: threshold of the scale that is returned.
        int_scaling_impl: integer threshold of a bit width, for both.
        pre_zero_point_impl: zero point to quantize with.
        zero_point_impl: zero point that is returned.
        bit_width_impl: bit width; stored as ``msb_clamp_bit_width_impl``.
    """

    def __init__(
        self,
        decoupled_int_quant: nn.Module,
        pre_scaling_impl: nn.Module,
        scaling_impl: nn.Module,
        int_scaling_impl: nn.Module,
        pre_zero_point_impl: nn.Module,
        zero_point_impl: nn.Module,
        bit_width_impl: nn.Module,
    ) -> None:
        super().__init__()
        owner = "DecoupledRescalingIntQuant"
        self.decoupled_int_quant = check_module(owner, "decoupled_int_quant", decoupled_int_quant)
        self.pre_scaling_impl = check_module(owner, "pre_scaling_impl", pre_scaling_impl)
        self.scaling_impl = check_module(owner, "scaling_impl", scaling_impl)
        self.int_scaling_impl = check_module(owner, "int_scaling_impl", int_scaling_impl)
        self.pre_zero_point_impl = check_module(owner, "pre_zero_point_impl", pre_zero_point_impl)
        self.zero_point_impl = check_module(owner, "zero_point_impl", zero_point_impl)
        self.msb_clamp_bit_width_impl = check_module(owner, "bit_width_impl", bit_width_impl)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: UP006
        """Quantized ``x``, scale, zero point, bit width."""
        bit_width = self.msb_clamp_bit_width_impl()
        int_threshold = self.int_scaling_impl(bit_width)
        pre_scale = rescaled(self.pre_scaling_impl(x), int_threshold)
        pre_zero_point = self.pre_zero_point_impl(x, pre_scale, bit_width)
        scale = rescaled(self.scaling_impl(x), int_threshold)
        zero_point = self.zero_point_impl(x, scale, bit_width)
        y = self.decoupled_int_quant(pre_scale, pre_zero_point, scale, zero_point, bit_width, x)
        return y, scale, zero_point, bit_width
