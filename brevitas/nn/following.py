"""What the layers share that hand the grid of their input on, changed or not."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from brevitas.nn.introspection import InputGetters, OutputGetters
from brevitas.nn.quant_layer import QuantLayerMixin
from brevitas.quant_tensor import QuantTensor
from brevitas.quant_tensor.metadata import carried_dims

__all__ = ["FollowingLayer"]


class FollowingLayer(QuantLayerMixin, InputGetters, OutputGetters):
    """Body of the layers with ``return_quant_tensor=None``: what goes out is what the input leads to.

    Getters of input and output know what the last eval forward left in the caches, and ``None`` before any.
    """

    def follow(self, y: Tensor | QuantTensor, x: Tensor | QuantTensor) -> Any:
        """``y``, made from the input ``x``, as the layer returns it.

        Raises:
            QuantMetadataError: ``return_quant_tensor=True``, and ``y`` has no grid.
        """
        if self.return_quant_tensor and not isinstance(y, QuantTensor):
            plain = not isinstance(x, QuantTensor)
            raise self.metadata_error(
                "return_quant_tensor=True needs "
                + (
                    "a QuantTensor" if plain else "one grid for all elements that become one, and the input has several"
                ),
                x if isinstance(x, Tensor) else None,
                "set return_quant_tensor=None here, to follow the input",
                f"put a QuantIdentity(return_quant_tensor=True) before {self._here()}",
            )
        return self.pack_output(y)

    def require_one_grid(self, x: QuantTensor, spatial: int) -> None:
        """Refuse an input whose scale or zero point varies along its last ``spatial`` dims.

        Raises:
            QuantMetadataError: with the shape of the scale or zero point.
        """
        for name, field in (("scale", x.scale), ("zero point", x.zero_point)):
            if any(dim >= x.dim() - spatial for dim in carried_dims(field, x.dim())):
                raise self.metadata_error(
                    f"elements of one grid can be averaged, and the input has a {name} of shape {tuple(field.shape)}, "
                    "which varies along the dims that are averaged",
                    None,
                    f"quantize the input with one {name} per tensor or channel",
                    "hand in its plain tensor .value",
                )
