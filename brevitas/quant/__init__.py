"""Quantizers as classes: presets, the fragments they are made of, and the solvers that turn them into modules.

>>> from brevitas.quant import Int8WeightPerTensorFloat
>>> class W3(Int8WeightPerTensorFloat):
...     bit_width = 3
>>> W3.bit_width
3
"""

from brevitas.quant import (
    binary,
    fixed_point,
    float_quant_fnuz,
    float_quant_ocp,
    minifloat,
    mse,
    mx_quant_ocp,
    none,
    scaled_int,
    shifted_scaled_int,
    ternary,
    weight_norm,
)
from brevitas.quant.binary import *  # noqa: F403
from brevitas.quant.fixed_point import *  # noqa: F403
from brevitas.quant.float_quant_fnuz import *  # noqa: F403
from brevitas.quant.float_quant_ocp import *  # noqa: F403
from brevitas.quant.minifloat import *  # noqa: F403
from brevitas.quant.mse import *  # noqa: F403
from brevitas.quant.mx_quant_ocp import *  # noqa: F403
from brevitas.quant.none import *  # noqa: F403
from brevitas.quant.registry import add_library_presets
from brevitas.quant.scaled_int import *  # noqa: F403
from brevitas.quant.shifted_scaled_int import *  # noqa: F403
from brevitas.quant.ternary import *  # noqa: F403
from brevitas.quant.weight_norm import *  # noqa: F403

_MODULES = (
    binary,
    fixed_point,
    float_quant_fnuz,
    float_quant_ocp,
    minifloat,
    mse,
    mx_quant_ocp,
    none,
    scaled_int,
    shifted_scaled_int,
    ternary,
    weight_norm,
)
__all__ = sorted(name for module in _MODULES for name in module.__all__)

add_library_presets({name: getattr(module, name) for module in _MODULES for name in module.__all__})

# After the presets, which these look up by name.
from brevitas.quant.schema import json_schema as json_schema  # noqa: E402
from brevitas.quant.spec import from_spec as from_spec  # noqa: E402
from brevitas.quant.spec import to_spec as to_spec  # noqa: E402
from brevitas.quant.spec_diff import diff as diff  # noqa: E402
