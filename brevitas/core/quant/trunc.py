"""Truncation: fewer bits for codes that are already integers.

>>> import torch
>>> from brevitas.core.bit_width import BitWidthConst
>>> from brevitas.core.function_wrapper import RoundSte
>>> quant = TruncIntQuant(RoundSte(), BitWidthConst(4))
>>> x = torch.tensor([0.04, -0.05, 0.31, -0.44])
>>> y, scale, _, _ = quant(x, torch.tensor(0.01), torch.tensor(0.0), torch.tensor(8.0), True)
>>> (y / scale).tolist(), round(float(scale), 6)
([0.0, 0.0, 2.0, -3.0], 0.16)
"""

from typing import Tuple  # noqa: UP035 - TorchScript reads annotations of this kind

import torch
from torch import Tensor, nn

import brevitas.jit
from brevitas.core._checks import check_bool, check_module
from brevitas.core.function_wrapper import TensorClamp
from brevitas.core.quant.delay import DelayWrapper
from brevitas.core.utils import StatefulModule, at_least_float32, learned_parameter
from brevitas.function.ops import divide, max_int, min_int
from brevitas.function.ops_ste import abs_binary_sign_grad, round_ste, tensor_clamp_ste

__all__ = ["TruncIntQuant", "TruncMsbScaling", "TruncScalingWrapper"]


def removed_bits(input_bit_width: Tensor, output_bit_width: Tensor) -> Tensor:
    """``max(input_bit_width - output_bit_width, 0)``, in at least float32."""
    return torch.relu(at_least_float32(input_bit_width) - at_least_float32(output_bit_width))


class TruncMsbScaling(brevitas.jit.ScriptModule):
    """``2^n`` for n removed bits: the range is kept, the resolution falls."""

    @brevitas.jit.script_method
    def forward(self, input_bit_width: Tensor, output_bit_width: Tensor) -> Tensor:
        """Factor between the input's and the output's scale."""
        return torch.exp2(removed_bits(input_bit_width, output_bit_width))


class TruncScalingWrapper(StatefulModule):
    """A learned power of two between 1 and ``2^n`` for n removed bits.

    Parameter ``value``: the bits of the shift that are given up for resolution, 0 at the start.
    """

    def __init__(self) -> None:
        super().__init__()
        self.value = learned_parameter(torch.tensor(0.0))

    @brevitas.jit.script_method
    def forward(self, input_bit_width: Tensor, output_bit_width: Tensor) -> Tensor:
        """Factor between the input's and the output's scale; straight through rounding and clamp of its log2."""
        removed = removed_bits(input_bit_width, output_bit_width)
        shift = removed - at_least_float32(abs_binary_sign_grad(self.value.view([])))
        return torch.exp2(round_ste(tensor_clamp_ste(shift, torch.zeros_like(removed), removed)))


class TruncIntQuant(StatefulModule):
    """Codes of ``input_bit_width`` bits in, codes of fewer bits and a coarser scale out.

    Args:
        float_to_int_impl: rounding of the shifted codes.
        bit_width_impl: bit width of the output; stored as ``msb_clamp_bit_width_impl``.
        trunc_scaling_impl: factor between the scales; default :class:`TruncMsbScaling`.
        narrow_range: leave out one code.
        tensor_clamp_impl: clamping module; default :class:`TensorClamp`.
        quant_delay_steps: training calls that return the input as it is.
    """

    def __init__(
        self,
        float_to_int_impl: nn.Module,
        bit_width_impl: nn.Module,
        trunc_scaling_impl: nn.Module | None = None,
        narrow_range: bool = False,
        tensor_clamp_impl: nn.Module | None = None,
        quant_delay_steps: int = 0,
    ) -> None:
        super().__init__()
        owner = "TruncIntQuant"
        self.float_to_int_impl = check_module(owner, "float_to_int_impl", float_to_int_impl)
        self.msb_clamp_bit_width_impl = check_module(owner, "bit_width_impl", bit_width_impl)
        scaling = TruncMsbScaling() if trunc_scaling_impl is None else trunc_scaling_impl
        self.trunc_scaling_impl = check_module(owner, "trunc_scaling_impl", scaling)
        self.narrow_range = check_bool(owner, "narrow_range", narrow_range)
        clamp = TensorClamp() if tensor_clamp_impl is None else tensor_clamp_impl
        self.tensor_clamp_impl = check_module(owner, "tensor_clamp_impl", clamp)
        self.delay_wrapper = DelayWrapper(quant_delay_steps)

    @brevitas.jit.script_method
    def forward(
        self, x: Tensor, scale: Tensor, zero_point: Tensor, input_bit_width: Tensor, signed: bool
    ) -> Tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: UP006
        """Truncated ``x``, its scale, zero point and bit width."""
        bit_width = self.msb_clamp_bit_width_impl()
        smallest = min_int(signed, self.narrow_range, bit_width)
        largest = max_int(signed, self.narrow_range, bit_width)
        factor = self.trunc_scaling_impl(input_bit_width, bit_width)
        old_zero_point = at_least_float32(zero_point)
        # The first rounding removes the float noise of codes that are integers already.
        code = round_ste(divide(at_least_float32(x), at_least_float32(scale)) + old_zero_point)
        new_zero_point = self.tensor_clamp_impl(round_ste(divide(old_zero_point, factor)), smallest, largest)
        shifted = self.float_to_int_impl(divide(code - old_zero_point, factor)) + new_zero_point
        new_code = self.tensor_clamp_impl(shifted, smallest, largest)
        new_scale = (at_least_float32(scale) * factor).to(scale.dtype)
        y = ((new_code - new_zero_point) * at_least_float32(new_scale)).to(x.dtype)
        return self.delay_wrapper(x, y), new_scale, new_zero_point, bit_width
