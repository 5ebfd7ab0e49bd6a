"""A gate: two weights, a bias, and their products with input and state, which one integer accumulator adds up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brevitas.core.utils import at_least_float32
from brevitas.nn.introspection import enabled_property, narrow_property, signed_property
from brevitas.nn.quantized_weight import QuantWeightMixin
from brevitas.nn.recurrent.collection import Quantize
from brevitas.quant_tensor import QuantTensor, Source, accumulator_bit_width, code_range

__all__ = ["Gate", "Projection", "SplitGate", "value_of"]

At = Callable[[int, "Tensor | QuantTensor"], "Tensor | QuantTensor"]


def value_of(x: Any) -> Any:
    """The plain tensor of a QuantTensor, anything else as it is."""
    return x.value if isinstance(x, QuantTensor) else x


@dataclass(frozen=True)
class Accumulator:
    """The grid of the sum of ``fan_in`` products and a bias. ``scale``: one element, or (hidden_size, 1)."""

    scale: Tensor
    bit_width: Tensor
    signed: bool
    fan_in: int
    training: bool

    def hold(self, total: Tensor) -> QuantTensor:
        """``total``, of shape (..., hidden_size), on this grid."""
        scale = self.scale.reshape(()) if self.scale.numel() == 1 else self.scale.reshape(-1)
        source = Source.derived("the sum of a gate", fan_in=self.fan_in, shifted=False)
        zero_point = torch.zeros((), dtype=scale.dtype, device=scale.device)
        return QuantTensor.unchecked(total, scale, zero_point, self.bit_width, self.signed, self.training, source)


def _held(grid: Accumulator | None, total: Tensor) -> Tensor | QuantTensor:
    return total if grid is None else grid.hold(total)


def _time_steps(x: Tensor) -> Sequence[Tensor]:
    # Each selection has a gradient as large as the sequence, and unbinding has no operator of its own in ONNX.
    return x.unbind(0) if torch.is_grad_enabled() else [x[t] for t in range(x.shape[0])]


class Projection(QuantWeightMixin, nn.Module):
    """One of the two weights of a gate, of shape (hidden_size, features), with the getters of a quantized weight.

    Both weights of a gate have one ``weight_quant``, whose statistics run over both, so that there is one scale.
    """

    bias: Any

    def __init__(self, weight: Tensor, weights_per_output: int, bias: Tensor | None = None) -> None:
        nn.Module.__init__(self)
        self._init_layer(False)
        self.weight = nn.Parameter(weight)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        self._weights_per_output = weights_per_output

    @property
    def out_channels(self) -> int:
        """Number of output channels: ``hidden_size``."""
        return self.weight.shape[0]

    @property
    def weights_per_output(self) -> int:
        """Number of weights that feed one accumulator."""
        return self._weights_per_output

    def extra_repr(self) -> str:
        """The shape of the weight."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"


