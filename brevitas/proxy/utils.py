"""State dicts of other declarations."""

from __future__ import annotations

from typing import Any

from torch import nn

from brevitas.core.restrict_val import RestrictedThreshold
from brevitas.core.scaling.standalone import adopt_runtime_stats

__all__ = ["ConvertRuntimeStatsToParameter"]


class ConvertRuntimeStatsToParameter:
    """Makes of the running statistics of an activation quantizer the value of one that learns its scale.

    >>> import torch
    >>> state = {"relu.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.runtime_stats.running_stats":
    ...          torch.tensor(4.0)}
    >>> ConvertRuntimeStatsToParameter()("relu.act_quant.", state)
    >>> state
    {'relu.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.value': tensor(4.)}

    ``load_state_dict`` does the same by itself.

    Args:
        restrict_scaling_impl: domain in which the scale is learned; ``None`` = any float.
        scaling_min_val: lower bound of the threshold; ``None`` = 1e-10.
    """

    scaling_impl_postfix = "fused_activation_quant_proxy.tensor_quant.scaling_impl."

    def __init__(self, restrict_scaling_impl: nn.Module | None = None, scaling_min_val: float | None = None) -> None:
        self.threshold = RestrictedThreshold(restrict_scaling_impl, scaling_min_val)

    def __call__(self, prefix: str, state_dict: dict[str, Any]) -> None:
        """Change the entries of the activation quantizer at ``prefix``, which ends with a dot, in place."""
        adopt_runtime_stats(state_dict, prefix + self.scaling_impl_postfix, self.threshold)
