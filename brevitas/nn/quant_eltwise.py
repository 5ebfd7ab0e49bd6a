"""Addition and concatenation, whose operands need one scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from brevitas.errors import QuantConfigError
from brevitas.nn.attach import Slot, attach_quantizers
from brevitas.nn.introspection import InputGetters, OutputGetters
from brevitas.nn.quant_activation import place_quantizers
from brevitas.nn.quant_layer import QuantLayerMixin
from brevitas.quant import Int8ActPerTensorFloat
from brevitas.quant_tensor import QuantTensor

__all__ = ["Cat", "EltwiseAdd", "QuantCat", "QuantEltwiseAdd"]

Device = torch.device | str | None


class EltwiseAdd(nn.Module):
    """``input + other`` as a module, so that a float model can name the place of a :class:`QuantEltwiseAdd`."""

    def forward(self, input: Any, other: Any) -> Any:
        """The sum."""
        return input + other


class Cat(nn.Module):
    """``torch.cat`` as a module, so that a float model can name the place of a :class:`QuantCat`."""

    def forward(self, tensors: Sequence[Any], dim: int = 1) -> Any:
        """The concatenation along ``dim``."""
        return torch.cat(tensors, dim)  # type: ignore[arg-type]


class _ManyInputs(QuantLayerMixin, InputGetters, OutputGetters):
    """Body of the layers that quantize several operands alike, join them, and quantize the result."""

    input_quant: Any
    output_quant: Any
    #: Options that only the constructor can act on.
    construction_options = ("tie_input_output_quant",)

    def __init__(
        self,
        input_quant: Any = Int8ActPerTensorFloat,
        output_quant: Any = Int8ActPerTensorFloat,
        tie_input_output_quant: bool = False,
        return_quant_tensor: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self._init_layer(return_quant_tensor)
        if not isinstance(tie_input_output_quant, bool):
            raise QuantConfigError(
                f"{type(self).__name__}: tie_input_output_quant = {tie_input_output_quant!r} is not legal: expected "
                "True or False"
            )
        around = {"act_impl": None, "passthrough_act": True}
        slots = [
            Slot("input_quant", "act", input_quant, "input_", around),
            Slot("output_quant", "act", output_quant, "output_", around),
        ]
        assert isinstance(self, nn.Module)
        attach_quantizers(self, slots, kwargs)
        place_quantizers(self, slots, device, dtype)
        self.tie_input_output_quant = tie_input_output_quant
        if tie_input_output_quant:
            self._tie()

    def _tie(self) -> None:
        if self.is_input_quant_enabled and self.is_output_quant_enabled:
            raise QuantConfigError(
                f"{type(self).__name__}: tie_input_output_quant=True lets one quantizer serve inputs and output, and "
                f"two are given: input_quant={_name(self.input_quant)} and output_quant={_name(self.output_quant)}. "
                "Set output_quant=None (or input_quant=None) to tie, or tie_input_output_quant=False"
            )
        if self.is_output_quant_enabled:
            self.input_quant = self.output_quant
        else:
            self.output_quant = self.input_quant

    def _quantized(self, operands: Sequence[Any]) -> list[Any]:
        """The operands through the one input quantizer, or as they are if it is off."""
        return [self.input_quant(x) for x in operands] if self.is_input_quant_enabled else list(operands)

    def _finish(self, y: Tensor | QuantTensor, operands: Sequence[Tensor | QuantTensor]) -> Any:
        if self.is_output_quant_enabled:
            y = self.output_quant(y)
        elif self.return_quant_tensor and not isinstance(y, QuantTensor):
            raise self.metadata_error(
                "return_quant_tensor=True needs operands that are all QuantTensors",
                next((x for x in operands if isinstance(x, Tensor)), None),
                f"set input_quant= or output_quant= on {self._here()}",
                "set return_quant_tensor=False here",
            )
        return self.pack_output(y)


def _name(proxy: Any) -> str:
    return getattr(getattr(proxy, "quant_injector", proxy), "__name__", type(proxy).__name__)


class QuantEltwiseAdd(_ManyInputs, EltwiseAdd):
    """Elementwise addition of two tensors on one grid.

    >>> import torch
    >>> from brevitas.nn import QuantEltwiseAdd
    >>> from brevitas.quant import Int8ActPerTensorFloatMinMaxInit
    >>> add = QuantEltwiseAdd(
    ...     Int8ActPerTensorFloatMinMaxInit, None, return_quant_tensor=True,
    ...     input_bit_width=4, input_min_val=-1.0, input_max_val=1.0,
    ... )
    >>> y = add(torch.tensor([0.5, -1.0]), torch.tensor([0.25, 0.25]))
    >>> y.int(), int(y.bit_width)
    (tensor([ 6, -6], dtype=torch.int32), 5)

    Args:
        input_quant: quantizer of both operands, so that they have one scale: a class, a proxy to share, or ``None``.
            Without it, operands that are ``QuantTensor``s must have one scale already.
        output_quant: quantizer of the sum.
        tie_input_output_quant: one quantizer, given as either of the two, serves operands and sum.
        return_quant_tensor: return a ``QuantTensor``.
        device, dtype: of the quantizers' state.
        **kwargs: directives with the prefixes ``input_`` and ``output_``.

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal; two quantizers where they are tied.
    """

    def forward(self, input: Any, other: Any) -> Any:
        """The quantized sum.

        Args:
            input, other: tensors whose shapes broadcast.

        Raises:
            QuantMetadataError: different scales while ``input_quant`` is off; or ``return_quant_tensor=True`` and
                nothing that gives the sum a grid.
        """
        self._cache_input(input)
        x, y = self._quantized((input, other))
        return self._finish(x + y, (x, y))


class QuantCat(_ManyInputs, Cat):
    """Concatenation of tensors on one grid.

    >>> import torch
    >>> from brevitas.nn import QuantCat
    >>> cat = QuantCat(input_bit_width=4, output_quant=None, return_quant_tensor=True)
    >>> y = cat([torch.randn(1, 2, 3), torch.randn(1, 5, 3)])
    >>> y.shape, y.bit_width
    (torch.Size([1, 7, 3]), tensor(4.))

    Arguments and errors are those of :class:`QuantEltwiseAdd`.
    """

    def forward(self, tensors: Sequence[Any], dim: int = 1) -> Any:
        """The quantized concatenation.

        Args:
            tensors: a list or tuple of tensors whose shapes agree but for ``dim``.
            dim: dim along which they are joined.

        Raises:
            TypeError: ``tensors`` is no list or tuple of at least one.
            QuantMetadataError: different grids while ``input_quant`` is off; or ``return_quant_tensor=True`` and
                nothing that gives the result a grid.
        """
        if not isinstance(tensors, list | tuple) or not tensors:
            found = f"{tensors!r}" if isinstance(tensors, list | tuple) else f"a {type(tensors).__name__}"
            raise TypeError(f"{type(self).__name__}: expected a list or tuple of tensors, got {found}")
        self._cache_input(tensors[0])
        quantized = self._quantized(tensors)
        return self._finish(torch.cat(quantized, dim), quantized)
