"""The quantized linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brevitas.errors import ShapeError
from brevitas.nn.weight_layer import QuantWeightBiasInputOutputLayer
from brevitas.quant import Int8WeightPerTensorFloat
from brevitas.utils.module_path import describe_module

__all__ = ["QuantLinear"]


class QuantLinear(QuantWeightBiasInputOutputLayer, nn.Linear):
    """Linear layer with quantized weight, and on request bias, input and output.

    >>> import torch
    >>> from brevitas.nn import QuantLinear
    >>> layer = QuantLinear(8, 4, weight_bit_width=3)
    >>> layer(torch.randn(2, 8)).shape, int(layer.int_weight().abs().max())
    (torch.Size([2, 4]), 3)

    Args:
        in_features, out_features, bias, device, dtype: as for ``torch.nn.Linear``.
        weight_quant, bias_quant, input_quant, output_quant: quantizer class, proxy of another layer to share, or
            ``None``.
        return_quant_tensor: return a ``QuantTensor``.
        **kwargs: directives with the prefixes ``weight_``, ``bias_``, ``input_``, ``output_``.

    Input (..., in_features), output (..., out_features). The output's scale, where there is one, varies along the
    last dim.

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal.
        ShapeError: in the forward, an input of other than ``in_features`` features.
    """

    _channel_dim = -1

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        weight_quant: Any = Int8WeightPerTensorFloat,
        bias_quant: Any = None,
        input_quant: Any = None,
        output_quant: Any = None,
        return_quant_tensor: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device=device, dtype=dtype)
        self._init_quantizers(weight_quant, bias_quant, input_quant, output_quant, return_quant_tensor, kwargs)

    @property
    def out_channels(self) -> int:  # type: ignore[override]
        """Number of output channels: ``out_features``."""
        return self.out_features

    @property
    def weights_per_output(self) -> int:
        """Number of weights that feed one output element: ``in_features``."""
        return self.in_features

    def forward(self, input: Any) -> Any:
        """The layer on quantized values: a Tensor or QuantTensor of shape (..., in_features)."""
        # Before a statistic is collected, and with the layer's name, which torch's own error lacks. A compiler checks
        # the sizes by itself.
        if not torch.compiler.is_compiling() and input.shape[-1:] != (self.in_features,):
            raise ShapeError(
                f"{describe_module(self)}: the input of shape {tuple(input.shape)} has {_last_dim(input)} features, "
                f"expected in_features={self.in_features}. Fix: give the layer the number of features that reach it, "
                "or look at what is flattened before it."
            )
        return super().forward(input)

    def inner_forward_impl(self, x: Tensor, quant_weight: Tensor, quant_bias: Tensor | None) -> Tensor:
        """``torch.nn.functional.linear`` on quantized values."""
        return F.linear(x, quant_weight, quant_bias)


def _last_dim(x: Any) -> int | str:
    return int(x.shape[-1]) if x.ndim else "no"
