"""Bias quantizers: directives to core modules."""

from __future__ import annotations

from typing import Any

from brevitas.core.function_wrapper import Identity
from brevitas.core.quant import PrescaledRestrictIntQuant, PrescaledRestrictIntQuantWithInputBitWidth, RescalingIntQuant
from brevitas.errors import QuantConfigError
from brevitas.inject import this, value
from brevitas.inject.enum import QuantType
from brevitas.quant.registry import Choices
from brevitas.quant.solver.common import BIT_WIDTH, is_channel, is_group
from brevitas.quant.solver.parameter import ParameterQuantSolver, common_channels

__all__ = ["BiasQuantSolver"]


_ADDED_TO_INTEGERS = "a bias is added to integers."
TENSOR_QUANT = Choices(
    "quant_type",
    QuantType,
    # Which of the integer quantizers depends on what the layer supplies.
    {QuantType.FP: None, QuantType.INT: RescalingIntQuant},
    ("bias",),
    {QuantType.BINARY: _ADDED_TO_INTEGERS, QuantType.TERNARY: _ADDED_TO_INTEGERS},
)


class BiasQuantSolver(ParameterQuantSolver):
    """Turns the directives of a bias quantizer into core modules.

    >>> from brevitas.quant import Int8Bias
    >>> Int8Bias.requires_input_scale, Int8Bias.requires_input_bit_width
    (True, False)
    """

    _role = "bias"

    @value
    def tensor_quant(quant_type: Any) -> Any:
        if TENSOR_QUANT.name_of(quant_type) == QuantType.INT:
            return this.int_tensor_quant
        return TENSOR_QUANT.solve(quant_type)

    @value
    def int_tensor_quant(requires_input_scale: Any, requires_input_bit_width: Any) -> Any:
        if requires_input_scale:
            return PrescaledRestrictIntQuantWithInputBitWidth if requires_input_bit_width else PrescaledRestrictIntQuant
        if requires_input_bit_width:
            raise QuantConfigError(
                "requires_input_bit_width = True needs requires_input_scale = True: an accumulator's width means "
                "nothing "
                "without its scale"
            )
        return RescalingIntQuant

    @value
    def bit_width_impl(requires_input_bit_width: Any, bit_width_impl_type: Any) -> Any:
        return Identity if requires_input_bit_width else BIT_WIDTH.solve(bit_width_impl_type)

    @value
    def scaling_shape(scaling_per_output_type: Any, module: Any) -> Any:
        if is_group(scaling_per_output_type):
            raise QuantConfigError(
                "scaling_per_output_type = GROUP cannot be used here: a bias has one element a channel"
            )
        return (
            (common_channels(module, lambda layer: layer.out_channels),) if is_channel(scaling_per_output_type) else ()
        )
