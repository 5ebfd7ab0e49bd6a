"""Running a module of the catalogue and collecting everything that a caller can observe."""

from collections.abc import Callable

import torch
from core_catalogue import Case
from torch import Tensor, nn

Observed = dict[str, Tensor]


def steps_of(
    case: Case, module: nn.Module, call: Callable[..., object] | None = None, steps: int = 5
) -> list[Observed]:
    """Training calls with gradients, then an eval call: outputs, gradients and state after each.

    ``call`` runs instead of the module, e.g. a compiled form of it.
    """
    run = module if call is None else call
    return [_observe(case, module, run, step, training=step < steps - 1) for step in range(steps)]


def _observe(case: Case, module: nn.Module, run: Callable[..., object], step: int, training: bool) -> Observed:
    target = run if isinstance(run, nn.Module) else module
    target.train(training)
    module.train(training)
    inputs = [(x * (1.0 + 0.5 * step) if x.ndim else x.clone()).requires_grad_() for x in case.inputs()]
    module.zero_grad(set_to_none=True)
    outputs = run(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    seen: Observed = {f"out{i}": o.detach().clone() for i, o in enumerate(outputs)}
    loss = sum((o * torch.linspace(0.3, 1.7, o.numel(), dtype=o.dtype).view(o.shape)).sum() for o in outputs)
    if isinstance(loss, Tensor) and loss.requires_grad:
        loss.backward()
    for i, x in enumerate(inputs):
        seen[f"grad_in{i}"] = torch.zeros_like(x) if x.grad is None else x.grad.clone()
    for name, parameter in module.named_parameters():
        seen[f"grad_{name}"] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
    for name, value in module.state_dict().items():
        seen[f"state_{name}"] = value.clone()
    return seen
