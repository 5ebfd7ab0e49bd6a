"""Getters that every layer offers for the quantizers it has.

Getters evaluate as in eval mode, keep gradients, and change nothing: no statistic, no counter, no training flag.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from brevitas.quant_tensor import QuantTensor

__all__ = ["InputGetters", "OutputGetters", "quantity_getter"]

_CACHES = {"input": "_cached_input", "output": "_cached_output", "act": "_cached_output"}


def _proxy_of(layer: Any, part: str) -> Any:
    """The quantizer of a part; ``None`` for a layer that has no such argument."""
    return getattr(layer, f"{part}_quant", None)


def _cached(layer: Any, part: str) -> QuantTensor | None:
    cached = getattr(layer, _CACHES[part]) if part in _CACHES else None
    return cached if isinstance(cached, QuantTensor) else None


def quantity_getter(part: str, quantity: str, quantizer: str | None = None) -> Callable[[Any], Tensor | None]:
    """A method that returns a quantizer's scale, zero point or bit width.

    From the quantizer ``<part>_quant`` if it is on, else from the last eval forward if the layer caches it, else
    ``None``. ``quantizer`` names another one that makes the part, such as ``trunc`` for the output of a pool.
    """

    def get(self: Any) -> Tensor | None:
        proxy = _proxy_of(self, quantizer or part)
        known = getattr(proxy, quantity)() if proxy is not None and proxy.is_quant_enabled else None
        cached = _cached(self, part) if known is None else None
        return known if cached is None else getattr(cached, quantity)

    words = quantity.replace("_", " ")
    get.__name__ = f"quant_{part}_{quantity}"
    get.__doc__ = f"{words.capitalize()} of the {part}, as in eval mode; ``None`` if unknown."
    return get


def enabled_property(part: str, quantizer: str | None = None) -> property:
    """A property that tells whether the quantizer ``<part>_quant``, or the one of another name, is on."""

    def get(self: Any) -> bool:
        proxy = _proxy_of(self, quantizer or part)
        return proxy is not None and proxy.is_quant_enabled

    return property(get, doc=f"Whether the {part} is quantized.")


def _flag(part: str, flag: str, doc: str, quantizer: str | None) -> property:
    def get(self: Any) -> bool | None:
        own = getattr(_proxy_of(self, quantizer or part), f"is_{flag}", None)
        cached = _cached(self, part) if own is None and flag == "signed" else None
        return own if cached is None else cached.signed

    return property(get, doc=doc)


def signed_property(part: str, quantizer: str | None = None) -> property:
    """A property that tells whether codes are signed, ``None`` if unknown."""
    return _flag(part, "signed", f"Whether the codes of the {part} are signed; ``None`` if unknown.", quantizer)


def narrow_property(part: str, quantizer: str | None = None) -> property:
    """A property that tells whether the range is narrow, ``None`` if unknown."""
    return _flag(part, "narrow_range", f"Whether the range of the {part} is narrow; ``None`` if unknown.", quantizer)


class InputGetters:
    """Getters of ``input_quant``; of the cached input for a layer without one."""

    is_input_quant_enabled = enabled_property("input")
    is_quant_input_signed = signed_property("input")
    is_quant_input_narrow_range = narrow_property("input")
    quant_input_scale = quantity_getter("input", "scale")
    quant_input_zero_point = quantity_getter("input", "zero_point")
    quant_input_bit_width = quantity_getter("input", "bit_width")


class OutputGetters:
    """Getters of ``output_quant``; of the cached output for a layer without one."""

    is_output_quant_enabled = enabled_property("output")
    is_quant_output_signed = signed_property("output")
    is_quant_output_narrow_range = narrow_property("output")
    quant_output_scale = quantity_getter("output", "scale")
    quant_output_zero_point = quantity_getter("output", "zero_point")
    quant_output_bit_width = quantity_getter("output", "bit_width")
