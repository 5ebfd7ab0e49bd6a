"""Watch a model's quantizers: on a private copy, every quantization goes through a handler of ours.

Two things quantize: the proxies of layers, and :meth:`QuantTensor.requantize`, through which functions such as
``torch.clamp`` move values back onto the grid of a QuantTensor. ``Watched`` redirects both while its ``run`` lasts.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from brevitas.graph.copies import is_quantizer, private_copy
from brevitas.quant_tensor import QuantTensor
from brevitas.utils.module_path import roots_on_stack

__all__ = ["Watched", "activation_of", "exclusive", "float_value", "named_quantizers"]

# Held by whoever redirects QuantTensor.requantize or runs torch's exporter, both of which are process-wide: exports of
# several threads take turns, and an export inside another one passes.
exclusive = threading.RLock()


def named_quantizers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Qualified name and module of every active quantizer, each once."""
    for name, module in model.named_modules():
        if is_quantizer(module) and module.is_quant_enabled:
            yield name, module


def float_value(x: Any) -> Any:
    """The plain tensor of a QuantTensor, anything else as it is."""
    return x.value if isinstance(x, QuantTensor) else x


def activation_of(proxy: nn.Module) -> Callable[[Tensor], Tensor]:
    """The activation function that an activation quantizer applies before it rounds."""
    fused = getattr(proxy, "fused_activation_quant_proxy", None)
    activation = None if fused is None else fused.activation_impl
    return (lambda x: x) if activation is None else activation


class Watched:
    """A private copy of a model whose quantizations call a handler.

    Subclasses define ``on_quantizer(name, module, original, args, kwargs)`` and ``on_requantize(name, grid, value,
    original)``; ``name`` is the quantizer's qualified name (for requantizing functions that of the module that runs
    them, plus ``requantize``).
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = private_copy(model, share_parameters=True).cpu()
        # By what a module holds: torch's exporter hands out stand-ins of modules, which share it.
        self._names = {id(vars(module)): name for name, module in self.model.named_modules()}
        for name, module in named_quantizers(self.model):
            module.forward = functools.partial(self._quantizer, name, module, module.forward)  # type: ignore[method-assign]

    def on_quantizer(
        self, name: str, module: nn.Module, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What a quantizer returns."""
        raise NotImplementedError

    def on_requantize(
        self, name: str, grid: QuantTensor, value: Tensor, original: Callable[[QuantTensor, Tensor], QuantTensor]
    ) -> QuantTensor:
        """What a function returns that moves ``value`` back onto ``grid``."""
        raise NotImplementedError

    def _quantizer(self, name: str, module: nn.Module, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.on_quantizer(name, module, original, args, kwargs)

    def run_model(self, inputs: Sequence[Any]) -> Any:
        """One forward without gradients, with both redirections in force."""
        with torch.no_grad(), redirected(self._requantize):
            return self.model(*inputs)

    def _requantize(
        self, grid: QuantTensor, value: Tensor, original: Callable[[QuantTensor, Tensor], QuantTensor]
    ) -> QuantTensor:
        running = [self._names[id(vars(m))] for m in roots_on_stack() if id(vars(m)) in self._names]
        layer = running[-1] if running else ""
        return self.on_requantize(f"{layer}.requantize".removeprefix("."), grid, value, original)


class redirected:  # noqa: N801  (a context manager, used as one)
    """While it lasts, ``QuantTensor.requantize`` calls ``handler(grid, value, original)`` in this thread."""

    def __init__(self, handler: Callable[..., QuantTensor]) -> None:
        self._handler = handler

    def __enter__(self) -> None:
        exclusive.acquire()
        self._original = original = QuantTensor.requantize
        thread = threading.get_ident()
        handler = self._handler

        def requantize(grid: QuantTensor, value: Tensor) -> QuantTensor:
            return handler(grid, value, original) if threading.get_ident() == thread else original(grid, value)

        QuantTensor.requantize = requantize  # type: ignore[method-assign, assignment]

    def __exit__(self, *exc: object) -> None:
        QuantTensor.requantize = self._original  # type: ignore[method-assign]
        exclusive.release()
