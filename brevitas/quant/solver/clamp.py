"""Clamping quantizers, which take most significant bits off an accumulator: directives to core modules."""

from __future__ import annotations

from typing import Any

import torch

from brevitas.core.bit_width import MsbClampBitWidth, RemoveBitwidthParameter
from brevitas.core.function_wrapper import TensorClamp
from brevitas.core.quant import PrescaledRestrictIntQuantWithInputBitWidth
from brevitas.core.utils import StatelessBuffer
from brevitas.inject import this, value
from brevitas.inject.enum import BitWidthImplType, QuantType
from brevitas.quant.registry import Choices
from brevitas.quant.solver.common import BaseQuantSolver

__all__ = ["ClampQuantSolver"]

_ONLY_INTEGERS = "bits are taken off integers."
TENSOR_QUANT = Choices(
    "quant_type",
    QuantType,
    {QuantType.FP: None, QuantType.INT: PrescaledRestrictIntQuantWithInputBitWidth},
    ("clamp",),
    {QuantType.BINARY: _ONLY_INTEGERS, QuantType.TERNARY: _ONLY_INTEGERS},
)


class ClampQuantSolver(BaseQuantSolver):
    """Turns the directives of a clamping quantizer into core modules; its sign is that of its input.

    >>> from brevitas.quant.base import IntQuant
    >>> class Keep12(IntQuant, ClampQuantSolver):
    ...     bit_width_to_remove = 4
    >>> Keep12.bit_width_impl(torch.tensor(16.))
    tensor(12.)
    """

    _role = "clamp"
    tensor_clamp_impl: Any = TensorClamp
    bit_width_impl: Any = MsbClampBitWidth

    @value
    def tensor_quant(quant_type: Any) -> Any:
        return TENSOR_QUANT.solve(quant_type)

    @value
    def bit_width_to_remove_impl(bit_width_impl_type: Any) -> Any:
        if bit_width_impl_type == BitWidthImplType.PARAMETER:
            return RemoveBitwidthParameter
        return this.fixed_bit_width_to_remove

    @value
    def fixed_bit_width_to_remove(bit_width_to_remove: Any) -> Any:
        return StatelessBuffer(torch.tensor(float(bit_width_to_remove)))
