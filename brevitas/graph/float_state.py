"""Load the state dict of a float model into a quantized one, and say what became of every entry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from brevitas.errors import QuantConfigError, StateDictError
from brevitas.proxy import BiasQuantProxyFromInjector, WeightQuantProxyFromInjector
from injector import suggest

__all__ = ["FloatStateReport", "load_float_state_dict"]


@dataclass(frozen=True)
class FloatStateReport:
    """What :func:`load_float_state_dict` did.

    Attributes:
        model_class: class of the model.
        matched: entries of the state dict, all of which were loaded.
        initialised: keys of quantizers that were computed from the loaded weights and biases.
        left: keys of quantizers that stay as they are, with the reason.
    """

    model_class: str
    matched: tuple[str, ...]
    initialised: tuple[str, ...]
    left: Mapping[str, str]

    def __str__(self) -> str:
        left: dict[str, list[str]] = {}
        for key, reason in self.left.items():
            left.setdefault(f"{_quantizer_in(key)}, {reason}", []).append(key)
        started = dict.fromkeys(_quantizer_in(key) for key in self.initialised)
        lines = [
            f"{self.model_class}: {len(self.matched)} entries matched, {len(self.initialised)} values initialised, "
            f"{len(self.left)} left",
            *(f"  matched      {key}" for key in self.matched),
            *(f"  initialised  {quantizer}, from what was loaded" for quantizer in started),
            *(f"  left         {quantizer}" for quantizer in left),
        ]
        return "\n".join(lines)


def _quantizer_in(key: str) -> str:
    """The path of the quantizer that a key belongs to: up to the part that ends with ``_quant``."""
    parts = key.split(".")
    at = next((n for n, part in enumerate(parts) if part.endswith("_quant")), len(parts) - 2)
    return ".".join(parts[: at + 1])


def load_float_state_dict(model: nn.Module, state_dict: Mapping[str, Any]) -> FloatStateReport:
    """Load a checkpoint of the float model into ``model``, whose quantizers start from the loaded weights.

    >>> from torch import nn
    >>> from brevitas.graph import load_float_state_dict
    >>> from brevitas.nn import QuantLinear, QuantReLU
    >>> trained = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
    >>> model = nn.Sequential(QuantLinear(4, 2, weight_scaling_impl_type='parameter_from_stats'), QuantReLU())
    >>> print(load_float_state_dict(model, trained.state_dict()))
    Sequential: 2 entries matched, 2 values initialised, 4 left
      matched      0.weight
      matched      0.bias
      initialised  0.weight_quant, from what was loaded
      left         1.act_quant, to be collected in training

    Strict about everything that ``torch.nn`` owns: an entry that the model does not have, or a weight that the state
    dict does not have, is an error, with the nearest names. Quantizers of weights and biases start anew; those of
    activations stay as they are. Entries of quantizers are loaded if there are any.

    Args:
        model: the quantized model, changed in place; its parameters stay the same objects.
        state_dict: name -> tensor, as ``torch.load(file)`` and ``float_model.state_dict()`` give it. Not changed.

    Raises:
        StateDictError: the state dict does not fit. Nothing was changed then.
        QuantConfigError: an argument of another type.
    """
    if not isinstance(model, nn.Module):
        raise QuantConfigError(f"load_float_state_dict: expected a torch.nn.Module, got {model!r}")
    _check_mapping(state_dict)
    owned = _owned_by_quantizers(model)
    restore = _snapshot(model)
    try:
        try:
            result = model.load_state_dict(state_dict, strict=False)
        except RuntimeError as error:
            raise StateDictError(_header(model) + "".join(f"\n  {line}" for line in _torch_lines(error))) from error
        missing = [key for key in result.missing_keys if not key.startswith(owned)]
        if missing or result.unexpected_keys:
            raise StateDictError(_misfit(model, state_dict, missing, result.unexpected_keys))
    except StateDictError:
        restore()
        raise
    absent = [key for key in result.missing_keys if key.startswith(owned)]
    initialised = _restart(model, absent)
    left = {key: _reason(model, key) for key in absent if key not in initialised}
    return FloatStateReport(type(model).__name__, tuple(state_dict), initialised, left)


def _check_mapping(state_dict: Any) -> None:
    if not isinstance(state_dict, Mapping):
        raise QuantConfigError(
            f"load_float_state_dict: expected a state dict, name -> tensor, got {type(state_dict).__name__}"
        )
    nested = [key for key, value in state_dict.items() if isinstance(value, Mapping)]
    if nested:
        raise QuantConfigError(
            f"load_float_state_dict: {', '.join(repr(key) for key in nested)} of the state dict is a dict itself; pass "
            f"checkpoint[{nested[0]!r}]"
        )


def _owned_by_quantizers(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the keys that quantizers own, under every name that they have."""
    return tuple(
        f"{name}." if name else ""
        for name, module in model.named_modules(remove_duplicate=False)
        if hasattr(module, "is_quant_enabled")
    )


