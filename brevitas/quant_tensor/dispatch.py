"""Which torch functions know about grids: the registry behind ``QuantTensor.__torch_function__``.

Functions are found by their name, which the functional form, the method and the module share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["NARY", "UNARY", "implements", "keeps_grid"]

Handler = Callable[..., Any]

UNARY: dict[str, Handler] = {}
"""``handler(func, x, *args, **kwargs)`` with ``x`` a :class:`QuantTensor`."""

NARY: dict[str, Handler] = {}
"""``handler(func, *args, **kwargs)``, where any argument may be a :class:`QuantTensor`.

A handler of either kind returns ``None`` where the result has no grid: the caller then computes on the values.
"""


def implements(*names: str, table: dict[str, Handler] = UNARY) -> Callable[[Handler], Handler]:
    """Register the decorated function as the handler of the torch functions of these names."""

    def register(handler: Handler) -> Handler:
        for name in names:
            table[name] = handler
        return handler

    return register


def keeps_grid(func: Handler) -> bool:
    """Whether a torch function may return a :class:`QuantTensor`; what else it takes may still prevent that.

    >>> import torch
    >>> keeps_grid(torch.relu), keeps_grid(torch.sigmoid)
    (True, False)
    """
    name = getattr(func, "__name__", "")
    return name in NARY or (name in UNARY and not (name.endswith("_") and not name.endswith("__")))
