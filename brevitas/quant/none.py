"""Presets that leave values in float; what ``None`` stands for in the arguments of a layer.

>>> from brevitas.quant.none import NoneWeightQuant
>>> NoneWeightQuant.tensor_quant is None
True
"""

from typing import Any

from brevitas.inject import ExtendedInjector
from brevitas.inject.enum import QuantType
from brevitas.quant.solver import ActQuantSolver, BiasQuantSolver, ClampQuantSolver, TruncQuantSolver, WeightQuantSolver

__all__ = ["NoneActQuant", "NoneBiasQuant", "NoneClampQuant", "NoneTruncQuant", "NoneWeightQuant"]


class _Float(ExtendedInjector):
    quant_type: Any = QuantType.FP


class NoneWeightQuant(_Float, WeightQuantSolver):
    """Float weights."""


class NoneActQuant(_Float, ActQuantSolver):
    """Float activations."""


class NoneBiasQuant(_Float, BiasQuantSolver):
    """Float biases; nothing is required of the input."""

    requires_input_scale: Any = False
    requires_input_bit_width: Any = False


class NoneTruncQuant(_Float, TruncQuantSolver):
    """No truncation."""


class NoneClampQuant(_Float, ClampQuantSolver):
    """No clamping."""
