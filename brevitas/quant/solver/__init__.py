"""Solvers: how directives become core modules, one solver a role.

A solver goes last among the bases of a quantizer, so that every explicit attribute wins over it.

>>> from brevitas.quant.solver import WeightQuantSolver
>>> 'tensor_quant' in WeightQuantSolver
True
"""

from brevitas.quant.solver.act import ActQuantSolver
from brevitas.quant.solver.bias import BiasQuantSolver
from brevitas.quant.solver.clamp import ClampQuantSolver
from brevitas.quant.solver.trunc import TruncQuantSolver
from brevitas.quant.solver.weight import WeightQuantSolver

__all__ = ["ActQuantSolver", "BiasQuantSolver", "ClampQuantSolver", "TruncQuantSolver", "WeightQuantSolver"]
