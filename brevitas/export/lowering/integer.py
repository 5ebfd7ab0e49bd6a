"""Quantizers as standard integer operators: QuantizeLinear, Clip and DequantizeLinear, and integer constants."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from brevitas.export import graph as g
from brevitas.export.lowering.build import add_initializer, insert_before, make_node, redirect, remove_if_unused
from brevitas.export.lowering.pattern import COMPUTE

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "PERM",
    "dequantize",
    "dequantize_parameter",
    "float_clip",
    "grid_constants",
    "grid_names",
    "integer_clip",
    "integer_input",
    "part_meta",
    "quantize",
    "quantize_dequantize",
    "quantize_inputs",
    "requantize_operands",
    "smallest_type",
    "storage_type",
    "stored_type",
]

#: Node key: the permutation in which the codes of a parameter are stored.
PERM = "brevitas.perm"


def storage_type(bits: int, signed: bool) -> np.dtype[Any]:
    """The integer type that holds codes of that width.

    >>> storage_type(4, True), storage_type(8, False), storage_type(12, True)
    (dtype('int8'), dtype('uint8'), dtype('int16'))
    """
    size = 8 if bits <= 8 else 16 if bits <= 16 else 32
    return np.dtype(f"{'int' if signed else 'uint'}{size}")


def smallest_type(bits: int, signed: bool) -> np.dtype[Any]:
    """The smallest integer type of ONNX that holds codes of that width: 2, 4, 8, ... bits.

    >>> smallest_type(3, True), smallest_type(2, False), smallest_type(5, True)
    (dtype(int4), dtype(uint2), dtype('int8'))
    """
    import ml_dtypes

    if bits > 4:
        return storage_type(bits, signed)
    return np.dtype(getattr(ml_dtypes, f"{'' if signed else 'u'}int{2 if bits <= 2 else 4}"))


def stored_type(q: g.Quantizer) -> np.dtype[Any]:
    """The integer type that holds the codes of a quantizer, moved by its offset."""
    return storage_type(q.bits, q.signed != bool(q.offset))


def part_meta(q: g.Quantizer, part: str) -> dict[str, str]:
    """Metadata of a node that is part of a lowered quantizer."""
    kept = {k: v for k, v in q.node.metadata_props.items() if k in (g.LAYER, g.CLASS, g.QUANTIZER, g.ROLE, g.CALL)}
    return {**kept, g.PART: part, **({g.OFFSET: str(q.offset)} if q.offset else {})}


def grid_names(q: g.Quantizer) -> tuple[str, str]:
    """Names of the initializers of scale and zero point."""
    positions = {"Quant": (1, 2), "Trunc": (4, 2), "BipolarQuant": (1,)}[q.kind]
    names = [value.name if value is not None else None for value in (q.node.inputs[i] for i in positions)]
    names += [None] * (2 - len(names))
    return names[0] or f"{q.node.name}_scale", names[1] or f"{q.node.name}_zero_point"


def grid_constants(
    model: ir.Model, q: g.Quantizer, names: tuple[str, str], dtype: np.dtype[Any]
) -> tuple[ir.Value, ir.Value, dict[str, int]]:
    """Scale and zero point as initializers, with the axis attribute if they vary along a dimension."""
    scale, zero_point = q.scale, q.stored_zero_point
    attributes = {}
    if q.varying_dims:
        size = max(scale.size, zero_point.size)
        scale, zero_point = (np.broadcast_to(a.reshape(-1), (size,)) for a in (scale, zero_point))
        attributes = {"axis": q.varying_dims[0]}
    else:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    return (
        add_initializer(model, names[0], np.asarray(scale, np.float32)),
        add_initializer(model, names[1], np.asarray(zero_point).astype(dtype)),
        attributes,
    )


def dequantize_parameter(
    model: ir.Model, q: g.Quantizer, names: tuple[str, str], dtype: np.dtype[Any] | None = None
) -> None:
    """A weight or bias as integer initializer and DequantizeLinear; in ``dtype`` where it is given."""
    import onnx_ir as ir

    if dtype is None:
        dtype = np.dtype(np.int32) if q.role == "bias" and q.bits > 8 else storage_type(q.bits, q.signed)
    values, out = q.node.inputs[0], q.node.outputs[0]
    assert values is not None
    codes = q.codes().astype(dtype)
    transposes = [n for n, _ in out.uses() if n.op_type == "Transpose" and n.domain == ""]
    plain_use = out.is_graph_output() or len(transposes) < len(list(out.uses()))
    scale, zero_point, attributes = grid_constants(model, q, names, dtype)
    if plain_use:
        weight = add_initializer(model, f"{values.name}_codes", codes)
        node = make_node(
            "DequantizeLinear",
            [weight, scale, zero_point],
            name=q.node.name or q.name,
            like=out,
            attributes=attributes,
            meta=part_meta(q, "dequantize"),
        )
        insert_before(q.node, node)
        redirect(out, node.outputs[0], keep=transposes)
    for transpose in transposes:
        # The codes are stored as the consumer multiplies them: DequantizeLinear then stands right before it.
        perm = list(transpose.attributes["perm"].as_ints())
        moved = add_initializer(model, f"{values.name}_codes", np.ascontiguousarray(codes.transpose(perm)))
        axis = {"axis": perm.index(attributes["axis"])} if attributes else {}
        node = make_node(
            "DequantizeLinear",
            [moved, scale, zero_point],
            name=transpose.name or f"{q.name}.Transpose",
            like=transpose.outputs[0],
            shape=ir.Shape(moved.shape or []),
            attributes=axis,
            meta={**part_meta(q, "dequantize"), PERM: ",".join(map(str, perm))},
        )
        insert_before(transpose, node)
        redirect(transpose.outputs[0], node.outputs[0])
        remove_if_unused(model, transpose)
    remove_if_unused(model, q.node)


def quantize(model: ir.Model, q: g.Quantizer, names: tuple[str, str]) -> list[ir.Node]:
    """[Clip,] QuantizeLinear [, Clip] for an activation.

    The last node gives the codes; a Clip stands where they do not fill the storage type.
    """
    import onnx_ir as ir

    dtype = stored_type(q)
    x, out = q.node.inputs[0], q.node.outputs[0]
    assert x is not None
    name = q.node.name or q.name
    scale, zero_point, attributes = grid_constants(model, q, names, dtype)
    low, high = q.range
    narrow = (low, high) != (np.iinfo(dtype).min, np.iinfo(dtype).max)
    nodes: list[ir.Node] = []
    if narrow and dtype.itemsize > 1:
        # onnxruntime has no Clip for 16-bit integers. Clipping the input is exact: bound / scale rounds to the bound.
        nodes.extend(float_clip(model, q, x, low, high))
        x = nodes[-1].outputs[0]
    nodes.append(
        make_node(
            "QuantizeLinear",
            [x, scale, zero_point],
            name=f"{name}.quantize",
            like=out,
            dtype=ir.DataType.from_numpy(dtype),
            attributes=attributes,
            meta=part_meta(q, "quantize"),
        )
    )
    if narrow and dtype.itemsize == 1:
        nodes.append(integer_clip(model, q, nodes[-1].outputs[0], low, high))
    return nodes


def integer_clip(model: ir.Model, q: g.Quantizer, codes: ir.Value, low: int, high: int) -> ir.Node:
    """Clip of codes in their own type."""
    name = q.node.name or q.name
    assert codes.dtype is not None
    bounds = [
        add_initializer(model, f"{q.name.removesuffix('_quant') or name}_{end}", np.asarray(bound, codes.dtype.numpy()))
        for end, bound in (("min", low), ("max", high))
    ]
    return make_node(
        "Clip",
        [codes, *bounds],
        name=f"{name}.clip",
        like=q.node.outputs[0],
        dtype=codes.dtype,
        meta=part_meta(q, "clip"),
    )


def dequantize(model: ir.Model, q: g.Quantizer, codes: ir.Value, names: tuple[str, str]) -> ir.Node:
    """DequantizeLinear of the codes of an activation."""
    assert codes.dtype is not None
    scale, zero_point, attributes = grid_constants(model, q, names, codes.dtype.numpy())
    return make_node(
        "DequantizeLinear",
        [codes, scale, zero_point],
        name=f"{q.node.name or q.name}.dequantize",
        like=q.node.outputs[0],
        attributes=attributes,
        meta=part_meta(q, "dequantize"),
    )


def quantize_dequantize(model: ir.Model, q: g.Quantizer, names: tuple[str, str]) -> None:
    """An activation's quantizer as QuantizeLinear [, Clip], DequantizeLinear."""
    out = q.node.outputs[0]
    nodes = quantize(model, q, names)
    nodes.append(dequantize(model, q, nodes[-1].outputs[0], names))
    insert_before(q.node, *nodes)
    redirect(out, nodes[-1].outputs[0])
    remove_if_unused(model, q.node)


