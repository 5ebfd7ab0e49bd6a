"""Zero points: float tensors that hold integers of the quantizer's code range.

    >>> import torch
    >>> from brevitas.core.function_wrapper import OverTensorView
    >>> from brevitas.core.quant import IntQuant
    >>> unsigned = IntQuant(narrow_range=False, signed=False)
    >>> zero_point = MinUintZeroPoint(unsigned, OverTensorView(), ())
    >>> zero_point(torch.tensor([-1.0, 3.0]), torch.tensor(4.0 / 255), torch.tensor(8.0))
    tensor(64.)

A zero point comes from the low end ``m <= 0`` of the real range:
``clamp(round(-m / scale) + min_int, min_int, max_int)``, so that real 0 is exactly a code.
"""

from collections.abc import Sequence
from typing import List, Optional, Tuple  # noqa: UP035 - TorchScript reads annotations of this kind

import torch
from torch import Tensor, nn

import brevitas.jit
from brevitas.core._checks import check_bool, check_number, check_shape
from brevitas.core.stats import (
    DEFAULT_MOMENTUM,
    CollectThenLearn,
    FollowThenLearn,
    InputViewStats,
    ParameterListStats,
)
from brevitas.core.stats.running import check_momentum
from brevitas.core.stats.stats_op import NegativeMinOrZero
from brevitas.core.utils import StatefulModule, StatelessBuffer, at_least_float32, learned_parameter
from brevitas.errors import QuantConfigError
from brevitas.function.ops import divide, max_int, min_int, tensor_clamp
from brevitas.function.ops_ste import abs_binary_sign_grad, round_ste

__all__ = [
    "MinUintZeroPoint",
    "ParameterFromRuntimeMinZeroPoint",
    "ParameterFromRuntimeZeroPoint",
    "ParameterFromStatsFromParameterZeroPoint",
    "ParameterZeroPoint",
    "StatsFromParameterZeroPoint",
    "ZeroZeroPoint",
]


class ZeroZeroPoint(brevitas.jit.ScriptModule):
    """Always 0."""

    def __init__(self) -> None:
        super().__init__()
        self.zero_point = StatelessBuffer(torch.tensor(0.0))

    @brevitas.jit.script_method
    def forward(self, x: Tensor, scale: Tensor, bit_width: Tensor) -> Tensor:
        """0."""
        return self.zero_point()


class LowEndToCode(brevitas.jit.ScriptModule):
    """The code of real 0 when the smallest code stands for ``low <= 0``.

    Takes the range from ``int_quant`` and keeps no reference to it, so that its state is not stored twice.
    """

    def __init__(self, int_quant: nn.Module) -> None:
        super().__init__()
        for name in ("signed", "narrow_range"):
            if not hasattr(int_quant, name):
                raise QuantConfigError(f"zero_point_impl: int_quant={int_quant!r} has no attribute {name!r}.")
        self.signed = check_bool("zero_point_impl", "int_quant.signed", int_quant.signed)
        self.narrow_range = check_bool("zero_point_impl", "int_quant.narrow_range", int_quant.narrow_range)

    @brevitas.jit.script_method
    def forward(self, low: Tensor, scale: Tensor, bit_width: Tensor) -> Tensor:
        """``clamp(round(-low / scale) + min_int, min_int, max_int)``, in at least float32, half to even.

        The low end of inputs with a NaN, which is NaN, counts as 0.
        """
        smallest = min_int(self.signed, self.narrow_range, bit_width)
        largest = max_int(self.signed, self.narrow_range, bit_width)
        low = torch.nan_to_num(at_least_float32(low), nan=0.0)
        code = round_ste(divide(-low, at_least_float32(scale))) + smallest
        return tensor_clamp(code, smallest, largest)


class StatsFromParameterZeroPoint(brevitas.jit.ScriptModule):
    """Zero point from a statistic of the parameters, at every call and differentiable through them.

    Args:
        int_quant: quantizer whose code range applies.
        zero_point_stats_input_view_shape_impl: view before the statistic.
        zero_point_shape: shape of the zero point.
        zero_point_stats_impl: statistic that gives the low end, <= 0.
        tracked_parameter_list: parameters that share the zero point. With one, the statistic is that of the input.
        zero_point_stats_input_concat_dim: dimension along which the views of several parameters are joined.
    """

    def __init__(
        self,
        int_quant: nn.Module,
        zero_point_stats_input_view_shape_impl: nn.Module,
        zero_point_shape: tuple[int, ...],
        zero_point_stats_impl: nn.Module,
        tracked_parameter_list: Sequence[Tensor] | None = None,
        zero_point_stats_input_concat_dim: int = 0,
    ) -> None:
        super().__init__()
        self.parameter_list_stats = ParameterListStats(
            zero_point_stats_input_view_shape_impl,
            zero_point_stats_input_concat_dim,
            tracked_parameter_list,
            zero_point_stats_impl,
            zero_point_shape,
        )
        self.to_code = LowEndToCode(int_quant)

    def set_tracked_parameters(self, parameters: Sequence[Tensor]) -> None:
        """Track these parameters from now on."""
        self.parameter_list_stats.set_tracked_parameters(parameters)

    @brevitas.jit.script_method
    def forward(self, x: Tensor, scale: Tensor, bit_width: Tensor) -> Tensor:
        """Zero point of the parameter ``x``."""
        return self.to_code(self.parameter_list_stats(x), scale, bit_width)


