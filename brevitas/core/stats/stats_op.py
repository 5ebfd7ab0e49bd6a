"""The statistics themselves.

    >>> import torch
    >>> AbsPercentile(90)(torch.arange(1.0, 11.0)), AbsMinMax()(torch.tensor([-1.0, 3.0]))
    (tensor(9.), tensor(4.))

``stats_reduce_dim=None`` reduces the whole tensor to a scalar; an int reduces that dimension. An interval
always holds 0. float16 and bfloat16 are averaged in float32; the result has the dtype of ``x``.

``over_ranks(x, counts)`` is the statistic of a batch that is split over the ranks of ``torch.distributed``: ``x`` is
this rank's part, ``counts`` the number of elements of each. What one process would compute from the whole batch comes
out bit for bit, except for averages, whose sums are rounded in another order. A statistic without the method works as
well: then all parts travel to all ranks.
"""

import math
from typing import Optional, Tuple  # noqa: UP035 - TorchScript reads annotations of this kind

import torch
from torch import Tensor

import brevitas.jit
from brevitas.core._checks import check_int, check_number, check_shape
from brevitas.core.stats.reductions import (
    count,
    high_rank,
    kth_smallest,
    largest,
    largest_over_ranks,
    low_rank,
    percentile_over_ranks,
    rows_of_counts,
    smallest,
    sum_over_ranks,
)
from brevitas.core.utils import StatefulModule, at_least_float32, learned_parameter
from brevitas.errors import QuantConfigError

__all__ = [
    "AbsAve",
    "AbsMax",
    "AbsMaxAve",
    "AbsMaxL2",
    "AbsMinMax",
    "AbsPercentile",
    "MeanLearnedSigmaStd",
    "MeanSigmaStd",
    "NegativeMinOrZero",
    "NegativePercentileOrZero",
    "PercentileInterval",
]

DEFAULT_STD_DEV_EPSILON = 1e-8


def _check_dim(owner: str, value: int | None, required: bool = False) -> int | None:
    if value is None and not required:
        return None
    return check_int(owner, "stats_reduce_dim", value, 0)


class AbsMax(brevitas.jit.ScriptModule):
    """Largest absolute value. Its gradient is the sign at the maximum, and 0 if all values are 0."""

    def __init__(self, stats_reduce_dim: int | None = None) -> None:
        super().__init__()
        self.stats_reduce_dim = _check_dim("AbsMax", stats_reduce_dim)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``max abs x``."""
        return largest(torch.abs(x), self.stats_reduce_dim)

    @brevitas.jit.script_method
    def over_ranks(self, x: Tensor, counts: Tensor) -> Tensor:
        """As ``forward``, of the whole batch."""
        return largest_over_ranks(torch.abs(x), self.stats_reduce_dim)


class AbsMinMax(brevitas.jit.ScriptModule):
    """Length of the smallest interval that holds all values and 0."""

    def __init__(self, stats_reduce_dim: int | None = None) -> None:
        super().__init__()
        self.stats_reduce_dim = _check_dim("AbsMinMax", stats_reduce_dim)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``max(max x, 0) - min(min x, 0)``."""
        # relu rather than clamp: its gradient at 0 is 0.
        high = torch.relu(largest(x, self.stats_reduce_dim))
        return high + torch.relu(-smallest(x, self.stats_reduce_dim))

    @brevitas.jit.script_method
    def over_ranks(self, x: Tensor, counts: Tensor) -> Tensor:
        """As ``forward``, of the whole batch."""
        high = torch.relu(largest_over_ranks(x, self.stats_reduce_dim))
        return high + torch.relu(largest_over_ranks(-x, self.stats_reduce_dim))


