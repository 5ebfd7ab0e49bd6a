"""Activation layers: an activation function and its quantizer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from brevitas.nn.attach import Slot, attach_quantizers
from brevitas.nn.introspection import (
    InputGetters,
    enabled_property,
    narrow_property,
    quantity_getter,
    signed_property,
)
from brevitas.nn.quant_layer import QuantLayerMixin
from brevitas.quant import Int8ActPerTensorFloat, Uint8ActPerTensorFloat
from brevitas.quant_tensor import QuantTensor

__all__ = ["QuantIdentity", "QuantNonLinearActLayer", "QuantReLU"]


class QuantNonLinearActLayer(QuantLayerMixin, InputGetters):
    """Body of the activation layers: input quantizer, activation, activation quantizer.

    An instance holds one set of statistics: use one instance per place in the network.
    """

    # Set by the slots below.
    act_quant: Any
    input_quant: Any

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
        act_quant: Any,
        input_quant: Any,
        return_quant_tensor: bool,
        keywords: dict[str, Any],
    ) -> None:
        self._init_layer(return_quant_tensor)
        supplied = {"act_impl": act_impl, "passthrough_act": passthrough_act}
        slots = [Slot("act_quant", "act", act_quant, "", supplied)]
        slots.append(Slot("input_quant", "act", input_quant, "input_", {"act_impl": None, "passthrough_act": True}))
        assert isinstance(self, nn.Module)
        attach_quantizers(self, slots, keywords)

    def forward(self, input: Any) -> Any:
        """The activated, quantized input.

        Args:
            input: any shape.

        Raises:
            QuantMetadataError: ``return_quant_tensor=True`` with quantization off and a float input.
        """
        self._cache_input(input)
        if self.input_quant.is_quant_enabled:
            input = self.input_quant(input)
        y = self.act_quant(input)
        if self.return_quant_tensor and not isinstance(y, QuantTensor) and not self.is_act_quant_enabled:
            raise self.metadata_error(
                "return_quant_tensor=True needs a quantizer, and act_quant is off",
                input if isinstance(input, Tensor) else None,
                f"give act_quant= to {self._here()}",
                "set return_quant_tensor=False here",
            )
        return self.pack_output(y)


class QuantReLU(QuantNonLinearActLayer, nn.ReLU):
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
        **kwargs: directives of ``act_quant``, and with the prefix ``input_`` of ``input_quant``.

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal.
    """

    def __init__(
        self,
        act_quant: Any = Uint8ActPerTensorFloat,
        input_quant: Any = None,
        return_quant_tensor: bool = False,
        **kwargs: Any,
    ) -> None:
        nn.ReLU.__init__(self)
        self._init_activation(nn.ReLU, True, act_quant, input_quant, return_quant_tensor, kwargs)


class QuantIdentity(QuantNonLinearActLayer, nn.Identity):
    """Quantizes its input, for example an image, or the operands of an addition that need one scale.

    >>> import torch
    >>> from brevitas.nn import QuantIdentity
    >>> QuantIdentity(bit_width=4, return_quant_tensor=True)(torch.tensor([-1.0, 0.5])).int()
    tensor([-8,  4], dtype=torch.int32)

    Args:
        act_quant: quantizer: a class, a proxy to share, or ``None`` to hand the input on.
        return_quant_tensor: return a ``QuantTensor``.
        **kwargs: directives of ``act_quant``.

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal.
    """

    def __init__(
        self, act_quant: Any = Int8ActPerTensorFloat, return_quant_tensor: bool = False, **kwargs: Any
    ) -> None:
        nn.Identity.__init__(self)
        self._init_activation(None, True, act_quant, None, return_quant_tensor, kwargs)
