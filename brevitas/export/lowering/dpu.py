"""The PyXIR dialect: operators whose attributes say on which fixed-point grids they read and give their values.

A grid is two integers: the bit width, and the position p of a scale 2^-p. Quantizers leave no node behind; each becomes
``vai_quant_out`` of the operator that it follows and ``vai_quant_in`` of those that read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
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
from brevitas.export.lowering.fused import Fused, find_fused

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["DPU_DOMAIN", "Finding", "Fixed", "FixedPointGraph", "position_of"]

DPU_DOMAIN = "pyxir"
#: Operators that only move values.
_MOVE = frozenset({"Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Dropout"})
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean"})
_COMPUTE = frozenset({"Conv", "Gemm", "MatMul", "Relu", "Add", *_POOLS})

#: Reports a broken rule: code, node, what was found, what is required, the fix.
Finding = Callable[[str, "ir.Node", str, str, str], None]


def position_of(scale: np.ndarray) -> int | None:
    """The position p of a scale 2^-p, within 1e-6; ``None`` where it is no power of two.

    >>> position_of(np.float32(0.125)), position_of(np.float32(0.1)), position_of(np.float32([4.0]))
    (3, None, -2)
    """
    number = float(np.asarray(scale).reshape(-1)[0])
    if number <= 0 or not math.isfinite(number):
        return None
    power = round(math.log2(number))
    return -power if abs(number / 2.0**power - 1) <= 1e-6 else None


@dataclass(frozen=True)
class Fixed:
    """Grid of a tensor as the attributes name it."""

    bits: int
    position: int

    @staticmethod
    def of(q: g.Quantizer) -> Fixed:
        """Grid of a quantizer whose scale the check found to be a power of two."""
        return Fixed(q.bits, position_of(q.scale) or 0)

    @property
    def pair(self) -> list[int]:
        """``[bits, position]``."""
        return [self.bits, self.position]


@dataclass
class _Operator:
    """A node of the canonical graph that becomes one operator: the grids around it, and what it absorbs."""

    node: ir.Node
    inputs: list[g.Quantizer | None]
    output: g.Quantizer | None
    absorbed: list[ir.Node] = field(default_factory=list)
    product: Fused | None = None
    pad: ir.Node | None = None


class FixedPointGraph:
    """Reads a canonical graph as operators on fixed-point values; ``check`` reports, ``lower`` rewrites.

    ``pads_are_nodes``: padding is an operator of its own, as DPUv2 wants it.
    """

    def __init__(self, model: ir.Model, pads_are_nodes: bool) -> None:
        self.model = model
        self.pads_are_nodes = pads_are_nodes
        self.operators = list(self._operators())

    # --- Reading ---------------------------------------------------------------------------------------------------

    def _operators(self) -> Iterator[_Operator]:
        products = {id(p.node): p for p in find_fused(self.model)}
        for node in self.model.graph:
            if node.domain != "" or node.op_type not in _COMPUTE or self._is_bias(node):
                continue
            product = products.get(id(node))
            value = node.outputs[0]
            if node.op_type == "MatMul" and product is not None and product.bias is not None:
                value = product.between[0].outputs[0]
            data = node.inputs[: 2 if node.op_type == "Add" else 1]
            inputs = [self.grid_of(v) for v in data]
            keeps = node.op_type == "MaxPool" and inputs[0] is not None
            # A max pool keeps its grid, unless a quantizer gives its own result another one.
            output, absorbed = self._grid_after(value, node.op_type, _MOVE if keeps else _MOVE | {"Relu"})
            if node.op_type == "Relu" and inputs[0] is None:
                inputs = [output]  # computed by the operator before it, whose result has this grid
            if keeps or node.op_type == "Relu":
                output = output or inputs[0]
            operator = _Operator(node, inputs, output, absorbed, product)
            if node.op_type == "Conv":
                producer = None if node.inputs[0] is None else node.inputs[0].producer()
                operator.pad = producer if producer is not None and producer.op_type == "Pad" else None
                if operator.pad is not None:
                    operator.inputs = [self.grid_of(operator.pad.inputs[0])]
            yield operator

    def _is_bias(self, node: ir.Node) -> bool:
        """Whether an Add is the bias of a product."""
        return node.op_type == "Add" and any(
            v is not None and (g.constant(v) is not None or _is_parameter(v)) for v in node.inputs
        )

    def grid_of(self, value: ir.Value | None) -> g.Quantizer | None:
        """The quantizer on whose grid a value lies, also past concatenations of equal grids."""
        while value is not None:
            node = value.producer()
            if node is None:
                return None
            if node.domain == g.DOMAIN:
                q = g.Quantizer.read(node)
                return None if q.is_parameter else q
            if node.op_type == "Concat":
                grids = [self.grid_of(v) for v in node.inputs]
                same = all(q is not None and Fixed.of(q) == Fixed.of(grids[0]) for q in grids) if grids[0] else False
                return grids[0] if same else None
            if node.op_type not in (*_MOVE, "MaxPool", "Pad") and not (node.op_type == "Relu" and node.domain == ""):
                return None
            value = node.inputs[0]
        return None

    def _grid_after(
        self, value: ir.Value, op_type: str, passed: Collection[str]
    ) -> tuple[g.Quantizer | None, list[ir.Node]]:
        """The quantizer that gives an operator's result its grid, past ``passed``, and those that it absorbs there."""
        absorbed: list[ir.Node] = []
        found: g.Quantizer | None = None
        while not value.is_graph_output():
            readers = list({id(n): n for n, _ in value.uses()}.values())
            if len(readers) != 1:
                break
            reader = readers[0]
            if reader.domain == g.DOMAIN and (found is None or found.kind == "Trunc"):
                found = g.Quantizer.read(reader)
                absorbed.append(reader)
                if op_type not in ("AveragePool", "GlobalAveragePool", "ReduceMean") or found.kind != "Trunc":
                    break
            elif reader.domain != "" or reader.op_type not in passed or found is not None:
                break
            value = reader.outputs[0]
        return found, absorbed

    # --- Rules -----------------------------------------------------------------------------------------------------

    def check(self, report: Finding) -> None:
        """Every rule that the graph breaks."""
        used = {id(n) for o in self.operators for n in o.absorbed}
        for node in self.model.graph:
            if node.domain == "" and node.op_type not in (*_COMPUTE, *_MOVE, "Concat", "Pad"):
                fix = "replace the layer, or use StdONNXManager"
                report("E04", node, f"operator {node.op_type}", "convolutions, linear layers, ReLU, pools, Add", fix)
            if node.domain == g.DOMAIN and id(node) not in used and not g.Quantizer.read(node).is_parameter:
                self._check_place(node, report)
        for operator in self.operators:
            self._check_operator(operator, report)

    def _check_place(self, node: ir.Node, report: Finding) -> None:
        """A quantizer that no operator before it absorbs: fine on what the model is given."""
        value = node.inputs[0]
        while value is not None and (producer := value.producer()) is not None:
            if producer.domain == "" and producer.op_type in _MOVE:
                value = producer.inputs[0]
                continue
            same = g.source_quantizer(node.inputs[0])
            if same is not None and Fixed.of(g.Quantizer.read(same)) == Fixed.of(g.Quantizer.read(node)):
                return
            what = f"a quantizer after {producer.op_type}, which has its grid already or whose result others read"
            fix = "let one quantizer (shared, where values meet) do for both places, or switch one of them off"
            report("E20", node, what, "one quantizer after each operator", fix)
            return

    def _check_operator(self, o: _Operator, report: Finding) -> None:
        node = o.node
        moved = "set output_quant= on the layer, or put a fixed-point QuantIdentity after it"
        before = "set input_quant= on the layer, or put a fixed-point QuantIdentity before it"
        if node.op_type in ("Conv", "Gemm", "MatMul") and o.product is None:
            fix = "use a Quant layer with weight_quant=Int8WeightPerTensorFixedPoint"
            report("E28", node, f"{node.op_type} of weights that are not quantized", "quantized weights", fix)
        if any(q is None for q in o.inputs):
            report("E28", node, f"{node.op_type} of an input that is not quantized", "a quantized input", before)
        if o.output is None:
            report("E28", node, f"{node.op_type} whose result is not quantized", "a quantized output", moved)
        if o.product is not None and o.product.float_bias:
            fix = "set bias_quant=Int8BiasPerTensorFixedPointInternalScaling"
            report("E22", node, "a float bias", "a quantized bias of at most 8 bits", fix)
        if node.op_type == "Conv" and len(_ints(node, "kernel_shape")) != 2:
            report("E04", node, "a convolution of another rank", "two dimensions", "use QuantConv2d")
        pads = _all_pads(o)
        if not self.pads_are_nodes and pads[:2] != pads[2:]:
            report("E15", node, f"asymmetric padding {pads}", "equal padding on both sides", "pad evenly, or use DPUv2")
        dilated = node.op_type == "MaxPool" and any(d != 1 for d in _ints(node, "dilations"))
        if self.pads_are_nodes and dilated and _ints(node, "ceil_mode") == [1]:
            report("E15", node, "a dilated max pool with ceil_mode", "one of the two", "set ceil_mode=False")
        truncated = o.output is not None and o.output.kind == "Trunc"
        if truncated and o.output is not None and position_of(o.output.scale) is None:
            fix = "add a fixed-point QuantIdentity after the pool"
            what = f"an average over {_window(node)} values, whose scale {float(o.output.scale):.6g}"
            report("E14", node, f"{what} is no power of two", "a window of a power of two values", fix)

    def truncations(self) -> set[ir.Node]:
        """Truncations of pools, whose grid the rules of the pool judge."""
        return {node for o in self.operators for node in o.absorbed if node.op_type == "Trunc"}

    # --- Rewriting -------------------------------------------------------------------------------------------------

    def lower(self) -> None:
        """Put the operators in place; quantizers vanish."""
        for operator in self.operators:
            self._emit(operator)
        for node in list(self.model.graph):
            if node.domain == g.DOMAIN and not g.Quantizer.read(node).is_parameter:
                assert node.inputs[0] is not None
                redirect(node.outputs[0], node.inputs[0])
                self.model.graph.remove(node, safe=True)
        remove_if_unused(self.model, *reversed(list(self.model.graph)))
        drop_unused_initializers(self.model)
        self.model.graph.opset_imports.pop(g.DOMAIN, None)
        self.model.graph.opset_imports[DPU_DOMAIN] = 1

    def _emit(self, o: _Operator) -> None:
        node, kind = o.node, o.node.op_type
        if kind == "AveragePool" and _window(node) == 1:
            assert node.inputs[0] is not None
            redirect(node.outputs[0], node.inputs[0])
            return
        assert o.output is not None
        attributes: dict[str, Any] = {}
        inputs = list(node.inputs[: 2 if kind == "Add" else 1])
        result = node.outputs[0]
        quant = {"vai_quant_in": [n for q in o.inputs if q is not None for n in Fixed.of(q).pair]}
        quant["vai_quant_out"] = Fixed.of(o.output).pair
        if o.product is not None:
            inputs += self._constants(o.product, quant)
            if kind == "MatMul" and o.product.bias is not None:
                result = o.product.between[0].outputs[0]
        if kind in ("Gemm", "MatMul"):
            kind, attributes = "Gemm", {"transB": 1, "alpha": 1.0, "beta": 1.0}
        elif kind in ("Conv", "MaxPool", "AveragePool"):
            attributes, inputs[0] = self._geometry(o)
            if kind == "AveragePool" and _covers(node):
                kind, attributes = "GlobalAveragePool", {}
        elif kind == "ReduceMean":
            kind = "GlobalAveragePool"
        order = [
            name for name in ("vai_quant_in", "vai_quant_out", "vai_quant_weights", "vai_quant_biases") if name in quant
        ]
        made = make_node(
            kind,
            inputs,
            name=node.name or kind,
            like=result,
            domain=DPU_DOMAIN,
            attributes={**attributes, "vai_quant": order, **{name: quant[name] for name in order}},
            meta={k: v for k, v in node.metadata_props.items() if k in (g.LAYER, g.CLASS)},
        )
        insert_before(node, made)
        redirect(result, made.outputs[0])

    def _constants(self, p: Fused, quant: dict[str, list[int]]) -> list[ir.Value]:
        """Integer weight, (out, in) for linear layers, and bias; their grids go to ``quant``."""
        found = []
        for name, operand in (("weights", p.weight), ("biases", p.bias)):
            if operand is None:
                continue
            codes = operand.codes
            if name == "weights" and p.is_linear and p.channel_dim == 1:
                codes = np.ascontiguousarray(codes.T)
            quant[f"vai_quant_{name}"] = Fixed.of(operand.quantizer).pair
            base = operand.quantizer.name.removesuffix("_quant")
            found.append(add_initializer(self.model, f"{base}_codes", codes.astype(np.int8)))
        return found

    def _geometry(self, o: _Operator) -> tuple[dict[str, Any], ir.Value | None]:
        """Attributes of a window, and its input: behind a Pad where padding is a node."""
        node, x = o.node, o.node.inputs[0]
        names = ("kernel_shape", "strides", "group", "dilations", "ceil_mode")
        attributes: dict[str, Any] = {n: node.attributes[n].value for n in names if n in node.attributes}
        if node.op_type != "MaxPool":
            attributes.pop("ceil_mode", None)
        pads = _all_pads(o)
        if o.pad is not None:
            x = o.pad.inputs[0]
        if not self.pads_are_nodes or node.op_type == "AveragePool":
            return {**attributes, "pads": pads}, x
        if any(pads):
            assert x is not None and o.inputs[0] is not None
            grid = Fixed.of(o.inputs[0]).pair
            padded = make_node(
                "Pad",
                [x],
                name=f"{node.name}.Pad",
                like=x,
                shape=_padded_shape(x, pads),
                domain=DPU_DOMAIN,
                attributes={
                    "pads": [0, 0, *pads[:2], 0, 0, *pads[2:]],
                    "vai_quant": ["vai_quant_in", "vai_quant_out"],
                    "vai_quant_in": grid,
                    "vai_quant_out": grid,
                },
                meta={k: v for k, v in node.metadata_props.items() if k in (g.LAYER, g.CLASS)},
            )
            insert_before(node, padded)
            x = padded.outputs[0]
        return {**attributes, "auto_pad": "VALID"}, x


