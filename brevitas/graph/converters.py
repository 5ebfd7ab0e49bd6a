"""Which quantized layer stands for which layer of ``torch.nn``, and how to build one from the other.

>>> from torch import nn
>>> converter_of(nn.ReLU()).quantized.__name__
'QuantReLU'
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn

from brevitas.errors import QuantConfigError

__all__ = ["Converter", "converter_of", "converters", "overridden_method", "register_converter"]

Arguments = Callable[[Any], dict[str, Any]]
Transfer = Callable[[Any, Any], None]

#: Methods whose override in a subclass changes what a layer computes.
_COMPUTING = ("forward", "_conv_forward", "__call__", "_call_impl", "inner_forward_impl")


@dataclass(frozen=True)
class Converter:
    """A pair of layer classes that compute the same but for quantization.

    Attributes:
        float: class of ``torch.nn``, or of a user, without quantizers.
        quantized: the class with quantizers; its constructor has a parameter ``<role>_quant`` for each.
        arguments: from a layer of either class, the constructor arguments that both classes take.
        transfer: copies the parameters of a layer of one class into one of the other; ``None`` where both classes have
            parameters of the same names, which are then handed over as they are.
        structure: arguments of both classes that the signature of the float class does not name.
        parts: names of modules inside a float layer that ``transfer`` copies too.
    """

    float: type[nn.Module]
    quantized: type[nn.Module]
    arguments: Arguments
    parameters: dict[str, inspect.Parameter] = field(default_factory=dict)
    transfer: Transfer | None = None
    structure: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()

    @cached_property
    def roles(self) -> dict[str, Any]:
        """Roles of the quantized class, each with its default quantizer."""
        return {
            name.removesuffix("_quant"): parameter.default
            for name, parameter in self.parameters.items()
            if _is_quantizer_argument(parameter)
        }

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Options that only the quantized class has, with their defaults: ``return_quant_tensor`` and others."""
        # A class that is its own float form shares its options with nothing.
        shared = {} if self.float is self.quantized else inspect.signature(self.float.__init__).parameters
        return {
            name: parameter.default
            for name, parameter in self.parameters.items()
            if not _is_quantizer_argument(parameter)
            and name not in shared
            and name not in self.structure
            and parameter.default is not inspect.Parameter.empty
            and name not in ("device", "dtype")
        }

    def takes(self, cls: type[nn.Module], argument: str) -> bool:
        """Whether the constructor of one of the two classes has a parameter."""
        return argument in inspect.signature(cls.__init__).parameters


def _is_quantizer_argument(parameter: inspect.Parameter) -> bool:
    """Whether it is a ``<role>_quant``, and not a switch such as ``tie_input_output_quant``."""
    return parameter.name.endswith("_quant") and not isinstance(parameter.default, bool)


_converters: dict[type, Converter] = {}


def register_converter(
    float_type: type[nn.Module],
    quantized_type: type[nn.Module],
    *,
    transfer: Transfer | None = None,
    structure: Collection[str] = (),
    parts: Collection[str] = (),
) -> Callable[[Arguments], Arguments]:
    """Decorate the function that gives the constructor arguments of a pair of layers.

    >>> from torch import nn
    >>> from brevitas.nn import QuantLinear
    >>> from brevitas.graph import register_converter
    >>> class MyLinear(nn.Linear):
    ...     def forward(self, x):
    ...         return super().forward(x) * 2
    >>> class MyQuantLinear(QuantLinear):
    ...     def forward(self, x):
    ...         return super().forward(x) * 2
    >>> @register_converter(MyLinear, MyQuantLinear)
    ... def my_linear(layer):
    ...     return {"in_features": layer.in_features, "out_features": layer.out_features}

    From then on ``apply_spec`` swaps layers of the two classes for each other, and gives quantized ones other
    quantizers. Subclasses that compute the same are swapped too.

    Args:
        float_type: the class without quantizers.
        quantized_type: its quantized form. Each parameter of its constructor that is called ``<role>_quant`` is a role
            that rules may set; other parameters that ``float_type`` does not have are what ``layer:`` may set.
        transfer: for classes that lay their parameters out in different ways: called with the present layer and the new
            one, of either class, it copies them. The parameters are then new objects, and the quantizers of a quantized
            layer may belong to its parts.
        structure: arguments of both classes that ``float_type`` takes by ``*args, **kwargs``.
        parts: names of the modules that ``float_type`` holds and ``transfer`` copies too; others would be lost.

    The decorated function is called with a layer of either class and must not depend on the values of its parameters;
    ``device`` and ``dtype`` are added by themselves where the constructors take them.

    Raises:
        QuantConfigError: one of the classes has a converter, or the quantized class has no quantizer.
    """
    for cls in (float_type, quantized_type):
        if cls in _converters:
            raise QuantConfigError(f"register_converter: {cls.__name__} has a converter already")
    parameters = dict(inspect.signature(quantized_type.__init__).parameters)
    if not any(_is_quantizer_argument(parameter) for parameter in parameters.values()):
        raise QuantConfigError(
            f"register_converter: the constructor of {quantized_type.__name__} has no parameter <role>_quant, such as "
            "weight_quant or act_quant"
        )

    def register(arguments: Arguments) -> Arguments:
        sets = frozenset(structure), frozenset(parts)
        converter = Converter(float_type, quantized_type, arguments, parameters, transfer, *sets)
        _converters[float_type] = _converters[quantized_type] = converter
        return arguments

    return register


def converters() -> tuple[Converter, ...]:
    """Every registered converter."""
    return tuple({converter.quantized: converter for converter in _converters.values()}.values())


def registered_type(layer: nn.Module) -> type[nn.Module] | None:
    """The most derived class of a layer that has a converter."""
    return next((cls for cls in type(layer).__mro__ if cls in _converters), None)


def converter_of(layer: nn.Module) -> Converter | None:
    """The converter of the most derived class of a layer; ``None`` where no class has one."""
    found = registered_type(layer)
    return _converters[found] if found is not None else None


def overridden_method(layer: nn.Module) -> str | None:
    """Name of a method by which a layer computes otherwise than its registered class; ``None`` if it does not."""
    known = registered_type(layer)
    if known is None:
        return None
    for name in _COMPUTING:
        if name in vars(layer) or getattr(type(layer), name, None) is not getattr(known, name, None):
            return name
    return None
