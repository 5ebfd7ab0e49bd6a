"""Layers that take bits off an accumulator: the least significant ones, or the most significant ones."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from brevitas.nn.attach import Slot, attach_quantizers
from brevitas.nn.following import FollowingLayer
from brevitas.nn.introspection import enabled_property, narrow_property, quantity_getter, signed_property
from brevitas.nn.quant_activation import place_quantizers
from brevitas.quant_tensor import QuantTensor

__all__ = ["ClampQuantAccumulator", "TruncQuantAccumulator", "TruncatingLayer"]

Device = torch.device | str | None


class _BitReducingLayer(FollowingLayer):
    """Body of the layers that hold one quantizer of accumulators."""

    role: ClassVar[str]

    def _init_reducing(
        self,
        quantizer: Any,
        return_quant_tensor: bool | None,
        device: Device,
        dtype: torch.dtype | None,
        keywords: dict[str, Any],
    ) -> None:
        self._init_layer(return_quant_tensor, may_follow=True)
        slots = [Slot(f"{self.role}_quant", self.role, quantizer, "")]
        assert isinstance(self, nn.Module)
        attach_quantizers(self, slots, keywords)
        place_quantizers(self, slots, device, dtype)

    @property
    def _quantizer(self) -> Any:
        return getattr(self, f"{self.role}_quant")

    def require_integers(self, x: Tensor | QuantTensor) -> None:
        """Refuse a plain tensor while the quantizer is on.

        Raises:
            QuantMetadataError: with the producer of the tensor.
        """
        if self._quantizer.is_quant_enabled and not isinstance(x, QuantTensor):
            preset = getattr(getattr(self._quantizer, "quant_injector", None), "__name__", self.role)
            raise self.metadata_error(
                f"{preset} takes bits off integers and needs a QuantTensor",
                x,
                f"put a QuantIdentity(return_quant_tensor=True) before {self._here()}",
                f"set {self.role}_quant=None here",
            )

    def reduce(self, x: QuantTensor) -> QuantTensor:
        """``x`` with fewer bits; ``x`` itself if the quantizer is off."""
        return self._quantizer(x) if self._quantizer.is_quant_enabled else x


class TruncatingLayer(_BitReducingLayer):
    """Body of the layers with a ``trunc_quant``."""

    role = "trunc"
    trunc_quant: Any

    is_trunc_quant_enabled = enabled_property("trunc")
    is_output_quant_enabled = is_trunc_quant_enabled
    is_quant_output_signed = signed_property("output", "trunc")
    is_quant_output_narrow_range = narrow_property("output", "trunc")
    quant_output_scale = quantity_getter("output", "scale", "trunc")
    quant_output_zero_point = quantity_getter("output", "zero_point", "trunc")
    quant_output_bit_width = quantity_getter("output", "bit_width", "trunc")


class _AccumulatorLayer(_BitReducingLayer):
    def forward(self, input: Any) -> Any:
        """The input with fewer bits.

        Args:
            input: ``QuantTensor`` of any shape.

        Raises:
            QuantMetadataError: the input is a plain tensor while the quantizer is on.
        """
        self._cache_input(input)
        self.require_integers(input)
        return self.follow(self.reduce(input), input)


class TruncQuantAccumulator(_AccumulatorLayer, TruncatingLayer, nn.Module):
    """Takes least significant bits off an accumulator: fewer bits, a coarser scale.

    >>> import torch
    >>> from brevitas.nn import TruncQuantAccumulator
    >>> from brevitas.quant import TruncTo8bit
    >>> from brevitas.quant_tensor import QuantTensor
    >>> x = QuantTensor(torch.tensor([1000.0, -1000.0]), scale=1.0, zero_point=0, bit_width=12, signed=True)
    >>> y = TruncQuantAccumulator(TruncTo8bit)(x)
    >>> y.int(), y.scale
    (tensor([ 62, -63], dtype=torch.int32), tensor(16.))

    Args:
        trunc_quant: quantizer: a class, a proxy to share, or ``None`` to hand the input on.
        return_quant_tensor: ``None`` returns what the input leads to, ``False`` a plain tensor, ``True`` insists.
        device, dtype: of the quantizer's state.
        **kwargs: directives of ``trunc_quant``.

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal.
    """

    def __init__(
        self,
        trunc_quant: Any = None,
        return_quant_tensor: bool | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        nn.Module.__init__(self)
        self._init_reducing(trunc_quant, return_quant_tensor, device, dtype, kwargs)


class ClampQuantAccumulator(_AccumulatorLayer, nn.Module):
    """Takes most significant bits off an accumulator: values beyond the smaller range are clamped, the scale stays.

    >>> import torch
    >>> from brevitas.nn import ClampQuantAccumulator
    >>> from brevitas.quant.base import IntQuant
    >>> from brevitas.quant.solver import ClampQuantSolver
    >>> from brevitas.quant_tensor import QuantTensor
    >>> class Drop4(IntQuant, ClampQuantSolver):
    ...     bit_width_to_remove = 4
    >>> x = QuantTensor(torch.tensor([3.0, -1000.0]), scale=1.0, zero_point=0, bit_width=12, signed=True)
    >>> ClampQuantAccumulator(Drop4)(x).int()
    tensor([   3, -128], dtype=torch.int32)

    Args:
        clamp_quant: quantizer: a class, a proxy to share, or ``None`` to hand the input on. Its sign must be that of
            the input, whose zero point must be 0.
        return_quant_tensor, device, dtype: as for :class:`TruncQuantAccumulator`.
        **kwargs: directives of ``clamp_quant``.

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal.
    """

    role = "clamp"
    clamp_quant: Any

    is_clamp_quant_enabled = enabled_property("clamp")
    is_output_quant_enabled = is_clamp_quant_enabled
    is_quant_output_signed = signed_property("output", "clamp")
    is_quant_output_narrow_range = narrow_property("output", "clamp")
    quant_output_scale = quantity_getter("output", "scale", "clamp")
    quant_output_zero_point = quantity_getter("output", "zero_point", "clamp")
    quant_output_bit_width = quantity_getter("output", "bit_width", "clamp")

    def __init__(
        self,
        clamp_quant: Any = None,
        return_quant_tensor: bool | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        nn.Module.__init__(self)
        self._init_reducing(clamp_quant, return_quant_tensor, device, dtype, kwargs)
