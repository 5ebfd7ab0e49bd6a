"""Average pools: the codes of a window are summed exactly, then truncated.

With codes q of a grid (scale s, zero point z) and windows of k elements, the sum a of the codes of a window lies on the
grid (s / k, z * k), where it stands for the window's average. ``trunc_quant`` then takes its least significant bits
off.
"""

from __future__ import annotations

from math import prod
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brevitas.core.utils import at_least_float32
from brevitas.errors import QuantConfigError, UnknownOptionError
from brevitas.function.ops_ste import round_ste
from brevitas.nn.quant_accumulator import TruncatingLayer
from brevitas.quant import TruncTo8bit
from brevitas.quant_tensor import QuantTensor, Source, accumulator_bit_width
from brevitas.quant_tensor.checks import static_shape

__all__ = ["QuantAdaptiveAvgPool2d", "QuantAvgPool2d", "TruncAdaptiveAvgPool2d", "TruncAvgPool2d"]

Pair = tuple[int, int]
Size = int | Pair
Device = torch.device | str | None
#: Arguments of torch's average pools under which windows differ, or count something that is no code.
_UNEVEN = ("padding", "ceil_mode", "count_include_pad", "divisor_override")


class _QuantAvgPool(TruncatingLayer):
    """What the average pools share; a subclass says which windows it has."""

    def _windows(self, input: Tensor | QuantTensor) -> tuple[Pair, Pair] | None:
        """Size and stride of the windows; ``None`` where those of a plain tensor are not equal."""
        raise NotImplementedError

    def forward(self, input: Any) -> Any:
        """The average of each window.

        Args:
            input: (N, C, H, W) or (C, H, W); a ``QuantTensor`` while ``trunc_quant`` is on. Sums of codes are exact
                up to 2^22.

        Raises:
            QuantMetadataError: a plain tensor while ``trunc_quant`` is on; codes that have no common grid, since
                windows or the scales in them differ; or ``return_quant_tensor=True`` and no grid.
        """
        self._cache_input(input)
        self.require_integers(input)
        windows = self._windows(input)
        if not isinstance(input, QuantTensor) or windows is None:
            return self.follow(super().forward(input), input)  # type: ignore[misc]
        self.require_one_grid(input, 2)
        return self.follow(self.reduce(self.average(input, *windows)), input)

    def average(self, x: QuantTensor, kernel: Pair, stride: Pair) -> QuantTensor:
        """The averages on the grid of the sums, exactly. The gradient is that of an average pool."""
        # Codes less the zero point are integers, whose sum is exact; a sum of values would not be. Rounding mends the
        # division by the window's size, which exporters of torch cannot leave out: they ignore divisor_override.
        codes = round_ste(at_least_float32(x.value) / at_least_float32(x.scale))
        sums = round_ste(F.avg_pool2d(codes, kernel, stride) * float(prod(kernel)))
        scale = self._scale(x, kernel)
        return self._on_sum_grid(x, kernel, (sums * scale).to(x.value.dtype))

    def average_of_values(self, x: QuantTensor, kernel: Pair, stride: Pair) -> QuantTensor:
        """The averages up to float noise: the one operator that stands for :meth:`average` in an exported graph."""
        return self._on_sum_grid(x, kernel, F.avg_pool2d(x.value, kernel, stride))

    def _scale(self, x: QuantTensor, kernel: Pair) -> Tensor:
        return at_least_float32(x.scale) / prod(kernel)

    def _on_sum_grid(self, x: QuantTensor, kernel: Pair, value: Tensor) -> QuantTensor:
        """``value`` with the scale, zero point and width of sums of codes."""
        size = prod(kernel)
        # A sum is a product with ones.
        one = torch.ones_like(x.bit_width)
        width = accumulator_bit_width(x.bit_width, one, size, input_signed=x.signed, weight_signed=False)
        source = Source.derived(type(self).__name__, shifted=None if x.source is None else x.source.shifted)
        zero_point = x.zero_point * size
        return QuantTensor.unchecked(value, self._scale(x, kernel), zero_point, width, x.signed, x.training, source)


