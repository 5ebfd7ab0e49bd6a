"""Target ``finn``: the FINN dialect, ONNX with thresholds and integer weights.

activation   MultiThreshold -> [Add(least code)] -> Mul(scale)
layer        MatMul or Conv of integer weights -> [Add(bias)] -> Mul(scale)
pooling      QuantAvgPool2d -> Mul(scale)

Integers are float32 tensors; ``quantization_annotation`` says which datatype each one has.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from brevitas.export import graph as g
from brevitas.export.lowering.codes import Grid, Grids
from brevitas.export.lowering.debug_markers import add_debug_markers
from brevitas.export.lowering.finn import RANKS, FinnLowering
from brevitas.export.lowering.pools import Pool
from brevitas.export.lowering.products import Product, product_at
from brevitas.export.lowering.thresholds import ROUNDINGS
from brevitas.export.targets import Target
from brevitas.export.targets.common import at, common_violations
from brevitas.export.violations import Violation

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["TARGET", "check", "lower"]

KEY = "finn"
LEAST_OPSET = 13
MOST_THRESHOLD_BITS = 16
MOST_BITS = 32
_SYMMETRIC = "use a preset without zero point (not Shifted...), such as Int8ActPerTensorFloat"


def check(model: ir.Model, options: Mapping[str, Any]) -> list[Violation]:
    """Rules of the dialect."""
    found = list(common_violations(model, KEY))
    products = [product for node in model.graph if (product := product_at(node)) is not None]
    grids = Grids(model)
    operands = {(p.node, 1) for p in products} | {(p.last, p.bias_position) for p in products}
    for q in g.quantizers(model):
        if g.meta(q.node, g.UNSUPPORTED):
            continue
        found.extend(_width_violations(q))
        found.extend(_zero_point_violations(q))
        if q.is_parameter:
            found.extend(_reader_violations(q, operands))
        elif q.kind == "Trunc":
            found.extend(_pool_violations(q, grids))
        else:
            found.extend(_activation_violations(q))
    for product in products:
        found.extend(_product_violations(product, grids))
    found.extend(_float_layer_violations(model))
    found.extend(_composite_violations(model))
    found.extend(_input_violations(model))
    return found


def _width_violations(q: g.Quantizer) -> Iterator[Violation]:
    if q.bits > MOST_BITS:
        yield at(
            q, "E10", KEY, f"bit width {q.bits}", f"1 to {MOST_BITS} bits", f"set bit_width to {MOST_BITS} or less"
        )
    elif not q.is_parameter and q.kind == "Quant" and q.bits > MOST_THRESHOLD_BITS:
        count = q.range[1] - q.range[0]
        yield at(
            q,
            "E25",
            KEY,
            f"bit width {q.bits}, which takes {count} thresholds a channel,",
            f"{2**MOST_THRESHOLD_BITS - 1} thresholds at most ({MOST_THRESHOLD_BITS} bits)",
            f"set bit_width to {MOST_THRESHOLD_BITS} or less",
        )


def _zero_point_violations(q: g.Quantizer) -> Iterator[Violation]:
    if np.any(q.zero_point):
        yield at(q, "E21", KEY, f"zero point {np.unique(q.zero_point).tolist()[:4]}", "0", _SYMMETRIC)


def _reader_violations(q: g.Quantizer, operands: Collection[tuple[ir.Node, int | None]]) -> Iterator[Violation]:
    """Integer parameters exist as operands of products alone."""
    values, strange = [q.node.outputs[0]], set()
    while values:
        value = values.pop()
        if value.is_graph_output():
            strange.add("the model's output")
        for node, position in value.uses():
            if node.op_type == "Transpose" and node.domain == "" and (node, position) not in operands:
                values.append(node.outputs[0])
            elif (node, position) not in operands:
                strange.add(node.op_type)
    if strange:
        yield at(
            q,
            "E04",
            KEY,
            f"quantized parameters of {q.layer_class}, read by {', '.join(sorted(strange))},",
            "convolutions of one or two dimensions and linear layers",
            "switch the quantizer off (weight_quant=None), or replace the layer",
        )


def _activation_violations(q: g.Quantizer) -> Iterator[Violation]:
    if q.rounding not in ROUNDINGS:
        yield at(q, "E27", KEY, f"rounding {q.rounding}", ", ".join(ROUNDINGS), "set float_to_int_impl_type='round'")
    shape = q.node.outputs[0].shape
    rank = g.tensor_rank(q.node)
    if rank not in RANKS:
        yield at(
            q,
            "E15",
            KEY,
            f"a tensor of {rank} dimensions",
            "2 to 4 dimensions, channels in dimension 1",
            "reshape before the quantizer",
        )
    elif shape is None or not isinstance(shape[1], int):
        yield at(
            q,
            "E15",
            KEY,
            f"a number of channels that is not fixed (shape {shape})",
            "a fixed dimension 1, which thresholds are written for",
            "make dimension 0 alone dynamic",
        )
    elif any(dim != 1 for dim in q.varying_dims):
        yield at(
            q,
            "E12",
            KEY,
            f"a scale that varies along dimension {', '.join(map(str, q.varying_dims))}",
            "one scale, or one a channel (dimension 1)",
            "set scaling_per_output_type='tensor'",
        )


def _product_violations(p: Product, grids: Grids) -> Iterator[Violation]:
    weight, bias = p.weight, p.bias_quantizer
    if g.meta(weight.node, g.UNSUPPORTED) or (bias is not None and g.meta(bias.node, g.UNSUPPORTED)):
        return
    if p.weight_scale() is None:
        yield at(
            weight,
            "E12" if len(weight.varying_dims) == 1 else "E26",
            KEY,
            f"a scale of shape {weight.scale.shape}",
            "one scale, or one an output channel",
            "set scaling_per_output_type='channel' or 'tensor'",
        )
        return
    if bias is not None:
        yield from _bias_violations(p, bias, grids.of(p.data))
    elif p.bias is not None and g.constant(p.bias) is None:
        yield at(weight, "E04", KEY, "a bias that is computed", "a constant bias", "add it in forward, after the layer")


def _bias_violations(p: Product, bias: g.Quantizer, grid: Grid | None) -> Iterator[Violation]:
    def refused(found: str, required: str, fix: str) -> Violation:
        return at(bias, "E22", KEY, found, required, fix)

    if grid is None:
        source = g.source_quantizer(p.data)
        if source is not None and source.op_type in g.KINDS and np.any(g.Quantizer.read(source).zero_point):
            return  # refused by its zero point
        producer = p.data.producer()
        made_by = "an input of the model" if producer is None else f"{producer.op_type} '{producer.name}'"
        yield refused(
            f"a quantized bias, and layer input from {made_by}, which is no quantized tensor,",
            "an input quantized with one scale",
            "quantize the input (input_quant=, or a QuantIdentity before), or take bias_quant=None",
        )
        return
    product = p.product_scale(grid)
    if product is None:
        yield refused(
            f"a quantized bias, and a layer input with a scale of shape {grid.scale.shape},",
            "one input scale (one a channel for depthwise convolutions)",
            "quantize the input per tensor, or take bias_quant=None",
        )
        return
    own = bias.scale.reshape(-1).astype(np.float64)
    if own.size not in (1, product.size) or not np.allclose(own, product, rtol=1e-6, atol=0):
        yield refused(
            f"a bias scale of {own[0]:.6g}",
            f"the accumulator's, input scale times weight scale ({product[0]:.6g})",
            "use Int8Bias, Int16Bias, Int24Bias, Int32Bias or IntBias, or take bias_quant=None",
        )


def _pool_violations(q: g.Quantizer, grids: Grids) -> Iterator[Violation]:
    pool = Pool.read(q)
    if pool is None:
        yield at(
            q,
            "E04",
            KEY,
            f"truncation of {q.layer_class}, which is no average pooling over two dimensions,",
            "QuantAvgPool2d or QuantAdaptiveAvgPool2d",
            "quantize the accumulator with a QuantIdentity instead",
        )
        return

    def refused(found: str, required: str, fix: str) -> Violation:
        return at(q, "E23", KEY, found, required, fix)

    if len(set(pool.kernel)) != 1 or len(set(pool.stride)) != 1:
        yield refused(
            f"a window of {pool.kernel} with stride {pool.stride}", "a square window and stride", "make them square"
        )
    if any(pool.pads) or pool.ceil_mode:
        yield refused(
            f"a window with padding {pool.pads}" if any(pool.pads) else "a window with ceil_mode",
            "no padding, and whole windows",
            "pad before the pooling",
        )
    if q.rounding != "FLOOR":
        yield refused(f"rounding {q.rounding}", "FLOOR", "use TruncTo8bit (float_to_int_impl_type='floor')")
    if not 2 <= q.bits <= 32 or q.narrow:
        yield refused(f"{q.bits} output bits, narrow {q.narrow},", "2 to 32 bits, not narrow", "set bit_width")
    grid = grids.of(pool.data)
    if grid is None or not grid.is_scalar or grid.type == "BIPOLAR":
        yield refused(
            "an input that is no integer tensor with one scale",
            "a QuantTensor",
            "quantize the input (return_quant_tensor=True on the layer before)",
        )
    elif pool.operator_shift(grid) != pool.removed_bits():
        yield refused(
            f"a truncation of {pool.removed_bits()} bits for a window of {pool.kernel} and input of type {grid.type}",
            f"{pool.operator_shift(grid)} bits, which the operator QuantAvgPool2d removes",
            "take an input of 5 bits or more, an unsigned one, or a window with an even side",
        )


def _float_layer_violations(model: ir.Model) -> Iterator[Violation]:
    for node in model.graph:
        if node.domain != "" or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        weight = node.inputs[1]
        while weight is not None and (producer := weight.producer()) is not None and producer.op_type == "Transpose":
            weight = producer.inputs[0]
        if g.constant(weight) is not None and g.meta(node, g.CLASS).startswith("Quant"):
            yield Violation(
                "E28",
                KEY,
                "weights that are not quantized",
                "quantized weights",
                "pass weight_quant=, or use the layer of torch.nn",
                layer=g.meta(node, g.LAYER),
                layer_class=g.meta(node, g.CLASS),
            )


# Layers that multiply activations with each other, which no node of the dialect does.
_COMPOSITE = frozenset({"GRUCell", "LSTMCell", "QuantMultiheadAttention", "QuantScaledDotProductAttention", "RNNCell"})


def _composite_violations(model: ir.Model) -> Iterator[Violation]:
    """Recurrent and attention layers with quantizers; torch's own, in float, are standard nodes."""
    owners = {q.layer for q in g.quantizers(model)}
    layers = {g.meta(n, g.LAYER): g.meta(n, g.CLASS) for n in model.graph if g.meta(n, g.CLASS) in _COMPOSITE}
    for layer, layer_class in layers.items():
        if any(owner == layer or owner.startswith(f"{layer}.") or not layer for owner in owners):
            yield Violation(
                "E04",
                KEY,
                f"a quantized {layer_class}, which multiplies activations with each other",
                "layers that multiply activations with constant weights",
                "use target 'qonnx' or 'qdq'",
                layer=layer,
                layer_class=layer_class,
            )


