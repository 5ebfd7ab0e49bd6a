"""Complete quantizers as functions of one candidate: what a search for the least error evaluates.

    >>> import torch
    >>> from brevitas.core.bit_width import BitWidthConst
    >>> from brevitas.core.quant import IntQuant
    >>> from brevitas.core.restrict_val import PowerOfTwoRestrictValue
    >>> from brevitas.core.scaling import PowerOfTwoIntScaling
    >>> quant = IntThresholdCandidate(
    ...     IntQuant(False, True), PowerOfTwoIntScaling(True), BitWidthConst(3), PowerOfTwoRestrictValue())
    >>> x = torch.tensor([0.3, 0.7])
    >>> quant(x, torch.tensor(0.9), quant.context(x))                       # a threshold of 1, a scale of 1/4
    tensor([0.2500, 0.7500])

They are built from the parts that a declaration has anyway, and hold none that has state: a search changes nothing, and
nothing is stored twice. So the bit width is the one at construction (where a learned one starts), and codes are rounded
half to even where the rounding of the quantizer is stochastic or learned.
"""

import torch
from torch import Tensor, nn

import brevitas.jit
from brevitas.core._checks import check_bool, check_module
from brevitas.core.function_wrapper import RoundSte
from brevitas.core.quant.int import rescaled
from brevitas.core.restrict_val import RestrictedThreshold
from brevitas.core.rounding import StochasticRoundSte
from brevitas.core.stats.reductions import whole_batch
from brevitas.core.utils import StatelessBuffer, at_least_float32
from brevitas.core.zero_point import LowEndToCode
from brevitas.errors import QuantConfigError
from brevitas.function.ops import max_int, min_int, tensor_clamp

__all__ = ["IntLowEndCandidate", "IntThresholdCandidate"]


def _has_state(module: nn.Module) -> bool:
    return bool(module.state_dict()) or next(module.parameters(), None) is not None


def stateless_rounding(rounding: nn.Module) -> nn.Module:
    """``rounding`` itself, or half to even where it draws random numbers or has state."""
    if isinstance(rounding, StochasticRoundSte) or _has_state(rounding):
        return RoundSte()
    return rounding


