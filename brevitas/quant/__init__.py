"""Quantizers as classes: presets, the fragments they are made of, and the solvers that turn them into modules.

>>> from brevitas.quant import Int8WeightPerTensorFloat
>>> class W3(Int8WeightPerTensorFloat):
...     bit_width = 3
>>> W3.bit_width
3
"""

from brevitas.quant import fixed_point, none, scaled_int, shifted_scaled_int
from brevitas.quant.fixed_point import *  # noqa: F403
from brevitas.quant.none import *  # noqa: F403
from brevitas.quant.scaled_int import *  # noqa: F403
from brevitas.quant.shifted_scaled_int import *  # noqa: F403

__all__ = sorted([*fixed_point.__all__, *none.__all__, *scaled_int.__all__, *shifted_scaled_int.__all__])
