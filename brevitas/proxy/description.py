"""A quantizer in a few words, read from its modules: nothing is evaluated on a weight or an input.

>>> from brevitas.nn import QuantLinear
>>> QuantLinear(8, 4, weight_bit_width=3, weight_scaling_per_output_channel=True).weight_quant
Int8WeightPerTensorFloat(3 bits, signed, narrow, scale per channel from the weight)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from brevitas.core.bit_width import BitWidthParameter, MsbClampBitWidth
from brevitas.core.function_wrapper import Identity
from brevitas.core.quant import BinaryQuant, ClampedBinaryQuant, TernaryQuant
from brevitas.core.quant.float import FloatQuant
from brevitas.core.scaling import (
    ConstScaling,
    ParameterScaling,
    RuntimeDynamicGroupStatsScaling,
    RuntimeStatsScaling,
    StatsFromParameterScaling,
)
from brevitas.core.stats import CollectThenLearn, FollowThenLearn
from brevitas.core.zero_point import ParameterZeroPoint, StatsFromParameterZeroPoint

__all__ = ["bits_of", "granularity_of", "one_line", "phase_of"]


def _number(x: Any) -> str:
    """A one-element tensor as a short number; ``?`` where it has no data."""
    if not isinstance(x, Tensor) or x.is_meta or x.numel() != 1:
        return "?"
    return f"{x.detach().item():g}"


def bits_of(quantizer: nn.Module) -> tuple[str, str]:
    """The width and what is special about it: ``('8', '')``, ``('4', 'learned')``, ``('8', 'e4m3')`` for minifloats.

    ``('', '')`` where the width is that of the accumulator.
    """
    if isinstance(quantizer, BinaryQuant | ClampedBinaryQuant):
        return "1", ""
    if isinstance(quantizer, TernaryQuant):
        return "2", ""
    with torch.no_grad():
        if isinstance(quantizer, FloatQuant):
            exponent, mantissa = quantizer.exponent_bit_width_impl(), quantizer.mantissa_bit_width_impl()
            total = exponent + mantissa + float(quantizer.signed)
            return _number(total), f"e{_number(exponent)}m{_number(mantissa)}"
        width = getattr(quantizer, "msb_clamp_bit_width_impl", None)
        if width is None or isinstance(width, MsbClampBitWidth | Identity):
            return "", ""
        return _number(width()), "learned" if isinstance(width, BitWidthParameter) else ""


def granularity_of(quantizer: nn.Module) -> str:
    """``per tensor``, ``per channel``, ``per group of 32``; empty where the scale comes from elsewhere."""
    size = getattr(quantizer, "group_size", None)
    if size is not None:
        return f"per group of {size}"
    scaling = getattr(quantizer, "scaling_impl", None)
    if scaling is None:
        return ""
    return "per tensor" if math.prod(_shape_of(scaling)) == 1 else "per channel"


def _shape_of(scaling: Any) -> tuple[int, ...]:
    if isinstance(scaling, StatsFromParameterScaling):
        return tuple(scaling.parameter_list_stats.stats.stats_output_shape)
    if isinstance(scaling, RuntimeStatsScaling):
        return tuple(scaling.runtime_stats.running_stats.shape)
    if isinstance(scaling, ConstScaling):
        return tuple(scaling.value().shape)
    return tuple(getattr(scaling, "shape", ()))


def phase_of(module: Any, parameter: str = "parameter") -> str:
    """Where a scale, or a zero point, is from, and how far that has come."""
    if isinstance(module, CollectThenLearn):
        collecting = f"collecting {_number(module.counter)}/{module.collect_stats_steps}"
        return "learned" if _is_true(module.initialised) else collecting
    if isinstance(module, FollowThenLearn):
        return "learned" if _is_true(module.initialised) else f"from the {parameter}, then learned"
    if isinstance(module, ParameterScaling | ParameterZeroPoint):
        return "learned"
    if isinstance(module, StatsFromParameterScaling | StatsFromParameterZeroPoint):
        return f"from the {parameter}"
    if isinstance(module, RuntimeStatsScaling):
        return f"running, {_number(module.runtime_stats.counter)} collected"
    if isinstance(module, RuntimeDynamicGroupStatsScaling):
        return "from each input"
    return "constant" if isinstance(module, ConstScaling) else ""


def _is_true(flag: Tensor) -> bool:
    return not flag.is_meta and bool(flag)


def one_line(proxy: Any) -> str:
    """Name of the declaration, bits, sign, scale, zero point, and what else is special."""
    name, quantizer = proxy.quant_injector.__name__, proxy._resolved_module()
    if quantizer is None:
        return f"{name}, off"
    bits, note = bits_of(quantizer)
    parts = [f"{bits} bit{'' if bits == '1' else 's'}" if bits else "bits of the accumulator"]
    parts[0] += f" {note}" if note else ""
    if proxy.is_signed is not None:
        parts.append("signed" if proxy.is_signed else "unsigned")
    if proxy.is_narrow_range and not proxy.is_minifloat:
        parts.append("narrow")
    parts.append(_scale(proxy, quantizer))
    if getattr(proxy.source, "shifted", False):
        zero_point = phase_of(getattr(quantizer, "zero_point_impl", None), _parameter(proxy))
        parts.append(f"zero point {zero_point}".rstrip())
    parts += _extras(proxy, quantizer)
    return f"{name}({', '.join(part for part in parts if part)})"


def _parameter(proxy: Any) -> str:
    return getattr(proxy, "parameter_name", "parameter")


def _scale(proxy: Any, quantizer: nn.Module) -> str:
    if proxy.role in ("trunc", "clamp"):
        return ""
    granularity = granularity_of(quantizer)
    if not granularity:
        return "scale of the accumulator"
    scaling = quantizer.scaling_impl
    phase = phase_of(scaling, _parameter(proxy))
    return f"scale {granularity} {phase}".rstrip() if phase or type(scaling).__name__ != "_NoScaling" else "scale 1"


def _extras(proxy: Any, quantizer: nn.Module) -> list[str]:
    extras = []
    rounding = proxy.rounding_mode
    if rounding not in (None, "ROUND"):
        extras.append(f"rounding {rounding}")
    left = [_number(m.steps_left) for m in quantizer.modules() if "steps_left" in m._buffers]
    if left and left[0] != "0":
        extras.append(f"delayed for {left[0]} more steps")
    if len(proxy.tracked_module_list) > 1:
        extras.append(f"shared by {len(proxy.tracked_module_list)} layers")
    return extras
