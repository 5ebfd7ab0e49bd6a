"""Quantized convolutions."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brevitas.errors import QuantConfigError
from brevitas.nn.weight_layer import QuantWeightBiasInputOutputLayer
from brevitas.quant import Int8WeightPerTensorFloat
from injector import suggest

__all__ = ["QuantConv1d", "QuantConv2d", "QuantConv3d"]

Size = int | tuple[int, ...]


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Zeros before and after one spatial dim, so that it comes out as ceil(size / stride).

    >>> same_padding(32, kernel=4, stride=1, dilation=1)
    (1, 2)
    """
    out = -(-size // stride)
    total = max((out - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


class _QuantConv(QuantWeightBiasInputOutputLayer):
    """The convolutions of every dimension; a subclass adds that of ``torch.nn``."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    in_channels: int
    groups: int
    padding_type: str
    padding_mode: Any
    padding: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_type: str = "standard",
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
        padding_type = self._check_padding(padding, padding_type, padding_mode)
        super().__init__(  # type: ignore[call-arg]
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=0 if padding_type == "same" else padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
        )
        self.padding_type = padding_type
        # Counted from the end, since the batch dim may be missing.
        self._channel_dim = -1 - len(self.kernel_size)
        self._init_quantizers(weight_quant, bias_quant, input_quant, output_quant, return_quant_tensor, kwargs)

    def _check_padding(self, padding: Any, padding_type: str, padding_mode: str) -> str:
        """The padding type, ``'same'`` also where ``padding='same'`` asks for it."""
        known = ("standard", "same")
        if padding_type not in known:
            near = suggest(str(padding_type), known)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise QuantConfigError(
                f"{type(self).__name__}: padding_type = {padding_type!r} is not legal: expected 'standard' or "
                f"'same'.{hint}"
            )
        same = padding_type == "same" or padding == "same"
        if padding_type == "same" and padding not in (0, "same") and any(p != 0 for p in _tuple(padding)):
            raise QuantConfigError(
                f"{type(self).__name__}: padding_type = 'same' computes the padding itself, and padding = {padding!r} "
                "contradicts "
                "it; leave padding at 0"
            )
        if same and padding_mode != "zeros":
            raise QuantConfigError(
                f"{type(self).__name__}: padding_type = 'same' pads with zeros, and padding_mode = {padding_mode!r} "
                "contradicts it; "
                "use padding_mode = 'zeros'"
            )
        return "same" if same else "standard"

    @property
    def weights_per_output(self) -> int:
        """Number of weights that feed one output element: in_channels / groups times the kernel's size."""
        return self.in_channels // self.groups * prod(self.kernel_size)

    @property
    def channelwise_separable(self) -> bool:
        """Whether each output channel reads one input channel."""
        return self.groups == self.in_channels

    def same_pads(self, x: Tensor) -> list[int]:
        """Zeros around the spatial dims of ``x``, in the order of ``torch.nn.functional.pad`` (last dim first)."""
        pads: list[int] = []
        for dim in reversed(range(len(self.kernel_size))):
            size = x.shape[dim - len(self.kernel_size)]
            pads.extend(same_padding(size, self.kernel_size[dim], self.stride[dim], self.dilation[dim]))
        return pads

    def inner_forward_impl(self, x: Tensor, quant_weight: Tensor, quant_bias: Tensor | None) -> Tensor:
        """The convolution on quantized values."""
        if self.padding_type == "same":
            pads = self.same_pads(x)
            if any(pads):
                x = F.pad(x, pads)
        return self._conv_forward(x, quant_weight, quant_bias)  # type: ignore[attr-defined]


def _tuple(size: Any) -> tuple[Any, ...]:
    return tuple(size) if isinstance(size, tuple | list) else (size,)


class QuantConv1d(_QuantConv, nn.Conv1d):
    """1-d convolution with quantized weight, and on request bias, input and output.

    >>> import torch
    >>> from brevitas.nn import QuantConv1d
    >>> conv = QuantConv1d(3, 8, kernel_size=4, stride=2, padding_type='same', weight_bit_width=4)
    >>> conv(torch.randn(1, 3, 15)).shape, int(conv.int_weight().abs().max())
    (torch.Size([1, 8, 8]), 7)

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as for ``torch.nn.Conv1d``.
        others: as for :class:`QuantConv2d`.

    Input (N, C, L) or (C, L).

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal.
    """


class QuantConv2d(_QuantConv, nn.Conv2d):
    """2-d convolution with quantized weight, and on request bias, input and output.

    >>> import torch
    >>> from brevitas.nn import QuantConv2d
    >>> conv = QuantConv2d(3, 8, kernel_size=3, weight_bit_width=4, weight_scaling_per_output_channel=True)
    >>> conv(torch.randn(1, 3, 8, 8)).shape, conv.quant_weight_scale().shape
    (torch.Size([1, 8, 6, 6]), torch.Size([8, 1, 1, 1]))

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as for ``torch.nn.Conv2d``.
        padding_type: ``'standard'``, or ``'same'`` for an output of ceil(input / stride); ``padding='same'`` means the
            same, here with strides too. Where the zeros are an odd number, one more stands behind than before.
        weight_quant, bias_quant, input_quant, output_quant: quantizer class, proxy of another layer to share, or
            ``None``.
        return_quant_tensor: return a ``QuantTensor``.
        **kwargs: directives with the prefixes ``weight_``, ``bias_``, ``input_``, ``output_``.

    Input (N, C, H, W) or (C, H, W).

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal.
    """


class QuantConv3d(_QuantConv, nn.Conv3d):
    """3-d convolution with quantized weight, and on request bias, input and output.

    >>> import torch
    >>> from brevitas.nn import QuantConv3d
    >>> conv = QuantConv3d(2, 4, kernel_size=(1, 3, 3), weight_bit_width=4)
    >>> conv(torch.randn(1, 2, 5, 6, 6)).shape, conv.weights_per_output
    (torch.Size([1, 4, 5, 4, 4]), 18)

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as for ``torch.nn.Conv3d``.
        others: as for :class:`QuantConv2d`.

    Input (N, C, D, H, W) or (C, D, H, W).

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal.
    """
