"""What is known of each value of a quantizer, in words: the value, who set it and where, what it hid, who reads it.

>>> from brevitas.nn import QuantLinear
>>> part = part_of_proxy(QuantLinear(4, 2, weight_bit_width=3).weight_quant)
>>> fact = next(f for f in part.facts if f.name == 'bit_width')
>>> fact.value, fact.origin, fact.setter, [was.value for was in fact.overrode], fact.readers
('3', 'keyword', 'weight_bit_width of QuantLinear', ['8'], ('bit_width_impl',))
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from brevitas.proxy.quant_proxy import QuantProxyFromInjector
from brevitas.quant.directives import ALIASES
from injector import Declaration, Record, SourceLocation, declarations
from injector.records import short

__all__ = ["Fact", "Origin", "Part", "Was", "part_of_proxy", "part_of_quantizer", "shown"]

#: Who set a value: a class of the user, a keyword of the layer, the layer itself, a preset or fragment, a solver.
Origin = Literal["yours", "keyword", "layer", "preset", "solver"]

_RULE = "a @value"
_BY_LAYER = frozenset({"module", "tracked_parameter_list", "act_impl", "passthrough_act"})


@dataclass(frozen=True)
class Was:
    """A value that was overridden, the class that had set it, and where."""

    value: str
    setter: str
    location: SourceLocation

    def __str__(self) -> str:
        return f"{self.value} of {self.setter}, {self.location}"


@dataclass(frozen=True)
class Fact:
    """One value of a quantizer.

    ``readers`` are the names that consumed it; ``defaults`` the constructor parameters that no directive gave, with
    the default that was used; ``location`` is ``None`` where nobody knows which line built the layer.
    """

    name: str
    value: str
    origin: Origin
    setter: str
    location: SourceLocation | None = None
    overrode: tuple[Was, ...] = ()
    readers: tuple[str, ...] = ()
    defaults: tuple[tuple[str, str], ...] = ()

    @property
    def replaced(self) -> str | None:
        """The nearest value that it hides, if that was another one; not a rule, whose value was never computed."""
        same = {self.value, self.value.partition("(")[0], _RULE}
        return next((was.value for was in self.overrode if was.value not in same), None)

    @property
    def caption(self) -> str:
        """Who set it and where, short: the file without its folders."""
        return f"{self.setter}, {brief(self.location)}" if self.location else self.setter

    def __str__(self) -> str:
        verb = "set in" if self.origin in ("preset", "solver") or "let on" not in self.setter else "set by"
        verb = "given by" if self.origin == "layer" else "set by" if self.origin == "keyword" else verb
        place = f"{self.setter}, {self.location}" if self.location else self.setter
        parts = [f"{verb} {place}", *(f"overrides {was}" for was in self.overrode)]
        if self.readers:
            parts.append(f"read by {', '.join(self.readers)}")
        if self.defaults:
            parts.append("by default " + ", ".join(f"{name} = {value}" for name, value in self.defaults))
        return f"{self.name} = {self.value}  [{'; '.join(parts)}]"


@dataclass(frozen=True)
class Part:
    """One quantizer of an explanation: a title, and its values in the order in which they were built.

    ``path`` is where it was found in a model. ``resolved`` is false for a class without a layer, whose facts are its
    declarations.
    """

    title: str
    facts: tuple[Fact, ...]
    resolved: bool = True
    path: str = ""
    where: SourceLocation | None = None

    @property
    def text(self) -> str:
        """One line a value."""
        head = f"{self.path}: " if self.path else ""
        return "\n".join([head + self.title, *(f"  {fact}" for fact in self.facts)])


def brief(location: SourceLocation) -> str:
    """File without its folders, and line."""
    return f"{Path(location.file).name}:{location.line}"


def shown(obj: object) -> str:
    """One short line for a value: modules and classes by name, enum members as they are written, tensors by shape."""
    if isinstance(obj, Enum):
        return obj.name
    if isinstance(obj, nn.Module):
        inner = obj.extra_repr()
        brief_form = not inner or len(inner) > 30 or next(obj.children(), None) is not None
        return (
            f"{type(obj).__name__}({'...' if inner or next(obj.children(), None) else ''})"
            if brief_form
            else (f"{type(obj).__name__}({inner})")
        )
    if isinstance(obj, nn.Parameter):
        return f"parameter of shape {tuple(obj.shape)}"
    if isinstance(obj, Tensor):
        return f"tensor({obj.item():.6g})" if obj.numel() == 1 else f"tensor of shape {tuple(obj.shape)}"
    if isinstance(obj, list | tuple) and obj and all(isinstance(each, Tensor | nn.Module) for each in obj):
        return "[" + ", ".join(shown(each) for each in obj) + "]"
    return short(obj)


def _declared(declaration: Declaration) -> str:
    """One short line for what was written, which may be a rule rather than a value."""
    return _RULE if declaration.kind == "value" else shown(declaration.obj)


def _was(declaration: Declaration) -> Was:
    setter = f"let on {declaration.owner_name}" if declaration.origin == "let" else declaration.owner_name
    return Was(_declared(declaration), setter, declaration.location)


def _origin(declaration: Declaration) -> tuple[Origin, str]:
    if declaration.origin == "let":
        return "yours", f"let on {declaration.owner_name}"
    module = declaration.owner.__module__
    if module.startswith("brevitas.quant.solver."):
        return "solver", declaration.owner_name
    return "preset" if module.partition(".")[0] == "brevitas" else "yours", declaration.owner_name


def _keyword(name: str, proxy: QuantProxyFromInjector) -> str | None:
    """The layer's keyword that set a directive, under any name of it."""
    written = (name, *(alias for alias, real in ALIASES.items() if real == name))
    return next((proxy.site.written(n) for n in written if n in proxy.site.keywords), None)


def _fact(record: Record, proxy: QuantProxyFromInjector) -> Fact:
    declaration = record.declaration
    origin, setter = _origin(declaration)
    location: SourceLocation | None = declaration.location
    keyword = _keyword(record.name, proxy) if declaration.origin == "let" else None
    hidden = declaration.overrode
    if keyword is not None:
        origin, setter = "keyword", f"{keyword} of {proxy.site.layer}"
    elif declaration.origin == "let" and record.name in _BY_LAYER:
        # Each step of sharing, and each new resolution, gives them anew: only the last one means something.
        origin, setter, location = "layer", "the layer", proxy.site.location
        hidden = tuple(each for each in hidden if each.origin != "let")
    defaults = tuple((name, shown(value)) for name, value in record.defaults.items())
    return Fact(
        record.name,
        shown(record.value),
        origin,
        setter,
        location,
        tuple(_was(each) for each in hidden),
        record.asked_by,
        defaults,
    )


def part_of_proxy(proxy: QuantProxyFromInjector, path: str = "") -> Part:
    """Every value that a proxy's quantizer resolves to."""
    facts = tuple(_fact(record, proxy) for record in proxy.resolution().records.values())
    return Part(f"{proxy.site}={proxy.quant_injector.__name__}", facts, True, path, proxy.site.location)


def part_of_quantizer(quantizer: Any) -> Part:
    """The declarations of a class that no layer uses yet."""
    facts = []
    for name, declaration in declarations(quantizer).items():
        if not name.startswith("_"):
            origin, setter = _origin(declaration)
            hidden = tuple(_was(each) for each in declaration.overrode)
            facts.append(Fact(name, _declared(declaration), origin, setter, declaration.location, hidden))
    return Part(quantizer.__name__, tuple(facts), False)
