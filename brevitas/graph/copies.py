"""Copies of models and inputs to try things on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from brevitas.quant_tensor import QuantTensor

__all__ = ["call", "is_quantizer", "moved_apart", "outer_modules", "private_copy", "uncompiled"]


def is_quantizer(module: nn.Module) -> bool:
    """Whether a module is a quantizer proxy, or satisfies one of the proxy protocols."""
    return hasattr(module, "is_quant_enabled")


def outer_modules(model: nn.Module) -> dict[nn.Module, str]:
    """The modules of a model with their paths, quantizers among them but not what is inside of those."""
    found: dict[nn.Module, str] = {}
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        found[module] = name
        if is_quantizer(module):
            inside.append(f"{name}.")
    return found


def uncompiled(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` wrapped, any other module as it is."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


def private_copy(model: nn.Module, share_parameters: bool = False) -> nn.Module:
    """A copy in eval mode, without gradients: ours to change.

    With ``share_parameters``, those on the CPU are the same memory, which must not be written to; the copy then costs
    little, and a forward in eval mode writes to no parameter.
    """
    model = uncompiled(model)
    shared: dict[int, Any] = {}
    if share_parameters:
        own = [p for p in model.parameters() if type(p) is nn.Parameter and p.device.type == "cpu"]
        shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in own}
    copied = copy.deepcopy(model, shared).eval()
    for parameter in copied.parameters():
        if not is_lazy(parameter):
            parameter.requires_grad_(False)
    for module in copied.modules():
        if hasattr(module, "_warned"):  # that there are no statistics yet is no news here
            setattr(module, "_warned", True)  # noqa: B010
    return copied


def moved_apart(model: nn.Module, seed: int) -> nn.Module:
    """Change every learned, collected or tracked number of ``model``, each by a random amount of its own.

    Scales that still agree afterwards agree by construction: they belong to one quantizer, or are constants.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    with torch.no_grad():
        owned: set[Tensor] = set()
        for module in (m for m in model.modules() if is_quantizer(m)):
            state = [*module.named_parameters(), *module.named_buffers()]
            for name, tensor in state:
                collected = name.endswith("running_stats")
                if (
                    tensor in owned
                    or not tensor.is_floating_point()
                    or not (isinstance(tensor, nn.Parameter) or collected)
                ):
                    continue
                owned.add(tensor)
                # Large steps, since a scale may be restricted to powers of two; low ends are negative.
                low_end = collected and "zero_point_impl" in name
                tensor.mul_(drawn(1.0, 2.0)).add_(-drawn(0.1, 1.0) if low_end else drawn(0.1, 4.0))
        for parameter in model.parameters():
            if parameter not in owned and parameter.is_floating_point() and not is_lazy(parameter):
                parameter.mul_(drawn(0.2, 4.0))
    return model


def call(model: nn.Module, example: Any) -> Any:
    """Call a model on copies of one input, a tuple of positional ones, or a dict of named ones."""
    example = _cloned(example)
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple | list) else model(example)


def _cloned(tree: Any) -> Any:
    if isinstance(tree, Tensor | QuantTensor):
        return tree.detach().clone()
    if type(tree) in (list, tuple):
        return type(tree)(_cloned(each) for each in tree)
    return {key: _cloned(each) for key, each in tree.items()} if type(tree) is dict else tree