def _input_violations(model: ir.Model) -> Iterator[Violation]:
    for i, fields in enumerate(g.quant_tensor_records(model, g.INPUTS)):
        if fields is None:
            continue
        bits, signed = fields["bit_width"], fields["signed"]
        if bits != int(bits) or not 1 <= bits <= MOST_BITS or (bits == 1 and signed):
            yield Violation(
                "E03",
                KEY,
                f"a QuantTensor with {fields}",
                f"a whole bit width up to {MOST_BITS}, 2 or more if signed",
                "give the model the float values",
                place=f"model input {i}",
            )


def default_opset(model: ir.Model, options: Mapping[str, Any]) -> int:
    """The lowest opset from 13 on in which every node means the same."""
    from brevitas.export.lowering.opset import current_opset, opset_violations

    for opset in range(LEAST_OPSET, current_opset(model)):
        if not opset_violations(model, opset, KEY, LEAST_OPSET):
            return opset
    return current_opset(model)


def lower(model: ir.Model, options: Mapping[str, Any]) -> ir.Model:
    """Replace every quantizer and every quantized layer."""
    FinnLowering(model).run()
    add_debug_markers(model)
    records = g.quant_tensor_records(model, g.INPUTS)
    model.metadata_props[g.INPUTS] = json.dumps([None if r is None else {**r, "codes": True} for r in records])
    return model


TARGET = Target(
    KEY,
    "FINN dialect, MultiThreshold and integer weights",
    check=check,
    lower=lower,
    default_opset=default_opset,
    least_opset=LEAST_OPSET,
    runtime="qonnx",
)
