"""Weight quantizers: directives to core modules."""

from __future__ import annotations

from typing import Any

from brevitas.core.quant import BinaryQuant, RescalingIntQuant, TernaryQuant
from brevitas.inject import value
from brevitas.inject.enum import QuantType
from brevitas.quant.registry import Choices
from brevitas.quant.solver.parameter import ParameterQuantSolver, common_channels, layers_of

__all__ = ["WeightQuantSolver"]


TENSOR_QUANT = Choices(
    "quant_type",
    QuantType,
    {
        QuantType.FP: None,
        QuantType.INT: RescalingIntQuant,
        QuantType.BINARY: BinaryQuant,
        QuantType.TERNARY: TernaryQuant,
    },
    ("weight",),
)


class WeightQuantSolver(ParameterQuantSolver):
    """Turns the directives of a weight quantizer into core modules.

    >>> from brevitas.quant import Int8WeightPerTensorFloat
    >>> from brevitas.quant.solver import WeightQuantSolver
    >>> issubclass(Int8WeightPerTensorFloat, WeightQuantSolver)
    True
    """

    _role = "weight"

    @value
    def tensor_quant(quant_type: Any) -> Any:
        return TENSOR_QUANT.solve(quant_type)

    @value
    def permute_dims(module: Any) -> Any:
        layer = layers_of(module)[0]
        if layer.output_channel_dim == 0:
            return None
        dims = list(range(layer.weight.ndim))
        dims.insert(0, dims.pop(layer.output_channel_dim))
        return tuple(dims)

    @value
    def scaling_shape(scaling_per_output_channel: Any, module: Any) -> Any:
        if not scaling_per_output_channel:
            return ()
        layer = layers_of(module)[0]
        shape = [1] * layer.weight.ndim
        shape[layer.output_channel_dim] = common_channels(module)
        return tuple(shape)