def float_clip(model: ir.Model, q: g.Quantizer, x: ir.Value, low: int, high: int) -> list[ir.Node]:
    """Bound a float tensor to the values of the extreme codes; Clip takes scalars, so channels take Max and Min."""
    name = q.node.name or q.name
    base = q.name.removesuffix("_quant") or name
    bounds = [((np.float32(b) - q.zero_point) * q.scale).astype(np.float32) for b in (low, high)]
    if all(b.size == 1 for b in bounds):
        ends = [
            add_initializer(model, f"{base}_{end}", b.reshape(()))
            for end, b in zip(("min", "max"), bounds, strict=True)
        ]
        return [make_node("Clip", [x, *ends], name=f"{name}.clip", like=x, meta=part_meta(q, "clip"))]
    nodes: list[ir.Node] = []
    for op_type, end, bound in (("Max", "min", bounds[0]), ("Min", "max", bounds[1])):
        x = nodes[-1].outputs[0] if nodes else x
        limit = add_initializer(model, f"{base}_{end}", bound)
        nodes.append(make_node(op_type, [x, limit], name=f"{name}.clip_{end}", like=x, meta=part_meta(q, "clip")))
    return nodes


def requantize_operands(model: ir.Model, through: Collection[str] = ()) -> None:
    """Where codes reach a product through pooling, ReLU or reshaping, quantize them again on their grid.

    The values do not change; a reader that fuses DequantizeLinear -> Conv -> QuantizeLinear then finds its pattern.
    Not needed where there are only operators of the types ``through`` between.
    """
    done: dict[int, ir.Value] = {}
    for node in list(model.graph):
        if node.domain != "" or node.op_type not in COMPUTE:
            continue
        for position in COMPUTE[node.op_type][:2]:
            value = node.inputs[position] if position is not None else None
            source = g.source_quantizer(value)
            if value is None or source is None or source is _producer(value, through):
                continue
            if source.op_type not in g.KINDS:
                continue
            q = g.Quantizer.read(source)
            if q.is_parameter or q.varying_dims or q.is_bipolar:
                continue
            if id(value) not in done:
                producer = value.producer()
                assert producer is not None
                copy = make_node(
                    "Quant",
                    [value, *(source.inputs[i] for i in ((4, 2, 5) if q.kind == "Trunc" else (1, 2, 3)))],
                    name=f"{producer.name}.requantize",
                    like=value,
                    domain=g.DOMAIN,
                    # The values are on the grid, so that any rounding gives them back.
                    attributes={"signed": int(q.signed), "narrow": int(q.narrow), "rounding_mode": "ROUND"},
                    meta={g.LAYER: g.meta(producer, g.LAYER), g.CLASS: g.meta(producer, g.CLASS), g.ROLE: "requantize"},
                )
                insert_before(node, copy)
                done[id(value)] = copy.outputs[0]
            node.replace_input_with(position, done[id(value)])


