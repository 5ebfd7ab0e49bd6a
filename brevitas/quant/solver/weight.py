"""Weight quantizers: directives to core modules."""

from __future__ import annotations

from typing import Any

import torch

from brevitas.core.groupwise import group_shape, repeat_over_groups
from brevitas.core.quant import BinaryQuant, RescalingIntQuant, TernaryQuant
from brevitas.core.quant.groupwise import GroupwiseRescalingIntQuant
from brevitas.core.rounding import LearnedRoundHardSigmoid, LearnedRoundIdentity, LearnedRoundSigmoid
from brevitas.errors import QuantConfigError
from brevitas.inject import this, value
from brevitas.inject.enum import LearnedRoundImplType, QuantType
from brevitas.quant.registry import Choices
from brevitas.quant.solver.common import WEIGHT_ROUNDING, is_channel, is_group
from brevitas.quant.solver.parameter import ParameterQuantSolver, common_channels, layers_of

__all__ = ["WeightQuantSolver"]


TENSOR_QUANT = Choices(
    "quant_type",
    QuantType,
    {
        QuantType.FP: None,
        QuantType.INT: RescalingIntQuant,
        QuantType.BINARY: BinaryQuant,
        QuantType.TERNARY: TernaryQuant,
    },
    ("weight",),
)


LEARNED_ROUND = Choices(
    "learned_round_impl_type",
    LearnedRoundImplType,
    {
        LearnedRoundImplType.HARD_SIGMOID: LearnedRoundHardSigmoid,
        LearnedRoundImplType.SIGMOID: LearnedRoundSigmoid,
        LearnedRoundImplType.IDENTITY: LearnedRoundIdentity,
    },
    ("weight",),
)


def _check_channels_alike(module: Any) -> None:
    """One scale of one shape fits the weights of all layers that share it, or broadcasts over the wrong dims."""
    sorts = {(layer.weight.ndim, layer.output_channel_dim): type(layer).__name__ for layer in layers_of(module)}
    if len(sorts) > 1:
        found = " and ".join(f"{name} in dim {dim} of {ndim}" for (ndim, dim), name in sorted(sorts.items()))
        raise QuantConfigError(
            f"layers that keep their output channels in different dims of the weight ({found}) cannot share a "
            "per-channel scale; set scaling_per_output_channel=False, or give each its own quantizer"
        )


class WeightQuantSolver(ParameterQuantSolver):
    """Turns the directives of a weight quantizer into core modules.

    >>> from brevitas.quant import Int8WeightPerTensorFloat
    >>> from brevitas.quant.solver import WeightQuantSolver
    >>> issubclass(Int8WeightPerTensorFloat, WeightQuantSolver)
    True
    """

    _role = "weight"
    learned_round_impl_type: Any = LearnedRoundImplType.HARD_SIGMOID

    @value
    def tensor_quant(quant_type: Any) -> Any:
        return None if TENSOR_QUANT.name_of(quant_type) == QuantType.FP else this.scaled_tensor_quant

    @value
    def scaled_tensor_quant(quant_type: Any, scaling_per_output_type: Any) -> Any:
        if not is_group(scaling_per_output_type):
            return TENSOR_QUANT.solve(quant_type)
        if TENSOR_QUANT.name_of(quant_type) != QuantType.INT:
            raise QuantConfigError(
                f"scaling_per_output_type = GROUP needs integers, and quant_type is {TENSOR_QUANT.name_of(quant_type)}"
            )
        return GroupwiseRescalingIntQuant

    @value
    def float_to_int_impl(float_to_int_impl_type: Any) -> Any:
        return WEIGHT_ROUNDING.solve(float_to_int_impl_type)

    @value
    def learned_round_impl(learned_round_impl_type: Any) -> Any:
        return LEARNED_ROUND.solve(learned_round_impl_type)

    @value
    def learned_round_init(
        learned_round_impl: Any,
        scaling_impl: Any,
        int_scaling_impl: Any,
        bit_width_impl: Any,
        tracked_parameter_list: Any,
        scaling_per_output_type: Any,
        group_size: Any,
        group_dim: Any,
    ) -> Any:
        # Training reproduces the weight, eval rounds it to nearest. A zero point is an integer and changes no fraction.
        weight = tracked_parameter_list[0].detach()
        with torch.no_grad():
            scale = scaling_impl(weight) / int_scaling_impl(bit_width_impl())
            if is_group(scaling_per_output_type):
                scale = repeat_over_groups(scale, weight, group_size, group_dim)
            position = weight / scale
        return learned_round_impl.inverse(position - position.floor())

    @value
    def group_dim(module: Any) -> Any:
        # The input channels: in front where the output channels are not.
        return 1 if layers_of(module)[0].output_channel_dim == 0 else 0

    @value
    def permute_dims(module: Any) -> Any:
        layer = layers_of(module)[0]
        if layer.output_channel_dim == 0:
            return None
        dims = list(range(layer.weight.ndim))
        dims.insert(0, dims.pop(layer.output_channel_dim))
        return tuple(dims)

    @value
    def scaling_shape(scaling_per_output_type: Any) -> Any:
        if is_group(scaling_per_output_type):
            return this.group_scaling_shape
        return this.channel_scaling_shape if is_channel(scaling_per_output_type) else ()

    @value
    def channel_scaling_shape(module: Any) -> Any:
        layer = layers_of(module)[0]
        _check_channels_alike(module)
        shape = [1] * layer.weight.ndim
        # A transposed weight in groups holds there the channels of one group, which share their scales with the others.
        shape[layer.output_channel_dim] = common_channels(
            module, lambda each: each.weight.shape[each.output_channel_dim]
        )
        return tuple(shape)

    @value
    def group_scaling_shape(module: Any, group_size: Any, group_dim: Any) -> Any:
        layers = layers_of(module)
        if len(layers) > 1:
            raise QuantConfigError("a group-wise scale cannot be shared between layers; give each its own quantizer")
        if group_dim >= layers[0].weight.ndim:
            raise QuantConfigError(
                f"group_dim = {group_dim}: the weight of {type(layers[0]).__name__} has the shape "
                f"{tuple(layers[0].weight.shape)} and no such dim; use scaling_per_output_type = TENSOR or CHANNEL"
            )
        return tuple(group_shape(list(layers[0].weight.shape), group_size, group_dim))
