"""The switch between plain and scripted core modules.

    >>> from brevitas.jit import ScriptModule, script_method
    >>> class Double(ScriptModule):
    ...     @script_method
    ...     def forward(self, x):
    ...         return 2 * x

With ``BREVITAS_JIT=0`` (the default) ``ScriptModule`` is ``torch.nn.Module``. With ``BREVITAS_JIT=1`` it is a module
that keeps its Python class, state and methods, but whose call runs the TorchScript of itself and of all below it. The
script is compiled at the first call and again when something that it had to copy (a flag, a replaced buffer) changes.
So the two modes give equal results by construction, and modules copy and pickle alike in both.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from brevitas import config

__all__ = ["Attribute", "ScriptModule", "script", "script_method"]

_log = logging.getLogger(__name__)
_F = TypeVar("_F", bound=Callable[..., Any])

# Marks a method, other than forward, to be compiled when its module is scripted; plain Python ignores the mark.
script_method = torch.jit.export


def script(fn: _F) -> _F:
    """Compile ``fn`` with TorchScript where ``BREVITAS_JIT=1``; else return it as it is."""
    if not config.JIT_ENABLED:
        return fn
    if config.VERBOSE:
        _log.info("scripting %s", getattr(fn, "__qualname__", fn))
    return torch.jit.script(fn)


def Attribute(value: Any, type: Any) -> Any:  # noqa: N802 - the name that torch.jit has
    """``value``; the type is for readers. Modules are compiled from instances, which carry their attributes' types."""
    return value


class _LazilyScriptedModule(nn.Module):
    """A module that runs as TorchScript when it is called from Python."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hooked = self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks
        if hooked or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return super().__call__(*args, **kwargs)
        return self._script_of_now()(*args, **kwargs)

    def _script_of_now(self) -> Any:
        key = tuple(_copied_by_scripting(m) for m in self.modules())
        cache: dict[Any, Any] = self.__dict__.setdefault("_scripts", {})
        if key not in cache:
            if config.VERBOSE:
                _log.info("scripting %s", type(self).__name__)
            cache.clear()
            cache[key] = _script_without_caches(self)
        return cache[key]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_scripts"}


def _copied_by_scripting(module: nn.Module) -> tuple[Any, ...]:
    """What a scripted copy of ``module`` would not see change: plain attributes, and which tensors it holds."""
    plain = tuple(
        (k, _identity(v)) for k, v in module.__dict__.items() if not k.startswith("_") and not isinstance(v, dict)
    )
    tensors = tuple((k, id(v)) for d in (module._parameters, module._buffers) for k, v in d.items())
    return id(module), plain, tensors


def _identity(value: Any) -> Any:
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(_identity(v) for v in value)
    return id(value)


def _script_without_caches(module: nn.Module) -> Any:
    held = [(m, m.__dict__.pop("_scripts")) for m in module.modules() if "_scripts" in m.__dict__]
    try:
        return torch.jit.script(module)
    finally:
        for owner, cache in held:
            owner.__dict__["_scripts"] = cache


if TYPE_CHECKING:
    ScriptModule = nn.Module
else:
    ScriptModule = _LazilyScriptedModule if config.JIT_ENABLED else nn.Module
