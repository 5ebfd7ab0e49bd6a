"""The arithmetic of quantization: straight-through estimators, ``int_quant`` and shapes, as registered operators.

>>> import torch
>>> from brevitas.function import round_ste
>>> round_ste(torch.tensor([0.5, 1.5, 2.5]))
tensor([0., 2., 2.])
"""

from brevitas.function.int_quant_op import int_quant, int_quant_reference
from brevitas.function.ops import *  # noqa: F403
from brevitas.function.ops import __all__ as _ops
from brevitas.function.ops_ste import *  # noqa: F403
from brevitas.function.ops_ste import __all__ as _ops_ste
from brevitas.function.rounding import dpu_round, dpu_round_ste, stochastic_round_ste

__all__ = [
    *_ops,
    *_ops_ste,
    "dpu_round",
    "dpu_round_ste",
    "int_quant",
    "int_quant_reference",
    "stochastic_round_ste",
]
