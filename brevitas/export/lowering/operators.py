"""Products and quantizers as operators on codes: QLinearConv, QLinearMatMul, MatMulInteger, QuantizeLinear."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from brevitas.export import graph as g
from brevitas.export.lowering.build import add_initializer, insert_before, make_node, redirect, remove_if_unused
from brevitas.export.lowering.fused import Fused
from brevitas.export.lowering.integer import (
    dequantize,
    grid_constants,
    grid_names,
    integer_clip,
    part_meta,
    quantize,
    stored_type,
)
from brevitas.export.lowering.pattern import Operand

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["CODES_PASS", "IntegerGraph"]

_STORED_BITS = 8

#: Operators that move codes as they move real values, in any type.
CODES_PASS = frozenset({"Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Dropout"})


@dataclass(frozen=True)
class _Codes:
    """Codes of an activation with the initializers of their grid."""

    value: ir.Value
    scale: ir.Value
    zero_point: ir.Value
    quantizer: g.Quantizer


class IntegerGraph:
    """Rewrites a canonical graph so that products read and give codes."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._codes: dict[int, _Codes] = {}
        self._names: dict[str, tuple[str, str]] = {}

    def lower(self, products: Iterable[Fused]) -> None:
        """Rewrite every activation quantizer, and with it the product that it ends."""
        self._products = {id(p.output.node): p for p in products if p.output is not None}
        activations = [q for q in g.quantizers(self.model) if not q.is_parameter]
        unsigned = _stored_without_sign(self._products.values())
        for q in g.quantizers(self.model):
            self._names[q.node.name or ""] = grid_names(q)
        for q in activations:
            self._activation(replace(q, offset=2 ** (_STORED_BITS - 1)) if q.signed and q.node in unsigned else q)
        self._give_codes()

    def _activation(self, q: g.Quantizer) -> None:
        names = self._names[q.node.name or ""]
        given = q.node.inputs[0]
        assert given is not None
        for position in range(1, len(q.node.inputs)):  # frees the names of the float zero points for the integer ones
            q.node.replace_input_with(position, None)
        product = self._products.get(id(q.node))
        given_codes = g.meta(q.node, g.ROLE) == g.INPUT_CODES
        if given_codes:
            _make_integer(given, stored_type(replace(q, offset=0)))
        if given_codes and not q.offset:
            nodes, codes = [], given
        elif given_codes:
            # The input keeps its type; inside, its codes are stored in the type that the products take.
            real = dequantize(self.model, replace(q, offset=0), given, (f"{given.name}_scale", f"{given.name}_zero"))
            q.node.replace_input_with(0, real.outputs[0])
            nodes = [real, *quantize(self.model, q, names)]
            codes = nodes[-1].outputs[0]
        else:
            nodes = quantize(self.model, q, names) if product is None else self._product(product, q, names)
            codes = nodes[-1].outputs[0]
            nodes[-1].metadata_props.update(part_meta(q, g.CODES))
        scale, zero_point, _ = grid_constants(self.model, q, names, stored_type(q))
        insert_before(q.node, *nodes)
        real = dequantize(self.model, q, codes, names)
        insert_before(q.node, real)
        redirect(q.node.outputs[0], real.outputs[0])
        self._codes[id(real.outputs[0])] = _Codes(codes, scale, zero_point, q)
        self.model.graph.remove(q.node, safe=True)
        if product is not None:
            remove_if_unused(self.model, *reversed((product.node, *product.between)))

    def codes_of(self, value: ir.Value | None) -> _Codes | None:
        """Codes of a real value, which operators that move codes may have moved; these are repeated on the codes."""
        if value is None:
            return None
        if id(value) in self._codes:
            return self._codes[id(value)]
        node = value.producer()
        if node is None or node.domain != "" or node.op_type not in CODES_PASS:
            return None
        before = self.codes_of(node.inputs[0])
        if before is None:
            return None
        moved = make_node(
            node.op_type,
            [before.value, *node.inputs[1:]],
            name=f"{node.name}.codes",
            like=value,
            dtype=before.value.dtype,
            attributes={name: attribute.value for name, attribute in node.attributes.items()},
            meta={k: v for k, v in node.metadata_props.items() if k in (g.LAYER, g.CLASS)},
        )
        insert_before(node, moved)
        found = _Codes(moved.outputs[0], before.scale, before.zero_point, before.quantizer)
        self._codes[id(value)] = found
        return found

    def _product(self, p: Fused, q: g.Quantizer, names: tuple[str, str]) -> list[ir.Node]:
        data = self.codes_of(p.node.inputs[0])
        assert data is not None, "check() lets no product of real values pass"
        weight = _Weight(self.model, p, signed=np.issubdtype(stored_type(data.quantizer), np.signedinteger))
        dtype = stored_type(q)
        if not p.has_operator:
            nodes = self._with_one_rounding(p, q, names, data, weight)
        else:
            nodes = [self._in_one(p, q, names, data, weight, dtype)]
        low, high = q.range
        if p.relu:
            low = max(low, int(q.stored_zero_point.reshape(-1)[0]))
        if (low, high) != (np.iinfo(dtype).min, np.iinfo(dtype).max):
            nodes.append(integer_clip(self.model, q, nodes[-1].outputs[0], low, high))
        nodes[0].metadata_props[g.CONSTANTS] = json.dumps(weight.records)
        return nodes

    def _in_one(
        self, p: Fused, q: g.Quantizer, names: tuple[str, str], data: _Codes, weight: _Weight, dtype: np.dtype[Any]
    ) -> ir.Node:
        """QLinearConv or QLinearMatMul."""
        import onnx_ir as ir

        scale, zero_point, _ = grid_constants(self.model, q, names, dtype)
        inputs = [data.value, data.scale, data.zero_point, weight.codes, weight.scale, weight.zero_point]
        inputs += [scale, zero_point]
        attributes: Mapping[str, Any] = {}
        if not p.is_linear:
            attributes = {name: attribute.value for name, attribute in p.node.attributes.items()}
            if p.bias is not None:
                inputs.append(weight.bias(p.bias))
        return make_node(
            "QLinearMatMul" if p.is_linear else "QLinearConv",
            inputs,
            name=p.node.name or q.name,
            like=q.node.outputs[0],
            dtype=ir.DataType.from_numpy(dtype),
            attributes=attributes,
            meta=_layer_meta(p.node),
        )

    def _with_one_rounding(
        self, p: Fused, q: g.Quantizer, names: tuple[str, str], data: _Codes, weight: _Weight
    ) -> list[ir.Node]:
        """MatMulInteger [, Add], Cast, Mul, QuantizeLinear: the sum is exact, and rounded once."""
        import onnx_ir as ir

        like, name = q.node.outputs[0], p.node.name or q.name
        dtype = stored_type(q)
        scale, zero_point, _ = grid_constants(self.model, q, names, dtype)
        inputs = [data.value, weight.codes, data.zero_point, weight.zero_point]
        nodes: list[ir.Node] = []

        def emit(op_type: str, inputs: list[Any], kind: ir.DataType, **attributes: Any) -> ir.Value:
            made = make_node(
                op_type,
                inputs,
                name=f"{name}.{op_type}",
                like=like,
                dtype=kind,
                attributes=attributes,
                meta=_layer_meta(p.node),
            )
            nodes.append(made)
            return made.outputs[0]

        total = emit("MatMulInteger", inputs, ir.DataType.INT32)
        if p.bias is not None:
            total = emit("Add", [total, weight.bias(p.bias)], ir.DataType.INT32)
        real = emit("Cast", [total], ir.DataType.FLOAT, to=ir.DataType.FLOAT)
        product = add_initializer(self.model, f"{weight.base}_accumulator_scale", weight.accumulator_scale(data))
        real = emit("Mul", [real, product], ir.DataType.FLOAT)
        emit("QuantizeLinear", [real, scale, zero_point], ir.DataType.from_numpy(dtype))
        return nodes

    def _give_codes(self) -> None:
        """Outputs that are QuantTensors are given as codes."""
        records = g.quant_tensor_records(self.model, g.OUTPUTS)
        outputs = self.model.graph.outputs
        for i, fields in enumerate(records):
            found = self.codes_of(outputs[i]) if fields is not None else None
            if found is None or found.value.is_graph_output() or found.value.producer() is None:
                continue
            if found.quantizer.offset:
                found = self._in_own_type(found, outputs[i])
            name = outputs[i].name
            outputs[i].name = f"{name}.real"
            found.value.name = name
            old = outputs[i].producer()
            outputs[i] = found.value
            if old is not None:
                remove_if_unused(self.model, old)
        self._drop_what_nobody_reads()

    def _in_own_type(self, codes: _Codes, real: ir.Value) -> _Codes:
        """Codes in the type of their sign, from their real value."""
        q, producer = replace(codes.quantizer, offset=0), real.producer()
        assert producer is not None and producer.graph is not None
        names = (f"{real.name}_scale", f"{real.name}_zero_point")
        scale, zero_point, _ = grid_constants(self.model, q, names, stored_type(q))
        node = make_node(
            "QuantizeLinear",
            [real, scale, zero_point],
            name=f"{real.name}.quantize",
            like=real,
            dtype=_kind(stored_type(q)),
            meta=_layer_meta(producer),
        )
        producer.graph.append(node)
        return _Codes(node.outputs[0], scale, zero_point, q)

    def _drop_what_nobody_reads(self) -> None:
        for node in reversed(list(self.model.graph)):
            if node.op_type == "DequantizeLinear" or node.op_type in CODES_PASS:
                remove_if_unused(self.model, node)


