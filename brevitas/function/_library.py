"""Registration of brevitas' operators with torch.

Every operator has the same shape: a schema, one hand-written ``autograd.Function``, and its plain forward for inference
mode. An ``Autograd`` kernel that calls the function costs half of what ``torch.library.custom_op`` does, and
``torch.compile`` traces through it, so that the compiler sees plain ATen operators and can fuse them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function

__all__ = ["register", "register_plain"]

_LIBRARY = torch.library.Library("brevitas", "FRAGMENT")


def register(
    signature: str, function: type[Function], plain: Callable[..., Any], fake: Callable[..., Any] | None = None
) -> Any:
    """Define ``brevitas::<signature>``; return its overload, half as dear to call as ``torch.ops.brevitas.<name>``."""
    name = signature.partition("(")[0]
    _LIBRARY.define(signature)
    # The plain kernel serves every backend, meta included; a backend overrides it with a kernel under its own key.
    _LIBRARY.impl(name, plain, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, function.apply, "Autograd")
    if fake is not None:
        torch.library.register_fake(f"brevitas::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.brevitas, name).default


def register_plain(signature: str, function: Callable[..., Any], fake: Callable[..., Any] | None = None) -> Any:
    """Define an operator without a gradient; with ``fake`` it is opaque to compilers, which run it as it is."""
    name = signature.partition("(")[0]
    _LIBRARY.define(signature)
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    if fake is not None:
        torch.library.register_fake(f"brevitas::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.brevitas, name).default
