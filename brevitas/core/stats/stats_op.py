"""The statistics themselves.

    >>> import torch
    >>> AbsPercentile(90)(torch.arange(1.0, 11.0)), AbsMinMax()(torch.tensor([-1.0, 3.0]))
    (tensor(9.), tensor(4.))

``stats_reduce_dim=None`` reduces the whole tensor to a scalar; an int reduces that dimension. An interval
always holds 0. float16 and bfloat16 are averaged in float32; the result has the dtype of ``x``.
"""

import math
from typing import Optional, Tuple  # noqa: UP035 - TorchScript reads annotations of this kind

import torch
from torch import Tensor

import brevitas.jit
from brevitas.core._checks import check_int, check_number, check_shape
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


def _largest(x: Tensor, dim: Optional[int]) -> Tensor:  # noqa: UP045
    # Of the whole tensor, equal maxima share the gradient; along a dimension the first one takes it.
    if dim is None:
        return torch.amax(x)
    return torch.max(x, dim=dim)[0]


def _smallest(x: Tensor, dim: Optional[int]) -> Tensor:  # noqa: UP045
    if dim is None:
        return torch.amin(x)
    return torch.min(x, dim=dim)[0]


def _kth_smallest(x: Tensor, k: int, dim: Optional[int]) -> Tensor:  # noqa: UP045
    if dim is None:
        x = x.reshape(-1)
        dim = 0
    n = x.shape[dim]
    # Near an end of a long row, the few values beyond are found much sooner than the row is partitioned.
    if (n - k + 1) * 64 <= n:
        return torch.topk(x, n - k + 1, dim=dim)[0].select(dim, n - k)
    if k * 64 <= n:
        return torch.topk(x, k, dim=dim, largest=False)[0].select(dim, k - 1)
    return torch.kthvalue(x, k, dim=dim)[0]


def _count(x: Tensor, dim: Optional[int]) -> int:  # noqa: UP045
    if dim is None:
        return x.numel()
    return x.shape[dim]


def _high_rank(q: float, n: int) -> int:
    return max(min(int(math.floor(q * n / 100.0 + 0.5)), n), 1)


def _low_rank(q: float, n: int) -> int:
    return max(min(int(math.ceil(q * n / 100.0)), n), 1)


class AbsMax(brevitas.jit.ScriptModule):
    """Largest absolute value. Its gradient is the sign at the maximum, and 0 if all values are 0."""

    def __init__(self, stats_reduce_dim: int | None = None) -> None:
        super().__init__()
        self.stats_reduce_dim = _check_dim("AbsMax", stats_reduce_dim)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``max abs x``."""
        return _largest(torch.abs(x), self.stats_reduce_dim)


class AbsMinMax(brevitas.jit.ScriptModule):
    """Length of the smallest interval that holds all values and 0."""

    def __init__(self, stats_reduce_dim: int | None = None) -> None:
        super().__init__()
        self.stats_reduce_dim = _check_dim("AbsMinMax", stats_reduce_dim)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``max(max x, 0) - min(min x, 0)``."""
        # relu rather than clamp: its gradient at 0 is 0.
        high = torch.relu(_largest(x, self.stats_reduce_dim))
        return high + torch.relu(-_smallest(x, self.stats_reduce_dim))


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


class AbsMaxAve(brevitas.jit.ScriptModule):
    """Mean over the channels of the largest absolute value of each: a scalar."""

    def __init__(self, stats_reduce_dim: int) -> None:
        super().__init__()
        self.stats_reduce_dim = check_int("AbsMaxAve", "stats_reduce_dim", stats_reduce_dim, 0)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``mean_c max abs x_c``."""
        largest = torch.max(torch.abs(x), dim=self.stats_reduce_dim)[0]
        return torch.mean(at_least_float32(largest)).to(x.dtype)


class AbsMaxL2(brevitas.jit.ScriptModule):
    """Root mean square over the channels of the largest absolute value of each: a scalar."""

    def __init__(self, stats_reduce_dim: int) -> None:
        super().__init__()
        self.stats_reduce_dim = check_int("AbsMaxL2", "stats_reduce_dim", stats_reduce_dim, 0)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``norm_c(max abs x_c) / sqrt(C)``; gradient 0 if all values are 0."""
        largest = at_least_float32(torch.max(torch.abs(x), dim=self.stats_reduce_dim)[0])
        return (torch.norm(largest) / math.sqrt(largest.numel())).to(x.dtype)


class AbsPercentile(brevitas.jit.ScriptModule):
    """Percentile of the absolute value.

    Args:
        percentile_q: in (0, 100].
        stats_reduce_dim: dimension to reduce, or ``None``.
    """

    def __init__(self, percentile_q: float, stats_reduce_dim: int | None = None) -> None:
        super().__init__()
        self.percentile_q = check_number("AbsPercentile", "percentile_q", percentile_q, 0.0, 100.0, low_open=True)
        self.stats_reduce_dim = _check_dim("AbsPercentile", stats_reduce_dim)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """The k-th smallest ``abs x`` of n, ``k = clamp(floor(q n / 100 + 0.5), 1, n)``."""
        k = _high_rank(self.percentile_q, _count(x, self.stats_reduce_dim))
        return _kth_smallest(torch.abs(x), k, self.stats_reduce_dim)


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
        self.high_percentile_q = check_number(owner, "high_percentile_q", high_percentile_q, 0.0, 100.0, low_open=True)
        if self.low_percentile_q >= self.high_percentile_q:
            raise QuantConfigError(
                f"{owner}: low_percentile_q={low_percentile_q} is not below high_percentile_q={high_percentile_q}."
            )
        self.stats_reduce_dim = _check_dim(owner, stats_reduce_dim)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``max(hi, 0) - min(lo, 0)``."""
        n = _count(x, self.stats_reduce_dim)
        high = _kth_smallest(x, _high_rank(self.high_percentile_q, n), self.stats_reduce_dim)
        low = _kth_smallest(x, _low_rank(self.low_percentile_q, n), self.stats_reduce_dim)
        return torch.relu(high) + torch.relu(-low)


class NegativeMinOrZero(brevitas.jit.ScriptModule):
    """The minimum, or 0 if that is positive."""

    def __init__(self, stats_reduce_dim: int | None = None) -> None:
        super().__init__()
        self.stats_reduce_dim = _check_dim("NegativeMinOrZero", stats_reduce_dim)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``min(min x, 0)``."""
        return -torch.relu(-_smallest(x, self.stats_reduce_dim))


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
        self.stats_reduce_dim = _check_dim(owner, stats_reduce_dim)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``min(lo, 0)``, lo the k-th smallest of n, ``k = max(ceil(q n / 100), 1)``."""
        k = _low_rank(self.low_percentile_q, _count(x, self.stats_reduce_dim))
        return -torch.relu(-_kth_smallest(x, k, self.stats_reduce_dim))


def _mean_and_deviation(x: Tensor, dim: Optional[int], epsilon: float) -> Tuple[Tensor, Tensor]:  # noqa: UP006, UP045
    magnitude = torch.abs(at_least_float32(x))
    # One value has no unbiased variance; it deviates by 0.
    degrees = max(_count(x, dim) - 1, 1)
    if dim is None:
        mean = torch.mean(magnitude)
        centred = magnitude - mean
        return mean, torch.sqrt(torch.sum(centred * centred) / degrees + epsilon)
    mean = torch.mean(magnitude, dim=dim)
    centred = magnitude - mean.unsqueeze(dim)
    return mean, torch.sqrt(torch.sum(centred * centred, dim=dim) / degrees + epsilon)


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
