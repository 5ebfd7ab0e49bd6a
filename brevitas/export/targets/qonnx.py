"""Target ``qonnx``: the QONNX dialect (``Quant``, ``BipolarQuant``, ``Trunc``), read by qonnx, hls4ml and FINN.

The canonical graph is already in this dialect; what is left are the forms that the reader insists on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from brevitas.export import graph as g
from brevitas.export.lowering.build import add_initializer, insert_before, make_node, redirect, remove_if_unused
from brevitas.export.lowering.finn_profile import TRUNC_VERSION, apply_profile
from brevitas.export.minifloat import FloatQuantizer, float_quantizers
from brevitas.export.targets import Target
from brevitas.export.targets.common import at, common_violations
from brevitas.export.targets.finn_profile import profile_violations
from brevitas.export.violations import Violation

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["TARGET", "check", "lower"]

KEY = "qonnx"
ROUNDING = ("ROUND", "CEIL", "FLOOR", "DOWN")
CONSUMERS = (None, "finn")


def check(model: ir.Model, options: Mapping[str, Any]) -> list[Violation]:
    """Rules of the dialect, and those of the consumer that is named."""
    found = list(common_violations(model, KEY, minifloats=True))
    for f in float_quantizers(model):
        found.extend(_minifloat_violations(f))
    consumer = options.get("consumer")
    if consumer not in CONSUMERS:
        found.append(
            Violation(
                "E02",
                KEY,
                f"consumer={consumer!r}",
                "None, the whole dialect, or 'finn'",
                "pass consumer='finn', or leave it out",
            )
        )
    elif consumer is not None:
        found.extend(profile_violations(model))
    for q in g.quantizers(model):
        if len(q.varying_dims) > 1:
            found.append(
                at(
                    q,
                    "E26",
                    KEY,
                    f"a scale or zero point that varies along {len(q.varying_dims)} dimensions, as those of groups do,",
                    "one scale, or one a channel",
                    "set scaling_per_output_type='channel' or 'tensor' in the quantizer",
                )
            )
        if q.kind == "Trunc" and np.any(q.zero_point):
            found.append(
                at(
                    q,
                    "E21",
                    KEY,
                    f"zero point {np.unique(q.zero_point).tolist()} of truncated codes",
                    "0",
                    "quantize the input with a preset without zero point (not Shifted...)",
                )
            )
        if q.rounding not in ROUNDING:
            found.append(
                at(
                    q,
                    "E27",
                    KEY,
                    f"rounding {q.rounding}",
                    "ROUND, CEIL, FLOOR or ROUND_TO_ZERO",
                    "set float_to_int_impl_type='round' in the quantizer",
                )
            )
    return found


def _minifloat_violations(f: FloatQuantizer) -> Iterator[Violation]:
    if len(f.varying_dims) > 1:
        yield at(
            f,
            "E26",
            KEY,
            f"a scale that varies along {len(f.varying_dims)} dimensions",
            "one scale, or one a channel",
            "use a preset ...PerTensorFloat or ...PerChannelFloat",
        )
    if f.rounding not in ROUNDING:
        yield at(
            f,
            "E27",
            KEY,
            f"rounding {f.rounding}",
            "ROUND, CEIL, FLOOR or ROUND_TO_ZERO",
            "set float_to_int_impl_type='round' in the quantizer",
        )


def lower(model: ir.Model, options: Mapping[str, Any]) -> ir.Model:
    """Rewrite Gemm without bias, which readers refuse, write out what they expect, and declare the domain."""
    for node in list(model.graph):
        if node.op_type == "Gemm" and node.domain == "" and (len(node.inputs) < 3 or node.inputs[2] is None):
            gemm_to_matmul(model, node)
        elif node.op_type in ("Conv", "ConvTranspose") and node.domain == "":
            write_out_attributes(node)
    version = g.DOMAIN_VERSION
    if options.get("consumer") == "finn":
        apply_profile(model)
        version = TRUNC_VERSION
    model.graph.opset_imports[g.DOMAIN] = version
    return model


def write_out_attributes(node: ir.Node) -> None:
    """Every attribute of a convolution's geometry, those at their defaults too: readers look for each."""
    import onnx_ir as ir

    weight = node.inputs[1]
    assert weight is not None and weight.shape is not None
    dims = [int(n) for n in weight.shape[2:]]
    defaults = {
        "kernel_shape": dims,
        "strides": [1] * len(dims),
        "pads": [0] * 2 * len(dims),
        "dilations": [1] * len(dims),
        "group": 1,
    }
    for name, default in defaults.items():
        if name not in node.attributes:
            node.attributes.add(ir.convenience.convert_attribute(name, default))


def gemm_to_matmul(model: ir.Model, node: ir.Node) -> None:
    """Gemm without bias -> Transpose of the quantized weight, MatMul; of another form, a bias of zeros."""
    import onnx_ir as ir

    a = node.attributes
    weight, x = node.inputs[1], node.inputs[0]
    assert weight is not None and x is not None
    flags = {name: a[name].value for name in ("alpha", "beta", "transA", "transB") if name in a}
    if flags.get("alpha", 1.0) != 1.0 or flags.get("transA", 0):
        assert node.outputs[0].shape is not None
        zeros = add_initializer(model, f"{node.name}.zeros", np.zeros(int(node.outputs[0].shape[-1]), np.float32))
        node.resize_inputs(3)
        node.replace_input_with(2, zeros)
        return
    meta = {k: v for k, v in node.metadata_props.items() if k in (g.LAYER, g.CLASS)}
    new = []
    if flags.get("transB", 0):
        shape = ir.Shape(list(weight.shape)[::-1]) if weight.shape is not None else None
        new.append(
            make_node(
                "Transpose",
                [weight],
                name=f"{node.name}.Transpose",
                like=weight,
                shape=shape,
                attributes={"perm": [1, 0]},
                meta=meta,
            )
        )
        weight = new[0].outputs[0]
    new.append(make_node("MatMul", [x, weight], name=f"{node.name}.MatMul", like=node.outputs[0], meta=meta))
    insert_before(node, *new)
    redirect(node.outputs[0], new[-1].outputs[0])
    remove_if_unused(model, node)


TARGET = Target(
    KEY,
    "QONNX dialect, Quant nodes",
    check=check,
    lower=lower,
    least_opset=13,
    options={"consumer": None},
    runtime="qonnx",
)
