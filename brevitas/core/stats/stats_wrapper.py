"""Statistics with a view before them and a shape after them, over inputs, over tracked parameters, or running.

>>> import torch
>>> from brevitas.core.function_wrapper import OverOutputChannelView
>>> from brevitas.core.stats import AbsMax
>>> InputViewStats(OverOutputChannelView(), AbsMax(1), (2, 1))(torch.tensor([[1.0, -3.0], [2.0, 0.0]]))
tensor([[3.],
        [2.]])
"""

from collections.abc import Sequence
from typing import List, Optional, Tuple  # noqa: UP035 - TorchScript reads annotations of this kind

import torch
from torch import Tensor, nn

import brevitas.jit
from brevitas.core._checks import check_int, check_module, check_permutation, check_shape
from brevitas.core.function_wrapper import OverBatchOverOutputChannelView, OverBatchOverTensorView
from brevitas.core.stats.reductions import counts_over_ranks, whole_batch
from brevitas.core.stats.running import DEFAULT_MOMENTUM, RunningEstimate, check_momentum
from brevitas.errors import QuantConfigError
from brevitas.function.ranks import is_split

__all__ = ["SCALAR_SHAPE", "InputViewStats", "ParameterListStats", "RuntimeStats", "Stats"]

SCALAR_SHAPE: tuple[int, ...] = ()


class Stats(brevitas.jit.ScriptModule):
    """A statistic, reshaped to the shape of the scale."""

    stats_output_shape: List[int]  # noqa: UP006

    def __init__(self, stats_impl: nn.Module, stats_output_shape: tuple[int, ...] = SCALAR_SHAPE) -> None:
        super().__init__()
        self.stats_impl = check_module("Stats", "stats_impl", stats_impl)
        self.stats_output_shape = list(check_shape("Stats", "stats_output_shape", stats_output_shape))

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Statistic of a viewed tensor."""
        return self.stats_impl(x).view(self.stats_output_shape)

    @brevitas.jit.script_method
    def over_ranks(self, x: Tensor, counts: Tensor, batch_first: bool) -> Tensor:
        """Statistic of a batch that is split over ranks.

        Args:
            x: view of this rank's part.
            counts: number of elements of each part.
            batch_first: whether parts differ in the first size of the view, rather than in the last.
        """
        if hasattr(self.stats_impl, "over_ranks"):
            stat = self.stats_impl.over_ranks(x, counts)  # type: ignore[operator]
        else:
            stat = self.stats_impl(whole_batch(x, counts, 0 if batch_first else x.dim() - 1))
        return stat.view(self.stats_output_shape)


class _InputStats(brevitas.jit.ScriptModule):
    """What statistics of inputs have in common: dimensions permuted, viewed, reduced, reshaped."""

    def _set_parts(
        self, view: nn.Module, stats_impl: nn.Module, shape: tuple[int, ...], permute_dims: tuple[int, ...] | None
    ) -> None:
        self.stats_input_view_shape_impl = check_module("scaling_stats", "stats_input_view_shape_impl", view)
        self.stats_permute_dims = check_permutation("scaling_stats", "stats_permute_dims", permute_dims)
        self.stats = Stats(stats_impl, shape)
        self.batch_first = isinstance(view, (OverBatchOverTensorView, OverBatchOverOutputChannelView))

    @brevitas.jit.script_method
    def of_batch(self, x: Tensor, counts: Optional[Tensor]) -> Tensor:  # noqa: UP045
        """Statistic of ``x``; with ``counts``, of the batch of which ``x`` is this rank's part."""
        if self.stats_permute_dims is not None:
            x = x.permute(self.stats_permute_dims)
        if counts is None:
            return self.stats(self.stats_input_view_shape_impl(x))
        # An empty part cannot be viewed as samples.
        empty = self.batch_first and x.numel() == 0
        view = x.reshape([0]) if empty else self.stats_input_view_shape_impl(x)
        return self.stats.over_ranks(view, counts, self.batch_first)


