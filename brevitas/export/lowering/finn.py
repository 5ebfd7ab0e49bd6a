"""Rewrites of the FINN dialect: MultiThreshold, integer weights, QuantAvgPool2d.

Quantizers are lowered in execution order; :class:`CodeWiring` keeps where the integers of each one are, so that a layer
that multiplies integers reads them directly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from brevitas.export import graph as g
from brevitas.export.lowering.build import add_initializer, insert_before, make_node, redirect
from brevitas.export.lowering.codes import CodeWiring, Grid, annotate, datatype, datatype_of_range
from brevitas.export.lowering.integer import part_meta
from brevitas.export.lowering.pools import Pool
from brevitas.export.lowering.products import Product, product_at
from brevitas.export.lowering.thresholds import thresholds

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["FINN_DOMAIN", "RANKS", "FinnLowering"]

FINN_DOMAIN = "finn.custom_op.general"
#: Numbers of dimensions that MultiThreshold takes.
RANKS = (2, 3, 4)
# "Channels are dimension 1", for any number of dimensions. Left out, newer readers guess the last one of three; older
# ones know no other name than this and NHWC.
_LAYOUT = "NCHW"


@dataclass(frozen=True)
class _Parameter:
    """A weight or bias, read before its node loses its constants."""

    q: g.Quantizer
    name: str
    codes: np.ndarray

    @staticmethod
    def read(q: g.Quantizer) -> _Parameter:
        values = q.node.inputs[0]
        return _Parameter(q, (values.name if values is not None else None) or q.name, g.compact(q.codes()))


class FinnLowering:
    """One lowering of one graph, in place."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.wiring = CodeWiring(model)

    def run(self) -> None:
        """Rewrite everything."""
        import onnx_ir.passes.common as passes

        for value, fields in zip(self.model.graph.inputs, g.quant_tensor_records(self.model, g.INPUTS), strict=True):
            if fields is not None:
                self._code_input(value, fields)
        products = {node: product for node in self.model.graph if (product := product_at(node)) is not None}
        quantizers = {q.node: q for q in g.quantizers(self.model)}
        parameters = {node: _Parameter.read(q) for node, q in quantizers.items() if q.is_parameter}
        for node in quantizers:  # frees the names of the float constants for what replaces them
            for position in range(0 if node in parameters else 1, len(node.inputs)):
                node.replace_input_with(position, None)
        for node in list(self.model.graph):
            if node in products:
                self._product(products[node], parameters)
            elif node in quantizers and node not in parameters:
                lower = self._quantizer if quantizers[node].truncated is None else self._pool
                lower(quantizers[node])
            elif node.op_type == "Resize" and node.domain == "" and node.inputs[1] is None:
                # Readers ask for the shape of every input, also of one that is left out.
                node.replace_input_with(1, self._constant(f"{node.name}.roi", np.zeros(0, np.float32)))
        passes.RemoveUnusedNodesPass()(self.model)
        self.wiring.rename()
        self.model.graph.opset_imports.pop(g.DOMAIN, None)
        self.model.graph.opset_imports[FINN_DOMAIN] = 1

    def _emit(
        self,
        op_type: str,
        before: ir.Node,
        *inputs: ir.Value | None,
        name: str,
        like: ir.Value,
        meta: Mapping[str, str],
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
    ) -> ir.Value:
        node = make_node(op_type, inputs, name=name, like=like, meta=meta, attributes=attributes, domain=domain)
        insert_before(before, node)
        return node.outputs[0]

    def _constant(self, name: str, array: np.ndarray | np.floating[Any]) -> ir.Value:
        return add_initializer(self.model, name, np.asarray(array, np.float32))

    def _code_input(self, value: ir.Value, fields: Mapping[str, Any]) -> None:
        """The graph takes the integers of a QuantTensor: Sub(zero point) where there is one, then Mul(scale)."""
        uses = list(value.uses())
        annotate(value, datatype(int(fields["bit_width"]), bool(fields["signed"])))
        if not uses:
            return
        grid = self.wiring.of(value)
        assert grid is not None
        first, name = self.model.graph[0], value.name or "input"
        meta = {g.LAYER: "", g.CLASS: self.model.graph.name or ""}
        codes = value
        zero_point = np.asarray(fields["zero_point"], np.float32)
        if zero_point.any():
            offset = self._constant(f"{name}_zero_point", zero_point)
            codes = self._emit("Sub", first, value, offset, name=f"{name}.offset", like=value, meta=meta)
        scale = self._constant(f"{name}_scale", grid.scale)
        real = self._emit("Mul", first, codes, scale, name=f"{name}.dequantize", like=value, meta=meta)
        for node, position in uses:
            node.replace_input_with(position, real)
        del self.wiring.known[value]
        self.wiring.put(real, grid, codes)

    def _quantizer(self, q: g.Quantizer) -> None:
        node, out = q.node, q.node.outputs[0]
        name, base = node.name or q.name, q.name.removesuffix("_quant") or "act"
        low, high = q.range
        grid = Grid.of_quantizer(q)
        x = node.inputs[0]
        assert grid is not None and x is not None and x.shape is not None
        limits = self._thresholds(q, int(x.shape[1]))
        attributes: dict[str, Any] = {"out_dtype": grid.type, "data_layout": _LAYOUT}
        if q.is_bipolar:
            attributes |= {"out_scale": 2.0, "out_bias": -1.0}
        has_offset = low != 0 and not q.is_bipolar
        last = part_meta(q, g.CODES)
        codes = self._emit(
            "MultiThreshold",
            node,
            _without_bounds(x, float(limits.min()), float(limits.max())),
            self._constant(f"{base}_threshold", limits),
            name=name,
            like=out,
            meta=part_meta(q, "quantize") if has_offset else last,
            attributes=attributes,
            domain=FINN_DOMAIN,
        )
        if has_offset:
            least = self._constant(f"{base}_min", np.float32(low))
            codes = self._emit("Add", node, codes, least, name=f"{name}.offset", like=out, meta=last)
        real = codes
        if not (q.is_bipolar and np.all(q.scale == 1)):
            scale = self._constant(f"{base}_scale", q.scale)
            meta = part_meta(q, "dequantize")
            real = self._emit("Mul", node, codes, scale, name=f"{name}.dequantize", like=out, meta=meta)
        self.wiring.put(real, grid, codes)
        redirect(out, real)

    @staticmethod
    def _thresholds(q: g.Quantizer, channels: int) -> np.ndarray:
        if q.is_bipolar:
            return np.zeros((1, 1), np.float32)
        made = thresholds(q.scale.reshape(-1), *q.range, q.rounding)
        return np.broadcast_to(made, (channels, made.shape[1]))

    def _product(self, p: Product, parameters: Mapping[ir.Node, _Parameter]) -> None:
        """Integer weights, and their scale afterwards; on integer data, unless a float bias is added to the sum.

        On integers the sum is exact, and the product of both scales in float32 is multiplied once.
        """
        bias = None if p.bias is None else parameters.get(p.bias.producer())
        scale, out = p.weight_scale(), p.last.outputs[0]
        assert scale is not None
        grid = self.wiring.of(p.data) if p.bias is None or bias is not None else None
        product_scale = None if grid is None else p.product_scale(grid)
        data = p.data
        if product_scale is None:
            grid = None
        else:
            data, scale = self.wiring.codes(p.data), product_scale
        name = p.node.name or p.node.op_type
        meta = {k: v for k, v in p.node.metadata_props.items() if k in (g.LAYER, g.CLASS)}
        made = self._emit(
            "Conv" if p.is_conv else "MatMul",
            p.last,
            data,
            weight := self._weight(p, parameters[p.weight.node]),
            name=name,
            like=out,
            meta=meta | {g.CONSTANTS: _constants(p.weight, weight, p.perm)},
            attributes={k: a.value for k, a in p.node.attributes.items() if k != "auto_pad"} if p.is_conv else {},
        )
        reach = None
        if grid is not None:
            reach = p.reach(grid, np.zeros(1, np.int64))
            annotate(made, datatype_of_range(*reach))
        if bias is not None and grid is not None:
            added = self._constant(bias.name, p.per_channel(bias.codes.reshape(-1)))
            annotate(added, datatype(bias.q.bits, bias.q.signed))
            meta_of_bias = meta | {g.CONSTANTS: _constants(bias.q, added, None, bias.codes.shape)}
            made = self._emit("Add", p.last, made, added, name=f"{name}.bias", like=out, meta=meta_of_bias)
            reach = p.reach(grid, bias.codes.reshape(-1))
        elif p.bias is not None:
            held = g.constant(p.bias)
            assert held is not None and p.bias_position is not None
            p.last.replace_input_with(p.bias_position, None)  # frees the name
            added = self._constant(p.bias.name or f"{name}.bias", p.per_channel(held.reshape(-1) / scale))
            made = self._emit("Add", p.last, made, added, name=f"{name}.bias", like=out, meta=meta)
        factor = self._constant(f"{name}.scale", p.per_channel(scale))
        real = self._emit("Mul", p.last, made, factor, name=f"{name}.dequantize", like=out, meta=meta)
        if reach is not None:
            self.wiring.put(real, Grid(p.per_channel(scale), *reach, datatype_of_range(*reach)), made)
        redirect(out, real)

    def _weight(self, p: Product, parameter: _Parameter) -> ir.Value:
        weight = self._constant(parameter.name, p.codes)
        annotate(weight, "BIPOLAR" if p.weight.is_bipolar else datatype(p.weight.bits, p.weight.signed))
        return weight

    def _pool(self, q: g.Quantizer) -> None:
        """AveragePool and truncation: sums of codes without their last bits."""
        pool = Pool.read(q)
        assert pool is not None
        grid = self.wiring.of(pool.data)
        own = Grid.of_quantizer(q)
        assert grid is not None and own is not None
        name, base, out = q.node.name or q.name, q.name.removesuffix("_quant") or "trunc", q.node.outputs[0]
        codes = self._emit(
            "QuantAvgPool2d",
            q.node,
            self.wiring.codes(pool.data),
            name=name,
            like=out,
            meta=part_meta(q, g.CODES),
            attributes={
                "kernel": pool.kernel[0],
                "stride": pool.stride[0],
                "signed": int(q.signed),
                "ibits": pool.input_bits(grid),
                "obits": q.bits,
                "data_layout": _LAYOUT,
            },
            domain=FINN_DOMAIN,
        )
        scale = self._constant(f"{base}_scale", q.scale)
        meta = part_meta(q, "dequantize")
        real = self._emit("Mul", q.node, codes, scale, name=f"{name}.dequantize", like=out, meta=meta)
        self.wiring.put(real, own, codes)
        redirect(out, real)


