"""What a layer is given after it refused, so that the forward of a private copy can go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from brevitas.quant_tensor import QuantTensor

__all__ = ["REMEDIES"]

Assume = Callable[[Any], Any]
_Given = tuple[tuple[Any, ...], dict[str, Any]]


def give_scales(assume: Assume, module: Any, offending: Any, args: Any, kwargs: Any) -> _Given:
    """The tensor that it complained about, or its first input, with a scale."""

    def is_meant(x: Any) -> bool:
        plain = isinstance(x, Tensor) and not isinstance(x, QuantTensor)
        return plain and (offending is None or x is offending)

    if offending is None:
        return (assume(args[0]), *args[1:]) if args else args, kwargs
    changed = tuple(assume(x) if is_meant(x) else x for x in args)
    return changed, {name: assume(x) if is_meant(x) else x for name, x in kwargs.items()}


def one_scale(assume: Assume, module: Any, offending: Any, args: Any, kwargs: Any) -> _Given:
    """One scale a tensor in place of one a channel."""
    changed = tuple(assume(x.value) if isinstance(x, QuantTensor) and x.scale.numel() > 1 else x for x in args)
    return changed, kwargs


def plain_output(assume: Assume, module: Any, offending: Any, args: Any, kwargs: Any) -> _Given:
    """The output in float; it is given a scale afterwards."""
    if module.return_quant_tensor:
        module.return_quant_tensor = False
    return args, kwargs


def no_bias_quantizer(assume: Assume, module: Any, offending: Any, args: Any, kwargs: Any) -> _Given:
    """The bias in float."""
    if hasattr(getattr(module, "bias_quant", None), "tensor_quant"):
        module.bias_quant.tensor_quant = None
        module.bias_quant.requires_input_scale = False
    return args, kwargs


#: Tried one after the other. Each takes a function that gives a plain tensor a scale, the layer, the tensor that it
#: complained about, and its arguments; and returns new arguments, or changes the layer.
REMEDIES = (give_scales, one_scale, plain_output, no_bias_quantizer)
