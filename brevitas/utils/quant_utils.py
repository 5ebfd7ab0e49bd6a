"""Questions about quantizers.

>>> from brevitas.nn import QuantLinear
>>> layer = QuantLinear(4, 2, weight_bit_width_impl_type='parameter')
>>> [name for name, module in layer.named_modules() if has_learned_weight_bit_width(module)]
['weight_quant']
"""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["has_learned_activation_bit_width", "has_learned_weight_bit_width"]


def has_learned_weight_bit_width(module: Any) -> bool:
    """Whether ``module`` is the proxy of a weight quantizer (``layer.weight_quant``) whose bit width is learned.

    >>> from brevitas.nn import QuantLinear
    >>> layer = QuantLinear(4, 2, weight_bit_width=4)
    >>> has_learned_weight_bit_width(layer.weight_quant), has_learned_weight_bit_width(layer)
    (False, False)
    """
    return _learns_width(module, "weight")


def has_learned_activation_bit_width(module: Any) -> bool:
    """Whether ``module`` is the proxy of an activation quantizer whose bit width is learned; inputs and outputs too.

    >>> from brevitas.nn import QuantReLU
    >>> has_learned_activation_bit_width(QuantReLU(bit_width_impl_type='parameter').act_quant)
    True
    """
    return _learns_width(module, "act")


def _learns_width(module: Any, role: str) -> bool:
    if getattr(module, "role", None) != role:
        return False
    width = getattr(getattr(module, "tensor_quant", None), "msb_clamp_bit_width_impl", None)
    return isinstance(width, nn.Module) and next(width.parameters(), None) is not None
