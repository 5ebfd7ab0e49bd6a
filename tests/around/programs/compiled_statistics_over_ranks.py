"""Statistics over ranks inside compiled code."""

import copy

import torch
import torch._dynamo.testing
from ranks import main
from statistics_over_ranks import Median, batches_and_parts, calls, machines, part, whole_batch
from torch import distributed as dist

from brevitas.core.function_wrapper import OverTensorView
from brevitas.core.scaling import ParameterFromRuntimeStatsScaling
from brevitas.core.stats import AbsAve, AbsMax, AbsPercentile, MeanSigmaStd
from brevitas.function.ranks import statistics_over


def compiled_like_one_process(name, module, whole, parts, backend):
    """Run compiled on ranks and eagerly alone; how often code was compiled again after the first step."""
    torch._dynamo.reset()
    twin = copy.deepcopy(module)
    with statistics_over(None):
        expected = calls(twin, whole)
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    found = calls(module, parts[:1], compiled)
    first = counter.frame_count
    found += calls(module, parts[1:], compiled)
    for step, (a, b) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0.0, msg=f"{name}, {backend}, step {step}: {a} {b}")
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(module.state_dict()[key], value, rtol=1e-12, atol=0.0, msg=f"{name} {key}")
    return counter.frame_count - first


def check_compiled_as_a_whole_without_recompilation():
    whole = [whole_batch() * (i + 1) for i in range(6)]
    parts = [part(x, 6) for x in whole]
    for name, module in machines():
        for backend in ("eager", "inductor") if name in ("collect", "running") else ("eager",):
            again = compiled_like_one_process(name, copy.deepcopy(module), whole, parts, backend)
            assert again == 0, (name, backend, again)


def check_compiled_with_parts_of_all_sizes():
    whole, parts = batches_and_parts()
    for name, module in machines():
        if name in ("collect", "percentile"):
            compiled_like_one_process(name, module, whole, parts, "aot_eager")


def check_a_compiled_statistic_has_the_gradient_of_eager_mode():
    torch._dynamo.reset()
    for statistic in (AbsMax(), AbsPercentile(90.0), AbsAve(), MeanSigmaStd(None, 2.0)):
        module = ParameterFromRuntimeStatsScaling(1, statistic, OverTensorView()).double()
        twin, x = copy.deepcopy(module), part(whole_batch(), 4)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        module(a).sum().backward()
        torch.compile(twin, fullgraph=True, backend="aot_eager")(b).sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=0.0)
        total = torch.tensor(float(a.grad.count_nonzero()))
        dist.all_reduce(total)
        assert total > 0


def check_what_a_compiler_cannot_gather_is_refused():
    torch._dynamo.reset()
    module = ParameterFromRuntimeStatsScaling(2, Median(), OverTensorView())
    try:
        torch.compile(module, fullgraph=True, backend="eager")(torch.randn(4))
    except Exception as error:
        assert "gathers the whole batch" in str(error), error
    else:
        raise AssertionError("was not refused")


if __name__ == "__main__":
    main({name: value for name, value in globals().items() if name.startswith("check_")})