def _snapshot(model: nn.Module) -> Callable[[], None]:
    """A function that puts every parameter and buffer back, as object and as value."""
    kept = [
        (owner, name, tensor, tensor.detach().clone())
        for module in model.modules()
        for owner in (module._parameters, module._buffers)
        for name, tensor in owner.items()
        if tensor is not None
    ]

    def restore() -> None:
        with torch.no_grad():
            for owner, name, tensor, value in kept:
                owner[name] = tensor  # type: ignore[assignment]
                tensor.copy_(value)

    return restore


def _restart(model: nn.Module, absent: list[str]) -> tuple[str, ...]:
    """Let quantizers of parameters of which the state dict has nothing begin from the parameters; their keys."""
    missing = set(absent)
    started: list[str] = []
    done: set[nn.Module] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, WeightQuantProxyFromInjector | BiasQuantProxyFromInjector):
            continue
        keys = [f"{name}.{key}" if name else key for key in module.state_dict()]
        if keys and missing.issuperset(keys):
            if module not in done:
                module.restart()
            done.add(module)
            started += keys
    return tuple(started)


def _reason(model: nn.Module, key: str) -> str:
    """Why a quantizer's value is not touched."""
    owner = model.get_submodule(key.rpartition(".")[0])
    flag = owner._buffers.get("initialised")
    if flag is None:
        return "as it was"
    return "as collected or learned before" if bool(flag) else "to be collected in training"


# --- Messages --------------------------------------------------------------------------------------------------------


def _header(model: nn.Module) -> str:
    return f"load_float_state_dict: the state dict does not fit {type(model).__name__}; nothing was changed."


def _torch_lines(error: Exception) -> Iterator[str]:
    """The lines of torch's message below its title."""
    yield from (line.strip() for line in str(error).splitlines()[1:] if line.strip())


def _misfit(model: nn.Module, state_dict: Mapping[str, Tensor], missing: list[str], unexpected: list[str]) -> str:
    lines = [_header(model)]
    for key in missing:
        lines.append(f"  missing in the state dict: {key}{_nearest(key, unexpected or list(state_dict))}")
    for key in unexpected:
        lines.append(f"  not in the model: {key}{_nearest(key, missing or list(model.state_dict()))}")
    first = next(iter(state_dict), "").partition(".")[0]
    known = set(model.state_dict())
    if first and all(key.startswith(f"{first}.") and key.removeprefix(f"{first}.") in known for key in state_dict):
        lines.append(
            f"  Every name starts with '{first}.': remove it with torch.nn.modules.utils."
            f"consume_prefix_in_state_dict_if_present(state_dict, '{first}.')."
        )
    return "\n".join(lines)


def _nearest(key: str, names: list[str]) -> str:
    near = suggest(key, names)
    return f" (nearest: {', '.join(near)})" if near else ""
