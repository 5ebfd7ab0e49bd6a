"""Weight quantizers: directives to core modules."""

from __future__ import annotations

from brevitas.inject import value
from brevitas.quant.solver.parameter import ParameterQuantSolver, common_channels, layers_of

__all__ = ["WeightQuantSolver"]


class WeightQuantSolver(ParameterQuantSolver):
    """Turns the directives of a weight quantizer into core modules.

    >>> from brevitas.quant import Int8WeightPerTensorFloat
    >>> from brevitas.quant.solver import WeightQuantSolver
    >>> issubclass(Int8WeightPerTensorFloat, WeightQuantSolver)
    True
    """

    _role = "weight"

    @value
    def permute_dims(module):  # noqa: N805
        layer = layers_of(module)[0]
        if layer.output_channel_dim == 0:
            return None
        dims = list(range(layer.weight.ndim))
        dims.insert(0, dims.pop(layer.output_channel_dim))
        return tuple(dims)

    @value
    def scaling_shape(scaling_per_output_channel, module):  # noqa: N805
        if not scaling_per_output_channel:
            return ()
        layer = layers_of(module)[0]
        shape = [1] * layer.weight.ndim
        shape[layer.output_channel_dim] = common_channels(module)
        return tuple(shape)
