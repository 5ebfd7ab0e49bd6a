"""Search for the statistic that quantizes with the least squared error.

    >>> import torch
    >>> from brevitas.core.bit_width import BitWidthConst
    >>> from brevitas.core.quant import IntQuant
    >>> from brevitas.core.quant.candidate import IntThresholdCandidate
    >>> from brevitas.core.scaling import IntScaling
    >>> from brevitas.core.stats import AbsMax
    >>> quant = IntThresholdCandidate(IntQuant(True, True), IntScaling(True, True), BitWidthConst(2))
    >>> MSE(quant, AbsMax())(torch.tensor([0.4, 0.4, 0.4, 1.0]))            # codes -1, 0, 1
    tensor(0.5500)

The quantizer of the candidates is the complete one, see :mod:`brevitas.core.quant.candidate`. Nothing is learned,
counted or differentiated here.
"""

from typing import List  # noqa: UP035 - TorchScript reads annotations of this kind

import torch
from torch import Tensor, nn

import brevitas.jit
from brevitas.core._checks import check_int, check_module
from brevitas.core.stats.reductions import whole_batch
from brevitas.core.utils import at_least_float32, largest_value
from brevitas.errors import QuantConfigError
from brevitas.function.ranks import gather_over_ranks

__all__ = ["MSE", "LowEndMSE"]

SEARCH_METHODS = ("grid",)


def _narrowed(value: Tensor, x: Tensor) -> Tensor:
    limit = largest_value(x.dtype, False)
    return torch.clamp(value, -limit, limit).to(x.dtype)


def _least(candidates: Tensor, errors: Tensor) -> Tensor:
    """Of stacked candidates the one with the least error, the first one on ties."""
    best = torch.argmin(errors, dim=0, keepdim=True)
    return torch.gather(candidates, 0, best).squeeze(0)


