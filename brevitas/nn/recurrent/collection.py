"""One forward over a sequence is one step of statistics collection, however often it calls a quantizer.

A recurrent layer calls its quantizers once a time step. Were each call a step, a few batches would use up
``collect_stats_steps``, every time step would have a scale of its own, and input and state could not be added as
integers. So while a quantizer collects, its scale stands still during a forward, at the running estimate of the
forwards before; at the end one call on all that the quantizer has seen counts. The very first forward has no estimate:
it runs once in float, which counts, before it runs quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from brevitas.core.stats.running import CollectThenLearn, RunningEstimate, is_set
from brevitas.core.utils import is_recomputing
from brevitas.quant_tensor import QuantTensor

__all__ = ["OneStep", "Quantize", "has_collected"]

Quantize = Callable[[Any, "Tensor | QuantTensor"], "Tensor | QuantTensor"]


def has_collected(layer: nn.Module) -> bool:
    """Whether a quantizer of ``layer`` has an estimate already."""
    return any(bool(m.counter > 0) for m in layer.modules() if isinstance(m, CollectThenLearn))


class OneStep:
    """Calls activation quantizers during one forward of a layer, or of its first, float pass.

    >>> import torch
    >>> from brevitas.nn import QuantIdentity
    >>> layer = QuantIdentity()
    >>> quantize = OneStep(layer)
    >>> with quantize.standing_still():
    ...     for t in range(3):
    ...         _ = quantize(layer.act_quant, torch.full((2, 4), float(t)))
    >>> _ = quantize.count()
    >>> scaling = layer.act_quant.tensor_quant.scaling_impl
    >>> int(scaling.counter), float(scaling.running_stats)
    (1, 2.0)
    """

    def __init__(self, layer: nn.Module, in_float: bool = False) -> None:
        self._in_float = in_float
        estimates = [m for m in layer.modules() if isinstance(m, CollectThenLearn) and m.training]
        self._collecting = [m for m in estimates if not _ends_collecting(m)]
        self._seen: dict[int, tuple[Any, list[Tensor]]] = {}
        self._scales: dict[int, list[Tensor]] = {}
        self._writers: dict[int, list[nn.Module] | None] = {}

    @property
    def is_collecting(self) -> bool:
        """Whether a quantizer of the layer may collect in this forward."""
        return bool(self._collecting)

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """While it lasts, quantizers that collect use their estimate and leave it as it is."""
        for module in self._collecting:
            module.stands_still = True
        try:
            yield
        finally:
            for module in self._collecting:
                module.stands_still = False

    def __call__(self, proxy: Any, x: Tensor | QuantTensor) -> Tensor | QuantTensor:
        """``proxy(x)``; in the float pass the activation alone, if the quantizer collects."""
        writers = self._writers_of(proxy)
        if writers is None:
            return proxy(x)
        value = x.value if isinstance(x, QuantTensor) else x
        self._seen.setdefault(id(proxy), (proxy, []))[1].append(value.detach())
        if self._in_float:
            activation = proxy.fused_activation_quant_proxy.activation_impl
            return value if activation is None else activation(value)
        before = [
            (buffer, buffer.clone()) for module in writers for buffer in module._buffers.values() if buffer is not None
        ]
        y = proxy(x)
        with torch.no_grad():
            for buffer, kept in before:
                buffer.copy_(kept)
        if writers and isinstance(y, QuantTensor):
            self._scales.setdefault(id(proxy), []).append(y.scale)
        return y

    def _writers_of(self, proxy: Any) -> list[nn.Module] | None:
        """The parts that a call in training changes though others stand still; ``None``: a call changes nothing."""
        if id(proxy) not in self._writers:
            parts = list(proxy.modules()) if proxy.training else []
            writers = [m for m in parts if _writes(m)]
            known = bool(writers) or any(m is c for m in parts for c in self._collecting)
            self._writers[id(proxy)] = writers if known else None
        return self._writers[id(proxy)]

    def joined(self, proxy: Any, results: Sequence[Tensor | QuantTensor]) -> Tensor | QuantTensor:
        """Results of ``proxy`` of one shape, stacked in front."""
        first = results[0]
        if not isinstance(first, QuantTensor):
            return torch.stack(results)  # type: ignore[arg-type]
        values = torch.stack([result.value for result in results])  # type: ignore[union-attr]
        return self.on_common_grid(proxy, first.like(values))

    def on_common_grid(self, proxy: Any, x: Tensor | QuantTensor) -> Tensor | QuantTensor:
        """Results of ``proxy``; where each call has a scale of its own, as with STATS in training, with their mean."""
        scales = self._scales.get(id(proxy))
        if scales is None or not isinstance(x, QuantTensor):
            return x
        first = scales[0]
        mean = first + (torch.stack(scales) - first).mean(0)
        return QuantTensor.unchecked(x.value, mean, x.zero_point, x.bit_width, x.signed, x.training, x.source)

    def count(self) -> Tensor | None:
        """Let every quantizer that was called count all it has seen as one step.

        Returns:
            A zero that depends on what the quantizers will learn, so that it has a gradient, zero, from the first step
            on; ``None`` without one.
        """
        tie = None
        for proxy, seen in self._seen.values():
            # Not through hooks: for everybody else this is no call.
            y = proxy.forward(_joined(seen))
            if isinstance(y, QuantTensor) and (y.scale.requires_grad or y.zero_point.requires_grad):
                zero = 0.0 * (y.scale.sum() + y.zero_point.sum())
                tie = zero if tie is None else tie + zero
        return tie


def _ends_collecting(module: CollectThenLearn) -> bool:
    """Whether its quantity is learned from now on; with the last step counted, this forward is the first that learns.

    Compiled code cannot look at flags, so there the answer is no; it selects inside the graph.
    """
    if torch.compiler.is_compiling():
        with torch.no_grad():
            module.initialised.copy_(module.initialised | (module.counter >= module.collect_stats_steps))
        return False
    if is_recomputing():
        # Gradient checkpointing repeats a forward that collected, if no other has begun since.
        return is_set(module, module.initialised)
    if not is_set(module, module.initialised) and bool(module.counter >= module.collect_stats_steps):
        module.finish_collecting()
    return is_set(module, module.initialised)


def _writes(module: nn.Module) -> bool:
    """Whether a training call changes the state of this part, other than one that stands still: a delay, or STATS."""
    steps_left = module._buffers.get("steps_left")
    if steps_left is not None:
        return torch.compiler.is_compiling() or bool(steps_left > 0)
    return isinstance(module, RunningEstimate) and not isinstance(module, CollectThenLearn)


def _joined(seen: list[Tensor]) -> Tensor:
    """All that was seen, features in the last dim; in one row where not all have the same number of them."""
    rows = [x.reshape(-1, x.shape[-1]) for x in seen]
    if len({row.shape[-1] for row in rows}) > 1:
        return torch.cat([row.reshape(1, -1) for row in rows], dim=1)
    return torch.cat(rows)
