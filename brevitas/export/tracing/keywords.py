"""Inputs by name: a model that takes them in order instead, so that everything behind it knows positions alone."""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from brevitas.export.violations import Violation
from injector import suggest

__all__ = ["by_position", "keyword_violations"]


def keyword_violations(module: nn.Module, inputs: Mapping[str, Any], target: str) -> list[Violation]:
    """Names that the forward of a model does not have, or has to have (E01)."""
    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return []
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return []
    found = []
    known = [name for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY)]
    for name in inputs:
        if name not in known:
            near = suggest(str(name), known)
            fix = f"write {' or '.join(map(repr, near))}" if near else "leave it out"
            required = f"arguments of forward: {', '.join(known)}"
            found.append(Violation("E01", target, f"an input {name!r}", required, fix, place="input_t"))
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and name not in inputs and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    for name in missing:
        what = f"no input {name!r}, which forward needs,"
        found.append(Violation("E01", target, what, "a tensor for it", f"add {name!r} to input_t", place="input_t"))
    return found


def by_position(module: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    """``module`` and its inputs; where they are a mapping, a model that takes them in the mapping's order.

    >>> import torch
    >>> class Scaled(nn.Module):
    ...     def forward(self, x, *, factor):
    ...         return x * factor
    >>> model, inputs = by_position(Scaled(), {'factor': torch.tensor(2.0), 'x': torch.ones(2)})
    >>> model(*inputs)
    tensor([2., 2.])

    The model is the same but for its forward: its layers, and their names, are those of ``module``.
    """
    if not isinstance(inputs, Mapping):
        return module, inputs
    named = copy.copy(module)
    # Bound to the copy, so that a deep copy of it calls the forward of the copied model.
    named.forward = types.MethodType(_named_forward(tuple(inputs), module), named)  # type: ignore[method-assign]
    return named, tuple(inputs.values())


def _named_forward(names: Sequence[str], module: nn.Module) -> Callable[..., Any]:
    forward = type(module).forward

    def call(self: nn.Module, *args: Any) -> Any:
        return forward(self, **dict(zip(names, args, strict=True)))

    return call