class InputViewStats(_InputStats):
    """Statistic of an input."""

    def __init__(
        self,
        stats_input_view_shape_impl: nn.Module,
        stats_impl: nn.Module,
        stats_output_shape: tuple[int, ...] = SCALAR_SHAPE,
        stats_permute_dims: Optional[Tuple[int, ...]] = None,  # noqa: UP006, UP045
    ) -> None:
        super().__init__()
        self._set_parts(stats_input_view_shape_impl, stats_impl, stats_output_shape, stats_permute_dims)

    @brevitas.jit.script_method
    def forward(self, x: Tensor, counts: Optional[Tensor] = None) -> Tensor:  # noqa: UP045
        """Statistic of ``x``; with ``counts`` (elements on each rank), of the whole batch."""
        return self.of_batch(x, counts)


class ParameterListStats(brevitas.jit.ScriptModule):
    """Statistic of the input if one parameter is tracked, of all tracked ones together if there are several.

    The list is a plain attribute: tracked parameters belong to their layers and are not in the state dict.
    """

    tracked_parameters: List[Tensor]  # noqa: UP006

    def __init__(
        self,
        stats_input_view_shape_impl: nn.Module,
        stats_input_concat_dim: int,
        tracked_parameter_list: Sequence[Tensor] | None,
        stats_impl: nn.Module,
        stats_output_shape: tuple[int, ...] = SCALAR_SHAPE,
    ) -> None:
        super().__init__()
        view = check_module("scaling_stats", "stats_input_view_shape_impl", stats_input_view_shape_impl)
        self.stats_input_view_shape_impl = view
        self.stats_input_concat_dim = check_int("scaling_stats", "stats_input_concat_dim", stats_input_concat_dim, 0)
        self.stats = Stats(stats_impl, stats_output_shape)
        self.set_tracked_parameters(() if tracked_parameter_list is None else tracked_parameter_list)

    def set_tracked_parameters(self, parameters: Sequence[Tensor]) -> None:
        """Track these parameters from now on, e.g. because a layer's weight was replaced."""
        parameters = list(parameters)
        for index, parameter in enumerate(parameters):
            if not isinstance(parameter, Tensor):
                raise QuantConfigError(f"tracked_parameter_list[{index}]={parameter!r} is not a tensor.")
        self.tracked_parameters = parameters
        self.has_several = len(parameters) > 1

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Statistic of ``x``, or of the tracked parameters."""
        if not self.has_several:
            return self.stats(self.stats_input_view_shape_impl(x))
        views: List[Tensor] = []  # noqa: UP006
        for parameter in self.tracked_parameters:
            views.append(self.stats_input_view_shape_impl(parameter))
        return self.stats(torch.cat(views, dim=self.stats_input_concat_dim))


class RuntimeStats(RunningEstimate, _InputStats):
    """Training: statistic of the batch, and the running estimate is updated. Eval: the running estimate."""

    def __init__(
        self,
        stats_impl: nn.Module,
        stats_output_shape: tuple[int, ...],
        stats_input_view_shape_impl: nn.Module,
        stats_permute_dims: Optional[Tuple[int, ...]] = None,  # noqa: UP006, UP045
        stats_buffer_momentum: float | None = DEFAULT_MOMENTUM,
        stats_buffer_init: float = 1.0,
    ) -> None:
        momentum = check_momentum("RuntimeStats", "scaling_stats_momentum", stats_buffer_momentum)
        super().__init__(check_shape("RuntimeStats", "scaling_shape", stats_output_shape), momentum, stats_buffer_init)
        self._set_parts(stats_input_view_shape_impl, stats_impl, stats_output_shape, stats_permute_dims)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Statistic to use, in real units."""
        if not self.training:
            return self.running_stats.detach()
        counts = counts_over_ranks(x) if is_split(x) else None
        if counts is None and x.numel() == 0:
            return self.running_stats.detach()
        stat = self.of_batch(x, counts).to(self.running_stats.dtype)
        if counts is not None:
            stat = torch.where(torch.sum(counts) > 0, stat, self.running_stats.detach())
        self.count(stat, counts)
        self.initialised.fill_(True)
        return stat
