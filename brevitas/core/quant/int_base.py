"""Integer quantization for given scale, zero point and bit width.

>>> import torch
>>> quant = IntQuant(narrow_range=False, signed=True)
>>> scale, zero_point, bit_width = torch.tensor(0.1), torch.tensor(0.0), torch.tensor(4.0)
>>> quant(scale, zero_point, bit_width, torch.tensor([0.26, -3.0]))
tensor([ 0.3000, -0.8000])
"""

from typing import Any

from torch import Tensor, nn

import brevitas.jit
from brevitas.core._checks import check_bool, check_module
from brevitas.core.function_wrapper import CeilSte, FloorSte, RoundSte, RoundToZeroSte, TensorClamp, TensorClampSte
from brevitas.core.quant.delay import DelayWrapper
from brevitas.core.utils import at_least_float32
from brevitas.function import divide, int_quant, max_int, min_int

__all__ = ["DecoupledIntQuant", "IntQuant"]

_ROUNDING_OF: dict[type, str] = {
    RoundSte: "ROUND",
    CeilSte: "CEIL",
    FloorSte: "FLOOR",
    RoundToZeroSte: "ROUND_TO_ZERO",
}
_CLAMP_STE_OF: dict[type, bool] = {TensorClamp: False, TensorClampSte: True}


class IntQuant(brevitas.jit.ScriptModule):
    """Divide, round, clamp; then back to the real axis.

    With a standard rounding and clamp the whole is the operator :func:`brevitas.function.int_quant`; any other modules
    are composed around the same arithmetic.

    Args:
        narrow_range: leave out one code, so that a signed range is symmetric.
        signed: whether the codes have a sign.
        float_to_int_impl: rounding module; default half to even.
        tensor_clamp_impl: clamping module; default :class:`TensorClamp`.
        quant_delay_steps: training calls that return the input as it is.
    """

    def __init__(
        self,
        narrow_range: bool,
        signed: bool,
        float_to_int_impl: nn.Module | None = None,
        tensor_clamp_impl: nn.Module | None = None,
        quant_delay_steps: int = 0,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        self.narrow_range = check_bool(owner, "narrow_range", narrow_range)
        self.signed = check_bool(owner, "signed", signed)
        rounding = RoundSte() if float_to_int_impl is None else float_to_int_impl
        clamp = TensorClamp() if tensor_clamp_impl is None else tensor_clamp_impl
        self.float_to_int_impl = check_module(owner, "float_to_int_impl", rounding)
        self.tensor_clamp_impl = check_module(owner, "tensor_clamp_impl", clamp)
        self.delay_wrapper = DelayWrapper(quant_delay_steps)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in ("float_to_int_impl", "tensor_clamp_impl"):
            self._choose_implementation()

    def _choose_implementation(self) -> None:
        rounding = _ROUNDING_OF.get(type(getattr(self, "float_to_int_impl", None)))
        clamp_ste = _CLAMP_STE_OF.get(type(getattr(self, "tensor_clamp_impl", None)))
        self.is_standard = rounding is not None and clamp_ste is not None
        self.rounding = rounding or ""
        self.clamp_ste = bool(clamp_ste)

    @brevitas.jit.script_method
    def min_int(self, bit_width: Tensor) -> Tensor:
        """Smallest code."""
        return min_int(self.signed, self.narrow_range, bit_width)

    @brevitas.jit.script_method
    def max_int(self, bit_width: Tensor) -> Tensor:
        """Largest code."""
        return max_int(self.signed, self.narrow_range, bit_width)

    @brevitas.jit.script_method
    def to_int(self, scale: Tensor, zero_point: Tensor, bit_width: Tensor, x: Tensor) -> Tensor:
        """Integer codes of ``x``, as floats (in at least float32)."""
        code = divide(at_least_float32(x), at_least_float32(scale)) + at_least_float32(zero_point)
        code = self.float_to_int_impl(code)
        return self.tensor_clamp_impl(code, self.min_int(bit_width), self.max_int(bit_width))

    @brevitas.jit.script_method
    def forward(self, scale: Tensor, zero_point: Tensor, bit_width: Tensor, x: Tensor) -> Tensor:
        """``(to_int(x) - zero_point) * scale``, or ``x`` while delayed."""
        if self.is_standard:
            y = int_quant(
                x, scale, zero_point, bit_width, self.signed, self.narrow_range, self.rounding, self.clamp_ste
            )
        else:
            code = self.to_int(scale, zero_point, bit_width, x)
            y = ((code - at_least_float32(zero_point)) * at_least_float32(scale)).to(x.dtype)
        return self.delay_wrapper(x, y)


class DecoupledIntQuant(brevitas.jit.ScriptModule):
    """Quantize with one scale and zero point, return to the real axis with another.

    Arguments: those of :class:`IntQuant`.
    """

    def __init__(
        self,
        narrow_range: bool,
        signed: bool,
        float_to_int_impl: nn.Module | None = None,
        tensor_clamp_impl: nn.Module | None = None,
        quant_delay_steps: int = 0,
    ) -> None:
        super().__init__()
        owner = "DecoupledIntQuant"
        self.narrow_range = check_bool(owner, "narrow_range", narrow_range)
        self.signed = check_bool(owner, "signed", signed)
        rounding = RoundSte() if float_to_int_impl is None else float_to_int_impl
        clamp = TensorClamp() if tensor_clamp_impl is None else tensor_clamp_impl
        self.float_to_int_impl = check_module(owner, "float_to_int_impl", rounding)
        self.tensor_clamp_impl = check_module(owner, "tensor_clamp_impl", clamp)
        self.delay_wrapper = DelayWrapper(quant_delay_steps)

    @brevitas.jit.script_method
    def min_int(self, bit_width: Tensor) -> Tensor:
        """Smallest code."""
        return min_int(self.signed, self.narrow_range, bit_width)

    @brevitas.jit.script_method
    def max_int(self, bit_width: Tensor) -> Tensor:
        """Largest code."""
        return max_int(self.signed, self.narrow_range, bit_width)

    @brevitas.jit.script_method
    def to_int(self, pre_scale: Tensor, pre_zero_point: Tensor, bit_width: Tensor, x: Tensor) -> Tensor:
        """Integer codes of ``x``, as floats (in at least float32)."""
        code = divide(at_least_float32(x), at_least_float32(pre_scale)) + at_least_float32(pre_zero_point)
        code = self.float_to_int_impl(code)
        return self.tensor_clamp_impl(code, self.min_int(bit_width), self.max_int(bit_width))

    @brevitas.jit.script_method
    def forward(
        self,
        pre_scale: Tensor,
        pre_zero_point: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bit_width: Tensor,
        x: Tensor,
    ) -> Tensor:
        """``(to_int(x) - zero_point) * scale``, or ``x`` while delayed."""
        code = self.to_int(pre_scale, pre_zero_point, bit_width, x)
        y = ((code - at_least_float32(zero_point)) * at_least_float32(scale)).to(x.dtype)
        return self.delay_wrapper(x, y)
