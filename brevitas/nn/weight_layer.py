"""Layers with a weight: quantize input, weight and bias, compute in float, derive the output's metadata."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from brevitas.core.utils import at_least_float32
from brevitas.nn.attach import Slot
from brevitas.nn.introspection import (
    InputGetters,
    enabled_property,
    narrow_property,
    quantity_getter,
    signed_property,
)
from brevitas.nn.quantized_weight import QuantWeightMixin
from brevitas.nn.utils import merge_bn
from brevitas.quant_tensor import QuantTensor, Source, accumulator_bit_width, code_range

__all__ = ["QuantWeightBiasInputOutputLayer"]


class QuantWeightBiasInputOutputLayer(QuantWeightMixin, InputGetters):
    """Body of the layers with a weight and perhaps a bias. A subclass gives ``inner_forward_impl`` and its geometry."""

    #: Dim of input and output that runs over the channels.
    _channel_dim = 1

    is_bias_quant_enabled = enabled_property("bias")
    is_quant_bias_signed = signed_property("bias")
    is_quant_bias_narrow_range = narrow_property("bias")
    is_output_quant_enabled = enabled_property("output")
    is_quant_output_signed = signed_property("output")
    is_quant_output_narrow_range = narrow_property("output")
    quant_output_scale = quantity_getter("output", "scale")
    quant_output_zero_point = quantity_getter("output", "zero_point")
    quant_output_bit_width = quantity_getter("output", "bit_width")

    # Set by torch's constructor and by the slots below.
    bias: Any
    out_channels: int
    bias_quant: Any
    input_quant: Any
    output_quant: Any

    def _init_quantizers(
        self,
        weight_quant: Any,
        bias_quant: Any,
        input_quant: Any,
        output_quant: Any,
        return_quant_tensor: bool,
        keywords: dict[str, Any],
    ) -> None:
        self._init_layer(return_quant_tensor)
        # Existing code sets it; the accumulator's scale and width are remembered in any case.
        self.cache_inference_quant_bias = False
        self._accumulator: tuple[Tensor, Tensor | None] | None = None
        around = {"act_impl": None, "passthrough_act": True}
        slots = [
            Slot("weight_quant", "weight", weight_quant, "weight_"),
            Slot("bias_quant", "bias", bias_quant, "bias_"),
            Slot("input_quant", "act", input_quant, "input_", around),
            Slot("output_quant", "act", output_quant, "output_", around),
        ]
        self._attach(slots, keywords)

    @property
    def per_elem_ops(self) -> float:
        """Operations for one output element: a multiplication and an addition for each weight."""
        return 2 * self.weights_per_output

    @property
    def channelwise_separable(self) -> bool:
        """Whether each output channel reads one input channel."""
        return False

    def inner_forward_impl(self, x: Tensor, quant_weight: Tensor, quant_bias: Tensor | None) -> Tensor:
        """The float operation on quantized values."""
        raise NotImplementedError

    def forward(self, input: Any) -> Any:
        """The layer on quantized values.

        Args:
            input: as for the ``torch.nn`` layer; a ``QuantTensor`` brings the scale that ``bias_quant`` and the
                output's
                metadata need.

        Raises:
            QuantMetadataError: the bias quantizer, or ``return_quant_tensor=True``, needs metadata that are not there.
        """
        return self._quantized_forward(input, self.inner_forward_impl)

    def _quantized_forward(self, input: Any, compute: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Any:
        """``forward`` with ``compute`` on the quantized input, weight and bias."""
        self._cache_input(input)
        x: Tensor | QuantTensor = input
        if self.input_quant.is_quant_enabled:
            x = self.input_quant(x)
        weight = self._quantize_weight(x)
        bias = self.bias
        quant_bias: QuantTensor | None = None
        if bias is not None and self.bias_quant.is_quant_enabled:
            quant_bias = self._quantize_bias(bias, x, weight)
            bias = quant_bias.value
        out = compute(_value(x), _value(weight), bias)
        if self.output_quant.is_quant_enabled:
            return self.pack_output(self.output_quant(out))
        if self.return_quant_tensor:
            return self.pack_output(self._with_metadata(out, x, weight, quant_bias))
        return self.pack_output(out)

    def _quantize_weight(self, x: Tensor | QuantTensor) -> Tensor | QuantTensor:
        if not getattr(self.weight_quant, "requires_quant_input", False):
            return self.weight_quant(self.weight)
        if not isinstance(x, QuantTensor):
            raise self.metadata_error(
                f"{self.weight_quant.quant_injector.__name__} needs the bit width of the input",
                x,
                f"set input_quant= on {self._here()}",
                "use a weight quantizer that does not bound the accumulator",
            )
        return self.weight_quant(self.weight, x)

    def _quantize_bias(self, bias: Tensor, x: Tensor | QuantTensor, weight: Tensor | QuantTensor) -> QuantTensor:
        if not self.bias_quant.requires_input_scale:
            return self.bias_quant(bias)
        preset = self.bias_quant.quant_injector.__name__
        own_scale = "use Int8BiasPerTensorFloatInternalScaling"
        if not isinstance(x, QuantTensor):
            raise self.metadata_error(
                f"{preset} needs the input scale", x, f"set input_quant= on {self._here()}", own_scale
            )
        if not isinstance(weight, QuantTensor):
            raise self.metadata_error(self._no_integers(preset), None, "set weight_quant=", own_scale)
        self._check_scales(x, weight)
        scale = self._accumulator_scale(x, weight)
        width = self._accumulator_bit_width(x, weight, None) if self.bias_quant.requires_input_bit_width else None
        if not self.training and not torch.compiler.is_compiling():  # type: ignore[attr-defined]
            self._accumulator = (scale.detach(), None if width is None else width.detach())
        return self.bias_quant(bias, scale, width)

    def _check_scales(self, x: QuantTensor, weight: QuantTensor) -> None:
        """Products can be added as integers only where they have one scale: one in all, or one an output channel."""
        if x.scale.numel() > 1 and not self._is_input_per_channel(x):
            raise self.metadata_error(
                f"a per-tensor input scale is needed, and the input has one of shape {tuple(x.scale.shape)}: products "
                "of different scales cannot be added as integers",
                None,
                "set scaling_per_output_channel=False on the quantizer of the input",
                f"re-quantize it with input_quant= on {self._here()}",
            )
        if weight.scale.numel() > 1 and not _lies_in(weight.scale, self.output_channel_dim, weight.value):
            raise self.metadata_error(
                "a weight scale per tensor or per output channel is needed, and that of "
                f"{self.weight_quant.quant_injector.__name__} varies within a channel (shape "
                f"{tuple(weight.scale.shape)}): products of different scales cannot be added as integers",
                None,
                "set weight_scaling_per_output_type='channel' or 'tensor'",
                "use a float bias and return_quant_tensor=False",
            )

    def _is_input_per_channel(self, x: QuantTensor) -> bool:
        """Whether each output channel sees one of the input's scales."""
        return self.channelwise_separable and _lies_in(x.scale, self._channel_dim, x.value)

    def _with_metadata(
        self, out: Tensor, x: Tensor | QuantTensor, weight: Tensor | QuantTensor, quant_bias: QuantTensor | None
    ) -> QuantTensor:
        """``out`` with the metadata of the accumulator."""
        # The fixes are worded where an error is raised: naming this layer searches the model.
        if not isinstance(x, QuantTensor):
            raise self.metadata_error(
                "return_quant_tensor=True needs the input scale",
                x,
                f"set input_quant= on {self._here()}",
                *self._other_outputs(),
            )
        if not isinstance(weight, QuantTensor):
            raise self.metadata_error(
                self._no_integers("return_quant_tensor=True"), None, "set weight_quant=", *self._other_outputs()
            )
        if self.bias is not None and not (quant_bias is not None and self.bias_quant.requires_input_scale):
            found = "is in float" if quant_bias is None else "has a scale of its own"
            raise self.metadata_error(
                f"return_quant_tensor=True needs a bias on the accumulator grid, and the bias {found}",
                None,
                "set bias_quant=Int8Bias, Int16Bias or Int32Bias",
                *self._other_outputs(),
            )
        self._check_scales(x, weight)
        signed = any(
            (x.signed, weight.signed, x.is_shifted, weight.is_shifted, quant_bias is not None and quant_bias.signed)
        )
        scale = self._accumulator_scale(x, weight)
        if scale.numel() > 1:
            shape = [1] * out.ndim
            shape[self._channel_dim % out.ndim] = scale.numel()
            scale = scale.reshape(shape)
        else:
            scale = scale.reshape(())
        width = self._accumulator_bit_width(x, weight, quant_bias)
        zero_point = torch.zeros((), dtype=scale.dtype, device=scale.device)
        source = Source.derived(type(self).__name__, fan_in=self.weights_per_output, shifted=False)
        return QuantTensor.unchecked(out, scale, zero_point, width, signed, self.training, source)  # type: ignore[attr-defined]

    def _other_outputs(self) -> tuple[str, str]:
        """What makes ``return_quant_tensor=True`` needless or possible, whatever is missing."""
        return f"set output_quant= on {self._here()}", "set return_quant_tensor=False here"

    def _accumulator_scale(self, x: QuantTensor, weight: QuantTensor) -> Tensor:
        """s_in * s_w: one element, or one an output channel; in float32 where float16 would lose it."""
        input_scale, weight_scale = at_least_float32(x.scale), at_least_float32(weight.scale)
        if input_scale.numel() == 1 and weight_scale.numel() == 1:
            return input_scale.reshape(()) * weight_scale.reshape(())
        input_scale, weight_scale = input_scale.reshape(-1), weight_scale.reshape(-1)
        if input_scale.numel() > 1:
            # Channel-wise separable: input channel c feeds the outputs c*r .. c*r + r - 1.
            input_scale = input_scale.repeat_interleave(self.out_channels // input_scale.numel())
        if 1 < weight_scale.numel() < self.out_channels:
            # A transposed weight holds the channels of one group after those of another, and one scale for them all.
            weight_scale = weight_scale.repeat(self.out_channels // weight_scale.numel())
        return input_scale * weight_scale

    def _accumulator_bit_width(self, x: QuantTensor, weight: QuantTensor, quant_bias: QuantTensor | None) -> Tensor:
        bias_range = None
        if quant_bias is not None:
            bias_range = code_range(
                quant_bias.bit_width, quant_bias.signed, bool(self.bias_quant.is_narrow_range), shifted=False
            )
        return accumulator_bit_width(
            x.bit_width,
            weight.bit_width,
            self.weights_per_output,
            input_signed=x.signed,
            weight_signed=weight.signed,
            weight_narrow_range=bool(self.weight_quant.is_narrow_range),
            input_shifted=x.is_shifted,
            weight_shifted=weight.is_shifted,
            bias_range=bias_range,
        )

    def quant_bias(self) -> Tensor | QuantTensor | None:
        """The quantized bias, as in eval mode; ``None`` without a bias or without ``bias_quant``.

        Raises:
            QuantMetadataError: its scale comes from the input, and no eval forward was run.
        """
        if self.bias is None or not self.is_bias_quant_enabled:
            return None
        return self.bias_quant.evaluate(self.bias, *(self._accumulator or ()))

    def _bias_quantity(self, quantity: str) -> Tensor | None:
        # The quantizer may be shared: which accumulator it works for, only the layer knows.
        unknown = self.is_bias_quant_enabled and self.bias_quant.requires_input_scale and self._accumulator is None
        quant_bias = None if unknown else self.quant_bias()
        return getattr(quant_bias, quantity) if isinstance(quant_bias, QuantTensor) else None

    def quant_bias_scale(self) -> Tensor | None:
        """Scale of the bias; where it is the accumulator's, that of the last eval forward, ``None`` before any."""
        return self._bias_quantity("scale")

    def quant_bias_zero_point(self) -> Tensor | None:
        """Zero point of the bias; ``None`` as for the scale."""
        return self._bias_quantity("zero_point")

    def quant_bias_bit_width(self) -> Tensor | None:
        """Bit width of the bias; ``None`` as for the scale."""
        return self._bias_quantity("bit_width")

    def int_bias(self, float_datatype: bool = False) -> Tensor | None:
        """Integer codes of the bias, as ``int_weight``; ``None`` without a bias or without ``bias_quant``."""
        bias = self.quant_bias()
        return bias.int(float_datatype) if isinstance(bias, QuantTensor) else None

    def merge_bn_in(self, bn: nn.Module) -> None:
        """Fold a batch norm that follows this layer into its weight and bias (``brevitas.nn.utils.merge_bn``)."""
        merge_bn(self, bn, output_channel_dim=self.output_channel_dim)


def _lies_in(scale: Tensor, dim: int, tensor: Tensor) -> bool:
    """Whether a scale has one element for each index of one dim of a tensor, and varies in no other."""
    size = tensor.shape[dim]
    from_end = dim - tensor.ndim if dim >= 0 else dim
    return scale.numel() == size and -from_end <= scale.ndim and scale.shape[from_end] == size


def _value(x: Tensor | QuantTensor) -> Tensor:
    return x.value if isinstance(x, QuantTensor) else x
