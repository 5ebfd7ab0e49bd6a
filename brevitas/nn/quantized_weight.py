"""What the layers with a quantized weight share, whatever they compute with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from brevitas.nn.attach import Slot, attach_quantizers
from brevitas.nn.introspection import enabled_property, narrow_property, quantity_getter, signed_property
from brevitas.nn.quant_layer import QuantLayerMixin
from brevitas.quant_tensor import QuantTensor

__all__ = ["QuantWeightMixin"]


class QuantWeightMixin(QuantLayerMixin):
    """Getters of ``weight`` and ``weight_quant``.

    Attributes:
        output_channel_dim: dim of the weight that runs over the output channels, or over those of one group; a scale
            per output channel lies there.
    """

    output_channel_dim = 0

    is_weight_quant_enabled = enabled_property("weight")
    is_quant_weight_signed = signed_property("weight")
    is_quant_weight_narrow_range = narrow_property("weight")
    quant_weight_scale = quantity_getter("weight", "scale")
    quant_weight_zero_point = quantity_getter("weight", "zero_point")
    quant_weight_bit_width = quantity_getter("weight", "bit_width")

    weight: Any
    weight_quant: Any

    def _attach(self, slots: list[Slot], keywords: Mapping[str, Any]) -> None:
        """Build the quantizers, where the weight is and in its dtype."""
        assert isinstance(self, nn.Module)
        attach_quantizers(self, slots, keywords)
        if self.weight.device.type != "cpu" or self.weight.dtype != torch.float32:
            for slot in slots:
                getattr(self, slot.argument).to(device=self.weight.device, dtype=self.weight.dtype)

    @property
    def weights_per_output(self) -> int:
        """Number of weights that feed one output element."""
        raise NotImplementedError

    def quant_weight(self) -> Tensor | QuantTensor:
        """The quantized weight, as in eval mode; the weight itself if ``weight_quant`` is off."""
        return self.weight_quant.evaluate(self.weight)

    def int_weight(self, float_datatype: bool = False) -> Tensor:
        """Integer codes of the weight, int32 or (``float_datatype=True``) in the weight's dtype with gradient.

        Raises:
            QuantMetadataError: ``weight_quant`` is off.
        """
        weight = self.quant_weight()
        if not isinstance(weight, QuantTensor):
            raise self.metadata_error(
                self._no_integers("int_weight()"), None, "set weight_quant= to an integer quantizer"
            )
        return weight.int(float_datatype)

    def _no_integers(self, what: str) -> str:
        if self.is_weight_quant_enabled:
            return f"{what} needs integer weights, and {self.weight_quant.quant_injector.__name__} gives minifloats"
        return f"{what} needs weight quantization, and weight_quant is off"
