"""Inputs and states as users give them, and as cells want them: time first, with a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from brevitas.errors import QuantConfigError
from brevitas.quant_tensor import QuantTensor
from brevitas.utils.module_path import describe_module

__all__ = ["Layout"]


class Layout:
    """How the input of one forward lies: batched or not, time or batch first.

    Args:
        layer: the recurrent layer.
        input: (T, N, input_size), (N, T, input_size) with ``batch_first``, or (T, input_size).

    Raises:
        QuantConfigError: the input has another shape, no time steps, or is packed.
    """

    def __init__(self, layer: Any, input: Any) -> None:
        self._layer = layer
        if isinstance(input, PackedSequence):
            self._refuse(
                "a PackedSequence is not supported; pad the sequences to one length (torch.nn.utils.rnn.pad_sequence) "
                "and mask the outputs"
            )
        if not isinstance(input, (Tensor, QuantTensor)):
            self._refuse(f"the input is a {type(input).__name__}; expected a Tensor or a QuantTensor")
        if input.dim() not in (2, 3):
            self._refuse(
                f"the input has {input.dim()} dims, shape {tuple(input.shape)}; expected 3, or 2 without a batch"
            )
        if input.shape[-1] != layer.input_size:
            self._refuse(
                f"the input has {input.shape[-1]} features, shape {tuple(input.shape)}; expected "
                f"input_size={layer.input_size}"
            )
        self.batched = input.dim() == 3
        # Which of the given dims is time.
        self._time = 1 if self.batched and layer.batch_first else 0
        if input.shape[self._time] == 0:
            self._refuse(f"the input has no time steps, shape {tuple(input.shape)}; expected at least one")
        self._batch = input.shape[1 - self._time] if self.batched else 1

    def _refuse(self, text: str) -> None:
        assert isinstance(self._layer, nn.Module)
        raise QuantConfigError(f"{describe_module(self._layer)}: {text}")

    def time_major(self, x: Tensor) -> Tensor:
        """(T, N, features)."""
        if not self.batched:
            return x.unsqueeze(1)
        return x.transpose(0, 1) if self._time == 1 else x

    def as_given(self, x: Any) -> Any:
        """An output of shape (T, N, features) in the layout of the input."""
        if not self.batched:
            return x.squeeze(1)
        return x.transpose(0, 1) if self._time == 1 else x

    def state(self, name: str, given: Any) -> Any:
        """An initial state, of which ``[index]`` is that of a cell, of shape (N, hidden_size); ``None`` for zeros.

        Raises:
            QuantConfigError: it has another shape.
        """
        if given is None:
            return None
        layer = self._layer
        cells = len(layer.layers)
        batch = (self._batch,) if self.batched else ()
        expected = (cells, *batch, layer.hidden_size)
        apart = isinstance(given, (list, tuple))
        parts = list(given) if apart else [given]
        if not all(isinstance(part, (Tensor, QuantTensor)) for part in parts):
            self._refuse(f"{name} is a {type(given).__name__}; expected a Tensor or a QuantTensor of shape {expected}")
        shapes = {tuple(part.shape) for part in parts}
        if apart and (len(parts) != cells or shapes != {expected[1:]}):
            self._refuse(
                f"{name} is a list of {len(parts)} with shapes {sorted(shapes)}; expected {cells} of {expected[1:]}"
            )
        if not apart and shapes != {expected}:
            self._refuse(
                f"{name} has shape {tuple(given.shape)}; expected {expected}: (num_layers * directions, "
                f"{'batch, ' if self.batched else ''}hidden_size)"
            )
        if self.batched:
            return given
        return [part.unsqueeze(0) for part in parts] if apart else given.unsqueeze(1)

    def state_as_given(self, state: Any) -> Any:
        """A final state, or a list of those of the cells, without a batch if there was none."""
        if self.batched:
            return state
        return [part.squeeze(0) for part in state] if isinstance(state, list) else state.squeeze(1)
