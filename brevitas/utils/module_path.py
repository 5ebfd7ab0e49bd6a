"""Qualified names of modules at the moment an error is raised.

A module does not know its name; its root does. While a forward runs, the root is on the call stack, so an error can
look
it up there and the path without an error pays nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from torch import nn

__all__ = ["describe_module", "find_module", "qualified_name", "roots_on_stack"]


def roots_on_stack() -> Iterator[nn.Module]:
    """Modules whose methods are running, outermost first, each once."""
    found: list[nn.Module] = []
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and not any(owner is f for f in found):
            found.append(owner)
        frame = frame.f_back  # type: ignore[assignment]
    return reversed(found)  # type: ignore[return-value]


def find_module(predicate: Callable[[nn.Module], bool]) -> tuple[str, nn.Module] | None:
    """The first module for which ``predicate`` holds, with its name in the outermost running module that holds it."""
    for root in roots_on_stack():
        for name, module in root.named_modules():
            if predicate(module):
                return name, module
    return None


def qualified_name(module: nn.Module) -> str | None:
    """Name of ``module`` in the outermost running module that holds it; ``None`` where no other module does."""
    found = find_module(lambda m: m is module)
    return found[0] if found and found[0] else None


def describe_module(module: nn.Module) -> str:
    """``QuantConv2d 'features.3'``, or the class alone where the name is not known."""
    name = qualified_name(module)
    return f"{type(module).__name__} '{name}'" if name else type(module).__name__