def _constants(
    q: g.Quantizer, value: ir.Value, perm: tuple[int, ...] | None, shape: tuple[int, ...] | None = None
) -> str:
    """Entry of a node's metadata: which parameter it reads as integers, where, and how it is stored there."""
    entry: dict[str, Any] = {"quantizer": q.name, "call": int(g.meta(q.node, g.CALL, "0")), "initializer": value.name}
    entry |= {
        "perm": None if perm is None else list(perm),
        "shape": None if shape is None else list(shape),
        "offset": 0,
    }
    return json.dumps([entry])


def _without_bounds(x: ir.Value, least: float, greatest: float) -> ir.Value:
    """``x`` before operations that only bound it, where the bounds lie beyond every threshold."""
    node = x.producer()
    while node is not None and node.domain == "" and node.op_type in ("Relu", "Clip"):
        low, high = 0.0, np.inf
        if node.op_type == "Clip":
            ends = [g.constant(v) for v in (*node.inputs[1:], None, None)][:2]
            absent = [v is None for v in (*node.inputs[1:], None, None)][:2]
            if any(end is None and not gone for end, gone in zip(ends, absent, strict=True)):
                break
            low = -np.inf if ends[0] is None else float(ends[0])
            high = np.inf if ends[1] is None else float(ends[1])
        source = node.inputs[0]
        if not (low < least and greatest <= high) or source is None:
            break
        x, node = source, source.producer()
    return x
