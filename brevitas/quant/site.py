"""Where a quantizer is used and where its parts were written: what every message about a declaration needs."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from enum import Enum

from brevitas.errors import QuantConfigError
from injector import Declaration, SourceLocation, declarations, suggest

__all__ = ["Site", "did_you_mean", "in_library", "is_explicit", "is_quantizer", "refusal", "shown"]


@dataclass(frozen=True)
class Site:
    """Where a quantizer is used: class of the layer, its argument, the role, and the line that built the layer.

    ``prefix`` is that of the layer's keywords for this quantizer, ``'weight_'`` for ``weight_bit_width``; ``keywords``
    are the directives that were given that way. ``layer_type`` gives a message the layer's own arguments.
    """

    layer: str
    argument: str
    role: str
    location: SourceLocation | None = None
    prefix: str = ""
    keywords: frozenset[str] = frozenset()
    layer_type: type | None = None

    def __str__(self) -> str:
        where = f" ({self.location})" if self.location else ""
        return f"{self.layer}{where}, {self.argument}"

    def layer_arguments(self) -> list[str]:
        """Names of the arguments of the layer's constructor; none where the layer is not known."""
        if self.layer_type is None:
            return []
        parameters = inspect.signature(self.layer_type.__init__).parameters  # type: ignore[misc]
        return [name for name in parameters if name not in ("self", "args", "kwargs")]

    def written(self, name: str) -> str:
        """The name as the user wrote it: with the layer's prefix if it was a keyword of the layer."""
        return self.prefix + name if name in self.keywords else name


def is_quantizer(obj: object) -> bool:
    """Whether ``obj`` is a declaration: an injector class."""
    return inspect.isclass(obj) and hasattr(obj, "let")


def in_library(owner: type) -> bool:
    """Whether a class belongs to the library."""
    return owner.__module__.partition(".")[0] == "brevitas"


def is_explicit(declaration: Declaration | None) -> bool:
    """Layer keyword, ``let``, or attribute in the body of a user's class that has a solver among its bases."""
    if declaration is None:
        return False
    if declaration.origin == "let":
        return True
    return not in_library(declaration.owner) and "_role" in declarations(declaration.owner)


def shown(obj: object) -> str:
    """A declared object in a message: a class and a member by name, anything long shortened."""
    if inspect.isclass(obj):
        return obj.__name__
    if isinstance(obj, Enum):
        return obj.name
    text = repr(obj)
    return text if len(text) < 80 else text[:77] + "..."


def refusal(
    kind: type[QuantConfigError], site: Site, quantizer: type, text: str, *where: Declaration
) -> QuantConfigError:
    """The error about ``quantizer`` at ``site``, with the places ``where`` its parts were written."""
    places = " and ".join(f"'{site.written(d.name)}' at {d.location}" for d in where)
    message = f"{site}={quantizer.__name__}: {text}"
    return kind(f"{message}\n  written: {places}" if places else message)


def did_you_mean(name: str, candidates: list[str]) -> str:
    """A sentence with the nearest candidates, empty where none is near."""
    near = suggest(name, candidates)
    return f"Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
