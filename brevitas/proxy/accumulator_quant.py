"""Proxies of accumulators: least significant bits truncated, or most significant bits clamped off."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from brevitas.errors import QuantMetadataError
from brevitas.proxy.quant_proxy import QuantProxyFromInjector
from brevitas.quant_tensor import QuantTensor, Source
from brevitas.quant_tensor.checks import require, show
from brevitas.utils.module_path import find_module

__all__ = ["AccQuantProxyProtocol", "ClampQuantProxyFromInjector", "TruncQuantProxyFromInjector"]


@runtime_checkable
class AccQuantProxyProtocol(Protocol):
    """What a module must offer to be passed as ``trunc_quant`` or ``clamp_quant``."""

    is_quant_enabled: bool
    rounding_mode: str | None

    def add_tracked_module(self, module: nn.Module) -> None:
        """Take one more layer that uses it."""

    def forward(self, x: QuantTensor) -> QuantTensor:
        """Reduce the bits of an accumulator."""


class _AccumulatorQuantProxy(QuantProxyFromInjector):
    def add_tracked_module(self, module: nn.Module | None) -> None:
        self._track(module)

    def _quant_tensor_of(self, x: Any) -> QuantTensor:
        if not isinstance(x, QuantTensor):
            raise QuantMetadataError(
                f"{self._where()}: {self.quant_injector.__name__} works on integers and needs a QuantTensor, and the "
                "input is a plain Tensor; set return_quant_tensor=True on the layer before"
            )
        return x

    def _where(self) -> str:
        """The layer, with its path where that is known, and the argument."""
        found = find_module(lambda m: any(child is self for child in m.children()))
        if found is None or not found[0]:
            return str(self.site)
        return f"{type(found[1]).__name__} '{found[0]}', {self.site.argument}"

    def _source_for(self, shifted: bool | None, scale_uid: int = Source.NO_UID) -> Source:
        # Derived, since the grid is that of the input, more or less: two results need not have one scale.
        return Source.derived(self.source.name, shifted=shifted, scale_uid=scale_uid)

    def scale(self) -> Tensor | None:
        """``None``: the scale is that of the input."""
        return None

    def zero_point(self) -> Tensor | None:
        """``None``: the zero point is that of the input."""
        return None


class TruncQuantProxyFromInjector(_AccumulatorQuantProxy):
    """Keeps the most significant bits of an accumulator.

    >>> import torch
    >>> from torch import nn
    >>> from brevitas.proxy import TruncQuantProxyFromInjector
    >>> from brevitas.quant import RoundTo8bit
    >>> from brevitas.quant_tensor import QuantTensor
    >>> trunc = TruncQuantProxyFromInjector(nn.Module(), RoundTo8bit.let(bit_width=4))
    >>> x = QuantTensor(torch.tensor([0.04, -0.05, 0.31, -0.44]), 0.01, 0.0, 8, True)
    >>> y = trunc(x)
    >>> y.int(), y.scale
    (tensor([ 0,  0,  2, -3], dtype=torch.int32), tensor(0.1600))
    """

    role = "trunc"

    def forward(self, x: QuantTensor) -> QuantTensor:
        """``x`` with fewer bits and a coarser scale, 2^removed times that of ``x``; ``x`` itself if off.

        Raises:
            QuantMetadataError: ``x`` is a plain tensor.
        """
        if self.tensor_quant is None:
            return x
        x = self._quant_tensor_of(x)
        y, scale, zero_point, width = self.tensor_quant(x.value, x.scale, x.zero_point, x.bit_width, x.signed)
        source = self._source_for(None if x.source is None else x.source.shifted)
        return QuantTensor.unchecked(y, scale, zero_point, width, x.signed, self.training, source)

    def bit_width(self) -> Tensor | None:
        """Bit width of the output; ``None`` if off."""
        quantizer = self._resolved_module()
        return None if quantizer is None else quantizer.msb_clamp_bit_width_impl()


class ClampQuantProxyFromInjector(_AccumulatorQuantProxy):
    """Takes most significant bits off an accumulator; values beyond the smaller range are clamped.

    >>> import torch
    >>> from torch import nn
    >>> from brevitas.proxy import ClampQuantProxyFromInjector
    >>> from brevitas.quant.base import IntQuant
    >>> from brevitas.quant.solver import ClampQuantSolver
    >>> from brevitas.quant_tensor import QuantTensor
    >>> class Drop4(IntQuant, ClampQuantSolver):
    ...     bit_width_to_remove = 4
    >>> clamp = ClampQuantProxyFromInjector(nn.Module(), Drop4)
    >>> clamp(QuantTensor(torch.tensor([3.0, -100.0]), 1.0, 0.0, 8, True)).int()
    tensor([ 3, -8], dtype=torch.int32)
    """

    role = "clamp"

    def forward(self, x: QuantTensor) -> QuantTensor:
        """``x`` clamped to fewer bits, on the same scale; ``x`` itself if off.

        Raises:
            QuantMetadataError: ``x`` is a plain tensor, has a zero point, or a sign that the quantizer does not have.
        """
        if self.tensor_quant is None:
            return x
        x = self._quant_tensor_of(x)
        if x.signed is not bool(self.is_signed):
            raise QuantMetadataError(
                f"{self._where()}: {self.quant_injector.__name__} has signed={self.is_signed}, and the input has "
                f"signed={x.signed}; declare the sign of the input"
            )
        if x.source is None or x.source.shifted is not False:
            require(
                lambda: ~x.zero_point.any(),
                f"{self.site}: the zero point is not 0",
                lambda: (
                    f"{self._where()}: most significant bits can be taken off symmetric integers only, and the input "
                    f"has the zero point {show(x.zero_point)}; quantize it with a zero point of 0"
                ),
            )
        y, scale, zero_point, width = self.tensor_quant(x.value, x.scale, x.bit_width)
        source = self._source_for(False, Source.NO_UID if x.source is None else x.source.scale_uid)
        return QuantTensor.unchecked(y, scale, zero_point, width, x.signed, self.training, source)

    def bit_width(self) -> Tensor | None:
        """``None``: the width depends on that of the input."""
        return None
