"""Parameters as ``torch.nn`` lays them out, and as gates hold them.

torch keeps the rows of all gates in one weight, and two biases that it adds. Here each gate has its own rows and one
bias, the sum; only the new gate of a GRU needs both, since there a product stands between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from brevitas.errors import QuantConfigError

__all__ = ["refuse_what_would_be_lost", "split", "torch_names", "torch_parameters"]

_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _suffixes(layer: Any) -> Iterator[tuple[int, str]]:
    """Index of each cell, and the end of torch's names for it."""
    directions = 2 if layer.bidirectional else 1
    for index in range(layer.num_layers * directions):
        yield index, f"_l{index // directions}{'_reverse' if index % directions else ''}"


def torch_names(layer: Any) -> list[str]:
    """The names that torch gives to the parameters of a layer of this form."""
    kinds = _KINDS if layer.bias else _KINDS[:2]
    return [kind + suffix for _, suffix in _suffixes(layer) for kind in kinds]


def split(layer: Any, flat: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The entries of a recurrent layer's own state dict that torch's parameters give, and the names that were used.

    Args:
        layer: a quantized recurrent layer.
        flat: parameters by torch's names; further entries are ignored, and what is absent gives nothing.

    Raises:
        QuantConfigError: the rows of a parameter are not those of the layer's gates.
    """
    result: dict[str, Tensor] = {}
    used: list[str] = []
    for index, suffix in _suffixes(layer):
        cell_type = type(layer.layers[index])
        names = list(cell_type.gate_names)
        for kind, part in (("weight_ih", "input"), ("weight_hh", "hidden")):
            weight = flat.get(kind + suffix)
            if weight is not None:
                used.append(kind + suffix)
                rows = _rows(weight, names, kind + suffix)
                result.update({f"layers.{index}.{name}.{part}.weight": row for name, row in rows.items()})
        biases = {name: flat[name] for name in ("bias_ih" + suffix, "bias_hh" + suffix) if name in flat}
        if layer.bias and len(biases) == 2:
            used += biases
            ours, theirs = (_rows(bias, names, torch_name) for torch_name, bias in biases.items())
            for name in names:
                key = f"layers.{index}.{name}"
                if name == cell_type.split_gate:
                    result[f"{key}.bias"], result[f"{key}.hidden.bias"] = ours[name], theirs[name]
                else:
                    result[f"{key}.bias"] = _sum(ours[name], theirs[name])
    return result, used


def _rows(tensor: Tensor, names: list[str], torch_name: str) -> dict[str, Tensor]:
    if tensor.ndim == 0 or tensor.shape[0] % len(names):
        raise QuantConfigError(
            f"{torch_name} has shape {tuple(tensor.shape)}; expected the rows of {len(names)} gates "
            f"({', '.join(names)}), one after the other"
        )
    return dict(zip(names, tensor.chunk(len(names)), strict=True))


def _sum(a: Tensor, b: Tensor) -> Tensor:
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(wide) + b.to(wide)


def refuse_what_would_be_lost(layer: Any, entries: Mapping[str, Tensor]) -> None:
    """Raise :class:`QuantConfigError` where a layer has no place for an entry of ``split``, or one place for two."""
    modules = dict(layer.named_modules(remove_duplicate=False))
    lost = next((key for key in entries if key.rpartition(".")[0] not in modules), None)
    if lost is not None:
        raise QuantConfigError(
            f"there is no place for '{lost}': {type(layer).__name__} has coupled_input_forget_gates=True, so that its "
            "forget gate is 1 minus the input gate"
        )
    first: dict[int, str] = {}
    for key, tensor in entries.items():
        owner = modules[key.rpartition(".")[0]]
        other = first.setdefault(id(getattr(owner, key.rpartition(".")[2])), key)
        if other != key and not (tensor.is_meta or torch.equal(tensor, entries[other])):
            raise QuantConfigError(
                f"'{other}' and '{key}' are one parameter (shared_input_hidden_weights=True), and the weights for it "
                "differ"
            )


def torch_parameters(layer: Any) -> dict[str, Tensor]:
    """Detached parameters in torch's layout: ``bias_hh`` is zero where both biases were added.

    Raises:
        QuantConfigError: the gates are coupled, which torch's layer cannot express.
    """
    result: dict[str, Tensor] = {}
    for index, suffix in _suffixes(layer):
        cell = layer.layers[index]
        missing = [name for name in cell.gate_names if not hasattr(cell, name)]
        if missing:
            raise QuantConfigError(
                f"{type(layer).__name__} has coupled_input_forget_gates=True, which no layer of torch.nn can express"
            )
        gates = [getattr(cell, name) for name in cell.gate_names]
        result["weight_ih" + suffix] = torch.cat([gate.input.weight.detach() for gate in gates])
        result["weight_hh" + suffix] = torch.cat([gate.hidden.weight.detach() for gate in gates])
        if layer.bias:
            result["bias_ih" + suffix] = torch.cat([gate.bias.detach() for gate in gates])
            result["bias_hh" + suffix] = torch.cat(
                [torch.zeros_like(g.bias) if g.hidden.bias is None else g.hidden.bias.detach() for g in gates]
            )
    return result
