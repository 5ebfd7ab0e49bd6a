"""Weight-normalised tensor quantizers: one scale to quantize with, from the norm, another to return with.

    >>> import torch
    >>> from brevitas.core.bit_width import BitWidthConst
    >>> from brevitas.core.function_wrapper import OverOutputChannelView, RoundToZeroSte
    >>> from brevitas.core.quant import DecoupledIntQuant
    >>> from brevitas.core.scaling import ParameterScaling
    >>> from brevitas.core.scaling.pre_scaling import AccumulatorAwareParameterPreScaling
    >>> from brevitas.core.zero_point import ZeroZeroPoint
    >>> weight = torch.nn.Parameter(torch.tensor([[0.9, -0.4]]))
    >>> quant = AccumulatorAwareIntQuant(
    ...     DecoupledIntQuant(True, True, RoundToZeroSte()),
    ...     AccumulatorAwareParameterPreScaling(OverOutputChannelView(), 1, [weight], (1, 1), accumulator_bit_width=8),
    ...     ParameterScaling(0.1, (1, 1)), ZeroZeroPoint(), ZeroZeroPoint(), BitWidthConst(8))
    >>> y, scale, _, _ = quant(weight, torch.tensor(4.0), False)
    >>> (y / scale).round()                                                 # of at most 127 / 16 in sum
    tensor([[ 5., -2.]], grad_fn=<RoundBackward0>)

The pre-scale is a function of the scale, so both share the one scaling module that ``scaling_impl`` is.
"""

from typing import Tuple  # noqa: UP035 - TorchScript reads annotations of this kind

import torch
from torch import Tensor, nn

import brevitas.jit
from brevitas.core._checks import check_int, check_module, check_shape
from brevitas.core.function_wrapper import RoundToZeroSte
from brevitas.errors import QuantConfigError
from brevitas.function.ops import divide

__all__ = ["AccumulatorAwareIntQuant", "PreZeroCenterZeroPoint", "WeightNormIntQuant"]


class PreZeroCenterZeroPoint(brevitas.jit.ScriptModule):
    """The zero point that centers codes, ``-mean(w) / pre_scale``: not an integer, in float64.

    Args:
        scaling_stats_input_view_shape_impl: view with a row per output channel.
        scaling_shape: shape of the zero point.
        stats_reduce_dim: dimension of the view that is not the channel.
    """

    def __init__(
        self,
        scaling_stats_input_view_shape_impl: nn.Module,
        scaling_shape: tuple[int, ...],
        stats_reduce_dim: int = 1,
    ) -> None:
        super().__init__()
        owner = "PreZeroCenterZeroPoint"
        view = scaling_stats_input_view_shape_impl
        self.stats_input_view_shape_impl = check_module(owner, "scaling_stats_input_view_shape_impl", view)
        self.shape = list(check_shape(owner, "scaling_shape", scaling_shape))
        self.stats_reduce_dim = check_int(owner, "stats_reduce_dim", stats_reduce_dim, 0)

    @brevitas.jit.script_method
    def forward(self, x: Tensor, scale: Tensor, bit_width: Tensor) -> Tensor:
        """Zero point of the weight ``x`` for the pre-scale ``scale``."""
        mean = torch.mean(self.stats_input_view_shape_impl(x).to(torch.float64), dim=self.stats_reduce_dim)
        return divide(-mean.view(self.shape), scale.to(torch.float64))


class WeightNormIntQuant(brevitas.jit.ScriptModule):
    """Codes of the normalised weight, ``clamp(f2i(w / pre_scale + pre_zero_point))``, times the scale.

    Args:
        decoupled_int_quant: ``DecoupledIntQuant`` or a module with its methods.
        pre_scaling_impl: scale to quantize with, of a weight and the scale that is returned.
        scaling_impl: the scale that is returned; not divided by anything.
        pre_zero_point_impl: zero point to quantize with.
        zero_point_impl: zero point that is returned.
        bit_width_impl: bit width; stored as ``msb_clamp_bit_width_impl``.
    """

    def __init__(
        self,
        decoupled_int_quant: nn.Module,
        pre_scaling_impl: nn.Module,
        scaling_impl: nn.Module,
        pre_zero_point_impl: nn.Module,
        zero_point_impl: nn.Module,
        bit_width_impl: nn.Module,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        self.decoupled_int_quant = check_module(owner, "decoupled_int_quant", decoupled_int_quant)
        self.pre_scaling_impl = check_module(owner, "pre_scaling_impl", pre_scaling_impl)
        self.scaling_impl = check_module(owner, "scaling_impl", scaling_impl)
        self.pre_zero_point_impl = check_module(owner, "pre_zero_point_impl", pre_zero_point_impl)
        self.zero_point_impl = check_module(owner, "zero_point_impl", zero_point_impl)
        self.msb_clamp_bit_width_impl = check_module(owner, "bit_width_impl", bit_width_impl)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: UP006
        """Quantized ``x``, scale, zero point, bit width."""
        bit_width = self.msb_clamp_bit_width_impl()
        scale = self.scaling_impl(x)
        pre_scale = self.pre_scaling_impl(x, scale)
        pre_zero_point = self.pre_zero_point_impl(x, pre_scale, bit_width)
        zero_point = self.zero_point_impl(x, scale, bit_width)
        y = self.decoupled_int_quant(pre_scale, pre_zero_point, scale, zero_point, bit_width, x)
        return y, scale, zero_point, bit_width


class AccumulatorAwareIntQuant(WeightNormIntQuant):
    """As :class:`WeightNormIntQuant`, with the norm of the codes bounded for the input that they meet.

    Arguments: those of :class:`WeightNormIntQuant`. The rounding must be toward zero, on which the bound rests, and the
    pre-scaling one of the accumulator-aware ones.
    """

    def __init__(
        self,
        decoupled_int_quant: nn.Module,
        pre_scaling_impl: nn.Module,
        scaling_impl: nn.Module,
        pre_zero_point_impl: nn.Module,
        zero_point_impl: nn.Module,
        bit_width_impl: nn.Module,
    ) -> None:
        super().__init__(
            decoupled_int_quant, pre_scaling_impl, scaling_impl, pre_zero_point_impl, zero_point_impl, bit_width_impl
        )
        owner = "AccumulatorAwareIntQuant"
        rounding = getattr(decoupled_int_quant, "float_to_int_impl", None)
        if rounding is not None and not isinstance(rounding, RoundToZeroSte):
            raise QuantConfigError(
                f"{owner}: float_to_int_impl={type(rounding).__name__} can enlarge a code, so that accumulators may "
                "overflow. Expected RoundToZeroSte (float_to_int_impl_type = ROUND_TO_ZERO)."
            )

    @brevitas.jit.script_method
    def forward(  # type: ignore[override]
        self, x: Tensor, input_bit_width: Tensor, input_is_signed: bool
    ) -> Tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: UP006
        """Quantized ``x``, scale, zero point, bit width.

        Args:
            x: weight.
            input_bit_width: bit width of the layer's input, one number.
            input_is_signed: whether the layer's input has a sign.
        """
        bit_width = self.msb_clamp_bit_width_impl()
        scale = self.scaling_impl(x)
        pre_scale = self.pre_scaling_impl(x, scale, input_bit_width, input_is_signed)
        pre_zero_point = self.pre_zero_point_impl(x, pre_scale, bit_width)
        zero_point = self.zero_point_impl(x, scale, bit_width)
        y = self.decoupled_int_quant(pre_scale, pre_zero_point, scale, zero_point, bit_width, x)
        return y, scale, zero_point, bit_width