class MinUintZeroPoint(StatsFromParameterZeroPoint):
    """Zero point from the minimum of the parameters (or 0, if that is positive).

    Args:
        int_quant: quantizer whose code range applies.
        zero_point_stats_input_view_shape_impl: view before the statistic.
        zero_point_shape: shape of the zero point.
        stats_reduce_dim: dimension to reduce, or ``None``.
        tracked_parameter_list: parameters that share the zero point. With one, the statistic is that of the input.
        zero_point_stats_input_concat_dim: dimension along which the views of several parameters are joined.
    """

    def __init__(
        self,
        int_quant: nn.Module,
        zero_point_stats_input_view_shape_impl: nn.Module,
        zero_point_shape: tuple[int, ...],
        stats_reduce_dim: int | None = None,
        tracked_parameter_list: Sequence[Tensor] | None = None,
        zero_point_stats_input_concat_dim: int = 0,
    ) -> None:
        super().__init__(
            int_quant,
            zero_point_stats_input_view_shape_impl,
            zero_point_shape,
            NegativeMinOrZero(stats_reduce_dim),
            tracked_parameter_list,
            zero_point_stats_input_concat_dim,
        )


class ParameterZeroPoint(StatefulModule):
    """A learned zero point; parameter ``value`` is the distance from the low end to 0 in real units.

    Args:
        zero_point_init: low end at the start, in real units; only its magnitude counts.
        int_quant: quantizer whose code range applies.
        zero_point_shape: shape of the zero point; ``None`` = that of ``zero_point_init``.
    """

    shape: List[int]  # noqa: UP006

    def __init__(
        self, zero_point_init: float | Tensor, int_quant: nn.Module, zero_point_shape: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        owner = "ParameterZeroPoint"
        if isinstance(zero_point_init, Tensor):
            init = zero_point_init.detach().to(torch.get_default_dtype())
        else:
            init = torch.tensor(check_number(owner, "zero_point_init", zero_point_init))
        shape = check_shape(
            owner, "zero_point_shape", tuple(init.shape) if zero_point_shape is None else zero_point_shape
        )
        if init.numel() != 1 and tuple(init.shape) != shape:
            raise QuantConfigError(
                f"{owner}: zero_point_init has shape {tuple(init.shape)}. "
                f"Expected one value, or zero_point_shape={shape}."
            )
        self.shape = list(shape)
        self.value = learned_parameter((init if tuple(init.shape) == shape else init.reshape(())).expand(shape).clone())
        self.to_code = LowEndToCode(int_quant)

    @brevitas.jit.script_method
    def forward(self, x: Tensor, scale: Tensor, bit_width: Tensor) -> Tensor:
        """Zero point, whatever ``x``."""
        return self.to_code(-abs_binary_sign_grad(self.value.view(self.shape)), scale, bit_width)


class ParameterFromRuntimeZeroPoint(CollectThenLearn):
    """The low end of each batch for ``collect_stats_steps`` training calls, then learned from their average.

    Args:
        collect_stats_steps: training calls that collect, >= 1.
        int_quant: quantizer whose code range applies.
        zero_point_stats_impl: statistic that gives the low end, <= 0.
        zero_point_shape: shape of the zero point.
        zero_point_stats_input_view_shape_impl: view before the statistic.
        zero_point_stats_permute_dims: permutation before the view, such as channels first.
        zero_point_stats_momentum: weight of the newest batch; ``None`` for the true average.
    """

    def __init__(
        self,
        collect_stats_steps: int,
        int_quant: nn.Module,
        zero_point_stats_impl: nn.Module,
        zero_point_shape: tuple[int, ...],
        zero_point_stats_input_view_shape_impl: nn.Module,
        zero_point_stats_permute_dims: Optional[Tuple[int, ...]] = None,  # noqa: UP006, UP045
        zero_point_stats_momentum: float | None = DEFAULT_MOMENTUM,
    ) -> None:
        owner = type(self).__name__
        momentum = check_momentum(owner, "zero_point_stats_momentum", zero_point_stats_momentum)
        shape = check_shape(owner, "zero_point_shape", zero_point_shape)
        super().__init__(shape, collect_stats_steps, momentum, start=0.0)
        self.runtime_stats = InputViewStats(
            zero_point_stats_input_view_shape_impl, zero_point_stats_impl, shape, zero_point_stats_permute_dims
        )
        self.to_code = LowEndToCode(int_quant)
        self._init_value()

    @brevitas.jit.script_method
    def statistic(self, x: Tensor, counts: Optional[Tensor]) -> Tensor:  # noqa: UP045
        """Low end of ``x``."""
        return at_least_float32(self.runtime_stats(x, counts))

    @brevitas.jit.script_method
    def to_stored(self, stat: Tensor) -> Tensor:
        """Distance from the low end to 0."""
        return -stat

    @brevitas.jit.script_method
    def learned(self, stored: Tensor) -> Tensor:
        """Low end of a learned distance."""
        return -abs_binary_sign_grad(stored)

    @brevitas.jit.script_method
    def from_statistic(self, stat: Tensor) -> Tensor:
        """Low end of a batch."""
        return stat

    def init_zp(self) -> None:
        """End collection now; without effect before the first training call."""
        self.finish_collecting()

    @brevitas.jit.script_method
    def forward(self, x: Tensor, scale: Tensor, bit_width: Tensor) -> Tensor:
        """Zero point in this phase."""
        return self.to_code(self.quantity(x), scale, bit_width)


class ParameterFromRuntimeMinZeroPoint(ParameterFromRuntimeZeroPoint):
    """As :class:`ParameterFromRuntimeZeroPoint`, by default on the minimum of each batch."""

    def __init__(
        self,
        collect_stats_steps: int,
        int_quant: nn.Module,
        stats_reduce_dim: int | None,
        zero_point_shape: tuple[int, ...],
        zero_point_stats_input_view_shape_impl: nn.Module,
        zero_point_stats_permute_dims: Optional[Tuple[int, ...]] = None,  # noqa: UP006, UP045
        zero_point_stats_momentum: float | None = DEFAULT_MOMENTUM,
        zero_point_stats_impl: nn.Module | None = None,
    ) -> None:
        super().__init__(
            collect_stats_steps,
            int_quant,
            NegativeMinOrZero(stats_reduce_dim) if zero_point_stats_impl is None else zero_point_stats_impl,
            zero_point_shape,
            zero_point_stats_input_view_shape_impl,
            zero_point_stats_permute_dims,
            zero_point_stats_momentum,
        )


class ParameterFromStatsFromParameterZeroPoint(FollowThenLearn):
    """A learned zero point that starts as the low end of the parameter that it shifts.

    Until the first training call it follows the parameter; that call stores the low end, as its distance to 0, in
    ``value``.

    Args: those of :class:`StatsFromParameterZeroPoint`.
    """

    def __init__(
        self,
        int_quant: nn.Module,
        zero_point_stats_input_view_shape_impl: nn.Module,
        zero_point_shape: tuple[int, ...],
        zero_point_stats_impl: nn.Module,
        tracked_parameter_list: Sequence[Tensor] | None = None,
        zero_point_stats_input_concat_dim: int = 0,
    ) -> None:
        shape = check_shape("ParameterFromStatsFromParameterZeroPoint", "zero_point_shape", zero_point_shape)
        stats = ParameterListStats(
            zero_point_stats_input_view_shape_impl,
            zero_point_stats_input_concat_dim,
            tracked_parameter_list,
            zero_point_stats_impl,
            shape,
        )
        super().__init__(shape, stats)
        self.to_code = LowEndToCode(int_quant)
        self._init_value()

    @brevitas.jit.script_method
    def to_stored(self, stat: Tensor) -> Tensor:
        """Distance from the low end to 0."""
        return torch.nan_to_num(-at_least_float32(stat), nan=0.0)

    @brevitas.jit.script_method
    def learned(self, stored: Tensor) -> Tensor:
        """Low end of a learned distance."""
        return -abs_binary_sign_grad(stored)

    def init_zp(self) -> None:
        """Learn from now on, starting from the tracked parameters."""
        self.finish_following()

    @brevitas.jit.script_method
    def forward(self, x: Tensor, scale: Tensor, bit_width: Tensor) -> Tensor:
        """Zero point in this phase."""
        return self.to_code(self.quantity(x), scale, bit_width)
