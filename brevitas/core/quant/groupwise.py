"""Tensor quantizers whose scale, and zero point, are those of groups.

    >>> import torch
    >>> from brevitas.core.bit_width import BitWidthConst
    >>> from brevitas.core.function_wrapper import FloorSte
    >>> from brevitas.core.quant import IntQuant
    >>> from brevitas.core.restrict_val import PowerOfTwoRestrictValue
    >>> from brevitas.core.scaling.groupwise import MXIntScaling, RuntimeDynamicGroupStatsScaling
    >>> from brevitas.core.stats import AbsMax
    >>> from brevitas.core.zero_point import ZeroZeroPoint
    >>> scaling = RuntimeDynamicGroupStatsScaling(2, -1, AbsMax(1), PowerOfTwoRestrictValue(FloorSte()))
    >>> quant = GroupwiseRescalingIntQuant(
    ...     IntQuant(True, True), scaling, MXIntScaling(True), ZeroZeroPoint(), BitWidthConst(8), 2, -1)
    >>> y, scale, _, _ = quant(torch.tensor([[1.0, 1.99, 5.0]]))
    >>> y, scale
    (tensor([[1.0000, 1.9844, 5.0000]]), tensor([[0.0156, 0.0156, 0.0625]]))

Scaling and zero point are computed per group; what is returned is repeated along ``group_dim``, so that it broadcasts.
"""

from typing import Tuple  # noqa: UP035 - TorchScript reads annotations of this kind

from torch import Tensor, nn

import brevitas.jit
from brevitas.core.groupwise import check_group, repeat_over_groups
from brevitas.core.quant.float import FloatQuant
from brevitas.core.quant.int import RescalingIntQuant, rescaled

__all__ = ["GroupwiseFloatQuant", "GroupwiseRescalingIntQuant"]


class GroupwiseRescalingIntQuant(RescalingIntQuant):
    """``RescalingIntQuant`` over groups.

    Args:
        int_quant: ``IntQuant`` or a module with its methods.
        scaling_impl: thresholds of an input, with the number of groups at ``group_dim``, or one threshold.
        int_scaling_impl: integer threshold of a bit width.
        zero_point_impl: zero points of the groups, or one zero point.
        bit_width_impl: bit width; stored as ``msb_clamp_bit_width_impl``.
        group_size: elements of a group.
        group_dim: dimension that is cut into groups; may be negative.
    """

    def __init__(
        self,
        int_quant: nn.Module,
        scaling_impl: nn.Module,
        int_scaling_impl: nn.Module,
        zero_point_impl: nn.Module,
        bit_width_impl: nn.Module,
        group_size: int,
        group_dim: int,
    ) -> None:
        super().__init__(int_quant, scaling_impl, int_scaling_impl, zero_point_impl, bit_width_impl)
        self.group_size, self.group_dim = check_group("GroupwiseRescalingIntQuant", group_size, group_dim)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: UP006
        """Quantized ``x``, scale, zero point, bit width."""
        bit_width = self.msb_clamp_bit_width_impl()
        scale = rescaled(self.scaling_impl(x), self.int_scaling_impl(bit_width))
        zero_point = self.zero_point_impl(x, scale, bit_width)
        scale = repeat_over_groups(scale, x, self.group_size, self.group_dim)
        zero_point = repeat_over_groups(zero_point, x, self.group_size, self.group_dim)
        y = self.int_quant(scale, zero_point, bit_width, x)
        return y, scale, zero_point, bit_width


class GroupwiseFloatQuant(FloatQuant):
    """``FloatQuant`` over groups.

    Args: those of ``FloatQuant``, and
        group_size: elements of a group.
        group_dim: dimension that is cut into groups; may be negative.
    """

    def __init__(
        self,
        signed: bool,
        exponent_bit_width_impl: nn.Module,
        mantissa_bit_width_impl: nn.Module,
        exponent_bias_impl: nn.Module,
        float_clamp_impl: nn.Module,
        group_size: int,
        group_dim: int,
        scaling_impl: nn.Module | None = None,
        float_scaling_impl: nn.Module | None = None,
        float_to_int_impl: nn.Module | None = None,
    ) -> None:
        super().__init__(
            signed,
            exponent_bit_width_impl,
            mantissa_bit_width_impl,
            exponent_bias_impl,
            float_clamp_impl,
            scaling_impl,
            float_scaling_impl,
            float_to_int_impl,
        )
        self.group_size, self.group_dim = check_group("GroupwiseFloatQuant", group_size, group_dim)

    @brevitas.jit.script_method
    def expanded(self, scale: Tensor, x: Tensor) -> Tensor:
        """The scale of each group repeated for its elements."""
        return repeat_over_groups(scale, x, self.group_size, self.group_dim)