class AbsAve(brevitas.jit.ScriptModule):
    """Mean absolute value."""

    def __init__(self, stats_reduce_dim: int | None = None) -> None:
        super().__init__()
        self.stats_reduce_dim = _check_dim("AbsAve", stats_reduce_dim)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``mean abs x``."""
        magnitude = torch.abs(at_least_float32(x))
        if self.stats_reduce_dim is None:
            return torch.mean(magnitude).to(x.dtype)
        else:
            return torch.mean(magnitude, dim=self.stats_reduce_dim).to(x.dtype)

    @brevitas.jit.script_method
    def over_ranks(self, x: Tensor, counts: Tensor) -> Tensor:
        """As ``forward``, of the whole batch, up to rounding."""
        total = sum_over_ranks(torch.abs(at_least_float32(x)), self.stats_reduce_dim)
        return (total / torch.sum(rows_of_counts(counts, x, self.stats_reduce_dim))).to(x.dtype)


class AbsMaxAve(brevitas.jit.ScriptModule):
    """Mean over the channels of the largest absolute value of each: a scalar."""

    def __init__(self, stats_reduce_dim: int) -> None:
        super().__init__()
        self.stats_reduce_dim = check_int("AbsMaxAve", "stats_reduce_dim", stats_reduce_dim, 0)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``mean_c max abs x_c``."""
        return torch.mean(at_least_float32(largest(torch.abs(x), self.stats_reduce_dim))).to(x.dtype)

    @brevitas.jit.script_method
    def over_ranks(self, x: Tensor, counts: Tensor) -> Tensor:
        """As ``forward``, of the whole batch."""
        of_channels = largest_over_ranks(torch.abs(x), self.stats_reduce_dim)
        return torch.mean(at_least_float32(of_channels)).to(x.dtype)


class AbsMaxL2(brevitas.jit.ScriptModule):
    """Root mean square over the channels of the largest absolute value of each: a scalar."""

    def __init__(self, stats_reduce_dim: int) -> None:
        super().__init__()
        self.stats_reduce_dim = check_int("AbsMaxL2", "stats_reduce_dim", stats_reduce_dim, 0)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``norm_c(max abs x_c) / sqrt(C)``; gradient 0 if all values are 0."""
        of_channels = at_least_float32(largest(torch.abs(x), self.stats_reduce_dim))
        return (torch.norm(of_channels) / math.sqrt(of_channels.numel())).to(x.dtype)

    @brevitas.jit.script_method
    def over_ranks(self, x: Tensor, counts: Tensor) -> Tensor:
        """As ``forward``, of the whole batch."""
        of_channels = at_least_float32(largest_over_ranks(torch.abs(x), self.stats_reduce_dim))
        return (torch.norm(of_channels) / math.sqrt(of_channels.numel())).to(x.dtype)


class AbsPercentile(brevitas.jit.ScriptModule):
    """Percentile of the absolute value.

    Args:
        percentile_q: in (0, 100].
        stats_reduce_dim: dimension to reduce, or ``None``.
    """

    def __init__(self, percentile_q: float, stats_reduce_dim: int | None = None) -> None:
        super().__init__()
        self.percentile_q = check_number("AbsPercentile", "percentile_q", percentile_q, 0.0, 100.0, low_open=True)
        self.percentile_q_text = repr(self.percentile_q)  # see RestrictedThreshold
        self.stats_reduce_dim = _check_dim("AbsPercentile", stats_reduce_dim)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """The k-th smallest ``abs x`` of n, ``k = clamp(floor(q n / 100 + 0.5), 1, n)``."""
        k = high_rank(float(self.percentile_q_text), count(x, self.stats_reduce_dim))
        return kth_smallest(torch.abs(x), k, self.stats_reduce_dim)

    @brevitas.jit.script_method
    def over_ranks(self, x: Tensor, counts: Tensor) -> Tensor:
        """As ``forward``, of the whole batch."""
        return percentile_over_ranks(torch.abs(x), counts, self.percentile_q, True, self.stats_reduce_dim)


class PercentileInterval(brevitas.jit.ScriptModule):
    """Length of the interval between two percentiles, widened to hold 0.

    Args:
        low_percentile_q: in [0, 50).
        high_percentile_q: in (0, 100].
        stats_reduce_dim: dimension to reduce, or ``None``.
    """

    def __init__(self, low_percentile_q: float, high_percentile_q: float, stats_reduce_dim: int | None = None) -> None:
        super().__init__()
        owner = "PercentileInterval"
        self.low_percentile_q = check_number(owner, "low_percentile_q", low_percentile_q, 0.0, 50.0, high_open=True)
        self.low_percentile_q_text = repr(self.low_percentile_q)  # see RestrictedThreshold
        self.high_percentile_q = check_number(owner, "high_percentile_q", high_percentile_q, 0.0, 100.0, low_open=True)
        self.high_percentile_q_text = repr(self.high_percentile_q)  # see RestrictedThreshold
        if self.low_percentile_q >= self.high_percentile_q:
            raise QuantConfigError(
                f"{owner}: low_percentile_q={low_percentile_q} is not below high_percentile_q={high_percentile_q}."
            )
        self.stats_reduce_dim = _check_dim(owner, stats_reduce_dim)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``max(hi, 0) - min(lo, 0)``."""
        n = count(x, self.stats_reduce_dim)
        high = kth_smallest(x, high_rank(float(self.high_percentile_q_text), n), self.stats_reduce_dim)
        low = kth_smallest(x, low_rank(float(self.low_percentile_q_text), n), self.stats_reduce_dim)
        return torch.relu(high) + torch.relu(-low)

    @brevitas.jit.script_method
    def over_ranks(self, x: Tensor, counts: Tensor) -> Tensor:
        """As ``forward``, of the whole batch."""
        high = percentile_over_ranks(x, counts, self.high_percentile_q, True, self.stats_reduce_dim)
        low = percentile_over_ranks(x, counts, self.low_percentile_q, False, self.stats_reduce_dim)
        return torch.relu(high) + torch.relu(-low)


