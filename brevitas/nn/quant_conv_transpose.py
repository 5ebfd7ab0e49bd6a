"""Quantized transposed convolutions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import gcd, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brevitas.errors import QuantConfigError
from brevitas.nn.quant_conv import Size
from brevitas.nn.weight_layer import QuantWeightBiasInputOutputLayer
from brevitas.quant import Int8WeightPerTensorFloat

__all__ = ["QuantConvTranspose1d", "QuantConvTranspose2d", "QuantConvTranspose3d"]


def taps(kernel: int, stride: int, dilation: int) -> int:
    """How many elements of one dim of the kernel meet in one output element, at most.

    >>> taps(kernel=3, stride=2, dilation=1), taps(kernel=3, stride=2, dilation=2)
    (2, 3)

    An input element stands every ``stride`` outputs, an element of the kernel every ``dilation``: those that meet in
    one output are ``stride / gcd(stride, dilation)`` elements of the kernel apart.
    """
    return -(-kernel // (stride // gcd(stride, dilation)))


class _QuantConvTranspose(QuantWeightBiasInputOutputLayer):
    """The transposed convolutions of every dimension; a subclass adds that of ``torch.nn`` and its function."""

    output_channel_dim = 1

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]
    in_channels: int
    groups: int
    _convolve: Callable[..., Tensor]
    _output_padding: Callable[..., list[int]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        weight_quant: Any = Int8WeightPerTensorFloat,
        bias_quant: Any = None,
        input_quant: Any = None,
        output_quant: Any = None,
        return_quant_tensor: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        if padding_mode != "zeros":
            raise QuantConfigError(
                f"{type(self).__name__}: padding_mode = {padding_mode!r} is not legal: a transposed convolution only "
                "has 'zeros'"
            )
        super().__init__(  # type: ignore[call-arg]
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            groups=groups,
            bias=bias,
            dilation=dilation,
            device=device,
            dtype=dtype,
        )
        # Counted from the end, since the batch dim may be missing.
        self._channel_dim = -1 - len(self.kernel_size)
        self._init_quantizers(weight_quant, bias_quant, input_quant, output_quant, return_quant_tensor, kwargs)

    @property
    def weights_per_output(self) -> int:
        """Number of weights that feed one output element, at most: those that the stride lets meet."""
        sizes = zip(self.kernel_size, self.stride, self.dilation, strict=True)
        return self.in_channels // self.groups * prod([taps(*size) for size in sizes])

    @property
    def per_elem_ops(self) -> float:
        """Operations for one output element on average: each input element meets the whole kernel."""
        return 2 * (self.in_channels // self.groups) * prod(self.kernel_size) / prod(self.stride)

    @property
    def channelwise_separable(self) -> bool:
        """Whether each output channel reads one input channel."""
        return self.groups == self.in_channels

    def forward(self, input: Any, output_size: list[int] | None = None) -> Any:
        """The layer on quantized values.

        Args:
            input: as for the ``torch.nn`` layer; a ``QuantTensor`` brings the scale that ``bias_quant`` and the
                output's metadata need.
            output_size: as for the ``torch.nn`` layer: which of the ``stride`` possible sizes the output has, of the
                spatial dims alone or of all.

        Raises:
            QuantMetadataError: the bias quantizer, or ``return_quant_tensor=True``, needs metadata that are not there.
            ValueError: an ``output_size`` that the layer cannot have.
        """
        return self._quantized_forward(input, partial(self.inner_forward_impl, output_size=output_size))

    def inner_forward_impl(
        self, x: Tensor, quant_weight: Tensor, quant_bias: Tensor | None, output_size: list[int] | None = None
    ) -> Tensor:
        """The transposed convolution on quantized values."""
        dims = len(self.kernel_size)
        output_padding = self._output_padding(
            x, output_size, self.stride, self.padding, self.kernel_size, dims, self.dilation
        )
        return self._convolve(
            x, quant_weight, quant_bias, self.stride, self.padding, output_padding, self.groups, self.dilation
        )


class QuantConvTranspose1d(_QuantConvTranspose, nn.ConvTranspose1d):
    """1-d transposed convolution with quantized weight, and on request bias, input and output.

    >>> import torch
    >>> from brevitas.nn import QuantConvTranspose1d
    >>> conv = QuantConvTranspose1d(4, 2, kernel_size=4, stride=2, padding=1, weight_bit_width=4)
    >>> conv(torch.randn(1, 4, 8)).shape, conv.weights_per_output
    (torch.Size([1, 2, 16]), 8)

    Args: as for :class:`QuantConvTranspose2d`.

    Input (N, C, L) or (C, L).

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal.
    """

    _convolve = staticmethod(F.conv_transpose1d)


class QuantConvTranspose2d(_QuantConvTranspose, nn.ConvTranspose2d):
    """2-d transposed convolution with quantized weight, and on request bias, input and output.

    >>> import torch
    >>> from brevitas.nn import QuantConvTranspose2d
    >>> conv = QuantConvTranspose2d(4, 6, 3, stride=2, groups=2, weight_scaling_per_output_channel=True)
    >>> conv(torch.randn(1, 4, 5, 5), output_size=[12, 12]).shape, conv.quant_weight_scale().shape
    (torch.Size([1, 6, 12, 12]), torch.Size([1, 3, 1, 1]))

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, dilation, groups, bias, padding_mode,
            device, dtype: as for ``torch.nn.ConvTranspose2d``, but in the order of the convolutions: ``dilation`` and
            ``groups`` come before ``bias``.
        weight_quant, bias_quant, input_quant, output_quant: quantizer class, proxy of another layer to share, or
            ``None``.
        return_quant_tensor: return a ``QuantTensor``.
        **kwargs: directives with the prefixes ``weight_``, ``bias_``, ``input_``, ``output_``.

    Input (N, C, H, W) or (C, H, W). The weight is (in_channels, out_channels / groups, ...), as in torch. A scale per
    output channel lies in its dim 1, so it has out_channels / groups elements: with groups, the channels that hold the
    same place in their groups share one. The scales of bias and output have ``out_channels`` elements in any case.

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal.
    """

    _convolve = staticmethod(F.conv_transpose2d)


class QuantConvTranspose3d(_QuantConvTranspose, nn.ConvTranspose3d):
    """3-d transposed convolution with quantized weight, and on request bias, input and output.

    >>> import torch
    >>> from brevitas.nn import QuantConvTranspose3d
    >>> conv = QuantConvTranspose3d(2, 3, kernel_size=2, stride=2, weight_bit_width=4)
    >>> conv(torch.randn(1, 2, 3, 4, 5)).shape, conv.weights_per_output
    (torch.Size([1, 3, 6, 8, 10]), 2)

    Args: as for :class:`QuantConvTranspose2d`.

    Input (N, C, D, H, W) or (C, D, H, W).

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal.
    """

    _convolve = staticmethod(F.conv_transpose3d)