class MSE(brevitas.jit.ScriptModule):
    """Of ``init * k / n``, k = 1..n, the candidate with the least summed squared error; the smaller one on ties.

    Args:
        mse_quant_impl: quantizer as a function of the candidate, such as ``IntThresholdCandidate``: its ``context(x)``
            is a statistic that all candidates have in common (or a scalar), its ``forward(x, candidate, context)`` the
            quantized ``x``, for a candidate and a context that broadcast to ``x``. ``context_over_ranks(x, counts)``
            may give the context of a batch that is split over ranks.
        mse_init_op: statistic whose value is the largest candidate, such as ``AbsMax()``.
        mse_iters: number n of candidates.
        mse_search_method: ``'grid'``.
        stats_reduce_dim: dimension over which errors are summed, that of ``mse_init_op``; ``None`` for all.
    """

    def __init__(
        self,
        mse_quant_impl: nn.Module,
        mse_init_op: nn.Module,
        mse_iters: int = 20,
        mse_search_method: str = "grid",
        stats_reduce_dim: int | None = None,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        self.quant_impl = check_module(owner, "mse_quant_impl", mse_quant_impl)
        self.init_op = check_module(owner, "mse_init_op", mse_init_op)
        self.mse_iters = check_int(owner, "mse_iters", mse_iters, 1)
        if mse_search_method not in SEARCH_METHODS:
            raise QuantConfigError(
                f"{owner}: mse_search_method={mse_search_method!r} is not known. Expected {', '.join(SEARCH_METHODS)}."
            )
        if stats_reduce_dim is not None:
            check_int(owner, "stats_reduce_dim", stats_reduce_dim, 0)
        self.stats_reduce_dim = stats_reduce_dim

    @brevitas.jit.script_method
    def error(self, x: Tensor, candidate: Tensor, context: Tensor, unit: Tensor) -> Tensor:
        """Summed squared error of a candidate, in squares of ``unit``."""
        if self.stats_reduce_dim is None:
            difference = (self.quant_impl(x, candidate, context) - x) / unit
            return torch.sum(difference * difference)
        else:
            dim = self.stats_reduce_dim
            difference = (self.quant_impl(x, candidate.unsqueeze(dim), context) - x) / unit.unsqueeze(dim)
            return torch.sum(difference * difference, dim=dim)

    @brevitas.jit.script_method
    def beside_rows(self, context: Tensor) -> Tensor:
        """A context that broadcasts to the rows it belongs to."""
        if self.stats_reduce_dim is not None and context.dim() > 0:
            return context.unsqueeze(self.stats_reduce_dim)
        return context

    @brevitas.jit.script_method
    def unit(self, init: Tensor) -> Tensor:
        """A power of two as the unit of errors: squares neither overflow nor vanish, and no error is rounded."""
        return torch.exp2(torch.round(torch.log2(torch.clamp_min(torch.abs(init), 1e-37))))

    @torch.jit.unused
    def _errors_at_once(self, x: Tensor, init: Tensor, context: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates and their errors, stacked, for a compiler: fused reductions store no candidate."""
        steps = torch.arange(1, self.mse_iters + 1, dtype=torch.float64, device=x.device) / self.mse_iters
        candidates = init.unsqueeze(0) * steps.to(x.dtype).view([-1] + [1] * init.dim())
        dim = self.stats_reduce_dim
        if dim is None:
            shaped, units = candidates.view([-1] + [1] * x.dim()), unit
        else:
            shaped, units = candidates.unsqueeze(dim + 1), unit.unsqueeze(dim)
        difference = (self.quant_impl(x.unsqueeze(0), shaped, context) - x) / units
        squares = difference * difference
        errors = squares.flatten(1).sum(dim=1) if dim is None else squares.sum(dim=dim + 1)
        return candidates, errors

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Best candidate, of the shape and dtype of the statistic ``mse_init_op``; no gradient."""
        with torch.no_grad():
            wide = at_least_float32(x.detach())
            init = self.init_op(wide)
            unit = self.unit(init)
            context = self.beside_rows(self.quant_impl.context(wide))  # type: ignore[operator]
            if not torch.jit.is_scripting() and torch.compiler.is_compiling():
                # A compiler would unroll the loop.
                candidates, errors = self._errors_at_once(wide, init, context, unit)
                return _narrowed(_least(candidates, errors), x)
            best = init * (1.0 / self.mse_iters)
            least = self.error(wide, best, context, unit)
            for k in range(2, self.mse_iters + 1):
                candidate = init * (k / self.mse_iters)
                error = self.error(wide, candidate, context, unit)
                better = error < least
                best = torch.where(better, candidate, best)
                least = torch.where(better, error, least)
        return _narrowed(best, x)

    @brevitas.jit.script_method
    def over_ranks(self, x: Tensor, counts: Tensor) -> Tensor:
        """As ``forward``, of the whole batch: the ranks add their errors, so that near-ties may round otherwise."""
        with torch.no_grad():
            wide = at_least_float32(x.detach())
            if hasattr(self.init_op, "over_ranks"):
                init = self.init_op.over_ranks(wide, counts)  # type: ignore[operator]
            else:
                init = self.init_op(whole_batch(wide, counts, wide.dim() - 1))
            unit = self.unit(init)
            if hasattr(self.quant_impl, "context_over_ranks"):
                context = self.quant_impl.context_over_ranks(wide, counts)  # type: ignore[operator]
            else:
                context = self.quant_impl.context(whole_batch(wide, counts, wide.dim() - 1))  # type: ignore[operator]
            context = self.beside_rows(context)
            if not torch.jit.is_scripting() and torch.compiler.is_compiling():
                candidates, errors = self._errors_at_once(wide, init, context, unit)
            else:
                tried: List[Tensor] = []  # noqa: UP006
                found: List[Tensor] = []  # noqa: UP006
                for k in range(1, self.mse_iters + 1):
                    candidate = init * (k / self.mse_iters)
                    tried.append(candidate)
                    found.append(self.error(wide, candidate, context, unit))
                candidates, errors = torch.stack(tried), torch.stack(found)
            return _narrowed(_least(candidates, torch.sum(gather_over_ranks(errors), dim=0)), x)


class LowEndMSE(MSE):
    """:class:`MSE` of the low end of a range, from which a zero point follows; its names let both be declared.

    Args:
        low_end_quant_impl: quantizer as a function of the low end, such as ``IntLowEndCandidate``.
        low_end_init_op: statistic whose value is the farthest candidate, such as ``NegativeMinOrZero()``.
        mse_iters: number of candidates.
        mse_search_method: ``'grid'``.
        stats_reduce_dim: dimension over which errors are summed; ``None`` for all.
    """

    def __init__(
        self,
        low_end_quant_impl: nn.Module,
        low_end_init_op: nn.Module,
        mse_iters: int = 20,
        mse_search_method: str = "grid",
        stats_reduce_dim: int | None = None,
    ) -> None:
        super().__init__(low_end_quant_impl, low_end_init_op, mse_iters, mse_search_method, stats_reduce_dim)