class _IntCandidate(brevitas.jit.ScriptModule):
    """Codes and the way back for given threshold and low end."""

    def __init__(
        self,
        int_quant: nn.Module,
        int_scaling_impl: nn.Module,
        bit_width_impl: nn.Module,
        restrict_scaling_impl: nn.Module | None,
        scaling_min_val: float | None,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        self.signed = check_bool(owner, "int_quant.signed", getattr(int_quant, "signed", None))
        self.narrow_range = check_bool(owner, "int_quant.narrow_range", getattr(int_quant, "narrow_range", None))
        rounding = check_module(owner, "int_quant.float_to_int_impl", getattr(int_quant, "float_to_int_impl", None))
        self.float_to_int_impl = stateless_rounding(rounding)
        self.int_scaling_impl = check_module(owner, "int_scaling_impl", int_scaling_impl)
        width = check_module(owner, "bit_width_impl", bit_width_impl)()
        self.bit_width = StatelessBuffer(at_least_float32(width.detach()))
        self.threshold = RestrictedThreshold(restrict_scaling_impl, scaling_min_val)
        self.to_code = LowEndToCode(int_quant)

    @brevitas.jit.script_method
    def scale(self, threshold: Tensor) -> Tensor:
        """Scale of a statistic: restricted, bounded, divided."""
        return rescaled(self.threshold(threshold), self.int_scaling_impl(self.bit_width()))

    @brevitas.jit.script_method
    def quantized(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """``x`` on the grid."""
        bit_width = self.bit_width()
        code = self.float_to_int_impl(x / scale + zero_point)
        code = tensor_clamp(
            code,
            min_int(self.signed, self.narrow_range, bit_width),
            max_int(self.signed, self.narrow_range, bit_width),
        )
        return (code - zero_point) * scale


class IntThresholdCandidate(_IntCandidate):
    """An integer quantizer as a function of the statistic that gives its threshold.

    Args:
        int_quant: gives range and rounding; no reference is kept.
        int_scaling_impl: integer threshold of a bit width.
        bit_width_impl: its value at construction is the width.
        restrict_scaling_impl: domain of the threshold; ``None`` = any float.
        scaling_min_val: lower bound of the threshold; ``None`` = 1e-10.
        low_end_init_op: statistic of the low end, for quantizers with a zero point; ``None``: the zero point is 0.
    """

    def __init__(
        self,
        int_quant: nn.Module,
        int_scaling_impl: nn.Module,
        bit_width_impl: nn.Module,
        restrict_scaling_impl: nn.Module | None = None,
        scaling_min_val: float | None = None,
        low_end_init_op: nn.Module | None = None,
    ) -> None:
        super().__init__(int_quant, int_scaling_impl, bit_width_impl, restrict_scaling_impl, scaling_min_val)
        self.is_shifted = low_end_init_op is not None
        low = nn.Identity() if low_end_init_op is None else low_end_init_op
        self.low_end_init_op = check_module("IntThresholdCandidate", "low_end_init_op", low)

    @brevitas.jit.script_method
    def context(self, x: Tensor) -> Tensor:
        """Low end of ``x``; 0 without a zero point."""
        if self.is_shifted:
            return self.low_end_init_op(x)
        return x.new_zeros([])

    @brevitas.jit.script_method
    def context_over_ranks(self, x: Tensor, counts: Tensor) -> Tensor:
        """As ``context``, of the whole batch of which ``x`` is this rank's part."""
        if not self.is_shifted:
            return x.new_zeros([])
        if hasattr(self.low_end_init_op, "over_ranks"):
            return self.low_end_init_op.over_ranks(x, counts)  # type: ignore[operator]
        return self.low_end_init_op(whole_batch(x, counts, x.dim() - 1))

    @brevitas.jit.script_method
    def forward(self, x: Tensor, candidate: Tensor, context: Tensor) -> Tensor:
        """Quantized ``x`` for a statistic that broadcasts to it, and the low end of ``x``."""
        scale = self.scale(candidate)
        if not self.is_shifted:
            return self.quantized(x, scale, torch.zeros_like(scale))
        return self.quantized(x, scale, self.to_code(context, scale, self.bit_width()))


class IntLowEndCandidate(_IntCandidate):
    """An integer quantizer as a function of the low end that gives its zero point.

    Args:
        int_quant: gives range and rounding; no reference is kept.
        int_scaling_impl: integer threshold of a bit width.
        bit_width_impl: its value at construction is the width.
        scaling_stats_impl: statistic of the threshold, without state; may be a search itself.
        restrict_scaling_impl: domain of the threshold; ``None`` = any float.
        scaling_min_val: lower bound of the threshold; ``None`` = 1e-10.
    """

    def __init__(
        self,
        int_quant: nn.Module,
        int_scaling_impl: nn.Module,
        bit_width_impl: nn.Module,
        scaling_stats_impl: nn.Module,
        restrict_scaling_impl: nn.Module | None = None,
        scaling_min_val: float | None = None,
    ) -> None:
        super().__init__(int_quant, int_scaling_impl, bit_width_impl, restrict_scaling_impl, scaling_min_val)
        if _has_state(check_module("IntLowEndCandidate", "scaling_stats_impl", scaling_stats_impl)):
            raise QuantConfigError(
                f"IntLowEndCandidate: scaling_stats_impl={type(scaling_stats_impl).__name__} has state of its own, "
                "which would be stored twice. Expected a statistic without parameters and buffers."
            )
        self.scaling_stats_impl = scaling_stats_impl

    @brevitas.jit.script_method
    def context(self, x: Tensor) -> Tensor:
        """Statistic of the threshold."""
        return self.scaling_stats_impl(x)

    @brevitas.jit.script_method
    def context_over_ranks(self, x: Tensor, counts: Tensor) -> Tensor:
        """As ``context``, of the whole batch of which ``x`` is this rank's part."""
        if hasattr(self.scaling_stats_impl, "over_ranks"):
            return self.scaling_stats_impl.over_ranks(x, counts)  # type: ignore[operator]
        return self.scaling_stats_impl(whole_batch(x, counts, x.dim() - 1))

    @brevitas.jit.script_method
    def forward(self, x: Tensor, candidate: Tensor, context: Tensor) -> Tensor:
        """Quantized ``x`` for a low end that broadcasts to it, and the statistic of its threshold."""
        scale = self.scale(context)
        return self.quantized(x, scale, self.to_code(candidate, scale, self.bit_width()))