class _Weight:
    """The constants of a product: integer weight and bias with their grid."""

    def __init__(self, model: ir.Model, p: Fused, signed: bool) -> None:
        self.model = model
        self.base = p.weight.quantizer.name.removesuffix("_quant")
        self.records: list[dict[str, Any]] = []
        q, operand = p.weight.quantizer, p.weight
        if p.node.op_type == "Gemm" and p.channel_dim == 0:
            operand = Operand(q, (1, 0) if operand.perm is None else (operand.perm[1], operand.perm[0]))
        if signed and not q.signed:
            # No runtime multiplies signed data by unsigned weights; codes and zero point move, their difference stays.
            q = replace(q, offset=-(2 ** (_STORED_BITS - 1)))
            operand = Operand(q, operand.perm)
        dtype = stored_type(q)
        self._store(q, operand.codes, dtype, operand.perm)
        scale = operand.read(q.scale).reshape(-1) if q.scale.size > 1 else q.scale.reshape(())
        self.scale_array = np.asarray(scale, np.float32)
        self.scale = add_initializer(model, f"{self.base}_scale", self.scale_array)
        zero_point = q.stored_zero_point.reshape(-1)[:1].reshape(())
        self.zero_point = add_initializer(model, f"{self.base}_zero_point", zero_point.astype(dtype))

    def _store(self, q: g.Quantizer, codes: np.ndarray, dtype: np.dtype[Any], perm: tuple[int, ...] | None) -> ir.Value:
        name = f"{q.name.removesuffix('_quant')}_codes"
        self.codes = add_initializer(self.model, name, codes.astype(dtype))
        self.records.append(
            {
                "quantizer": q.name,
                "call": int(g.meta(q.node, g.CALL, "0")),
                "initializer": self.codes.name,
                "perm": None if perm is None else list(perm),
                "offset": q.offset,
            }
        )
        return self.codes

    def bias(self, operand: Operand) -> ir.Value:
        """The bias as int32."""
        weight = self.codes
        bias = self._store(operand.quantizer, operand.codes.reshape(-1), np.dtype(np.int32), None)
        self.codes = weight
        return bias

    def accumulator_scale(self, data: _Codes) -> np.ndarray:
        """Input scale times weight scale, of one element or one a column."""
        return np.asarray(data.quantizer.scale.reshape(()) * self.scale_array, np.float32)


def _stored_without_sign(products: Iterable[Fused]) -> set[ir.Node]:
    """Activations that QLinearConv and QLinearMatMul read or give.

    Of these, onnxruntime has no kernels for signed data once it has made weights unsigned, which it does on processors
    whose products of mixed signs saturate. So signed codes are moved by half the range, and their zero points too.
    """
    found: set[ir.Node] = set()
    for product in products:
        if product.output is not None and (product.bias is None or not product.is_linear):
            source = g.source_quantizer(product.node.inputs[0])
            assert source is not None
            found |= {source, product.output.node}
    return found


def _kind(dtype: np.dtype[Any]) -> ir.DataType:
    import onnx_ir as ir

    return ir.DataType.from_numpy(dtype)


def _layer_meta(node: ir.Node) -> dict[str, str]:
    return {k: v for k, v in node.metadata_props.items() if k in (g.LAYER, g.CLASS)}


def _make_integer(value: ir.Value, dtype: np.dtype[Any]) -> None:
    import onnx_ir as ir

    value.type = ir.TensorType(ir.DataType.from_numpy(dtype))
