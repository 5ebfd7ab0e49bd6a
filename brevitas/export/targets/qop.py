"""Target ``qop``: standard ONNX with integer operators.

Conv            QLinearConv on codes, with an int32 bias [, Clip]
linear          QLinearMatMul without a bias; MatMulInteger, Add, Cast, Mul, QuantizeLinear with one [, Clip]
other           QuantizeLinear [, Clip], and DequantizeLinear where somebody reads real values

Layers hand codes to each other; real values appear only where an operator without an integer form needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from brevitas.export import graph as g
from brevitas.export.lowering.build import drop_unused_initializers, remove_if_unused
from brevitas.export.lowering.fused import Fused, find_fused
from brevitas.export.lowering.integer import quantize_inputs, requantize_operands
from brevitas.export.lowering.operators import CODES_PASS, IntegerGraph
from brevitas.export.lowering.pattern import operand_of
from brevitas.export.targets import Target
from brevitas.export.targets.common import at, common_violations, input_violations
from brevitas.export.targets.qdq import quantizer_violations
from brevitas.export.violations import Violation

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["TARGET", "check", "lower", "operator_violations"]

KEY = "qop"
ELSEWHERE = "use StdONNXManager with export_format='qdq'"


def check(model: ir.Model, options: Mapping[str, Any]) -> list[Violation]:
    """Rules of the target."""
    found = list(common_violations(model, KEY))
    for q in g.quantizers(model):
        if not g.meta(q.node, g.UNSUPPORTED):
            found.extend(_quantizer_violations(q))
    for node in model.graph:
        found.extend(operator_violations(node, KEY))
    copy = model.clone()
    quantize_inputs(copy)
    for fused in find_fused(copy):
        found.extend(_product_violations(fused))
    return [*found, *input_violations(model, KEY)]


def _quantizer_violations(q: g.Quantizer) -> list[Violation]:
    if q.kind == "Trunc":
        what = "truncated codes (average pools and accumulators)"
        return [at(q, "E04", KEY, what, "convolutions, linear layers and activations", ELSEWHERE)]
    found = quantizer_violations(q, KEY, widest=8)
    if q.role != "bias" and q.varying_dims and q.role != "weight" and not found:
        found.append(
            at(
                q,
                "E12",
                KEY,
                f"an activation scale of shape {q.scale.shape}",
                "one scale per tensor",
                "set scaling_per_output_channel=False in the quantizer",
            )
        )
    return found


def operator_violations(node: ir.Node, key: str) -> list[Violation]:
    """Operators on quantized weights that have no integer form."""
    if node.domain != "" or node.op_type in ("Conv", "Gemm", "MatMul", "Transpose"):
        return []
    weights = [o.quantizer for o in map(operand_of, node.inputs) if o is not None and o.quantizer.role != "bias"]
    if not weights:
        return []
    what = f"{node.op_type} of quantized weights"
    return [at(weights[0], "E04", key, what, "Conv of one or two dimensions, or a linear layer", ELSEWHERE)]


def _product_violations(fused: Fused) -> list[Violation]:
    weight = fused.weight.quantizer
    found = []

    def refuse(code: str, what: str, required: str, fix: str) -> None:
        found.append(at(weight, code, KEY, what, required, fix))

    if not fused.is_linear and fused.weight.codes.ndim > 4:
        refuse("E04", "a convolution of three dimensions", "one or two dimensions", ELSEWHERE)
    if fused.input is None:
        refuse(
            "E28",
            "an input that is not quantized",
            "a quantized input",
            "set input_quant= on the layer, or put a QuantIdentity before it",
        )
    if fused.output is None:
        what = f"{fused.obstacle}, so that no quantizer follows the product directly,"
        refuse("E28", what, "a quantized output", "set output_quant= on the layer, or put a QuantIdentity after it")
    if fused.bias is not None or fused.float_bias:
        found.extend(_bias_violations(fused))
    read = [fused.weight.read(a) for a in (weight.scale, weight.zero_point)]
    if any(n != 1 and dim != fused.channel_dim for dim, n in enumerate(read[0].shape)) or read[1].size != 1:
        refuse(
            "E12",
            f"a weight scale of shape {weight.scale.shape} and a zero point of shape {weight.zero_point.shape}",
            "one scale, or one an output channel, and one zero point",
            "set scaling_per_output_channel=True or a per-tensor scale",
        )
    return found


def _bias_violations(fused: Fused) -> list[Violation]:
    fix = "set bias_quant=Int8Bias, Int16Bias or Int32Bias, and quantize the input (QuantIdentity, input_quant=)"
    if fused.float_bias:
        what = "a float bias beside it"
    elif fused.bias is not None and not fused.bias_on_grid:
        what = "a bias whose scale is not input scale times weight scale"
    elif fused.bias is not None and not fused.bias.quantizer.signed:
        what = "an unsigned bias"
    else:
        return []
    required = "a signed bias of at most 32 bits on the accumulator's grid"
    return [at(fused.weight.quantizer, "E22", KEY, what, required, fix)]


def lower(model: ir.Model, options: Mapping[str, Any]) -> ir.Model:
    """Replace products and their quantizers by integer operators, other quantizers by QuantizeLinear."""
    quantize_inputs(model)
    requantize_operands(model, through=CODES_PASS)
    IntegerGraph(model).lower(list(find_fused(model)))
    remove_if_unused(model, *reversed(list(model.graph)))
    model.graph.opset_imports.pop(g.DOMAIN, None)
    drop_unused_initializers(model)
    return model


TARGET = Target(KEY, "standard ONNX, integer operators", check=check, lower=lower, least_opset=13)