class NegativeMinOrZero(brevitas.jit.ScriptModule):
    """The minimum, or 0 if that is positive."""

    def __init__(self, stats_reduce_dim: int | None = None) -> None:
        super().__init__()
        self.stats_reduce_dim = _check_dim("NegativeMinOrZero", stats_reduce_dim)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``min(min x, 0)``."""
        return -torch.relu(-smallest(x, self.stats_reduce_dim))

    @brevitas.jit.script_method
    def over_ranks(self, x: Tensor, counts: Tensor) -> Tensor:
        """As ``forward``, of the whole batch."""
        return -torch.relu(largest_over_ranks(-x, self.stats_reduce_dim))


class NegativePercentileOrZero(brevitas.jit.ScriptModule):
    """A low percentile, or 0 if that is positive.

    Args:
        low_percentile_q: in [0, 50).
        stats_reduce_dim: dimension to reduce, or ``None``.
    """

    def __init__(self, low_percentile_q: float, stats_reduce_dim: int | None = None) -> None:
        super().__init__()
        owner = "NegativePercentileOrZero"
        self.low_percentile_q = check_number(owner, "low_percentile_q", low_percentile_q, 0.0, 50.0, high_open=True)
        self.low_percentile_q_text = repr(self.low_percentile_q)  # see RestrictedThreshold
        self.stats_reduce_dim = _check_dim(owner, stats_reduce_dim)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``min(lo, 0)``, lo the k-th smallest of n, ``k = max(ceil(q n / 100), 1)``."""
        k = low_rank(float(self.low_percentile_q_text), count(x, self.stats_reduce_dim))
        return -torch.relu(-kth_smallest(x, k, self.stats_reduce_dim))

    @brevitas.jit.script_method
    def over_ranks(self, x: Tensor, counts: Tensor) -> Tensor:
        """As ``forward``, of the whole batch."""
        low = percentile_over_ranks(x, counts, self.low_percentile_q, False, self.stats_reduce_dim)
        return -torch.relu(-low)


def _mean_and_deviation(x: Tensor, dim: Optional[int], epsilon: float) -> Tuple[Tensor, Tensor]:  # noqa: UP006, UP045
    magnitude = torch.abs(at_least_float32(x))
    # One value has no unbiased variance; it deviates by 0.
    degrees = max(count(x, dim) - 1, 1)
    if dim is None:
        mean = torch.mean(magnitude)
        centred = magnitude - mean
        return mean, torch.sqrt(torch.sum(centred * centred) / degrees + epsilon)
    mean = torch.mean(magnitude, dim=dim)
    centred = magnitude - mean.unsqueeze(dim)
    return mean, torch.sqrt(torch.sum(centred * centred, dim=dim) / degrees + epsilon)


