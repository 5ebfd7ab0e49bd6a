"""Presets with the three codes -1, 0 and +1.

>>> from brevitas.quant.ternary import SignedTernaryWeightPerTensorConst
>>> SignedTernaryWeightPerTensorConst.bit_width
2
"""

from typing import Any

from brevitas.quant.base import NarrowIntQuant, PerTensorConstScaling2bit
from brevitas.quant.solver import ActQuantSolver, WeightQuantSolver

__all__ = ["SignedTernaryActPerTensorConst", "SignedTernaryWeightPerTensorConst"]


class SignedTernaryWeightPerTensorConst(NarrowIntQuant, PerTensorConstScaling2bit, WeightQuantSolver):
    """Weights in [-1, 1] times 0.1, as narrow 2-bit integers."""

    scaling_const: Any = 0.1


class SignedTernaryActPerTensorConst(NarrowIntQuant, PerTensorConstScaling2bit, ActQuantSolver):
    """Activations in [-1, 1], as narrow 2-bit integers."""

    min_val: Any = -1.0
    max_val: Any = 1.0
