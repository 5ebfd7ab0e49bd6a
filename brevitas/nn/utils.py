"""Batch norm folding and names of state dicts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from brevitas.errors import QuantConfigError
from brevitas.proxy.quant_proxy import QuantProxyFromInjector

__all__ = [
    "compute_channel_view_shape",
    "init_scales",
    "merge_bn",
    "mul_add_from_bn",
    "rename_state_dict_by_postfix",
    "rename_state_dict_by_prefix",
]


def init_scales(model: nn.Module) -> list[str]:
    """Let every quantizer of ``model`` learn its scale from now on, from what it has collected so far.

    >>> import torch
    >>> from torch import nn
    >>> from brevitas.nn import QuantLinear, QuantReLU
    >>> model = nn.Sequential(QuantLinear(4, 4), QuantReLU())
    >>> init_scales(model)                    # nothing was collected yet
    ['1.act_quant']
    >>> y = model(torch.randn(2, 4)); init_scales(model)
    []

    Sharding (FSDP) needs this: see the page on training. Quantizers that learn already are left as they are.

    Returns:
        Names of the quantizers that have seen no data, and still collect.
    """
    unfinished: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, QuantProxyFromInjector):
            module.init_scale()
            if not module.is_learning():
                unfinished.append(name)
    return unfinished


def compute_channel_view_shape(tensor: Tensor, channel_dim: int) -> tuple[int, ...]:
    """Shape that broadcasts a vector along ``channel_dim`` of ``tensor``.

    >>> import torch
    >>> compute_channel_view_shape(torch.zeros(2, 3, 4), 1)
    (1, -1, 1)
    """
    shape = [1] * tensor.ndim
    shape[channel_dim] = -1
    return tuple(shape)


def mul_add_from_bn(
    bn_mean: Tensor, bn_var: Tensor, bn_eps: float, bn_weight: Tensor | None, bn_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Factor and summand by which a batch norm acts in eval mode: y = x * factor + summand.

    >>> import torch
    >>> mul_add_from_bn(torch.tensor([1.0]), torch.tensor([4.0]), 0.0, torch.tensor([6.0]), torch.tensor([2.0]))
    (tensor([3.]), tensor([-1.]))
    """
    factor = torch.rsqrt(bn_var + bn_eps)
    if bn_weight is not None:
        factor = factor * bn_weight
    summand = -bn_mean * factor
    if bn_bias is not None:
        summand = summand + bn_bias
    return factor, summand


def merge_bn(layer: Any, bn: Any, output_channel_dim: int = 0) -> None:
    """Fold the batch norm ``bn`` that follows ``layer`` into its weight and bias, in place.

    >>> import torch
    >>> from torch import nn
    >>> conv, bn, x = nn.Conv2d(2, 3, 1).eval(), nn.BatchNorm2d(3).eval(), torch.randn(1, 2, 4, 4)
    >>> bn.running_mean.uniform_(); bn.running_var.uniform_(1, 2); y = bn(conv(x))
    tensor(...)
    tensor(...)
    >>> merge_bn(conv, bn); bool(torch.allclose(conv(x), y, atol=1e-5))
    True

    The layer then equals layer and batch norm in eval mode. A missing bias is created.

    Args:
        layer: convolution, transposed convolution or linear layer.
        bn: batch norm over the layer's output channels.
        output_channel_dim: dim of the weight that runs over the output channels, 1 for transposed layers.

    Raises:
        QuantConfigError: ``bn`` has no running statistics, or another number of channels; nothing is changed then.
    """
    if not isinstance(bn, nn.modules.batchnorm._BatchNorm):
        raise QuantConfigError(f"merge_bn: expected a batch norm to merge, got {type(bn).__name__}")
    if bn.running_mean is None or bn.running_var is None:
        raise QuantConfigError(
            f"{type(bn).__name__} has no running statistics (track_running_stats=False), so in eval mode it is no "
            "fixed factor that "
            "could be merged"
        )
    weight = layer.weight
    groups = getattr(layer, "groups", 1) if output_channel_dim == 1 else 1
    channels = weight.shape[output_channel_dim] * groups
    if bn.num_features != channels:
        raise QuantConfigError(
            f"{type(bn).__name__} has {bn.num_features} features, and {type(layer).__name__} has {channels} output "
            "channels"
        )
    factor, summand = mul_add_from_bn(bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)
    with torch.no_grad():
        if groups > 1:
            # A transposed weight is laid out (in, out / groups, ...): block g of dim 0 belongs to group g.
            grouped = weight.view(groups, weight.shape[0] // groups, *weight.shape[1:])
            shape = (groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
            grouped.mul_(factor.view(shape))
        else:
            weight.mul_(factor.view(compute_channel_view_shape(weight, output_channel_dim)))
        if layer.bias is None:
            layer.bias = nn.Parameter(summand.to(weight.dtype).clone())
        else:
            layer.bias.mul_(factor).add_(summand)
    for proxy in (getattr(layer, "weight_quant", None), getattr(layer, "bias_quant", None)):
        if proxy is not None and hasattr(proxy, "init_tensor_quant"):
            proxy.init_tensor_quant()


def rename_state_dict_by_prefix(old_prefix: str, new_prefix: str, state_dict: dict[str, Any]) -> None:
    """Rename, in place, every key that starts with ``old_prefix``.

    >>> d = {'features.0.weight': 1}
    >>> rename_state_dict_by_prefix('features.', 'body.', d); d
    {'body.0.weight': 1}
    """
    for key in [k for k in state_dict if k.startswith(old_prefix)]:
        state_dict[new_prefix + key[len(old_prefix) :]] = state_dict.pop(key)


def rename_state_dict_by_postfix(old_postfix: str, new_postfix: str, state_dict: dict[str, Any]) -> None:
    """Rename, in place, every key that ends with ``old_postfix``.

    >>> d = {'conv.learned_value': 1}
    >>> rename_state_dict_by_postfix('learned_value', 'value', d); d
    {'conv.value': 1}
    """
    for key in [k for k in state_dict if k.endswith(old_postfix)]:
        state_dict[key[: len(key) - len(old_postfix)] + new_postfix] = state_dict.pop(key)
