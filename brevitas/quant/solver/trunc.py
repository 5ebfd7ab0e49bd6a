"""Truncation quantizers: directives to core modules."""

from __future__ import annotations

from typing import Any

from brevitas.core.function_wrapper import TensorClamp
from brevitas.core.quant import TruncIntQuant
from brevitas.core.quant.trunc import TruncMsbScaling, TruncScalingWrapper
from brevitas.inject import value
from brevitas.inject.enum import QuantType, TruncScalingImplType
from brevitas.quant.registry import Choices
from brevitas.quant.solver.common import BaseQuantSolver

__all__ = ["TruncQuantSolver"]

_ONLY_INTEGERS = "truncation shifts integers."
TENSOR_QUANT = Choices(
    "quant_type",
    QuantType,
    {QuantType.FP: None, QuantType.INT: TruncIntQuant},
    ("trunc",),
    {QuantType.BINARY: _ONLY_INTEGERS, QuantType.TERNARY: _ONLY_INTEGERS},
)
SCALING = Choices(
    "trunc_scaling_impl_type",
    TruncScalingImplType,
    {TruncScalingImplType.MSB: TruncMsbScaling, TruncScalingImplType.WRAPPER: TruncScalingWrapper},
    ("trunc",),
)


class TruncQuantSolver(BaseQuantSolver):
    """Turns the directives of a truncation quantizer into core modules.

    >>> from brevitas.quant import TruncTo8bit
    >>> TruncTo8bit.bit_width
    8
    """

    _role = "trunc"
    tensor_clamp_impl: Any = TensorClamp
    narrow_range: Any = False
    trunc_scaling_impl_type: Any = TruncScalingImplType.MSB

    @value
    def tensor_quant(quant_type: Any) -> Any:
        return TENSOR_QUANT.solve(quant_type)

    @value
    def trunc_scaling_impl(trunc_scaling_impl_type: Any) -> Any:
        return SCALING.solve(trunc_scaling_impl_type)
