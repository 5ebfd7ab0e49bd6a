"""Activation layers: an activation function and its quantizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brevitas.errors import QuantConfigError
from brevitas.inject.enum import QuantType
from brevitas.nn.attach import Slot, attach_quantizers
from brevitas.nn.introspection import (
    InputGetters,
    enabled_property,
    narrow_property,
    quantity_getter,
    signed_property,
)
from brevitas.nn.quant_layer import QuantLayerMixin
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8ActPerTensorFloatMinMaxInit,
    NoneActQuant,
    Uint8ActPerTensorFloat,
)
from brevitas.quant.site import is_quantizer
from brevitas.quant.solver.act import TENSOR_QUANT
from brevitas.quant_tensor import QuantTensor
from injector import declarations

__all__ = ["QuantHardTanh", "QuantIdentity", "QuantNonLinearActLayer", "QuantReLU", "QuantSigmoid", "QuantTanh"]

Device = torch.device | str | None


class QuantNonLinearActLayer(QuantLayerMixin):
    """Body of the activation layers: activation, activation quantizer.

    An instance holds one set of statistics: use one instance per place in the network.
    """

    # Set by the slot below.
    act_quant: Any

    is_act_quant_enabled = enabled_property("act")
    is_quant_act_signed = signed_property("act")
    is_quant_act_narrow_range = narrow_property("act")
    quant_act_scale = quantity_getter("act", "scale")
    quant_act_zero_point = quantity_getter("act", "zero_point")
    quant_act_bit_width = quantity_getter("act", "bit_width")
    is_output_quant_enabled = is_act_quant_enabled
    is_quant_output_signed = is_quant_act_signed
    is_quant_output_narrow_range = is_quant_act_narrow_range
    quant_output_scale = quant_act_scale
    quant_output_zero_point = quant_act_zero_point
    quant_output_bit_width = quant_act_bit_width

    def _init_activation(
        self,
        act_impl: type[nn.Module] | None,
        passthrough_act: bool,
        quantizers: dict[str, Any],
        return_quant_tensor: bool,
        device: Device,
        dtype: torch.dtype | None,
        keywords: dict[str, Any],
    ) -> None:
        """``passthrough_act``: with ``act_quant`` off, the output lies on the grid of the input."""
        self._init_layer(return_quant_tensor)
        around = {"act_impl": None, "passthrough_act": True}
        slots = [
            Slot(
                "act_quant",
                "act",
                quantizers["act_quant"],
                "",
                {"act_impl": act_impl, "passthrough_act": passthrough_act},
            )
        ]
        if "input_quant" in quantizers:
            slots.append(Slot("input_quant", "act", quantizers["input_quant"], "input_", around))
        assert isinstance(self, nn.Module)
        attach_quantizers(self, slots, keywords)
        place_quantizers(self, slots, device, dtype)

    def _quantize_input(self, x: Tensor | QuantTensor) -> Tensor | QuantTensor:
        return x

    def _activate(self, x: Tensor | QuantTensor) -> Tensor | QuantTensor:
        return self.act_quant(x)

    def forward(self, input: Any) -> Any:
        """The activated, quantized input.

        Args:
            input: any shape.

        Raises:
            QuantMetadataError: ``return_quant_tensor=True`` with quantization off and no grid that could be handed on.
        """
        self._cache_input(input)
        y = self._activate(self._quantize_input(input))
        if self.return_quant_tensor and not isinstance(y, QuantTensor) and not self.is_act_quant_enabled:
            raise self.metadata_error(
                "return_quant_tensor=True needs a quantizer, and act_quant is off",
                input if isinstance(input, Tensor) else None,
                f"give act_quant= to {self._here()}",
                "set return_quant_tensor=False here",
            )
        return self.pack_output(y)


class _InputQuantized(QuantNonLinearActLayer, InputGetters):
    """Body of the activation layers that quantize what goes into the activation too."""

    input_quant: Any

    def _quantize_input(self, x: Tensor | QuantTensor) -> Tensor | QuantTensor:
        return self.input_quant(x) if self.input_quant.is_quant_enabled else x


class QuantReLU(_InputQuantized, nn.ReLU):
    """ReLU with quantized output.

    >>> import torch
    >>> from brevitas.nn import QuantReLU
    >>> relu = QuantReLU(bit_width=4, return_quant_tensor=True)
    >>> relu(torch.tensor([-1.0, 0.5, 3.0])).int()
    tensor([ 0,  2, 15], dtype=torch.int32)

    Args:
        act_quant: quantizer of the output: a class, a proxy to share, or ``None`` for a float output.
        input_quant: quantizer of the input.
        return_quant_tensor: return a ``QuantTensor``.
        device, dtype: of the quantizers' state.
        **kwargs: directives of ``act_quant``, and with the prefix ``input_`` of ``input_quant``.

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal.
    """

    def __init__(
        self,
        act_quant: Any = Uint8ActPerTensorFloat,
        input_quant: Any = None,
        return_quant_tensor: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        nn.ReLU.__init__(self)
        quantizers = {"act_quant": act_quant, "input_quant": input_quant}
        self._init_activation(nn.ReLU, True, quantizers, return_quant_tensor, device, dtype, kwargs)


class QuantSigmoid(_InputQuantized, nn.Sigmoid):
    """Sigmoid with quantized output.

    >>> import torch
    >>> from brevitas.nn import QuantSigmoid
    >>> sigmoid = QuantSigmoid(bit_width=2, return_quant_tensor=True)
    >>> sigmoid(torch.tensor([-9.0, 0.5, 9.0])).int()
    tensor([0, 2, 3], dtype=torch.int32)

    Arguments and errors are those of :class:`QuantReLU`. With ``act_quant=None`` the output is a plain tensor, since
    a sigmoid does not keep the grid of its input.
    """

    def __init__(
        self,
        act_quant: Any = Uint8ActPerTensorFloat,
        input_quant: Any = None,
        return_quant_tensor: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        nn.Sigmoid.__init__(self)
        quantizers = {"act_quant": act_quant, "input_quant": input_quant}
        self._init_activation(nn.Sigmoid, False, quantizers, return_quant_tensor, device, dtype, kwargs)


class QuantTanh(_InputQuantized, nn.Tanh):
    """Hyperbolic tangent with quantized output.

    >>> import torch
    >>> from brevitas.nn import QuantTanh
    >>> QuantTanh(bit_width=2, return_quant_tensor=True)(torch.tensor([-9.0, 0.5, 9.0])).int()
    tensor([-2,  1,  1], dtype=torch.int32)

    Arguments and errors are those of :class:`QuantReLU`. With ``act_quant=None`` the output is a plain tensor.
    """

    def __init__(
        self,
        act_quant: Any = Int8ActPerTensorFloat,
        input_quant: Any = None,
        return_quant_tensor: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        nn.Tanh.__init__(self)
        quantizers = {"act_quant": act_quant, "input_quant": input_quant}
        self._init_activation(nn.Tanh, False, quantizers, return_quant_tensor, device, dtype, kwargs)


class QuantHardTanh(_InputQuantized, nn.Hardtanh):
    """Quantizer whose range stands for the limits of a HardTanh.

    >>> import torch
    >>> from brevitas.nn import QuantHardTanh
    >>> layer = QuantHardTanh(min_val=-1.0, max_val=1.0, bit_width=4, return_quant_tensor=True)
    >>> layer(torch.tensor([-9.0, 0.5, 9.0])).value.tolist()
    [-1.0, 0.5, 0.875]

    The limits set the threshold that ``act_quant`` starts from, and are applied as such only while ``act_quant`` is
    off: a ``QuantTensor`` input is then clamped and moved to the nearest points of its own grid.

    Args:
        act_quant, input_quant, return_quant_tensor, device, dtype, **kwargs: as for :class:`QuantReLU`.
        min_val, max_val: limits; -1 and 1 if the quantizer is off. A quantizer that starts from its range, as the
            default does, needs both, here or in its class; others refuse them.

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal; limits that leave no range.
    """

    def __init__(
        self,
        act_quant: Any = Int8ActPerTensorFloatMinMaxInit,
        input_quant: Any = None,
        return_quant_tensor: bool = False,
        min_val: float | None = None,
        max_val: float | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        given = {"min_val": min_val, "max_val": max_val}
        nn.Hardtanh.__init__(self, *self._limits(act_quant, given))
        if (act_quant is None or is_quantizer(act_quant)) and not _is_off(act_quant, kwargs):
            kwargs |= given
        quantizers = {"act_quant": act_quant, "input_quant": input_quant}
        self._init_activation(None, True, quantizers, return_quant_tensor, device, dtype, kwargs)

    def _limits(self, act_quant: Any, given: dict[str, float | None]) -> tuple[float, float]:
        """The limits that were given, else those that the quantizer declares, else those of torch."""
        declared = declarations(act_quant) if is_quantizer(act_quant) else {}
        found = []
        for (name, limit), default in zip(given.items(), (-1.0, 1.0), strict=True):
            if limit is None and name in declared and declared[name].kind == "object":
                limit = declared[name].obj
            limit = default if limit is None else limit
            if isinstance(limit, bool) or not isinstance(limit, int | float):
                raise QuantConfigError(f"{type(self).__name__}: {name} = {limit!r} is not legal: expected a number")
            found.append(float(limit))
        low, high = found
        if not low < high:
            raise QuantConfigError(
                f"{type(self).__name__}: min_val = {low} and max_val = {high} leave no range: min_val must be the "
                "lesser"
            )
        return low, high

    def _activate(self, x: Tensor | QuantTensor) -> Tensor | QuantTensor:
        if self.is_act_quant_enabled:
            return self.act_quant(x)
        return F.hardtanh(x, self.min_val, self.max_val)  # type: ignore[arg-type]


def _is_off(quantizer: Any, keywords: dict[str, Any]) -> bool:
    """Whether a quantizer class with these keywords is one that quantizes nothing."""
    kind = keywords.get("quant_type")
    if kind is None:
        declared = declarations(NoneActQuant if quantizer is None else quantizer).get("quant_type")
        kind = declared.obj if declared is not None and declared.kind == "object" else None
    return kind is not None and TENSOR_QUANT.name_of(kind) == QuantType.FP


class QuantIdentity(QuantNonLinearActLayer, nn.Identity):
    """Quantizes its input, for example an image, or the operands of an addition that need one scale.

    >>> import torch
    >>> from brevitas.nn import QuantIdentity
    >>> QuantIdentity(bit_width=4, return_quant_tensor=True)(torch.tensor([-1.0, 0.5])).int()
    tensor([-8,  4], dtype=torch.int32)

    Args:
        act_quant: quantizer: a class, a proxy to share, or ``None`` to hand the input on.
        return_quant_tensor: return a ``QuantTensor``.
        device, dtype: of the quantizer's state.
        **kwargs: directives of ``act_quant``.

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal.
    """

    def __init__(
        self,
        act_quant: Any = Int8ActPerTensorFloat,
        return_quant_tensor: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        nn.Identity.__init__(self)
        self._init_activation(None, True, {"act_quant": act_quant}, return_quant_tensor, device, dtype, kwargs)


def place_quantizers(layer: nn.Module, slots: list[Slot], device: Device, dtype: torch.dtype | None) -> None:
    """Move the quantizers that the layer has made itself; a shared one stays where its owner has it."""
    if device is None and dtype is None:
        return
    for slot in slots:
        if not isinstance(slot.quant, nn.Module):
            getattr(layer, slot.argument).to(device=device, dtype=dtype)
