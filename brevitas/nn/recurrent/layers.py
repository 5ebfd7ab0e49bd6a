"""The recurrent layers: ``QuantRNN``, ``QuantLSTM`` and ``QuantGRU``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from brevitas.errors import QuantConfigError
from brevitas.nn.recurrent.cells import Cell, GRUCell, LSTMCell, RNNCell, Value
from brevitas.nn.recurrent.collection import OneStep
from brevitas.nn.recurrent.gate import Gate
from brevitas.nn.recurrent.layer import QuantRecurrentLayer
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat, Int32Bias, Uint8ActPerTensorFloat

__all__ = ["QuantGRU", "QuantLSTM", "QuantRNN"]


class QuantRNN(QuantRecurrentLayer, nn.RNN):
    """Elman network with quantized weights, biases, sums and states.

    >>> import torch
    >>> from brevitas.nn import QuantRNN
    >>> rnn = QuantRNN(4, 3, weight_bit_width=4, return_quant_tensor=True)
    >>> output, h = rnn(torch.randn(7, 2, 4))  # 7 time steps, 2 sequences
    >>> output.shape, h.shape, bool(output.scale == h.scale)
    (torch.Size([7, 2, 3]), torch.Size([1, 2, 3]), True)

    At each time step, with one quantizer Qio for input and state:
    ``h' = Qio(act(Qacc(W_ih Qio(x) + W_hh h + Qb(b))))``. W_ih and W_hh share one weight quantizer, so that their
    products add up in one integer accumulator, on whose grid the bias lies.

    Args:
        input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, bidirectional, dropout, device, dtype: as
            for ``torch.nn.RNN``.
        weight_quant, bias_quant: of each gate: a quantizer class, a proxy to share, or ``None``.
        io_quant: of the input and the hidden states of all layers and directions.
        gate_acc_quant: of the sums of each gate.
        shared_input_hidden_weights: both directions of a layer have the same W_ih.
        return_quant_tensor: return ``QuantTensor``s.
        **kwargs: directives with the prefixes ``weight_``, ``bias_``, ``io_``, ``gate_acc_``.

    Input (T, N, input_size), with ``batch_first`` (N, T, input_size), or (T, input_size); a ``QuantTensor`` is
    quantized again. Output and states as for torch. ``layers[layer * directions + direction]`` holds the gates of one
    direction.

    One forward in training is one step of statistics collection, on all that a quantizer has seen in it. Time is
    unrolled in compiled and exported code, so that another number of time steps is compiled anew. Building one sets
    ``torch._dynamo.config.allow_rnn``, without which ``torch.compile`` takes no subclass of torch's layers.

    Checkpoints of ``torch.nn.RNN`` load: gates are split, both biases added.

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal; an input of another shape.
        QuantMetadataError: ``bias_quant``, or ``return_quant_tensor=True``, needs a quantizer that is off.
    """

    _cell_type = RNNCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        weight_quant: Any = Int8WeightPerTensorFloat,
        bias_quant: Any = Int32Bias,
        io_quant: Any = Int8ActPerTensorFloat,
        gate_acc_quant: Any = Int8ActPerTensorFloat,
        shared_input_hidden_weights: bool = False,
        return_quant_tensor: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        nn.RNN.__init__(
            self,
            input_size,
            hidden_size,
            num_layers,
            nonlinearity,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self._init_recurrent(
            {
                "weight_quant": weight_quant,
                "bias_quant": bias_quant,
                "io_quant": io_quant,
                "gate_acc_quant": gate_acc_quant,
            },
            kwargs,
            return_quant_tensor,
            {"shared_input_hidden_weights": shared_input_hidden_weights},
        )

    def _cell_of(self, gates: dict[str, Gate]) -> Cell:
        return RNNCell(gates, self.nonlinearity)

    def forward(self, input: Any, hx: Any = None) -> Any:  # type: ignore[override]
        """Output at all time steps, and the state after the last one.

        Args:
            input: see the class.
            hx: initial state, (num_layers * directions, N, hidden_size), quantized by ``io_quant``; zeros by default.
        """
        output, (h,) = self._run(input, (hx,))
        return output, h


class QuantLSTM(QuantRecurrentLayer, nn.LSTM):
    """Long short-term memory with quantized weights, biases, sums, activations and states.

    >>> import torch
    >>> from brevitas.nn import QuantLSTM
    >>> lstm = QuantLSTM(4, 3, bidirectional=True, weight_bit_width=4, io_bit_width=6)
    >>> output, (h, c) = lstm(torch.randn(7, 2, 4))
    >>> output.shape, h.shape, c.shape
    (torch.Size([7, 2, 6]), torch.Size([2, 2, 3]), torch.Size([2, 2, 3]))
    >>> lstm.layers[1].forget_gate.hidden.int_weight().abs().max() <= 7
    tensor(True)

    The gates i, f, g, o are ``Qsigmoid(Qacc(W_ih Qio(x) + W_hh h + Qb(b)))``, with Qtanh for g;
    ``c' = Qc(Qc(f * c) + Qc(i * g))`` and ``h' = Qio(o * Qtanh(c'))``. Quantizers, states, statistics, compilation and
    checkpoints as for :class:`QuantRNN`.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, bidirectional, dropout, device, dtype: as for
            ``torch.nn.LSTM``. ``proj_size`` must be 0.
        weight_quant, bias_quant, io_quant, gate_acc_quant, shared_input_hidden_weights, return_quant_tensor: as for
            :class:`QuantRNN`.
        sigmoid_quant, tanh_quant: of each activation.
        cell_state_quant: of the cell states, and of the products that add up to them.
        coupled_input_forget_gates: there is no forget gate: f = Q(1) - i, with 1 moved onto the grid of i.
        cat_output_cell_states: return the cell states of all layers and directions in one tensor, not in a list.
        shared_intra_layer_weight_quant, shared_intra_layer_gate_acc_quant: one quantizer for all gates of one direction
            of a layer.
        shared_cell_state_quant: one quantizer for the cell states of all layers and directions, which one tensor of
            them needs.
        **kwargs: directives with the prefixes ``weight_``, ``bias_``, ``io_``, ``gate_acc_``, ``sigmoid_``, ``tanh_``,
            ``cell_state_``.

    Raises:
        QuantConfigError: as for :class:`QuantRNN`; ``cat_output_cell_states`` without ``shared_cell_state_quant``.
        QuantMetadataError: as for :class:`QuantRNN`.
    """

    _cell_type = LSTMCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        weight_quant: Any = Int8WeightPerTensorFloat,
        bias_quant: Any = Int32Bias,
        io_quant: Any = Int8ActPerTensorFloat,
        gate_acc_quant: Any = Int8ActPerTensorFloat,
        sigmoid_quant: Any = Uint8ActPerTensorFloat,
        tanh_quant: Any = Int8ActPerTensorFloat,
        cell_state_quant: Any = Int8ActPerTensorFloat,
        coupled_input_forget_gates: bool = False,
        cat_output_cell_states: bool = True,
        shared_input_hidden_weights: bool = False,
        shared_intra_layer_weight_quant: bool = False,
        shared_intra_layer_gate_acc_quant: bool = False,
        shared_cell_state_quant: bool = True,
        return_quant_tensor: bool = False,
        dropout: float = 0.0,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        if proj_size != 0:
            raise QuantConfigError(
                f"QuantLSTM: proj_size = {proj_size!r} is not supported; leave it out, and project the output with a "
                "QuantLinear"
            )
        if cat_output_cell_states and not shared_cell_state_quant:
            raise QuantConfigError(
                "QuantLSTM: cat_output_cell_states=True puts the cell states of all layers and directions into one "
                "tensor, which needs one scale, and shared_cell_state_quant=False gives each its own; set "
                "cat_output_cell_states=False"
            )
        nn.LSTM.__init__(
            self,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self._init_recurrent(
            {
                "weight_quant": weight_quant,
                "bias_quant": bias_quant,
                "io_quant": io_quant,
                "gate_acc_quant": gate_acc_quant,
                "sigmoid_quant": sigmoid_quant,
                "tanh_quant": tanh_quant,
                "cell_state_quant": cell_state_quant,
            },
            kwargs,
            return_quant_tensor,
            {
                "coupled_input_forget_gates": coupled_input_forget_gates,
                "cat_output_cell_states": cat_output_cell_states,
                "shared_input_hidden_weights": shared_input_hidden_weights,
                "shared_intra_layer_weight_quant": shared_intra_layer_weight_quant,
                "shared_intra_layer_gate_acc_quant": shared_intra_layer_gate_acc_quant,
                "shared_cell_state_quant": shared_cell_state_quant,
            },
            of_cell=_shared_by_gates(shared_intra_layer_weight_quant, shared_intra_layer_gate_acc_quant),
            of_layer=("io_quant", "cell_state_quant") if shared_cell_state_quant else ("io_quant",),
        )

    def _gate_names(self) -> tuple[str, ...]:
        coupled = self.coupled_input_forget_gates
        return tuple(name for name in LSTMCell.gate_names if not (coupled and name == "forget_gate"))

    def _state_quantizers(self, cell: Cell) -> tuple[Any, ...]:
        return self.io_quant, self.cell_state_quant if self.shared_cell_state_quant else cell.cell_state_quant

    def _joined_states(self, kinds: list[list[Value]], quantize: OneStep) -> list[Any]:
        hidden, cell_states = kinds
        joined: Any = cell_states
        if self.cat_output_cell_states:
            joined = quantize.joined(self.cell_state_quant, cell_states)
        return [*super()._joined_states([hidden], quantize), joined]

    def forward(self, input: Any, hx: Any = None, cx: Any = None) -> Any:  # type: ignore[override]
        """Output at all time steps, and (hidden state, cell state) after the last one.

        Args:
            input: see :class:`QuantRNN`.
            hx: the pair of initial states, or the hidden one alone with ``cx``; both of shape (num_layers * directions,
                N, hidden_size), or a list of cell states. The hidden state is quantized by ``io_quant``, the cell state
                by ``cell_state_quant``. Zeros by default.
            cx: the initial cell state, if ``hx`` is no pair.
        """
        if isinstance(hx, (tuple, list)):
            if len(hx) != 2 or cx is not None:
                raise QuantConfigError(
                    f"QuantLSTM: hx is a {type(hx).__name__} of {len(hx)}{' beside cx' if cx is not None else ''}; "
                    "expected the pair (h0, c0), or h0 and c0 as two arguments"
                )
            hx, cx = hx
        if (hx is None) != (cx is None):
            raise QuantConfigError(
                f"QuantLSTM: the initial {'cell' if cx is None else 'hidden'} state is missing; give both, as (h0, c0) "
                "or as two arguments"
            )
        output, states = self._run(input, (hx, cx))
        return output, (states[0], states[1])


class QuantGRU(QuantRecurrentLayer, nn.GRU):
    """Gated recurrent unit with quantized weights, biases, sums, activations and states.

    >>> import torch
    >>> from brevitas.nn import QuantGRU
    >>> gru = QuantGRU(4, 3, num_layers=2, batch_first=True, return_quant_tensor=True)
    >>> output, h = gru(torch.randn(2, 7, 4))
    >>> output.shape, h.shape, int(h.bit_width)
    (torch.Size([2, 7, 3]), torch.Size([2, 2, 3]), 8)

    The gates r and z are ``Qsigmoid(Qacc(W_ih Qio(x) + W_hh h + Qb(b)))``;
    ``n = Qtanh(Qacc(W_in Qio(x) + Qb(b_in)) + Qacc(r * Qacc(W_hn h + Qb(b_hn))))``, where Qacc is one quantizer; and
    ``h' = Qio(Qio((1 - z) * n) + Qio(z * h))``. Quantizers, states, statistics, compilation and checkpoints as for
    :class:`QuantRNN`; arguments as for :class:`QuantLSTM`, without those of the cell state.
    """

    _cell_type = GRUCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        weight_quant: Any = Int8WeightPerTensorFloat,
        bias_quant: Any = Int32Bias,
        io_quant: Any = Int8ActPerTensorFloat,
        gate_acc_quant: Any = Int8ActPerTensorFloat,
        sigmoid_quant: Any = Uint8ActPerTensorFloat,
        tanh_quant: Any = Int8ActPerTensorFloat,
        shared_input_hidden_weights: bool = False,
        shared_intra_layer_weight_quant: bool = False,
        shared_intra_layer_gate_acc_quant: bool = False,
        return_quant_tensor: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        nn.GRU.__init__(
            self,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self._init_recurrent(
            {
                "weight_quant": weight_quant,
                "bias_quant": bias_quant,
                "io_quant": io_quant,
                "gate_acc_quant": gate_acc_quant,
                "sigmoid_quant": sigmoid_quant,
                "tanh_quant": tanh_quant,
            },
            kwargs,
            return_quant_tensor,
            {
                "shared_input_hidden_weights": shared_input_hidden_weights,
                "shared_intra_layer_weight_quant": shared_intra_layer_weight_quant,
                "shared_intra_layer_gate_acc_quant": shared_intra_layer_gate_acc_quant,
            },
            of_cell=_shared_by_gates(shared_intra_layer_weight_quant, shared_intra_layer_gate_acc_quant),
        )

    def forward(self, input: Any, hx: Any = None) -> Any:  # type: ignore[override]
        """Output at all time steps, and the state after the last one; arguments as for :meth:`QuantRNN.forward`."""
        output, (h,) = self._run(input, (hx,))
        return output, h


def _shared_by_gates(weight: bool, gate_acc: bool) -> list[str]:
    """Arguments whose quantizer all gates of one direction of a layer share."""
    return [name for name, shared in (("weight_quant", weight), ("gate_acc_quant", gate_acc)) if shared]
