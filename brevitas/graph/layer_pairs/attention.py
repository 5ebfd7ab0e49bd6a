"""Converters of attention; in quantized multi-head attention the projections are layers of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from brevitas.errors import QuantConfigError
from brevitas.graph.converters import register_converter
from brevitas.nn import QuantMultiheadAttention, QuantScaledDotProductAttention
from brevitas.proxy import BiasQuantProxyFromInjector, WeightQuantProxyFromInjector

_SEPARATE = ("q_proj", "k_proj", "v_proj")


def _by_torch_name(layer: nn.MultiheadAttention) -> dict[str, list[nn.Parameter]]:
    """The parameters under the names that they have in torch's layer, each the rows of one or of three."""
    parameters = dict(layer.named_parameters())
    if not isinstance(layer, QuantMultiheadAttention):
        return {name: [parameter] for name, parameter in parameters.items()}
    found: dict[str, list[Any]] = {
        name: [parameters[name]] for name in ("bias_k", "bias_v", "out_proj.weight") if name in parameters
    }
    if layer.out_proj.bias is not None:
        found["out_proj.bias"] = [layer.out_proj.bias]
    projections = [layer.in_proj] if layer.packed_in_proj else [layer.q_proj, layer.k_proj, layer.v_proj]
    if layer.kdim == layer.vdim == layer.embed_dim:
        found["in_proj_weight"] = [projection.weight for projection in projections]
    else:
        found |= {f"{name}_weight": [layer.get_submodule(name).weight] for name in _SEPARATE}
    if projections[0].bias is not None:
        found["in_proj_bias"] = [projection.bias for projection in projections]
    return found


def _transfer(source: Any, new: Any) -> None:
    """Copy the parameters of one layout into the other; frozen ones stay frozen."""
    both = isinstance(source, QuantMultiheadAttention) and isinstance(new, QuantMultiheadAttention)
    if both and source.packed_in_proj != new.packed_in_proj:
        raise QuantConfigError(
            f"packed_in_proj = {source.packed_in_proj} cannot change: the quantizers belong to the projections. Apply "
            "the rule to the float layer, or build the layer anew"
        )
    theirs, ours = _by_torch_name(source), _by_torch_name(new)
    for name in sorted(theirs.keys() ^ ours.keys()):
        raise QuantConfigError(
            f"'{name}' of a {type(source if name in theirs else new).__name__} has no counterpart in a "
            f"{type(new if name in theirs else source).__name__}; keep the layer in float"
        )
    with torch.no_grad():
        for name, given in theirs.items():
            taken = ours[name]
            rows = torch.cat(list(given)) if len(given) > 1 else given[0]
            for parameter, part in zip(taken, rows.chunk(len(taken)), strict=True):
                parameter.copy_(part)
                parameter.requires_grad_(any(each.requires_grad for each in given))
    for proxy in new.modules():
        if isinstance(proxy, WeightQuantProxyFromInjector | BiasQuantProxyFromInjector):
            proxy.init_tensor_quant()


@register_converter(nn.MultiheadAttention, QuantMultiheadAttention, transfer=_transfer, parts=("out_proj",))
def _attention(layer: Any) -> dict[str, Any]:
    names = ("embed_dim", "num_heads", "dropout", "add_zero_attn", "kdim", "vdim", "batch_first")
    arguments = {name: getattr(layer, name) for name in names}
    if not layer.kdim == layer.vdim == layer.embed_dim:
        arguments["packed_in_proj"] = False
    return arguments | {"bias": layer.out_proj.bias is not None, "add_bias_kv": layer.bias_k is not None}


# Without a module in torch it is its own float form.
@register_converter(QuantScaledDotProductAttention, QuantScaledDotProductAttention)
def _core(layer: Any) -> dict[str, Any]:
    return {}
