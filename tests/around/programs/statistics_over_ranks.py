"""Statistics of a batch that two ranks share are those of the whole batch: values, gradients, estimates, phases."""

import copy

import torch
from ranks import main
from torch import distributed as dist
from torch import nn

from brevitas.core.bit_width import BitWidthConst
from brevitas.core.function_wrapper import (
    OverBatchOverTensorView,
    OverOutputChannelView,
    OverTensorView,
)
from brevitas.core.quant import IntQuant
from brevitas.core.quant.candidate import IntThresholdCandidate
from brevitas.core.scaling import IntScaling, ParameterFromRuntimeStatsScaling, RuntimeStatsScaling
from brevitas.core.stats import (
    MSE,
    AbsAve,
    AbsMax,
    AbsMaxAve,
    AbsMaxL2,
    AbsMinMax,
    AbsPercentile,
    InputViewStats,
    MeanLearnedSigmaStd,
    MeanSigmaStd,
    NegativeMinOrZero,
    NegativePercentileOrZero,
    PercentileInterval,
)
from brevitas.core.stats.reductions import counts_over_ranks
from brevitas.errors import QuantConfigError
from brevitas.function.ranks import ranks, set_statistics_group, statistics_over

EXACT, ROUNDED = 0.0, 1e-12  # float64


class Median(nn.Module):
    """A statistic of a user's own, which knows nothing of ranks."""

    def forward(self, x):
        return x.abs().flatten().median()


def mse(dim=None):
    quant = IntThresholdCandidate(IntQuant(True, True), IntScaling(True, True), BitWidthConst(3))
    return MSE(quant, AbsMax(dim), stats_reduce_dim=dim)


STATISTICS = [
    (AbsMax(), AbsMax(1), EXACT),
    (AbsMinMax(), AbsMinMax(1), EXACT),
    (NegativeMinOrZero(), NegativeMinOrZero(1), EXACT),
    (AbsPercentile(99.0), AbsPercentile(90.0, 1), EXACT),
    (AbsPercentile(50.0), AbsPercentile(10.0, 1), EXACT),
    (PercentileInterval(3.0, 97.0), PercentileInterval(3.0, 97.0, 1), EXACT),
    (NegativePercentileOrZero(5.0), NegativePercentileOrZero(5.0, 1), EXACT),
    (Median(), None, EXACT),
    (AbsAve(), AbsAve(1), ROUNDED),
    (MeanSigmaStd(None, 2.0), MeanSigmaStd(1, 2.0), ROUNDED),
    (MeanLearnedSigmaStd(None, 2.0, ()), MeanLearnedSigmaStd(1, 2.0, (4,)), ROUNDED),
    (None, AbsMaxAve(1), ROUNDED),
    (None, AbsMaxL2(1), ROUNDED),
    (mse(), mse(1), EXACT),
]

# How many samples of eight the first rank holds.
SPLITS = (4, 6, 8, 0)


def part(x, split):
    return x[:split] if dist.get_rank() == 0 else x[split:]


