"""Target ``qdq``: standard ONNX with QuantizeLinear / DequantizeLinear around float operators.

weight       integer initializer -> DequantizeLinear
bias         int32 (own scale: int8 where it fits) initializer -> DequantizeLinear
activation   QuantizeLinear -> [Clip where the codes do not fill the storage type] -> DequantizeLinear
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from brevitas.export import graph as g
from brevitas.export.lowering.build import (
    add_initializer,
    drop_unused_initializers,
    insert_before,
    make_node,
    redirect,
    remove_if_unused,
)
from brevitas.export.lowering.pattern import COMPUTE, on_accumulator_grid
from brevitas.export.targets import Target
from brevitas.export.targets.common import SPOKEN, at, common_violations
from brevitas.export.violations import Violation

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["TARGET", "check", "lower", "storage_type"]

KEY = "qdq"
WIDE_OPSET = 21
PERM = "brevitas.perm"


def storage_type(bits: int, signed: bool) -> np.dtype[Any]:
    """The integer type that holds codes of that width.

    >>> storage_type(4, True), storage_type(8, False), storage_type(12, True)
    (dtype('int8'), dtype('uint8'), dtype('int16'))
    """
    size = 8 if bits <= 8 else 16 if bits <= 16 else 32
    return np.dtype(f"{'int' if signed else 'uint'}{size}")


def check(model: ir.Model, options: Mapping[str, Any]) -> list[Violation]:
    """Rules of the target."""
    found = list(common_violations(model, KEY))
    requested = options.get("opset_version")
    for q in g.quantizers(model):
        if not g.meta(q.node, g.UNSUPPORTED):
            found.extend(_quantizer_violations(q, requested, bool(options.get("export_weight_q_node"))))
    for i, fields in enumerate(g.quant_tensor_records(model, g.INPUTS)):
        if fields is not None and (fields["bit_width"] > 8 or np.asarray(fields["scale"]).size != 1):
            found.append(
                Violation(
                    "E03",
                    KEY,
                    f"a QuantTensor with {fields}",
                    "at most 8 bits and one scale",
                    "give the model the float values",
                    place=f"model input {i}",
                )
            )
    return found


def _quantizer_violations(q: g.Quantizer, requested: int | None, weight_nodes: bool) -> list[Violation]:
    found = []
    limit = 32 if q.role == "bias" else 16
    if q.bits > limit:
        found.append(
            at(q, "E11", KEY, f"bit width {q.bits}", f"1 to {limit} bits", f"set bit_width to {limit} or less")
        )
    elif q.bits > 8 and q.role != "bias" and requested is not None and requested < WIDE_OPSET:
        found.append(
            at(
                q,
                "E11",
                KEY,
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
                KEY,
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
                KEY,
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
                KEY,
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
                KEY,
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
                KEY,
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
                KEY,
                f"zero point {np.unique(q.zero_point).tolist()} of a bias",
                "0",
                "use Int8Bias ... Int32Bias",
            )
        )
    return found


def default_opset(model: ir.Model) -> int:
    """20, or the opset that the widest type needs."""
    wide = any(q.bits > 8 and q.role != "bias" for q in g.quantizers(model))
    return WIDE_OPSET if wide else 20


def lower(model: ir.Model, options: Mapping[str, Any]) -> ir.Model:
    """Replace every Quant node by its integer form."""
    for index, fields in enumerate(g.quant_tensor_records(model, g.INPUTS)):
        if fields is not None:
            _integer_input(model, index, fields)
    requantize_operands(model)
    todo = [(q, _grid_names(q)) for q in g.quantizers(model)]
    on_grid = {q.name for q, _ in todo if q.role == "bias" and on_accumulator_grid(model, q)}
    for q, _ in todo:  # frees the names of the float zero points for the integer ones
        for position in range(1, len(q.node.inputs)):
            q.node.replace_input_with(position, None)
    for q, names in todo:
        if q.truncated is not None and q.rounding != "ROUND":
            lower_truncation(model, q, q.truncated)
        elif not q.is_parameter or (q.role == "weight" and options.get("export_weight_q_node")):
            _lower_activation(model, q, names)
        else:
            _lower_parameter(model, q, names, np.dtype(np.int32) if q.name in on_grid else None)
    model.graph.opset_imports.pop(g.DOMAIN, None)
    drop_unused_initializers(model)
    return model


def _meta(q: g.Quantizer, part: str) -> dict[str, str]:
    kept = {k: v for k, v in q.node.metadata_props.items() if k in (g.LAYER, g.CLASS, g.QUANTIZER, g.ROLE, g.CALL)}
    return {**kept, g.PART: part}


def _grid_names(q: g.Quantizer) -> tuple[str, str]:
    positions = {"Quant": (1, 2), "Trunc": (4, 2), "BipolarQuant": (1,)}[q.kind]
    names = [value.name if value is not None else None for value in (q.node.inputs[i] for i in positions)]
    names += [None] * (2 - len(names))
    return names[0] or f"{q.node.name}_scale", names[1] or f"{q.node.name}_zero_point"


def _grid(
    model: ir.Model, q: g.Quantizer, names: tuple[str, str], dtype: np.dtype[Any]
) -> tuple[ir.Value, ir.Value, dict[str, int]]:
    """Scale and zero point as initializers, with the axis attribute if they vary along a dimension."""
    scale, zero_point = q.scale, q.zero_point
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


def _lower_parameter(
    model: ir.Model, q: g.Quantizer, names: tuple[str, str], dtype: np.dtype[Any] | None = None
) -> None:
    import onnx_ir as ir

    if dtype is None:
        dtype = np.dtype(np.int32) if q.role == "bias" and q.bits > 8 else storage_type(q.bits, q.signed)
    values, out = q.node.inputs[0], q.node.outputs[0]
    assert values is not None
    codes = q.codes().astype(dtype)
    transposes = [n for n, _ in out.uses() if n.op_type == "Transpose" and n.domain == ""]
    plain_use = out.is_graph_output() or len(transposes) < len(list(out.uses()))
    scale, zero_point, attributes = _grid(model, q, names, dtype)
    if plain_use:
        weight = add_initializer(model, f"{values.name}_codes", codes)
        node = make_node(
            "DequantizeLinear",
            [weight, scale, zero_point],
            name=q.node.name or q.name,
            like=out,
            attributes=attributes,
            meta=_meta(q, "dequantize"),
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
            meta={**_meta(q, "dequantize"), PERM: ",".join(map(str, perm))},
        )
        insert_before(transpose, node)
        redirect(transpose.outputs[0], node.outputs[0])
        remove_if_unused(model, transpose)
    remove_if_unused(model, q.node)


def _lower_activation(model: ir.Model, q: g.Quantizer, names: tuple[str, str]) -> None:
    import onnx_ir as ir

    dtype = storage_type(q.bits, q.signed)
    kind = ir.DataType.from_numpy(dtype)
    x, out = q.node.inputs[0], q.node.outputs[0]
    assert x is not None
    name = q.node.name or q.name
    scale, zero_point, attributes = _grid(model, q, names, dtype)
    low, high = q.range
    info = np.iinfo(dtype)
    narrow = (low, high) != (info.min, info.max)
    nodes: list[ir.Node] = []
    if narrow and dtype.itemsize > 1:
        # onnxruntime has no Clip for 16-bit integers. Clipping the input is exact: bound / scale rounds to the bound.
        nodes.extend(_float_clip(model, q, x, low, high))
        x = nodes[-1].outputs[0]
    nodes.append(
        make_node(
            "QuantizeLinear",
            [x, scale, zero_point],
            name=f"{name}.quantize",
            like=out,
            dtype=kind,
            attributes=attributes,
            meta=_meta(q, "quantize"),
        )
    )
    if narrow and dtype.itemsize == 1:
        bounds = [
            add_initializer(model, f"{q.name.removesuffix('_quant') or name}_{end}", np.asarray(bound, dtype))
            for end, bound in (("min", low), ("max", high))
        ]
        nodes.append(
            make_node(
                "Clip",
                [nodes[-1].outputs[0], *bounds],
                name=f"{name}.clip",
                like=out,
                dtype=kind,
                meta=_meta(q, "clip"),
            )
        )
    nodes.append(
        make_node(
            "DequantizeLinear",
            [nodes[-1].outputs[0], scale, zero_point],
            name=f"{name}.dequantize",
            like=out,
            attributes=attributes,
            meta=_meta(q, "dequantize"),
        )
    )
    insert_before(q.node, *nodes)
    redirect(out, nodes[-1].outputs[0])
    remove_if_unused(model, q.node)


def lower_truncation(model: ir.Model, q: g.Quantizer, given: g.Grid) -> None:
    """Truncation that does not round half to even, in float: integers are exact there, and it can run anywhere.

    Div(s), Round (cleans the float noise of codes), Div(T), Floor or Ceil, Clip, Mul(s * T).
    """
    name = q.node.name or q.name
    base = q.name.removesuffix("_quant") or name
    x, out = q.node.inputs[0], q.node.outputs[0]
    assert x is not None
    factor = np.exp2(np.rint(np.log2(q.scale.astype(np.float64) / given.scale)))
    if factor.size and np.all(factor == factor.flat[0]):
        factor = factor.reshape(-1)[:1].reshape(())
    steps = {"FLOOR": ["Floor"], "CEIL": ["Ceil"], "DOWN": ["Abs", "Floor", "Sign"]}[q.rounding]
    low, high = (
        add_initializer(model, f"{base}_{e}", np.float32(b)) for e, b in zip(("min", "max"), q.range, strict=True)
    )
    nodes: list[ir.Node] = []

    def emit(op_type: str, *inputs: ir.Value | None, part: str = "") -> ir.Value:
        made = make_node(op_type, inputs, name=f"{name}.{op_type.lower()}_{len(nodes)}", like=out, meta=_meta(q, part))
        nodes.append(made)
        return made.outputs[0]

    code = emit("Round", emit("Div", x, add_initializer(model, f"{base}_in_scale", np.float32(given.scale))))
    code = shifted = emit("Div", code, add_initializer(model, f"{base}_shift", np.float32(factor)))
    for op_type in steps:
        code = emit("Mul", code, emit("Sign", shifted)) if op_type == "Sign" else emit(op_type, code)
    code = emit("Clip", code, low, high)
    emit("Mul", code, add_initializer(model, f"{base}_scale", np.float32(q.scale)), part=g.VALUES)
    for node in nodes[:-1]:
        del node.metadata_props[g.QUANTIZER]
    insert_before(q.node, *nodes)
    redirect(out, nodes[-1].outputs[0])
    remove_if_unused(model, q.node)


def _float_clip(model: ir.Model, q: g.Quantizer, x: ir.Value, low: int, high: int) -> list[ir.Node]:
    """Bound a float tensor to the values of the extreme codes; Clip takes scalars, so channels take Max and Min."""
    name = q.node.name or q.name
    base = q.name.removesuffix("_quant") or name
    bounds = [((np.float32(b) - q.zero_point) * q.scale).astype(np.float32) for b in (low, high)]
    if all(b.size == 1 for b in bounds):
        ends = [
            add_initializer(model, f"{base}_{end}", b.reshape(()))
            for end, b in zip(("min", "max"), bounds, strict=True)
        ]
        return [make_node("Clip", [x, *ends], name=f"{name}.clip", like=x, meta=_meta(q, "clip"))]
    nodes: list[ir.Node] = []
    for op_type, end, bound in (("Max", "min", bounds[0]), ("Min", "max", bounds[1])):
        x = nodes[-1].outputs[0] if nodes else x
        limit = add_initializer(model, f"{base}_{end}", bound)
        nodes.append(make_node(op_type, [x, limit], name=f"{name}.clip_{end}", like=x, meta=_meta(q, "clip")))
    return nodes


def requantize_operands(model: ir.Model) -> None:
    """Where codes reach a product through pooling, ReLU or reshaping, quantize them again on their grid.

    The values do not change; a reader that fuses DequantizeLinear -> Conv -> QuantizeLinear then finds its pattern.
    """
    done: dict[int, ir.Value] = {}
    for node in list(model.graph):
        if node.domain != "" or node.op_type not in COMPUTE:
            continue
        for position in COMPUTE[node.op_type][:2]:
            value = node.inputs[position] if position is not None else None
            source = g.source_quantizer(value)
            if value is None or source is None or source is value.producer():
                continue
            q = g.Quantizer.read(source)
            if q.is_parameter or q.varying_dims:
                continue
            if id(value) not in done:
                producer = value.producer()
                assert producer is not None
                copy = make_node(
                    "Quant",
                    [value, *source.inputs[1:]],
                    name=f"{producer.name}.requantize",
                    like=value,
                    domain=g.DOMAIN,
                    attributes={k: a.value for k, a in source.attributes.items()},
                    meta={g.LAYER: g.meta(producer, g.LAYER), g.CLASS: g.meta(producer, g.CLASS), g.ROLE: "requantize"},
                )
                insert_before(node, copy)
                done[id(value)] = copy.outputs[0]
            node.replace_input_with(position, done[id(value)])


def _integer_input(model: ir.Model, index: int, fields: Mapping[str, Any]) -> None:
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


TARGET = Target(
    KEY,
    "standard ONNX, QuantizeLinear / DequantizeLinear",
    check=check,
    lower=lower,
    default_opset=default_opset,
    least_opset=13,
    options={"export_weight_q_node": False},
    runtime="onnxruntime",
)
