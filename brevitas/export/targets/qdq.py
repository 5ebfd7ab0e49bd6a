"""Target ``qdq``: standard ONNX with QuantizeLinear / DequantizeLinear around float operators.

weight       integer initializer -> DequantizeLinear
bias         int32 (own scale: int8 where it fits) initializer -> DequantizeLinear
activation   QuantizeLinear -> [Clip where the codes do not fill the storage type] -> DequantizeLinear
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from brevitas.export import graph as g
from brevitas.export.lowering.build import drop_unused_initializers
from brevitas.export.lowering.float8 import lower_float8
from brevitas.export.lowering.integer import (
    dequantize_parameter,
    grid_names,
    integer_input,
    quantize_dequantize,
    requantize_operands,
    smallest_type,
)
from brevitas.export.lowering.pattern import on_accumulator_grid
from brevitas.export.lowering.truncation import lower_truncation
from brevitas.export.minifloat import FloatQuantizer, float_quantizers
from brevitas.export.targets import Target
from brevitas.export.targets.common import SPOKEN, at, common_violations, input_violations
from brevitas.export.violations import Violation

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["TARGET", "check", "lower", "quantizer_violations"]

KEY = "qdq"
WIDE_OPSET = 21
FLOAT8_OPSET = 19


def check(model: ir.Model, options: Mapping[str, Any]) -> list[Violation]:
    """Rules of the target."""
    found = list(common_violations(model, KEY, minifloats=True))
    requested = options.get("opset_version")
    for f in float_quantizers(model):
        if not g.meta(f.node, g.UNSUPPORTED):
            found.extend(_float8_violations(f, requested))
    for q in g.quantizers(model):
        if not g.meta(q.node, g.UNSUPPORTED):
            found.extend(quantizer_violations(q, KEY, requested))
    found.extend(input_violations(model, KEY))
    if options.get("sub_byte_types") and requested is not None:
        found.extend(_small_type_violations(model, requested))
    return found


def _small_type_violations(model: ir.Model, requested: int) -> Iterator[Violation]:
    for q in g.quantizers(model):
        needed = _opset_of_type(q) if q.role == "weight" else 0
        if requested < needed:
            what = f"opset_version={requested} for {smallest_type(q.bits, q.signed)} values"
            yield at(q, "E05", KEY, what, f"opset {needed}", f"pass opset_version={needed}, or leave it out")


def _opset_of_type(q: g.Quantizer) -> int:
    """The least opset that has the smallest type for a weight."""
    return 25 if q.bits <= 2 else 21 if q.bits <= 4 else 13


def _float8_violations(f: FloatQuantizer, requested: int | None) -> Iterator[Violation]:
    if f.format.onnx_type is None:
        yield at(
            f,
            "E24",
            KEY,
            f"minifloat values {f.format.name}",
            "integers, or numbers of an ONNX type: e4m3 or e5m2, OCP or FNUZ",
            "use an integer preset, or Fp8e4m3OCP..., Fp8e5m2OCP..., Fp8e4m3FNUZ..., Fp8e5m2FNUZ... of brevitas.quant",
        )
    elif requested is not None and requested < FLOAT8_OPSET:
        yield at(
            f,
            "E05",
            KEY,
            f"8-bit floats at opset {requested}",
            f"opset {FLOAT8_OPSET} or newer",
            f"pass opset_version={FLOAT8_OPSET}, or leave it out",
        )
    if f.rounding != "ROUND" and not f.is_parameter:
        yield at(
            f,
            "E27",
            KEY,
            f"rounding {SPOKEN.get(f.rounding, f.rounding)}",
            "ROUND (half to even)",
            "set float_to_int_impl_type='round'",
        )
    if len(f.varying_dims) > 1:
        yield at(
            f,
            "E26" if f.is_parameter else "E12",
            KEY,
            f"a scale of shape {f.scale.shape}",
            "values that vary along one dimension at most",
            "use a preset ...PerTensorFloat or ...PerChannelFloat",
        )


def quantizer_violations(q: g.Quantizer, key: str, requested: int | None = None, widest: int = 16) -> list[Violation]:
    """What QuantizeLinear and DequantizeLinear cannot express of a quantizer of at most ``widest`` bits."""
    found = []
    limit = 32 if q.role == "bias" else widest
    if q.bits > limit:
        found.append(
            at(q, "E11", key, f"bit width {q.bits}", f"1 to {limit} bits", f"set bit_width to {limit} or less")
        )
    elif q.bits > 8 and q.role != "bias" and requested is not None and requested < WIDE_OPSET:
        found.append(
            at(
                q,
                "E11",
                key,
                f"bit width {q.bits} at opset {requested}",
                "1 to 8 bits below opset 21",
                f"pass opset_version={WIDE_OPSET}",
            )
        )
    if len(q.varying_dims) > 1:
        found.append(
            at(
                q,
                "E26" if q.role in ("weight", "bias") else "E12",
                key,
                f"a scale or zero point of shapes {q.scale.shape} and {q.zero_point.shape}",
                "values that vary along one dimension at most",
                "set scaling_per_output_channel or a per-tensor scale",
            )
        )
    if q.is_bipolar and q.role != "weight":
        found.append(
            at(
                q,
                "E24",
                key,
                "binary codes, -1 and +1, of an activation" if not q.is_parameter else "a binary bias",
                "uniform integer quantization (binary weights are fine)",
                "use an integer preset of brevitas.quant",
            )
        )
    if q.rounding != "ROUND" and q.kind != "Trunc":
        found.append(
            at(
                q,
                "E27",
                key,
                f"rounding {SPOKEN.get(q.rounding, q.rounding)}",
                "ROUND (half to even)",
                "set float_to_int_impl_type='round', or use target 'qonnx'",
            )
        )
    low, high = q.range
    if q.kind == "Trunc" and np.any(q.zero_point):
        found.append(
            at(
                q,
                "E21",
                key,
                f"zero point {np.unique(q.zero_point).tolist()} of truncated codes",
                "0",
                "quantize the input with a preset without zero point (not Shifted...)",
            )
        )
    elif q.bits <= limit and np.any(
        (q.zero_point < low) | (q.zero_point > high) | (q.zero_point != np.rint(q.zero_point))
    ):
        found.append(
            at(
                q,
                "E21",
                key,
                f"zero point {np.unique(q.zero_point).tolist()}",
                f"integers in {low}..{high}",
                "use a preset without zero point (not Shifted...)",
            )
        )
    elif q.role == "bias" and np.any(q.zero_point):
        found.append(
            at(
                q,
                "E21",
                key,
                f"zero point {np.unique(q.zero_point).tolist()} of a bias",
                "0",
                "use Int8Bias ... Int32Bias",
            )
        )
    return found


def default_opset(model: ir.Model, options: Mapping[str, Any]) -> int:
    """20, or the opset that the types need."""
    found = list(g.quantizers(model))
    needed = [WIDE_OPSET for q in found if q.bits > 8 and q.role != "bias"]
    if options.get("sub_byte_types"):
        needed += [_opset_of_type(q) for q in found if q.role == "weight"]
    return max([20, *needed])


def lower(model: ir.Model, options: Mapping[str, Any]) -> ir.Model:
    """Replace every Quant node by its integer form."""
    for index, fields in enumerate(g.quant_tensor_records(model, g.INPUTS)):
        if fields is not None:
            integer_input(model, index, fields)
    requantize_operands(model)
    for f in list(float_quantizers(model)):
        lower_float8(model, f)
    todo = [(q, grid_names(q)) for q in g.quantizers(model)]
    on_grid = {q.name for q, _ in todo if q.role == "bias" and on_accumulator_grid(model, q)}
    for q, _ in todo:  # frees the names of the float zero points for the integer ones
        for position in range(1, len(q.node.inputs)):
            q.node.replace_input_with(position, None)
    for q, names in todo:
        if q.truncated is not None and q.rounding != "ROUND":
            lower_truncation(model, q, q.truncated)
        elif not q.is_parameter or (q.role == "weight" and options.get("export_weight_q_node")):
            quantize_dequantize(model, q, names)
        else:
            dtype = np.dtype(np.int32) if q.name in on_grid else None
            if q.role == "weight" and options.get("sub_byte_types"):
                dtype = smallest_type(q.bits, q.signed)
            dequantize_parameter(model, q, names, dtype)
    model.graph.opset_imports.pop(g.DOMAIN, None)
    drop_unused_initializers(model)
    return model


TARGET = Target(
    KEY,
    "standard ONNX, QuantizeLinear / DequantizeLinear",
    check=check,
    lower=lower,
    default_opset=default_opset,
    least_opset=13,
    options={"export_weight_q_node": False, "sub_byte_types": False},
    runtime="onnxruntime",
)