class Gate(nn.Module):
    """W_ih x + W_hh h + b for one gate, quantized by ``gate_acc_quant``.

    Attributes:
        input, hidden: the weights W_ih and W_hh.
        bias: b, of shape (hidden_size,), or ``None``.
        bias_quant, gate_acc_quant: quantizers of the bias and of the sum.
    """

    is_bias_quant_enabled = enabled_property("bias")
    is_quant_bias_signed = signed_property("bias")
    is_quant_bias_narrow_range = narrow_property("bias")

    bias: Any
    # Set by the recurrent layer, whose arguments they are.
    bias_quant: Any
    gate_acc_quant: Any

    def __init__(self, input: Projection, hidden: Projection, bias: Tensor | None) -> None:
        super().__init__()
        self.input = input
        self.hidden = hidden
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        self._accumulator: tuple[Tensor, Tensor] | None = None

    @property
    def out_channels(self) -> int:
        """Number of output channels: ``hidden_size``."""
        return self.hidden.out_channels

    def bias_owners(self) -> list[nn.Module]:
        """The modules that hold the biases of the gate."""
        return [self]

    def over(self, x: Tensor | QuantTensor, quantize: Quantize) -> At:
        """The gate over a sequence: a function of the time step and of the state before it.

        What does not depend on the state is computed here, once: the weights, the bias, and the input's products.

        Args:
            x: (T, N, input_size); a ``QuantTensor`` where ``io_quant`` is on.
            quantize: calls activation quantizers.
        """
        weights = self._quantized_weights()
        fan_in = self.input.weight.shape[1] + self.hidden.weight.shape[1]
        bias, grid = self._bias_and_grid(self.bias, x, weights[0], fan_in)
        self._remember(grid)
        steps = _time_steps(F.linear(value_of(x), value_of(weights[0]), bias))
        # Transposed once, not at each step: in an exported graph that is one node.
        hidden_weight = value_of(weights[1]).t()

        def at(t: int, h: Tensor | QuantTensor) -> Tensor | QuantTensor:
            return quantize(self.gate_acc_quant, _held(grid, steps[t] + value_of(h) @ hidden_weight))

        return at

    def _quantized_weights(self) -> tuple[Tensor | QuantTensor, Tensor | QuantTensor]:
        return self.input.weight_quant(self.input.weight), self.hidden.weight_quant(self.hidden.weight)

    def _bias_and_grid(
        self, bias: Tensor | None, x: Tensor | QuantTensor, weight: Tensor | QuantTensor, fan_in: int
    ) -> tuple[Tensor | None, Accumulator | None]:
        """The quantized bias, and the grid of the sum of ``fan_in`` products and that bias; ``None`` without one."""
        quantized = bias is not None and self.bias_quant.is_quant_enabled
        external = quantized and self.bias_quant.requires_input_scale
        has_grid = isinstance(x, QuantTensor) and isinstance(weight, QuantTensor) and x.scale.numel() == 1
        if not has_grid or (bias is not None and not external):
            # Without a grid an external scale is missing in the float pass only: the layer has refused other cases.
            return value_of(self.bias_quant(bias)) if quantized and not external else bias, None
        assert isinstance(x, QuantTensor) and isinstance(weight, QuantTensor)
        scale = at_least_float32(x.scale).reshape(()) * at_least_float32(weight.scale)
        width = self._bit_width(x, weight, fan_in, None)
        quant_bias = self.bias_quant(bias, scale, width) if external else None
        if quant_bias is not None:
            width = self._bit_width(x, weight, fan_in, quant_bias)
        bias_signed = quant_bias is not None and quant_bias.signed
        signed = any((x.signed, weight.signed, x.is_shifted, weight.is_shifted, bias_signed))
        return value_of(quant_bias), Accumulator(scale, width, signed, fan_in, self.training)

    def _bit_width(self, x: QuantTensor, weight: QuantTensor, fan_in: int, quant_bias: QuantTensor | None) -> Tensor:
        bias_range = None
        if quant_bias is not None:
            bias_range = code_range(
                quant_bias.bit_width, quant_bias.signed, bool(self.bias_quant.is_narrow_range), shifted=False
            )
        return accumulator_bit_width(
            x.bit_width,
            weight.bit_width,
            fan_in,
            input_signed=x.signed,
            weight_signed=weight.signed,
            weight_narrow_range=bool(self.input.weight_quant.is_narrow_range),
            input_shifted=x.is_shifted,
            weight_shifted=weight.is_shifted,
            bias_range=bias_range,
        )

    def _remember(self, *grids: Accumulator | None) -> None:
        """Keep the widest accumulator of an eager eval forward for the getters."""
        known = [grid for grid in grids if grid is not None]
        if known and not self.training and not torch.compiler.is_compiling():
            widest = max(known, key=lambda grid: grid.fan_in)
            self._accumulator = (widest.scale.detach(), widest.bit_width.detach())

    def accumulator_scale(self) -> Tensor | None:
        """Scale of the integer sum in the last eval forward; ``None`` before any, or where the sum has no grid."""
        return self._accumulator[0] if self._accumulator is not None else None

    def accumulator_bit_width(self) -> Tensor | None:
        """Bits that the integer sum needs, from the last eval forward; ``None`` as for the scale."""
        return self._accumulator[1] if self._accumulator is not None else None

    def quant_bias(self) -> Tensor | QuantTensor | None:
        """The quantized bias, as in eval mode; ``None`` without a bias or without ``bias_quant``.

        Raises:
            QuantMetadataError: its scale comes from the accumulator, and no eval forward was run.
        """
        if self.bias is None or not self.is_bias_quant_enabled:
            return None
        return self.bias_quant.evaluate(self.bias)

    def int_bias(self, float_datatype: bool = False) -> Tensor | None:
        """Integer codes of the bias, int32 or (``float_datatype=True``) float; ``None`` without a quantized bias."""
        bias = self.quant_bias()
        return bias.int(float_datatype) if isinstance(bias, QuantTensor) else None


class SplitGate(Gate):
    """The new gate of a GRU, whose two sums stay apart: the reset gate r scales the state's before they are added.

    ``hidden.bias`` is the bias of the state's sum. Both sums, and the scaled one, have the one ``gate_acc_quant``, so
    that they can be added as integers.
    """

    def bias_owners(self) -> list[nn.Module]:
        """The gate, and the projection of the state."""
        return [self, self.hidden]

    def over(self, x: Tensor | QuantTensor, quantize: Quantize) -> Callable[..., Tensor]:  # type: ignore[override]
        """As :meth:`Gate.over`; the function takes the reset gate besides, and returns a sum that has no bound yet."""
        weights = self._quantized_weights()
        bias, grid = self._bias_and_grid(self.bias, x, weights[0], self.input.weight.shape[1])
        own_bias, hidden_grid = self._bias_and_grid(self.hidden.bias, x, weights[0], self.hidden.weight.shape[1])
        self._remember(grid, hidden_grid)
        inputs = F.linear(value_of(x), value_of(weights[0]), bias)
        # The whole sequence at once: this sum does not depend on the state.
        steps = _time_steps(value_of(quantize(self.gate_acc_quant, _held(grid, inputs))))
        # Transposed once, not at each step: in an exported graph that is one node.
        hidden_weight = value_of(weights[1]).t()
        hidden_bias = 0.0 if own_bias is None else own_bias

        def at(t: int, h: Tensor | QuantTensor, reset: Tensor) -> Tensor:
            hidden = quantize(self.gate_acc_quant, _held(hidden_grid, value_of(h) @ hidden_weight + hidden_bias))
            return steps[t] + value_of(quantize(self.gate_acc_quant, reset * value_of(hidden)))

        return at
