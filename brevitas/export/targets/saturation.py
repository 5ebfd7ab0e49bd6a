"""W32: products of 8-bit codes that saturate in the readers' fastest kernels.

Without VNNI, x86 CPUs multiply unsigned bytes by signed ones with an instruction that adds two neighbouring products in
16 bits and saturates (``vpmaddubsw``). Which products are neighbours is a matter of the kernel's layout, so any two of
one sum count. The file is right; the reader must be told to be exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from brevitas.export.lowering.fused import Fused, find_fused
from brevitas.export.lowering.integer import quantize_inputs
from brevitas.export.violations import Violation

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["REMEDIES", "greatest_pair", "saturation_warnings"]

INT16 = np.iinfo(np.int16)
#: What to do, for each target whose readers have such kernels.
REMEDIES = {
    "qdq": "run it in onnxruntime with session.x64quantprecision='1', in OpenVINO with LP_TRANSFORMS_MODE='NO', "
    "or set weight_bit_width=7",
    "qop": "run it in onnxruntime with session.x64quantprecision='1', or set weight_bit_width=7",
    "torch": "set torch.backends.quantized.engine='qnnpack' where it runs, or bit_width=7 of the activations",
}


def greatest_pair(weights: np.ndarray, most: int) -> int:
    """The sum of two products of the greatest magnitude: rows of weights times data from 0 to ``most``.

    >>> greatest_pair(np.array([[127, -3, 127], [-128, 5, 0]]), 255)
    64770
    """
    ends = np.sort(weights, axis=1)
    high = np.maximum(ends[:, -2:], 0).sum(axis=1).max() * most
    low = np.minimum(ends[:, :2], 0).sum(axis=1).min() * most
    return int(high if high >= -low else low)


def saturation_warnings(model: ir.Model, target: str) -> list[Violation]:
    """One warning that names every layer whose products can saturate, or none."""
    if target not in REMEDIES:
        return []
    copy = model.clone()
    quantize_inputs(copy)
    layers: dict[str, int] = {}
    for fused in find_fused(copy):
        reached = _reached(fused)
        if reached is not None and not INT16.min <= reached <= INT16.max:
            q = fused.weight.quantizer
            name = f"{q.layer_class} '{q.layer}'"
            layers[name] = max(layers.get(name, 0), reached, key=abs)
    if not layers:
        return []
    most = max(layers.values(), key=abs)
    return [
        Violation(
            "W32",
            target,
            f"8-bit unsigned activations times 8-bit signed weights, two of whose products add up to {most}",
            f"{INT16.min} to {INT16.max} in default kernels of x86 CPUs without VNNI, which saturate",
            REMEDIES[target],
            place=", ".join(layers),
        )
    ]


def _reached(fused: Fused) -> int | None:
    """The greatest pair of products, ``None`` where the codes are of other types."""
    data, weight = fused.input, fused.weight.quantizer
    if data is None or data.signed or data.bits > 8 or not weight.signed or weight.bits > 8:
        return None
    codes = np.moveaxis(fused.weight.codes, fused.channel_dim, 0)
    return greatest_pair(codes.reshape(len(codes), -1), data.range[1])
