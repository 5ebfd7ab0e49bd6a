"""Target ``torch``: PyTorch's quantized operators in a TorchScript module.

The rules are judged on the canonical graph, as those of every target; the module is made from the traced program.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from brevitas.errors import ExportError
from brevitas.export import graph as g
from brevitas.export.lowering.fused import Fused, find_fused
from brevitas.export.lowering.integer import quantize_inputs
from brevitas.export.targets import Target
from brevitas.export.targets.common import SPOKEN, at, common_violations, input_violations
from brevitas.export.targets.qop import operator_violations
from brevitas.export.violations import Violation

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["TARGET", "check", "lower"]

KEY = "torch"


def check(model: ir.Model, options: Mapping[str, Any]) -> list[Violation]:
    """Rules of the target."""
    found = [*common_violations(model, KEY), *input_violations(model, KEY), *_engine_violations()]
    copy = model.clone()
    quantize_inputs(copy)
    for q in g.quantizers(copy):
        if not g.meta(q.node, g.UNSUPPORTED):
            found.extend(_quantizer_violations(q))
    for node in copy.graph:
        found.extend(operator_violations(node, KEY))
    read: dict[str, g.Quantizer] = {}
    for fused in find_fused(copy):
        found.extend(_product_violations(fused))
        read |= {q.name: q for q in (fused.input, fused.output) if q is not None}
    found.extend(_sign_violation(q) for q in read.values() if q.signed)
    return found


def _engine_violations() -> list[Violation]:
    if torch.backends.quantized.engine != "none":
        return []
    engines = [e for e in torch.backends.quantized.supported_engines if e != "none"]
    fix = f"set torch.backends.quantized.engine = {engines[0]!r}" if engines else "install a torch that has one"
    return [Violation("E06", KEY, "no quantized engine", "an engine such as x86, fbgemm or qnnpack", fix)]


def _quantizer_violations(q: g.Quantizer) -> list[Violation]:
    if q.kind == "Trunc":
        fix = "use StdONNXManager with export_format='qdq'"
        return [at(q, "E04", KEY, "truncated codes", "convolutions, linear layers and activations", fix)]
    found = []
    if q.is_bipolar and q.role != "weight":
        fix = "use an integer preset of brevitas.quant"
        found.append(at(q, "E24", KEY, "binary codes, -1 and +1, of an activation", "integer quantization", fix))
    if q.bits > 8 and q.role != "bias":
        found.append(at(q, "E11", KEY, f"bit width {q.bits}", "1 to 8 bits", "set bit_width to 8 or less"))
    if q.rounding != "ROUND":
        rounding = SPOKEN.get(q.rounding, q.rounding)
        fix = "set float_to_int_impl_type='round'"
        found.append(at(q, "E27", KEY, f"rounding {rounding}", "ROUND (half to even)", fix))
    if not q.is_parameter and q.varying_dims:
        what = f"an activation scale of shape {q.scale.shape}"
        fix = "set scaling_per_output_channel=False in the quantizer"
        found.append(at(q, "E12", KEY, what, "one scale per tensor", fix))
    if q.role == "weight" and (not q.signed or np.any(q.zero_point)):
        what = f"unsigned weights with zero point {np.unique(q.zero_point).tolist()}"
        found.append(at(q, "E13", KEY, what, "signed weights with zero point 0", "use Int8WeightPerTensorFloat"))
    low, high = q.range
    if not q.is_parameter and np.any(
        (q.zero_point != np.rint(q.zero_point)) | (q.zero_point < low) | (q.zero_point > high)
    ):
        what = f"zero point {np.unique(q.zero_point).tolist()}"
        fix = "use a preset whose zero point is quantized"
        found.append(at(q, "E21", KEY, what, f"an integer in {low}..{high}", fix))
    return found


def _sign_violation(q: g.Quantizer) -> Violation:
    what = f"signed codes beside a product, with the engine {torch.backends.quantized.engine!r},"
    fix = "use Uint8ActPerTensorFloat, or ShiftedUint8ActPerTensorFloat where values are negative"
    return at(q, "E13", KEY, what, "unsigned activations", fix)


def _product_violations(p: Fused) -> list[Violation]:
    weight = p.weight.quantizer
    found = []
    if not p.is_linear and p.weight.codes.ndim > 4:
        what = "a convolution of three dimensions"
        found.append(at(weight, "E04", KEY, what, "one or two dimensions", "use target 'qdq'"))
    if p.input is None:
        fix = "set input_quant= on the layer, or put a QuantIdentity before it"
        found.append(at(weight, "E28", KEY, "an input that is not quantized", "a quantized input", fix))
    if p.output is None:
        what = f"{p.obstacle}, so that no quantizer follows the product directly,"
        fix = "set output_quant= on the layer, or put a QuantIdentity after it"
        found.append(at(weight, "E28", KEY, what, "a quantized output", fix))
    scale = p.weight.read(weight.scale)
    if any(n != 1 and dim != p.channel_dim for dim, n in enumerate(scale.shape)):
        what, required = f"a weight scale of shape {weight.scale.shape}", "one scale, or one an output channel"
        found.append(at(weight, "E12", KEY, what, required, "set scaling_per_output_channel=True"))
    return found


def lower(model: ir.Model, options: Mapping[str, Any]) -> ir.Model:
    """There is no ONNX form of torch's quantized operators."""
    raise ExportError("target 'torch' is made from the model, not from its graph: use PytorchQuantManager.export")


TARGET = Target(KEY, "PyTorch's quantized operators, TorchScript", check=check, lower=lower, runtime="torch")