def _mean_and_deviation_over_ranks(
    x: Tensor,
    counts: Tensor,
    dim: Optional[int],  # noqa: UP045
    epsilon: float,
) -> Tuple[Tensor, Tensor]:  # noqa: UP006
    magnitude = torch.abs(at_least_float32(x))
    total = torch.sum(rows_of_counts(counts, x, dim))
    mean = sum_over_ranks(magnitude, dim) / total
    centred = magnitude - (mean if dim is None else mean.unsqueeze(dim))
    variance = sum_over_ranks(centred * centred, dim) / torch.clamp_min(total - 1, 1)
    return mean, torch.sqrt(variance + epsilon)


class MeanSigmaStd(brevitas.jit.ScriptModule):
    """Mean absolute value plus ``sigma`` standard deviations of it.

    Args:
        stats_reduce_dim: dimension to reduce, or ``None``.
        sigma: > 0.
        std_dev_epsilon: added to the variance, which keeps the gradient of the root finite.
    """

    def __init__(
        self, stats_reduce_dim: int | None, sigma: float, std_dev_epsilon: float = DEFAULT_STD_DEV_EPSILON
    ) -> None:
        super().__init__()
        owner = "MeanSigmaStd"
        self.stats_reduce_dim = _check_dim(owner, stats_reduce_dim)
        self.sigma = check_number(owner, "sigma", sigma, low=0.0, low_open=True)
        self.std_dev_epsilon = check_number(owner, "std_dev_epsilon", std_dev_epsilon, low=0.0, low_open=True)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``mean abs x + sigma sqrt(var abs x + epsilon)``."""
        mean, deviation = _mean_and_deviation(x, self.stats_reduce_dim, self.std_dev_epsilon)
        return (mean + self.sigma * deviation).to(x.dtype)

    @brevitas.jit.script_method
    def over_ranks(self, x: Tensor, counts: Tensor) -> Tensor:
        """As ``forward``, of the whole batch, up to rounding."""
        mean, deviation = _mean_and_deviation_over_ranks(x, counts, self.stats_reduce_dim, self.std_dev_epsilon)
        return (mean + self.sigma * deviation).to(x.dtype)


class MeanLearnedSigmaStd(StatefulModule):
    """As :class:`MeanSigmaStd` with a learned ``sigma``.

    Args:
        stats_reduce_dim: dimension to reduce, or ``None``.
        sigma: value at the start, > 0.
        stats_output_shape: shape of ``sigma``: ``()`` or that of the scale.
        std_dev_epsilon: added to the variance.
    """

    legacy_keys = {"learned_sigma": "sigma"}

    def __init__(
        self,
        stats_reduce_dim: int | None,
        sigma: float,
        stats_output_shape: tuple[int, ...],
        std_dev_epsilon: float = DEFAULT_STD_DEV_EPSILON,
    ) -> None:
        super().__init__()
        owner = "MeanLearnedSigmaStd"
        self.stats_reduce_dim = _check_dim(owner, stats_reduce_dim)
        self.std_dev_epsilon = check_number(owner, "std_dev_epsilon", std_dev_epsilon, low=0.0, low_open=True)
        start = check_number(owner, "sigma", sigma, low=0.0, low_open=True)
        shape = check_shape(owner, "stats_output_shape", stats_output_shape)
        self.sigma = learned_parameter(torch.full(shape, start))

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``mean abs x + sigma sqrt(var abs x + epsilon)``."""
        mean, deviation = _mean_and_deviation(x, self.stats_reduce_dim, self.std_dev_epsilon)
        return (mean + self.sigma.view(mean.shape) * deviation).to(x.dtype)

    @brevitas.jit.script_method
    def over_ranks(self, x: Tensor, counts: Tensor) -> Tensor:
        """As ``forward``, of the whole batch, up to rounding."""
        mean, deviation = _mean_and_deviation_over_ranks(x, counts, self.stats_reduce_dim, self.std_dev_epsilon)
        return (mean + self.sigma.view(mean.shape) * deviation).to(x.dtype)
