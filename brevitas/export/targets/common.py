"""Rules that every target over quantizer nodes shares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from brevitas.export import graph as g
from brevitas.export.minifloat import FLOAT_QUANT, FloatQuantizer, float_quantizers
from brevitas.export.violations import Violation

if TYPE_CHECKING:
    import onnx_ir as ir

# The Quant operator's name of a rounding mode, and ours.
SPOKEN = {"DOWN": "ROUND_TO_ZERO"}

__all__ = ["at", "common_violations", "input_violations"]

_STANDARD = ("", "ai.onnx", g.DOMAIN)


def at(q: g.Quantizer | FloatQuantizer, code: str, target: str, found: str, required: str, fix: str) -> Violation:
    """A violation by one quantizer."""
    return Violation(
        code,
        target,
        f"{found} in {q.name.rpartition('.')[2] or 'the quantizer'}",
        required,
        fix,
        layer=q.layer,
        layer_class=q.layer_class,
        quantizer=q.name,
    )


def common_violations(model: ir.Model, target: str, minifloats: bool = False) -> Iterator[Violation]:
    """Operators and quantizers that no target can take as they are, and W30.

    ``minifloats``: whether the target takes some of them, and says itself which it refuses.
    """
    known = (*g.KINDS, FLOAT_QUANT)
    for node in model.graph:
        if node.domain not in _STANDARD or (node.domain == g.DOMAIN and node.op_type not in known):
            yield Violation(
                "E04",
                target,
                f"operator {node.domain}::{node.op_type}",
                f"standard ONNX operators and {', '.join(g.KINDS)}",
                f"register a rewrite for {node.op_type}, or replace the layer",
                layer=g.meta(node, g.LAYER),
                layer_class=g.meta(node, g.CLASS),
            )
    for q in g.quantizers(model):
        unsupported = g.meta(q.node, g.UNSUPPORTED)
        if unsupported:
            yield at(
                q,
                "E24",
                target,
                f"a quantizer that computes {unsupported}",
                "uniform integer quantization",
                "use an integer preset of brevitas.quant",
            )
        elif q.signed and q.bits == 1 and not q.is_bipolar:
            yield at(
                q,
                "E10",
                target,
                "a signed bit width of 1, whose codes are -1 and 0",
                "2 bits or more, or binary quantization",
                "set bit_width to 2 or more",
            )
        if g.meta(q.node, g.COLLECTED) == "0":
            yield _never_collected(q, target)
    for f in float_quantizers(model):
        unsupported = g.meta(f.node, g.UNSUPPORTED)
        if unsupported:
            yield at(
                f,
                "E26" if "groups" in unsupported else "E24",
                target,
                f"minifloats with {unsupported}" if "groups" in unsupported else unsupported,
                "signed minifloats with one scale, or one a channel",
                "use a preset ...PerTensorFloat or ...PerChannelFloat of brevitas.quant",
            )
        elif not minifloats:
            yield at(
                f,
                "E24",
                target,
                "minifloat values",
                "integer quantization",
                "use an integer preset of brevitas.quant",
            )
        if g.meta(f.node, g.COLLECTED) == "0":
            yield _never_collected(f, target)


def _never_collected(q: g.Quantizer | FloatQuantizer, target: str) -> Violation:
    return at(
        q,
        "W30",
        target,
        "runtime statistics that were never collected (the threshold is the initial 1)",
        "collected statistics",
        "run training or calibration first",
    )


def input_violations(model: ir.Model, target: str) -> list[Violation]:
    """QuantTensors that a graph of 8-bit integers cannot take."""
    return [
        Violation(
            "E03",
            target,
            f"a QuantTensor with {fields}",
            "at most 8 bits and one scale",
            "give the model the float values",
            place=f"model input {i}",
        )
        for i, fields in enumerate(g.quant_tensor_records(model, g.INPUTS))
        if fields is not None and (fields["bit_width"] > 8 or np.asarray(fields["scale"]).size != 1)
    ]
