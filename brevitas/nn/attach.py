"""From the arguments of a layer to its proxies: which keyword belongs to which quantizer, and what may be passed."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from brevitas.errors import QuantConfigError, UnknownOptionError
from brevitas.proxy import (
    AccQuantProxyProtocol,
    ActQuantProxyFromInjector,
    ActQuantProxyProtocol,
    BiasQuantProxyFromInjector,
    BiasQuantProxyProtocol,
    ClampQuantProxyFromInjector,
    TruncQuantProxyFromInjector,
    WeightQuantProxyFromInjector,
    WeightQuantProxyProtocol,
)
from brevitas.proxy.quant_proxy import QuantProxyFromInjector
from brevitas.quant import NoneActQuant, NoneBiasQuant, NoneClampQuant, NoneTruncQuant, NoneWeightQuant
from brevitas.quant.directives import DIRECTIVES
from brevitas.quant.site import Site, is_quantizer
from injector import SourceLocation, caller_location, override, suggest

__all__ = ["Slot", "attach_quantizers"]


@dataclass(frozen=True)
class _Role:
    proxy: type[QuantProxyFromInjector]
    protocol: type
    off: type


_ROLES = {
    "weight": _Role(WeightQuantProxyFromInjector, WeightQuantProxyProtocol, NoneWeightQuant),
    "bias": _Role(BiasQuantProxyFromInjector, BiasQuantProxyProtocol, NoneBiasQuant),
    "act": _Role(ActQuantProxyFromInjector, ActQuantProxyProtocol, NoneActQuant),
    "trunc": _Role(TruncQuantProxyFromInjector, AccQuantProxyProtocol, NoneTruncQuant),
    "clamp": _Role(ClampQuantProxyFromInjector, AccQuantProxyProtocol, NoneClampQuant),
}


@dataclass(frozen=True)
class Slot:
    """One quantizer argument of a layer.

    Args:
        argument: name of the argument and of the attribute that the proxy becomes, for example ``weight_quant``.
        role: ``'weight'``, ``'bias'``, ``'act'``, ``'trunc'`` or ``'clamp'``.
        quant: what the user passed: ``None``, a quantizer class, or a proxy of the same role.
        prefix: prefix of the layer's keywords for this quantizer; empty for the unprefixed one.
        supplied: directives that the layer itself gives, such as the fused activation.
        owner: module inside the layer whose parameter is quantized and that gets the proxy; the layer itself if
            ``None``. Messages name the layer and the argument, which are what the user wrote.
        attribute: name of the owner's attribute; ``argument`` if empty.

    Slots of several owners may have one ``argument``: each owner gets a quantizer of its own, with the same keywords.
    """

    argument: str
    role: str
    quant: Any
    prefix: str
    supplied: Mapping[str, Any] = field(default_factory=dict)
    owner: nn.Module | None = None
    attribute: str = ""

    def owner_in(self, layer: nn.Module) -> nn.Module:
        """The module that gets the proxy."""
        return layer if self.owner is None else self.owner


def attach_quantizers(layer: nn.Module, slots: list[Slot], keywords: Mapping[str, Any]) -> None:
    """Build the proxies of ``layer`` and set them as attributes of their owners; none is set if one cannot be built.

    Raises:
        UnknownOptionError: a keyword that belongs to no slot.
        QuantConfigError: a quantizer of another role, keywords for a shared proxy, or an illegal declaration.
    """
    location = caller_location()
    routed = _route(layer, slots, keywords, location)
    built = [(slot, _build(layer, slot, routed[slot.argument], location)) for slot in slots]
    for slot, proxy in built:
        setattr(slot.owner_in(layer), slot.attribute or slot.argument, proxy)


def _route(
    layer: nn.Module, slots: list[Slot], keywords: Mapping[str, Any], location: SourceLocation
) -> dict[str, dict[str, Any]]:
    """Each keyword to the slot of the longest prefix that it has; the rest to the slot without prefix."""
    routed: dict[str, dict[str, Any]] = {slot.argument: {} for slot in slots}
    by_length = sorted(slots, key=lambda s: len(s.prefix), reverse=True)
    for keyword, given in keywords.items():
        slot = next((s for s in by_length if keyword.startswith(s.prefix)), None)
        if slot is None:
            raise _unknown_keyword(layer, slots, keyword, given, location)
        if given is not None:
            routed[slot.argument][keyword.removeprefix(slot.prefix)] = given
    return routed


def _unknown_keyword(
    layer: nn.Module, slots: list[Slot], keyword: str, given: Any, location: SourceLocation
) -> UnknownOptionError:
    own = Site(type(layer).__name__, "", "", layer_type=type(layer)).layer_arguments()
    directives = [s.prefix + name for s in slots for name, d in DIRECTIVES.items() if s.role in d.role_names]
    near = suggest(keyword, list(dict.fromkeys([*own, *directives])))
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    prefixes = ", ".join(dict.fromkeys(f"{s.prefix}… ({s.argument})" for s in slots))
    return UnknownOptionError(
        f"{type(layer).__name__} ({location}): unknown option '{keyword}' = {given!r}.{hint}\n  quantizer options "
        f"start with {prefixes}"
    )


def _build(layer: nn.Module, slot: Slot, overrides: dict[str, Any], location: SourceLocation) -> nn.Module:
    role = _ROLES[slot.role]
    site = Site(
        type(layer).__name__, slot.argument, slot.role, location, slot.prefix, frozenset(overrides), type(layer)
    )
    if isinstance(slot.quant, nn.Module):
        return _share(slot.owner_in(layer), slot, slot.quant, overrides, site)
    quantizer = role.off if slot.quant is None else slot.quant
    if not is_quantizer(quantizer):
        raise QuantConfigError(
            f"{site}={quantizer!r}: expected None, a quantizer class such as brevitas.quant.{_example(slot.role)}, or "
            "a proxy of the "
            f"role '{slot.role}'"
        )
    if overrides:
        quantizer = override(quantizer, overrides, location=location)
    if slot.supplied:
        quantizer = _with_supplied(quantizer, slot.supplied)
    proxy_class = getattr(quantizer, "proxy_class", role.proxy) if "proxy_class" in quantizer else role.proxy  # type: ignore[operator]
    return proxy_class(slot.owner_in(layer), quantizer, site)


# A layer supplies the same few directives to the same few presets: one class for each, so that its checks run once.
_supplied_classes: WeakKeyDictionary[type, dict[tuple[tuple[str, Any], ...], weakref.ref[type]]] = WeakKeyDictionary()


def _with_supplied(quantizer: type, supplied: Mapping[str, Any]) -> type:
    known = _supplied_classes.setdefault(quantizer, {})
    key = tuple(supplied.items())
    found = known[key]() if key in known else None
    if found is None:
        found = override(quantizer, dict(supplied))
        known[key] = weakref.ref(found)
    return found


def _example(role: str) -> str:
    return {
        "weight": "Int8WeightPerTensorFloat",
        "bias": "Int32Bias",
        "act": "Int8ActPerTensorFloat",
        "trunc": "TruncTo8bit",
        "clamp": "NoneClampQuant",
    }[role]


def _share(layer: nn.Module, slot: Slot, proxy: nn.Module, overrides: dict[str, Any], site: Site) -> nn.Module:
    role = getattr(proxy, "role", slot.role)
    if role != slot.role or not isinstance(proxy, _ROLES[slot.role].protocol):
        given = (
            f"a proxy of role '{role}'"
            if role != slot.role
            else f"a {type(proxy).__name__}, which is no quantizer proxy"
        )
        raise QuantConfigError(
            f"{site}: got {given}; {slot.argument} needs a proxy of role '{slot.role}'. Pass a layer's own proxy, for "
            "example "
            f"other_layer.{slot.argument}, not the layer"
        )
    if overrides:
        names = ", ".join(site.written(o) for o in overrides)
        raise QuantConfigError(
            f"{site}: {names} cannot change a quantizer that is shared with another layer; set it where the quantizer "
            "is made, or "
            "pass a quantizer class"
        )
    add = getattr(proxy, "add_tracked_module", None)
    if add is not None:
        add(layer)
    return proxy
