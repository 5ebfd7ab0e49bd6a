"""Cells: what one layer does in one direction at each time step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from brevitas.nn.recurrent.collection import OneStep
from brevitas.nn.recurrent.gate import Gate, value_of
from brevitas.quant_tensor import QuantTensor

__all__ = ["Cell", "GRUCell", "LSTMCell", "RNNCell", "Value"]

Value = Tensor | QuantTensor
#: (hidden state,), or (hidden state, cell state); each of shape (N, hidden_size).
State = tuple[Value, ...]
Step = Callable[[int, State], State]


class Cell(nn.Module):
    """Body of the cells: runs :meth:`steps` over time.

    Attributes:
        gate_names: attributes that are gates, in the order of the rows of torch's weights.
        split_gate: the one whose two sums stay apart, if any.
    """

    gate_names: ClassVar[tuple[str, ...]]
    split_gate: ClassVar[str | None] = None

    def __init__(self, gates: dict[str, Gate]) -> None:
        super().__init__()
        for name, gate in gates.items():
            self.add_module(name, gate)

    def gates(self) -> list[Gate]:
        """The gates, in torch's order."""
        return [gate for name, gate in self.named_children() if name in self.gate_names]  # type: ignore[misc]

    def owners(self, argument: str) -> list[list[nn.Module]]:
        """The modules that a quantizer argument of the layer serves; those in one list share one quantizer."""
        gates = self.gates()
        if argument == "weight_quant":
            return [[gate.input, gate.hidden] for gate in gates]
        if argument == "bias_quant":
            return [gate.bias_owners() for gate in gates]
        return [[gate] for gate in gates] if argument == "gate_acc_quant" else []

    def forward(
        self, x: Value, state: State, reverse: bool, shared: Any, quantize: OneStep
    ) -> tuple[list[Value], State]:
        """The hidden states at all time steps, in the order of the input, and the state after the last one.

        Args:
            x: (T, N, features), on the grid of ``io_quant`` where that is on.
            state: before the first step.
            reverse: start at the end of the sequence.
            shared: has the quantizers of the whole layer as attributes.
            quantize: calls activation quantizers.
        """
        step = self.steps(x, shared, quantize)
        length = x.shape[0]
        outputs: list[Value] = []
        for t in reversed(range(length)) if reverse else range(length):
            state = step(t, state)
            outputs.append(state[0])
        return outputs[::-1] if reverse else outputs, state

    def steps(self, x: Value, shared: Any, quantize: OneStep) -> Step:
        """A function from time step and state to the next state."""
        raise NotImplementedError


class RNNCell(Cell):
    """h' = Qio(act(Qacc(W_ih x + W_hh h + b)))."""

    gate_names = ("gate",)
    gate: Any

    def __init__(self, gates: dict[str, Gate], nonlinearity: str) -> None:
        super().__init__(gates)
        self.nonlinearity = nonlinearity

    def steps(self, x: Value, shared: Any, quantize: OneStep) -> Step:
        """As :meth:`Cell.steps`."""
        act = torch.relu if self.nonlinearity == "relu" else torch.tanh
        gate = self.gate.over(x, quantize)

        def step(t: int, state: State) -> State:
            return (quantize(shared.io_quant, act(value_of(gate(t, state[0])))),)

        return step


class LSTMCell(Cell):
    """i, f, o = Qsigmoid(Qacc(...)), g = Qtanh(Qacc(...)), c' = Qc(Qc(f * c) + Qc(i * g)), h' = Qio(o * Qtanh(c')).

    Without ``forget_gate`` the input gate serves for it: f = Q(1) - i, with 1 moved onto the grid of i.
    """

    gate_names = ("input_gate", "forget_gate", "cell_gate", "output_gate")
    input_gate: Any
    forget_gate: Any
    cell_gate: Any
    output_gate: Any
    tanh_quant: Any

    def owners(self, argument: str) -> list[list[nn.Module]]:
        """As :meth:`Cell.owners`."""
        if argument == "sigmoid_quant":
            return [[gate] for name, gate in self.named_children() if name in self.gate_names and name != "cell_gate"]
        if argument == "tanh_quant":
            return [[self.cell_gate], [self]]
        return [[self]] if argument == "cell_state_quant" else super().owners(argument)

    def steps(self, x: Value, shared: Any, quantize: OneStep) -> Step:
        """As :meth:`Cell.steps`."""
        coupled = not hasattr(self, "forget_gate")
        input_gate, cell_gate, output_gate = (
            gate.over(x, quantize) for gate in (self.input_gate, self.cell_gate, self.output_gate)
        )
        forget_gate = None if coupled else self.forget_gate.over(x, quantize)
        cell_state_quant = getattr(self, "cell_state_quant", None) or shared.cell_state_quant

        def step(t: int, state: State) -> State:
            h, c = state
            i = quantize(self.input_gate.sigmoid_quant, input_gate(t, h))
            if forget_gate is None:
                f = _one_minus(i)
            else:
                f = value_of(quantize(self.forget_gate.sigmoid_quant, forget_gate(t, h)))
            g = value_of(quantize(self.cell_gate.tanh_quant, cell_gate(t, h)))
            kept = value_of(quantize(cell_state_quant, f * value_of(c)))
            added = value_of(quantize(cell_state_quant, value_of(i) * g))
            c = quantize(cell_state_quant, kept + added)
            o = value_of(quantize(self.output_gate.sigmoid_quant, output_gate(t, h)))
            return quantize(shared.io_quant, o * value_of(quantize(self.tanh_quant, c))), c

        return step


def _one_minus(i: Value) -> Tensor:
    if not isinstance(i, QuantTensor):
        return 1.0 - i
    return i.requantize(torch.ones_like(i.value)).value - i.value


class GRUCell(Cell):
    """r, z = Qsigmoid(Qacc(...)), n = Qtanh(Qacc(W_in x + b_in) + Qacc(r * Qacc(W_hn h + b_hn))),
    h' = Qio(Qio((1 - z) * n) + Qio(z * h)).
    """

    gate_names = ("reset_gate", "update_gate", "new_gate")
    split_gate = "new_gate"
    reset_gate: Any
    update_gate: Any
    new_gate: Any

    def owners(self, argument: str) -> list[list[nn.Module]]:
        """As :meth:`Cell.owners`."""
        if argument == "sigmoid_quant":
            return [[self.reset_gate], [self.update_gate]]
        return [[self.new_gate]] if argument == "tanh_quant" else super().owners(argument)

    def steps(self, x: Value, shared: Any, quantize: OneStep) -> Step:
        """As :meth:`Cell.steps`."""
        reset_gate, update_gate, new_gate = (
            gate.over(x, quantize) for gate in (self.reset_gate, self.update_gate, self.new_gate)
        )

        def step(t: int, state: State) -> State:
            (h,) = state
            r = value_of(quantize(self.reset_gate.sigmoid_quant, reset_gate(t, h)))
            z = value_of(quantize(self.update_gate.sigmoid_quant, update_gate(t, h)))
            n = value_of(quantize(self.new_gate.tanh_quant, new_gate(t, h, r)))
            new = value_of(quantize(shared.io_quant, (1.0 - z) * n))
            kept = value_of(quantize(shared.io_quant, z * value_of(h)))
            return (quantize(shared.io_quant, new + kept),)

        return step