class QuantAvgPool2d(_QuantAvgPool, nn.AvgPool2d):
    """2-d average pool that sums the codes of a window and truncates the sum.

    >>> import torch
    >>> from brevitas.nn import QuantAvgPool2d
    >>> from brevitas.quant_tensor import QuantTensor
    >>> x = QuantTensor(torch.tensor([[[[10.0, 20.0], [30.0, 43.0]]]]), scale=1.0, zero_point=0, bit_width=8,
    ...                 signed=False)
    >>> y = QuantAvgPool2d(2)(x)
    >>> y.value, y.scale, y.bit_width
    (tensor([[[[25.]]]]), tensor(1.), tensor(8.))
    >>> y = QuantAvgPool2d(2, trunc_quant=None)(x)
    >>> y.value, y.scale, y.bit_width
    (tensor([[[[25.7500]]]]), tensor(0.2500), tensor(10.))

    Args:
        kernel_size, stride: as for ``torch.nn.AvgPool2d``. There is no padding: all windows have one grid.
        trunc_quant: quantizer of the sum: a class, a proxy to share, or ``None`` to return the sum.
        return_quant_tensor: ``None`` returns what the input leads to, ``False`` a plain tensor, ``True`` insists.
        device, dtype: of the quantizer's state.
        **kwargs: directives of ``trunc_quant``.

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal.
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        trunc_quant: Any = TruncTo8bit,
        return_quant_tensor: bool | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        for name in _UNEVEN:
            if name in kwargs:
                _refuse_uneven(type(self).__name__, name, kwargs[name])
        nn.AvgPool2d.__init__(self, kernel_size, stride)
        self._init_reducing(trunc_quant, return_quant_tensor, device, dtype, kwargs)

    def _windows(self, input: Tensor | QuantTensor) -> tuple[Pair, Pair] | None:
        return _pair(self.kernel_size), _pair(self.stride)


class QuantAdaptiveAvgPool2d(_QuantAvgPool, nn.AdaptiveAvgPool2d):
    """2-d average pool of a given output size, as :class:`QuantAvgPool2d`.

    >>> import torch
    >>> from brevitas.nn import QuantAdaptiveAvgPool2d
    >>> from brevitas.quant_tensor import QuantTensor
    >>> x = QuantTensor(torch.full((1, 1, 4, 6), 101.0), scale=1.0, zero_point=0, bit_width=8, signed=False)
    >>> pool = QuantAdaptiveAvgPool2d((2, 1))
    >>> pool(x).flatten().value, pool.kernel_size
    (tensor([100., 100.]), (2, 6))

    Twelve codes of 8 bits need 12 bits, so that the step of the result is 16 / 12.

    Args:
        output_size: as for ``torch.nn.AdaptiveAvgPool2d``; the size of a ``QuantTensor`` must be a multiple of it, so
            that all windows are equal.
        cache_kernel_size_stride: keep ``kernel_size`` and ``stride`` of the last forward as attributes, ``None``
            before any.
        trunc_quant, return_quant_tensor, device, dtype, **kwargs: as for :class:`QuantAvgPool2d`.

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal.
    """

    kernel_size: Pair | None
    stride: Pair | None

    def __init__(
        self,
        output_size: int | tuple[int | None, int | None] | None,
        cache_kernel_size_stride: bool = True,
        trunc_quant: Any = TruncTo8bit,
        return_quant_tensor: bool | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(cache_kernel_size_stride, bool):
            raise QuantConfigError(
                f"{type(self).__name__}: cache_kernel_size_stride = {cache_kernel_size_stride!r} is not legal: "
                "expected True or False"
            )
        nn.AdaptiveAvgPool2d.__init__(self, output_size)  # type: ignore[arg-type]
        self.cache_kernel_size_stride = cache_kernel_size_stride
        self.kernel_size = self.stride = None
        self._init_reducing(trunc_quant, return_quant_tensor, device, dtype, kwargs)

    def _windows(self, input: Tensor | QuantTensor) -> tuple[Pair, Pair] | None:
        height, width = static_shape(input.value if isinstance(input, QuantTensor) else input)[-2:]
        rows, columns = _pair(self.output_size)
        rows, columns = height if rows is None else rows, width if columns is None else columns
        if height % rows or width % columns:
            if not isinstance(input, QuantTensor):
                return None
            raise self.metadata_error(
                f"an input of size {height}x{width} cannot be divided into {rows}x{columns} equal windows, and sums "
                "over windows of different sizes have no common grid",
                None,
                "pad or crop the input to a multiple of output_size",
                "set trunc_quant=None here and hand in the plain tensor .value",
            )
        window = (height // rows, width // columns)
        if self.cache_kernel_size_stride and not torch.compiler.is_compiling():
            self.kernel_size = self.stride = window
        return window, window


#: The names under which later versions know these layers.
TruncAvgPool2d = QuantAvgPool2d
TruncAdaptiveAvgPool2d = QuantAdaptiveAvgPool2d


def _pair(size: Any) -> tuple[Any, Any]:
    return (size, size) if size is None or isinstance(size, int) else (size[0], size[-1])


def _refuse_uneven(layer: str, name: str, value: Any) -> NoReturn:
    raise UnknownOptionError(
        f"{layer}: '{name}' = {value!r} is no option here: each element is the sum of the codes of one full window, so "
        "that all have one grid. Pad the input with torch.nn.functional.pad, whose zeros lie on any grid"
    )