def _is_parameter(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.domain == g.DOMAIN and g.Quantizer.read(node).is_parameter


def _ints(node: ir.Node, name: str) -> list[int]:
    if name not in node.attributes:
        return []
    value = node.attributes[name].value
    return list(value) if isinstance(value, list | tuple) else [int(value)]


def _all_pads(o: _Operator) -> list[int]:
    """Zeros around height and width, begins then ends: the operator's own and those of a Pad before it."""
    own = _ints(o.node, "pads")
    if o.pad is None:
        return own
    pads = g.constant(o.pad.inputs[1])
    assert pads is not None
    half = len(pads) // 2
    return [a + int(b) for a, b in zip(own, [*pads[half - 2 : half], *pads[-2:]], strict=True)]


def _window(node: ir.Node) -> int:
    if node.op_type == "ReduceMean":
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        return math.prod(int(n) for n in list(shape)[-2:]) if shape is not None else 0
    return math.prod(_ints(node, "kernel_shape"))


def _covers(node: ir.Node) -> bool:
    """Whether the result has one element a channel."""
    shape = node.outputs[0].shape
    return shape is not None and list(shape)[-2:] == [1, 1]


def _padded_shape(x: ir.Value, pads: list[int]) -> ir.Shape | None:
    import onnx_ir as ir

    if x.shape is None:
        return None
    *front, height, width = list(x.shape)
    return ir.Shape([*front, int(height) + pads[0] + pads[2], int(width) + pads[1] + pads[3]])
