"""Bias quantizers: directives to core modules."""

from __future__ import annotations

from brevitas.core.function_wrapper import Identity
from brevitas.core.quant import PrescaledRestrictIntQuant, PrescaledRestrictIntQuantWithInputBitWidth, RescalingIntQuant
from brevitas.errors import QuantConfigError
from brevitas.inject import this, value
from brevitas.inject.enum import QuantType
from brevitas.quant.solver.common import bit_width_class, member, refuse_member
from brevitas.quant.solver.parameter import ParameterQuantSolver, common_channels

__all__ = ["BiasQuantSolver"]


class BiasQuantSolver(ParameterQuantSolver):
    """Turns the directives of a bias quantizer into core modules.

    >>> from brevitas.quant import Int8Bias
    >>> Int8Bias.requires_input_scale, Int8Bias.requires_input_bit_width
    (True, False)
    """

    _role = "bias"

    @value
    def tensor_quant(quant_type):  # noqa: N805
        chosen = member(QuantType, "quant_type", quant_type)
        if chosen is QuantType.FP:
            return None
        if chosen is not QuantType.INT:
            raise refuse_member("quant_type", chosen, "a bias is added to integers; use INT, or FP to leave it in float.")
        return this.int_tensor_quant

    @value
    def int_tensor_quant(requires_input_scale, requires_input_bit_width):  # noqa: N805
        if requires_input_scale:
            return PrescaledRestrictIntQuantWithInputBitWidth if requires_input_bit_width else PrescaledRestrictIntQuant
        if requires_input_bit_width:
            raise QuantConfigError(
                "requires_input_bit_width = True needs requires_input_scale = True: an accumulator's width means nothing "
                "without its scale"
            )
        return RescalingIntQuant

    @value
    def bit_width_impl(requires_input_bit_width, bit_width_impl_type):  # noqa: N805
        return Identity if requires_input_bit_width else bit_width_class(bit_width_impl_type)

    @value
    def scaling_shape(scaling_per_output_channel, module):  # noqa: N805
        return (common_channels(module),) if scaling_per_output_channel else ()