def whole_batch(dtype=torch.float64):
    return torch.randn(8, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def viewed(statistic, per_channel):
    if not per_channel:
        return InputViewStats(OverTensorView(), statistic)
    shape = (1, 4, 1) if statistic(torch.ones(4, 2)).ndim else ()
    return InputViewStats(OverOutputChannelView(), statistic, shape, (1, 0, 2))


def statistic_and_gradient(stats, x, counts=None, compiled=None):
    """The statistic; and the gradients to ``x``, and to parameters, of a loss that uses it."""
    stats = copy.deepcopy(stats)
    x = x.clone().requires_grad_()
    value = (compiled or (lambda m, *a: m(*a)))(stats, x, counts)
    grads = torch.zeros(())
    if value.requires_grad:
        value.square().sum().backward()
        grads = x.grad
    learned = [p.grad for p in stats.parameters()]
    return value.detach(), grads, learned


def each_statistic():
    for whole, rows, tolerance in STATISTICS:
        for statistic, per_channel in ((whole, False), (rows, True)):
            if statistic is not None:
                yield viewed(statistic, per_channel), tolerance, type(statistic).__name__


def compare(mine, expected, tolerance, name):
    torch.testing.assert_close(mine, expected, rtol=tolerance, atol=tolerance, msg=lambda m: f"{name}: {m}")


def check_statistics_and_their_gradients_are_those_of_the_whole_batch():
    for stats, tolerance, name in each_statistic():
        value, grads, learned = statistic_and_gradient(stats, whole_batch())
        for split in SPLITS:
            x = part(whole_batch(), split)
            mine, grad, own = statistic_and_gradient(stats, x, counts_over_ranks(x))
            compare(mine, value, tolerance, f"{name}, split at {split}")
            if grads.ndim:
                # Both ranks have the loss of the whole, so the gradient of their sum is twice that of one process.
                compare(grad, 2 * part(grads, split), max(tolerance, 1e-12), f"{name}, gradient, split at {split}")
            for a, b in zip(own, learned, strict=True):
                compare(a, b, ROUNDED, f"{name}, gradient of its parameter")


def check_equal_values_share_the_gradient_as_in_one_process():
    x = torch.tensor([[1.0, -3.0, 3.0], [0.5, 2.0, 3.0], [3.0, 0.0, -3.0]], dtype=torch.float64)
    for stats in (InputViewStats(OverTensorView(), AbsMax()), InputViewStats(OverTensorView(), AbsMinMax())):
        value, grads, _ = statistic_and_gradient(stats, x)
        mine = part(x, 1)
        found, grad, _ = statistic_and_gradient(stats, mine, counts_over_ranks(mine))
        assert torch.equal(found, value)
        compare(grad, 2 * part(grads, 1), 1e-15, "ties")
    rows = InputViewStats(OverOutputChannelView(), AbsMax(1), (3,), (1, 0))
    _, grads, _ = statistic_and_gradient(rows, x)
    mine = part(x, 1)
    _, grad, _ = statistic_and_gradient(rows, mine, counts_over_ranks(mine))
    assert torch.equal(grad, 2 * part(grads, 1)), "along a dimension the first one takes it"


def check_nan_infinity_and_half_precision():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for bad in (None, float("inf"), float("nan")):
            x = whole_batch(dtype)
            if bad is not None:
                x[5, 1, 1] = bad
            for stats, _, name in each_statistic():
                if bad is not None and name in ("MSE", "AbsAve", "MeanSigmaStd", "MeanLearnedSigmaStd"):
                    continue
                mine = part(x, 4)
                found = stats(mine, counts_over_ranks(mine))
                assert found.dtype == dtype, name
                tolerance = 2**-7 if name in ("AbsAve", "AbsMaxAve", "AbsMaxL2", "MSE") or "Sigma" in name else 0.0
                torch.testing.assert_close(found, stats(x, None), rtol=tolerance, atol=0.0, equal_nan=True, msg=name)


def check_scripted_statistics_are_those_of_eager_mode():
    for stats, _, name in each_statistic():
        x = part(whole_batch(), 6)
        counts = counts_over_ranks(x)
        value, grads, _ = statistic_and_gradient(stats, x, counts)
        scripted = torch.jit.script(copy.deepcopy(stats))
        found, grad, _ = statistic_and_gradient(stats, x, counts, lambda _, *a, s=scripted: s(*a))
        compare(found, value, ROUNDED, name)
        compare(grad, grads, ROUNDED, name)


def calls(module, batches, run=None):
    run = module if run is None else run
    out = []
    for batch in batches:
        out.append(run(batch).detach().clone())
    return out


def machines():
    yield "collect", ParameterFromRuntimeStatsScaling(3, AbsMax(), OverTensorView()).double()
    yield "samples", ParameterFromRuntimeStatsScaling(3, AbsMax(), OverBatchOverTensorView()).double()
    yield "percentile", ParameterFromRuntimeStatsScaling(2, AbsPercentile(90.0), OverTensorView()).double()
    yield (
        "true average",
        ParameterFromRuntimeStatsScaling(4, AbsMinMax(), OverTensorView(), scaling_stats_momentum=None).double(),
    )
    yield "running", RuntimeStatsScaling(AbsMax(), OverTensorView(), None, (), False).double()
    rows = (OverOutputChannelView(), (1, 4, 1))
    yield (
        "channels",
        ParameterFromRuntimeStatsScaling(2, AbsMax(1), rows[0], rows[1], scaling_stats_permute_dims=(1, 0, 2)).double(),
    )


def batches_and_parts():
    """Batches whose parts are equal, unequal, empty on one rank, and empty on both."""
    whole = [whole_batch() * (i + 1) for i in range(7)]
    whole[1] = whole[1][:0]
    splits = [4, 0, 6, 8, 0, 3, 4]
    return whole, [part(x, split) for x, split in zip(whole, splits, strict=True)]


def check_all_ranks_hold_the_state_of_one_process():
    whole, parts = batches_and_parts()
    for name, module in machines():
        twin = copy.deepcopy(module)
        with statistics_over(None):
            expected = calls(twin, whole)
        found = calls(module, parts)
        for step, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert torch.equal(a, b), (name, step, a, b)
        for key, value in twin.state_dict().items():
            assert torch.equal(module.state_dict()[key], value), (name, key)


def check_a_group_and_no_group():
    assert ranks() == 2
    alone = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    with statistics_over(alone):
        assert ranks() == 1
    with statistics_over(dist.group.WORLD):
        assert ranks() == 2
    set_statistics_group(None)
    module = ParameterFromRuntimeStatsScaling(2, AbsMax(), OverTensorView())
    assert module(torch.full((3,), 1.0 + dist.get_rank())).item() == 1.0 + dist.get_rank()
    set_statistics_group("default")
    assert ranks() == 2
    for bad in ("world", 3, [0, 1]):
        try:
            set_statistics_group(bad)
        except QuantConfigError as error:
            assert "no group of ranks" in str(error)
        else:
            raise AssertionError(bad)
    assert ranks() == 2


if __name__ == "__main__":
    main(dict(globals()))
