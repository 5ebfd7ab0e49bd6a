"""Look at what layers are given and give, under names that an exported FINN graph repeats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from brevitas.errors import QuantConfigError
from brevitas.nn.quant_layer import QuantLayerMixin
from brevitas.quant_tensor import QuantTensor

__all__ = ["DebugHook", "enable_debug"]


class DebugHook:
    """Values of layers, from their last eval forward.

    Attributes:
        values: ``'<layer>.input'`` and ``'<layer>.output'`` -> detached tensor (of a ``QuantTensor`` its value); the
            first argument of a layer, the first element of a tuple.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._named: list[QuantLayerMixin] = []

    def clear(self) -> None:
        """Forget the values."""
        self.values.clear()

    def remove(self) -> None:
        """Stop recording, and take the names off the layers."""
        for handle in self._handles:
            handle.remove()
        for layer in self._named:
            layer.export_debug_name = None
        self._handles.clear()
        self._named.clear()

    def watch(self, name: str, layer: nn.Module, inp: bool, out: bool) -> None:
        """Record one layer under ``name``."""

        def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if module.training or torch.compiler.is_compiling():
                return
            for wanted, end, value in ((inp, "input", args[0] if args else None), (out, "output", output)):
                value = value[0] if isinstance(value, tuple) else value
                value = value.value if isinstance(value, QuantTensor) else value
                if wanted and isinstance(value, Tensor):
                    self.values[f"{name}.{end}"] = value.detach()

        self._handles.append(layer.register_forward_hook(record))
        if isinstance(layer, QuantLayerMixin) and layer.export_debug_name is None:
            layer.export_debug_name = name
            self._named.append(layer)


def enable_debug(
    module: nn.Module,
    hook: DebugHook | None = None,
    inp: bool = True,
    out: bool = True,
    filter_fn: Callable[[nn.Module], bool] = lambda module: True,
) -> DebugHook:
    """Record what the quantized layers of a model are given and give, in eval mode.

    >>> from brevitas.nn import QuantIdentity, QuantLinear
    >>> model = nn.Sequential(QuantIdentity(), QuantLinear(4, 2)).eval()
    >>> hook = enable_debug(model, filter_fn=lambda m: isinstance(m, QuantLinear))
    >>> y = model(torch.ones(1, 4))
    >>> sorted(hook.values), torch.equal(hook.values['1.output'], y)
    (['1.input', '1.output'], True)

    Args:
        module: the model.
        hook: collect into this one; by default a new one.
        inp, out: what to record.
        filter_fn: which quantized layers.

    Returns:
        The hook: ``values``, ``clear()``, ``remove()``. FINN exports of the model mark the same places with
        ``DebugMarker`` nodes until then.

    Raises:
        QuantConfigError: no layer matches, or there is nothing to record.
    """
    if not (inp or out):
        raise QuantConfigError("enable_debug: inp=False and out=False leave nothing to record; set one of them")
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, QuantLayerMixin)}
    chosen = {name: layer for name, layer in layers.items() if filter_fn(layer)}  # type: ignore[arg-type]
    if not chosen:
        names = ", ".join(f"{type(layer).__name__} '{name}'" for name, layer in list(layers.items())[:8])
        raise QuantConfigError(
            f"enable_debug: filter_fn matches no quantized layer of {type(module).__name__}; it has {names or 'none'}"
        )
    hook = DebugHook() if hook is None else hook
    for name, layer in chosen.items():
        hook.watch(name, layer, inp, out)  # type: ignore[arg-type]
    return hook
