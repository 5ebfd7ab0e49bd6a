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


def _transformable(function: type[Function], plain: Callable[..., Any]) -> type[Function]:
    """A twin of ``function`` for ``torch.func``, where a function computes first and says later what it saves.

    The first one decides while it computes, which costs it no second pass; the twin decides in a second pass.
    """

    def forward(*inputs: Any) -> Any:
        return plain(*inputs)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        function.forward(ctx, *inputs)

    members = {"forward": forward, "setup_context": setup_context, "backward": function.backward}
    kept = {name: staticmethod(member) for name, member in members.items()}
    return type(function.__name__, (Function,), {**kept, "generate_vmap_rule": True})


def register(
    signature: str, function: type[Function], plain: Callable[..., Any], fake: Callable[..., Any] | None = None
) -> Any:
    """Define ``brevitas::<signature>``; return a function that calls it, and that ``torch.func`` can transform.

    The function calls the overload, which is half as dear as ``torch.ops.brevitas.<name>``.
    """
    name = signature.partition("(")[0]
    _LIBRARY.define(signature)
    # The plain kernel serves every backend, meta included; a backend overrides it with a kernel under its own key.
    _LIBRARY.impl(name, plain, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, function.apply, "Autograd")
    if fake is not None:
        torch.library.register_fake(f"brevitas::{name}", fake, lib=_LIBRARY)
    operator = getattr(torch.ops.brevitas, name).default
    twin = _transformable(function, plain)

    def call(*inputs: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return twin.apply(*inputs)
        return operator(*inputs)

    return call


def register_plain(signature: str, function: Callable[..., Any], fake: Callable[..., Any] | None = None) -> Any:
    """Define an operator without a gradient; with ``fake`` it is opaque to compilers, which run it as it is."""
    name = signature.partition("(")[0]
    _LIBRARY.define(signature)
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    if fake is not None:
        torch.library.register_fake(f"brevitas::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.brevitas, name).default
