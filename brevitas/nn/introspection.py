"""Getters that every layer offers for the quantizers it has.

Getters evaluate as in eval mode, keep gradients, and change nothing: no statistic, no counter, no training flag.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from brevitas.quant_tensor import QuantTensor

__all__ = ["InputGetters", "quantity_getter"]

_CACHES = {"input": "_cached_input", "output": "_cached_output", "act": "_cached_output"}


def quantity_getter(part: str, quantity: str) -> Callable[[Any], Tensor | None]:
    """A method that returns a quantizer's scale, zero point or bit width.

    From the quantizer ``<part>_quant`` if it is on, else from the last eval forward if the layer caches it, else
    ``None``.
    """

    def get(self: Any) -> Tensor | None:
        proxy = getattr(self, f"{part}_quant")
        if proxy.is_quant_enabled:
            return getattr(proxy, quantity)()
        cached = getattr(self, _CACHES[part]) if part in _CACHES else None
        return getattr(cached, quantity) if isinstance(cached, QuantTensor) else None

    words = quantity.replace("_", " ")
    get.__name__ = f"quant_{part}_{quantity}"
    get.__doc__ = f"{words.capitalize()} of the {part}, as in eval mode; ``None`` if unknown."
    return get


def enabled_property(part: str) -> property:
    """A property that tells whether the quantizer ``<part>_quant`` is on."""
    return property(
        lambda self: getattr(self, f"{part}_quant").is_quant_enabled, doc=f"Whether the {part} is quantized."
    )


def _flag(part: str, flag: str, doc: str) -> property:
    def get(self: Any) -> bool | None:
        proxy = getattr(self, f"{part}_quant")
        own = getattr(proxy, f"is_{flag}")
        if own is None and flag == "signed" and part in _CACHES:
            cached = getattr(self, _CACHES[part])
            return cached.signed if isinstance(cached, QuantTensor) else None
        return own

    return property(get, doc=doc)


def signed_property(part: str) -> property:
    """A property that tells whether codes are signed, ``None`` if unknown."""
    return _flag(part, "signed", f"Whether the codes of the {part} are signed; ``None`` if unknown.")


def narrow_property(part: str) -> property:
    """A property that tells whether the range is narrow, ``None`` if unknown."""
    return _flag(part, "narrow_range", f"Whether the range of the {part} is narrow; ``None`` if unknown.")


class InputGetters:
    """Getters of ``input_quant``, which weight and activation layers have."""

    is_input_quant_enabled = enabled_property("input")
    is_quant_input_signed = signed_property("input")
    is_quant_input_narrow_range = narrow_property("input")
    quant_input_scale = quantity_getter("input", "scale")
    quant_input_zero_point = quantity_getter("input", "zero_point")
    quant_input_bit_width = quantity_getter("input", "bit_width")
