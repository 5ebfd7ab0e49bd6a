"""What the DPU targets share: rules and lowering of the PyXIR dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from brevitas.export import graph as g
from brevitas.export.lowering.dpu import FixedPointGraph, position_of
from brevitas.export.lowering.integer import quantize_inputs
from brevitas.export.minifloat import float_quantizers
from brevitas.export.targets import Target
from brevitas.export.targets.common import SPOKEN, at, common_violations
from brevitas.export.violations import Violation

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["dpu_target"]

FIXED_POINT = "use the FixedPoint presets: Int8WeightPerTensorFixedPoint, Int8ActPerTensorFixedPoint, ..."


def dpu_target(key: str, title: str, pads_are_nodes: bool) -> Target:
    """A target in the PyXIR dialect."""

    def check(model: ir.Model, options: Mapping[str, Any]) -> list[Violation]:
        found = list(common_violations(model, key))
        if next(float_quantizers(model), None) is not None:
            return found  # refused; what is below reads integer grids
        copy = model.clone()
        quantize_inputs(copy)
        graph = FixedPointGraph(copy, pads_are_nodes)
        skipped = {node.name for node in graph.truncations()}
        for q in g.quantizers(copy):
            if not g.meta(q.node, g.UNSUPPORTED):
                found.extend(_quantizer_violations(q, key, q.node.name in skipped))

        def report(code: str, node: ir.Node, what: str, required: str, fix: str) -> None:
            layer, cls = g.meta(node, g.LAYER), g.meta(node, g.CLASS)
            found.append(Violation(code, key, what, required, fix, layer=layer, layer_class=cls))

        graph.check(report)
        found.extend(_input_violations(copy, key, graph))
        return found

    def lower(model: ir.Model, options: Mapping[str, Any]) -> ir.Model:
        quantize_inputs(model)
        FixedPointGraph(model, pads_are_nodes).lower()
        return model

    return Target(key, title, check=check, lower=lower, runtime="")


def _input_violations(model: ir.Model, key: str, graph: FixedPointGraph) -> list[Violation]:
    """Inputs that some operator reads as 32-bit floats."""
    found = []
    for i, value in enumerate(model.graph.inputs):
        if any(value is v for o in graph.operators for v in o.node.inputs):
            what, required = "float32 values, of 32 bits", "values of at most 8 bits"
            fix = "put a QuantIdentity(Int8ActPerTensorFixedPoint) first"
            found.append(Violation("E11", key, what, required, fix, place=f"model input {i}"))
    return found


def _quantizer_violations(q: g.Quantizer, key: str, replaced: bool) -> list[Violation]:
    found = []
    if q.is_bipolar:
        found.append(at(q, "E24", key, "binary codes, -1 and +1", "integer quantization", FIXED_POINT))
    if q.bits > 8:
        found.append(at(q, "E11", key, f"bit width {q.bits}", "1 to 8 bits", "set bit_width to 8 or less"))
    if q.scale.size != 1:
        what = f"a scale of shape {q.scale.shape}"
        found.append(at(q, "E12", key, what, "one scale per tensor", "use a PerTensor preset"))
    elif position_of(q.scale) is None and not replaced:
        scale = float(q.scale.reshape(-1)[0])
        lower = float(2.0 ** np.floor(np.log2(scale))) if scale > 0 else 0.0
        what = f"scale {scale:.9g}, between {lower:.9g} and {2 * lower:.9g},"
        found.append(at(q, "E14", key, what, "a power of two", FIXED_POINT))
    if q.rounding not in ("ROUND", "DPURoundSte") and not q.is_parameter and q.kind != "Trunc":
        what = f"rounding {SPOKEN.get(q.rounding, q.rounding)}"
        found.append(at(q, "E27", key, what, "ROUND or DPU rounding", "set float_to_int_impl_type='round' or 'dpu'"))
    if np.any(q.zero_point):
        what = f"zero point {np.unique(q.zero_point).tolist()}"
        found.append(at(q, "E21", key, what, "0", "use a preset without zero point (not Shifted...)"))
    return found
