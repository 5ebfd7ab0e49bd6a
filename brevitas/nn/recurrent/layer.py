"""The body of the recurrent layers: cells stacked in layers and directions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from brevitas.core.utils import is_recomputing
from brevitas.errors import QuantConfigError
from brevitas.nn.attach import Slot, attach_quantizers
from brevitas.nn.introspection import enabled_property, narrow_property, quantity_getter, signed_property
from brevitas.nn.quant_layer import QuantLayerMixin
from brevitas.nn.recurrent.cells import Cell, Value
from brevitas.nn.recurrent.collection import OneStep, has_collected
from brevitas.nn.recurrent.gate import Gate, Projection, SplitGate, value_of
from brevitas.nn.recurrent.layout import Layout
from brevitas.nn.recurrent.like_torch import LikeTorch, let_compilers_in
from brevitas.nn.recurrent.torch_layout import split
from brevitas.quant_tensor import QuantTensor

__all__ = ["QuantRecurrentLayer"]

_AROUND = {"act_impl": None, "passthrough_act": True}
_SUPPLIED: dict[str, dict[str, Any]] = {
    "io_quant": _AROUND,
    "gate_acc_quant": _AROUND,
    "cell_state_quant": _AROUND,
    "sigmoid_quant": {"act_impl": nn.Sigmoid, "passthrough_act": False},
    "tanh_quant": {"act_impl": nn.Tanh, "passthrough_act": False},
}


class QuantRecurrentLayer(LikeTorch, QuantLayerMixin):
    """Body of ``QuantRNN``, ``QuantLSTM`` and ``QuantGRU``.

    Attributes:
        layers: the cells; cell ``layer * directions + direction`` is one direction of one layer, and holds the gates
            with their weights, biases and quantizers.
        io_quant: the quantizer of the input and of the hidden states of all layers and directions.
    """

    # Set by torch's constructor and by the slots below.
    layers: Any
    io_quant: Any
    input_size: int
    hidden_size: int
    num_layers: int
    bias: Any
    batch_first: bool
    dropout: float
    bidirectional: bool

    _cell_type: ClassVar[type[Cell]]

    is_io_quant_enabled = is_input_quant_enabled = is_output_quant_enabled = enabled_property("io")
    is_quant_io_signed = is_quant_input_signed = is_quant_output_signed = signed_property("io")
    is_quant_io_narrow_range = is_quant_input_narrow_range = is_quant_output_narrow_range = narrow_property("io")
    quant_io_scale = quant_input_scale = quant_output_scale = quantity_getter("io", "scale")
    quant_io_zero_point = quant_input_zero_point = quant_output_zero_point = quantity_getter("io", "zero_point")
    quant_io_bit_width = quant_input_bit_width = quant_output_bit_width = quantity_getter("io", "bit_width")

    def _init_recurrent(
        self,
        quantizers: Mapping[str, Any],
        keywords: Mapping[str, Any],
        return_quant_tensor: bool,
        flags: Mapping[str, bool],
        of_cell: Collection[str] = (),
        of_layer: Collection[str] = ("io_quant",),
    ) -> None:
        """Turn the parameters that torch's constructor has made into gates with quantizers.

        Args:
            quantizers: what the user passed, by argument.
            keywords: the layer's further keywords.
            flags: options that are true or false, which become attributes.
            of_cell: arguments whose quantizer all gates of a cell share.
            of_layer: arguments whose quantizer is one for the whole layer.
        """
        assert isinstance(self, nn.Module)
        self._init_layer(return_quant_tensor)
        # Training forwards so far, as far as it matters: none, one, or more.
        self._forwards = 0
        self.register_load_state_dict_post_hook(_note_start)
        for name, flag in flags.items():
            if not isinstance(flag, bool):
                raise QuantConfigError(f"{type(self).__name__}: {name} = {flag!r} is not legal: expected True or False")
            setattr(self, name, flag)
        flat = self._release_flat_parameters()
        self.layers = nn.ModuleList()
        for index in range(self._cells):
            self.layers.append(self._new_cell(index, flat["weight_hh_l0"]))
        self._take(split(self, flat)[0])
        self._attach(quantizers, keywords, of_cell, of_layer)
        let_compilers_in()

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _cells(self) -> int:
        return self.num_layers * self._directions

    def _gate_names(self) -> tuple[str, ...]:
        return self._cell_type.gate_names

    def _new_cell(self, index: int, like: Any) -> Cell:
        """A cell whose parameters have no values yet."""
        layer, direction = divmod(index, self._directions)
        features = self.input_size if layer == 0 else self.hidden_size * self._directions
        size = self.hidden_size
        gates: dict[str, Gate] = {}
        for name in self._gate_names():
            alone = name == self._cell_type.split_gate
            bias = [like.new_empty(size) if self.bias else None for _ in range(1 + alone)]
            if direction and self.shared_input_hidden_weights:  # type: ignore[attr-defined]
                inputs = getattr(self.layers[index - 1], name).input
            else:
                inputs = Projection(like.new_empty(size, features), features if alone else features + size)
            hidden = Projection(like.new_empty(size, size), size if alone else features + size, *bias[1:])
            gates[name] = (SplitGate if alone else Gate)(inputs, hidden, bias[0])
        return self._cell_of(gates)

    def _cell_of(self, gates: dict[str, Gate]) -> Cell:
        return self._cell_type(gates)

    def _attach(
        self,
        quantizers: Mapping[str, Any],
        keywords: Mapping[str, Any],
        of_cell: Collection[str],
        of_layer: Collection[str],
    ) -> None:
        assert isinstance(self, nn.Module)
        first: list[Slot] = []
        followers: list[tuple[Slot, nn.Module]] = []
        for argument, quant in quantizers.items():
            self._check_activation(argument, quant)
            name = argument.removesuffix("_quant")
            role = name if name in ("weight", "bias") else "act"
            for owner, *others in self._owners(argument, argument in of_cell, argument in of_layer):
                slot = Slot(argument, role, quant, f"{name}_", _SUPPLIED.get(argument, {}), owner)
                first.append(slot)
                followers += [(slot, other) for other in others]
        attach_quantizers(self, first, keywords)
        shared = [
            Slot(slot.argument, slot.role, getattr(slot.owner, slot.argument), slot.prefix, {}, other)
            for slot, other in followers
        ]
        attach_quantizers(self, shared, {})
        like = next(self.layers.parameters())
        for slot in (*first, *shared):
            proxy = getattr(slot.owner, slot.argument)
            if getattr(proxy, "requires_quant_input", False):
                raise QuantConfigError(
                    f"{type(self).__name__}: weight_quant={proxy.quant_injector.__name__} bounds the sum of the "
                    "products of one weight, and a gate adds those of two; use a weight quantizer that does not bound "
                    "the accumulator"
                )
            if like.device.type != "cpu" or like.dtype != torch.float32:
                proxy.to(device=like.device, dtype=like.dtype)

    def _owners(self, argument: str, of_cell: bool, of_layer: bool) -> list[list[nn.Module]]:
        """The modules that a quantizer argument serves; those in one list share one quantizer."""
        assert isinstance(self, nn.Module)
        if of_layer:
            return [[self]]
        groups: list[list[nn.Module]] = []
        for cell in self.layers:
            own = cell.owners(argument)
            for group in [sum(own, [])] if of_cell and own else own:
                # W_ih that both directions have is quantized in one way.
                found = next((g for g in groups if any(m in g for m in group)), None)
                if found is None:
                    groups.append(list(group))
                else:
                    found += [module for module in group if module not in found]
        return groups

    def _check_activation(self, argument: str, quant: Any) -> None:
        """A quantizer of another layer brings that layer's activation along."""
        fused = getattr(quant, "fused_activation_quant_proxy", None)
        if not isinstance(quant, nn.Module) or fused is None or argument not in _SUPPLIED:
            return
        wanted, given = _SUPPLIED[argument]["act_impl"], fused.activation_impl
        if given is None if wanted is None else isinstance(given, wanted):
            return
        raise QuantConfigError(
            f"{type(self).__name__}: {argument} is the quantizer of another layer, which applies "
            f"{'no activation' if given is None else type(given).__name__} before it quantizes; expected "
            f"{'none' if wanted is None else wanted.__name__}. Pass a quantizer class"
        )

    def _state_quantizers(self, cell: Cell) -> tuple[Any, ...]:
        """The quantizer of each tensor of a state of ``cell``."""
        return (self.io_quant,)

    def _run(self, input: Any, given: Sequence[Any]) -> tuple[Any, list[Any]]:
        """The output, and for each tensor of a state those of all cells, stacked or (cell states apart) in a list.

        Args:
            input: as the user gave it.
            given: initial states as the user gave them, or ``None``; first the hidden state.
        """
        assert isinstance(self, nn.Module)
        layout = Layout(self, input)
        starts = [layout.state(name, state) for name, state in zip(("h0", "c0"), given, strict=False)]
        self._check_metadata()
        self._cache_input(input)
        x = layout.time_major(value_of(input))
        quantize = OneStep(self)
        tie = None
        # A forward that gradient checkpointing repeats has to do what it did.
        first = self._forwards == 0 or (self._forwards == 1 and is_recomputing())
        if quantize.is_collecting and first:
            with torch.no_grad():
                in_float = OneStep(self, in_float=True)
                self._unrolled(x, starts, in_float)
            tie = in_float.count()
        with quantize.standing_still():
            x, ends = self._unrolled(x, starts, quantize)
        states = self._joined_states([list(kind) for kind in zip(*ends, strict=True)], quantize)
        output = quantize.on_common_grid(self.io_quant, x)
        if self.training:
            tie = quantize.count() if not (quantize.is_collecting and first) else tie
            if not is_recomputing():
                # Compiled code repeats nothing by itself, and is compiled anew for each number it sees here.
                self._forwards = 2 if torch.compiler.is_compiling() else min(self._forwards + 1, 2)
        if tie is not None:
            output = output.set(value=output.value + tie) if isinstance(output, QuantTensor) else output + tie
        output = self.pack_output(layout.as_given(output))
        return output, [self._hand_out(layout.state_as_given(state)) for state in states]

    def _unrolled(self, x: Value, starts: Sequence[Any], quantize: OneStep) -> tuple[Any, list[tuple[Value, ...]]]:
        """The output of the last layer, and the state of each cell after the last time step."""
        assert isinstance(self, nn.Module)
        if self.is_io_quant_enabled:
            x = quantize(self.io_quant, x)
            self._check_scale(x)
        zeros = value_of(x).new_zeros(x.shape[1], self.hidden_size)
        ends = []
        for layer in range(self.num_layers):
            sequences = []
            for direction in range(self._directions):
                index = layer * self._directions + direction
                cell = self.layers[index]
                # The default state needs no quantizer: zero is on every grid.
                state = tuple(
                    zeros if start is None else quantize(quantizer, value_of(start[index]))
                    for start, quantizer in zip(starts, self._state_quantizers(cell), strict=True)
                )
                outputs, state = cell(x, state, bool(direction), self, quantize)
                sequences.append(quantize.joined(self.io_quant, outputs))
                ends.append(state)
            x = sequences[0] if len(sequences) == 1 else torch.cat(sequences, -1)  # type: ignore[arg-type]
            if self.dropout > 0 and self.training and layer + 1 < self.num_layers:
                x = quantize(self.io_quant, F.dropout(value_of(x), self.dropout))
        return x, ends

    def _joined_states(self, kinds: list[list[Value]], quantize: OneStep) -> list[Any]:
        """For each kind of state, those of all cells as one tensor; a list where they have grids of their own."""
        return [quantize.joined(self.io_quant, kinds[0])]

    def _hand_out(self, state: Any) -> Any:
        if isinstance(state, list):
            return [self._hand_out(part) for part in state]
        return state if self.return_quant_tensor else value_of(state)

    def _check_metadata(self) -> None:
        """Raise :class:`QuantMetadataError` where a grid is needed that no quantizer gives."""
        without_io = _no_integers("io_quant", self.io_quant)
        if self.return_quant_tensor and without_io:
            raise self.metadata_error(
                f"return_quant_tensor=True needs the grid of input and state, and {without_io}",
                None,
                "set io_quant= to an integer quantizer",
                "set return_quant_tensor=False here",
            )
        gate = self.layers[0].gates()[0]
        if not (self.bias and gate.bias_quant.is_quant_enabled and gate.bias_quant.requires_input_scale):
            return
        preset = gate.bias_quant.quant_injector.__name__
        missing = without_io or _no_integers("weight_quant", gate.input.weight_quant)
        if missing:
            raise self.metadata_error(
                f"{preset} needs the scale of the gates' sums, and {missing}",
                None,
                f"set {missing.partition(' ')[0]}= to an integer quantizer",
                "set bias_quant=None",
                "use Int8BiasPerTensorFloatInternalScaling",
            )

    def _check_scale(self, x: Value) -> None:
        gate = self.layers[0].gates()[0]
        needed = self.bias and gate.bias_quant.is_quant_enabled and gate.bias_quant.requires_input_scale
        if needed and isinstance(x, QuantTensor) and x.scale.numel() > 1:
            raise self.metadata_error(
                f"{gate.bias_quant.quant_injector.__name__} needs a per-tensor scale of input and state, and io_quant "
                f"gives one of shape {tuple(x.scale.shape)}: products of different scales cannot be added as integers",
                None,
                "set io_scaling_per_output_channel=False",
                "set bias_quant=None",
            )


def _no_integers(argument: str, proxy: Any) -> str:
    """Why a quantizer gives no grid of integers; empty where it does."""
    if not proxy.is_quant_enabled:
        return f"{argument} is off"
    return f"{argument} gives minifloats" if getattr(proxy, "is_minifloat", False) else ""


def _note_start(layer: Any, incompatible: Any) -> None:
    layer._forwards = 2 if has_collected(layer) else 0
