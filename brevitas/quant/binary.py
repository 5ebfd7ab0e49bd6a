"""Presets with the two codes -1 and +1.

>>> from brevitas.quant.binary import SignedBinaryWeightPerTensorConst
>>> SignedBinaryWeightPerTensorConst.scaling_const
0.1
"""

from typing import Any

from brevitas.core.function_wrapper import InplaceTensorClampSte
from brevitas.quant.base import SignedBinaryClampedConst
from brevitas.quant.solver import ActQuantSolver, WeightQuantSolver

__all__ = ["SignedBinaryActPerTensorConst", "SignedBinaryWeightPerTensorConst"]


class SignedBinaryWeightPerTensorConst(SignedBinaryClampedConst, WeightQuantSolver):
    """Weights -1 or +1 times 0.1. In training, the latent weights are clipped to that range in place."""

    scaling_const: Any = 0.1
    tensor_clamp_impl: Any = InplaceTensorClampSte


class SignedBinaryActPerTensorConst(SignedBinaryClampedConst, ActQuantSolver):
    """Activations -1 or +1; inputs outside that range get no gradient."""

    min_val: Any = -1.0
    max_val: Any = 1.0
