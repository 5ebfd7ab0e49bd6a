"""What FINN's own front end takes of the QONNX dialect: the rules of ``consumer='finn'``.

Rounding modes and binary networks are the ones to mind: the front end misreads them without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from brevitas.export import graph as g
from brevitas.export.lowering.pools import Pool
from brevitas.export.minifloat import float_quantizers
from brevitas.export.targets.common import SPOKEN, at
from brevitas.export.violations import Violation

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["profile_violations"]

KEY = "qonnx"
MOST_BITS = 8
_FOR = " for consumer 'finn'"


def profile_violations(model: ir.Model) -> Iterator[Violation]:
    """Rules of FINN's front end that a canonical graph breaks."""
    quantizers = list(g.quantizers(model))
    for q in quantizers:
        if g.meta(q.node, g.UNSUPPORTED):
            continue
        if np.any(q.zero_point) and q.kind != "Trunc":
            zero_points = np.unique(q.zero_point).tolist()[:4]
            yield at(
                q,
                "E21",
                KEY,
                f"zero point {zero_points}",
                f"0{_FOR}",
                "use a preset without zero point (not Shifted...), such as Int8ActPerTensorFloat",
            )
        if q.role == "weight":
            yield from _weight_violations(q)
        elif q.kind == "Trunc":
            yield from _pool_violations(q)
        elif not q.is_parameter:
            yield from _activation_violations(q)
    for f in float_quantizers(model):
        yield at(f, "E24", KEY, "minifloat values", f"integers{_FOR}", "use an integer preset of brevitas.quant")
    if quantizers and all(q.is_bipolar for q in quantizers):
        yield at(
            quantizers[0],
            "E24",
            KEY,
            "binary codes, as in every quantizer of the model,",
            f"a Quant node somewhere{_FOR}, which leaves a graph of BipolarQuant nodes alone as it is",
            "quantize the input with an integer preset, or use target 'finn'",
        )


def _activation_violations(q: g.Quantizer) -> Iterator[Violation]:
    source = q.node.inputs[0]
    before = None if source is None else source.producer()
    op_type = "the model's input" if before is None else before.op_type
    if q.kind == "Quant" and op_type == "Relu" and (q.signed or q.narrow):
        yield at(
            q,
            "E13",
            KEY,
            f"{'signed' if q.signed else 'narrow'} codes after a ReLU",
            f"unsigned codes of the whole range there{_FOR}",
            "use Uint8ActPerTensorFloat for act_quant",
        )
    elif q.kind == "Quant" and not q.signed and op_type not in ("Relu", "Selu"):
        yield at(
            q,
            "E13",
            KEY,
            f"unsigned codes after {op_type}",
            f"signed codes, or a ReLU before{_FOR}",
            "use Int8ActPerTensorFloat, or a QuantReLU",
        )
    if q.kind == "Quant" and q.rounding in ("CEIL", "FLOOR", "DOWN"):
        yield at(
            q,
            "E27",
            KEY,
            f"rounding {SPOKEN.get(q.rounding, q.rounding)}",
            f"ROUND{_FOR}, which takes every mode of an activation for it",
            "set float_to_int_impl_type='round', or use target 'finn'",
        )
    if q.bits > MOST_BITS:
        yield at(
            q,
            "W31",
            KEY,
            f"bit width {q.bits}",
            f"at most {MOST_BITS} bits{_FOR}, which leaves wider activations as they are",
            f"set bit_width to {MOST_BITS} or less",
        )


def _weight_violations(q: g.Quantizer) -> Iterator[Violation]:
    for node, position, perm in operands_of(q):
        axes = [perm.index(dim) for dim in q.varying_dims]
        if node.op_type not in _OUT_AXIS or position != 1 or len(perm) < 2:
            continue
        out_axis = _OUT_AXIS[node.op_type] % len(perm)
        if node.op_type == "Gemm" and ("transB" not in node.attributes or not node.attributes["transB"].as_int()):
            out_axis = 1
        if any(axis != out_axis for axis in axes):
            yield at(
                q,
                "E12",
                KEY,
                f"a scale of shape {q.scale.shape}",
                f"one scale, or one an output channel{_FOR}",
                "set scaling_per_output_type='channel' or 'tensor'",
            )
            return


# Dimension of the output channels in the weight operand; that of Gemm with transB=1.
_OUT_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0, "MatMul": -1}


def operands_of(q: g.Quantizer) -> Iterator[tuple[ir.Node, int, list[int]]]:
    """Who reads a parameter, at which input, and how the operand's dimensions are those of the parameter."""
    todo = [(q.node.outputs[0], list(range(g.tensor_rank(q.node))))]
    while todo:
        value, perm = todo.pop()
        for node, position in value.uses():
            if node.op_type == "Transpose" and node.domain == "":
                step = node.attributes["perm"].as_ints() if "perm" in node.attributes else range(len(perm))[::-1]
                todo.append((node.outputs[0], [perm[i] for i in step]))
            else:
                yield node, position, perm


def _pool_violations(q: g.Quantizer) -> Iterator[Violation]:
    pool = Pool.read(q)
    if pool is None:
        yield at(
            q,
            "E04",
            KEY,
            f"truncation of {q.layer_class}, which is no average pooling over two dimensions,",
            f"QuantAvgPool2d or QuantAdaptiveAvgPool2d{_FOR}",
            "quantize the accumulator with a QuantIdentity instead",
        )
        return
    if len(set(pool.kernel)) != 1:
        yield at(q, "E23", KEY, f"a window of {pool.kernel}", f"a square one{_FOR}", "make it square")
    if any(pool.pads) or pool.ceil_mode:
        yield at(
            q,
            "E23",
            KEY,
            f"padding {pool.pads}" if any(pool.pads) else "ceil_mode",
            f"no padding, and whole windows{_FOR}",
            "pad before the pooling",
        )
    if q.rounding != "FLOOR":
        yield at(
            q,
            "E23",
            KEY,
            f"rounding {SPOKEN.get(q.rounding, q.rounding)}",
            f"FLOOR{_FOR}",
            "use TruncTo8bit (float_to_int_impl_type='floor')",
        )