def _producer(value: ir.Value, through: Collection[str]) -> ir.Node | None:
    node = value.producer()
    while node is not None and node.domain == "" and node.op_type in through and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def integer_input(model: ir.Model, index: int, fields: Mapping[str, Any]) -> None:
    """The graph takes the codes of a QuantTensor and dequantizes them."""
    import onnx_ir as ir

    dtype = storage_type(int(fields["bit_width"]), bool(fields["signed"]))
    value = model.graph.inputs[index]
    uses = list(value.uses())
    name = value.name or f"input_{index}"
    scale = add_initializer(model, f"{name}_scale", np.asarray(fields["scale"], np.float32).reshape(()))
    zero_point = add_initializer(
        model, f"{name}_zero_point", np.asarray(fields["zero_point"]).reshape(()).astype(dtype)
    )
    node = make_node("DequantizeLinear", [value, scale, zero_point], name=f"{name}.dequantize", like=value)
    for consumer, position in uses:
        consumer.replace_input_with(position, node.outputs[0])
    value.type = ir.TensorType(ir.DataType.from_numpy(dtype))
    if uses:
        insert_before(model.graph[0], node)
    if value.is_graph_output():
        outputs = model.graph.outputs
        for i, out in enumerate(outputs):
            if out is value:
                outputs[i] = node.outputs[0]


def quantize_inputs(model: ir.Model) -> None:
    """Put a quantizer of the role ``INPUT_CODES`` behind each graph input that is given as a QuantTensor."""
    for value, fields in zip(model.graph.inputs, g.quant_tensor_records(model, g.INPUTS), strict=True):
        uses = list(value.uses())
        if fields is None or not uses:
            continue
        name = value.name or "input"
        grid = [
            add_initializer(model, f"{name}_{field}", np.asarray(fields[field], np.float32))
            for field in ("scale", "zero_point", "bit_width")
        ]
        node = make_node(
            "Quant",
            [value, *grid],
            name=f"{name}_quant",
            like=value,
            domain=g.DOMAIN,
            attributes={"signed": int(fields["signed"]), "narrow": 0, "rounding_mode": "ROUND"},
            meta={g.LAYER: "", g.CLASS: model.graph.name or "", g.ROLE: g.INPUT_CODES},
        )
        for consumer, position in uses:
            consumer.replace_input_with(position, node.outputs[0])
        insert_before(model.graph[0], node)
