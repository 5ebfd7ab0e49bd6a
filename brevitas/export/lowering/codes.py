"""Which tensors of a graph are integers times a scale, and wiring of those integers to where they are needed.

A quantizer's codes pass unchanged through operations that move or select values (pooling of maxima, reshaping, ...) and
add up where tensors of one scale are added or concatenated. ``(q * s) / s`` is not always ``q`` in float32; a lowering
that needs integers therefore does not divide, it wires the codes themselves past those operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from brevitas.export import graph as g

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["CodeWiring", "Grid", "Grids", "datatype", "datatype_of_range"]

# Preserve the grid only if each value keeps its channel, or the scale is one number.
_SAME_CHANNEL = frozenset({"Identity", "MaxPool", "GlobalMaxPool", "Relu", "Dropout", "Pad", "Resize"})
_COMBINE = frozenset({"Add", "Sub", "Concat"})


def datatype(bits: int, signed: bool) -> str:
    """Name of an integer type in FINN's annotations.

    >>> datatype(4, True), datatype(8, False), datatype(1, False), datatype(1, True)
    ('INT4', 'UINT8', 'BINARY', 'BIPOLAR')
    """
    if bits == 1:
        return "BIPOLAR" if signed else "BINARY"
    return f"{'INT' if signed else 'UINT'}{bits}"


def datatype_of_range(low: int, high: int) -> str:
    """Name of the narrowest integer type that holds every integer of a range.

    >>> datatype_of_range(-3, 4), datatype_of_range(0, 4), datatype_of_range(0, 1)
    ('INT4', 'UINT3', 'BINARY')
    """
    if low >= 0:
        return datatype(max(high.bit_length(), 1), signed=False)
    return datatype(max(max(high, -low - 1).bit_length() + 1, 2), signed=True)


@dataclass(frozen=True)
class Grid:
    """``scale * code`` with integers ``code`` from ``low`` to ``high``; ``type`` is their datatype's name.

    ``scale`` is float32, 0-d, or as it broadcasts against the tensor.
    """

    scale: np.ndarray
    low: int
    high: int
    type: str

    @property
    def is_scalar(self) -> bool:
        """Whether one scale serves the tensor."""
        return self.scale.size == 1

    def same_scale(self, other: Grid) -> bool:
        """Whether codes of both may be added."""
        return self.is_scalar and other.is_scalar and bool(self.scale.reshape(()) == other.scale.reshape(()))

    @staticmethod
    def of_quantizer(q: g.Quantizer) -> Grid | None:
        """Grid of a quantizer's output, ``None`` where it has a zero point."""
        if np.any(q.zero_point):
            return None
        kind = "BIPOLAR" if q.is_bipolar else datatype(q.bits, q.signed)
        return Grid(q.scale, *q.range, kind)

    @staticmethod
    def of_input(fields: dict[str, object]) -> Grid:
        """Grid of a QuantTensor that the model is given, relative to its zero point."""
        bits, signed = int(float(str(fields["bit_width"]))), bool(fields["signed"])
        scale = np.asarray(fields["scale"], np.float32)
        zero_point = np.asarray(fields["zero_point"])
        low, high = g.integer_range(bits, signed, narrow=False)
        if not zero_point.any():
            return Grid(scale, low, high, datatype(bits, signed))
        low, high = low - int(zero_point.max()), high - int(zero_point.min())
        return Grid(scale, low, high, datatype_of_range(low, high))


def _keeps_grid(node: ir.Node) -> bool:
    if node.op_type == "Resize":
        return "mode" not in node.attributes or node.attributes["mode"].as_string() == "nearest"
    if node.op_type == "Pad":
        fill = node.inputs[2] if len(node.inputs) > 2 else None
        held = g.constant(fill)
        return fill is None or (held is not None and not held.any())
    return node.op_type in g.GRID_PRESERVING


class Grids:
    """The grid of any tensor of a graph. Nothing is changed.

    ``known`` holds tensors whose grid was told; that of a quantizer's output is read from its node.
    """

    def __init__(self, model: ir.Model) -> None:
        self.known: dict[ir.Value, Grid | None] = {}
        for value, fields in zip(model.graph.inputs, g.quant_tensor_records(model, g.INPUTS), strict=True):
            if fields is not None:
                self.known[value] = Grid.of_input(fields)

    def of(self, value: ir.Value | None) -> Grid | None:
        """Grid of a tensor, ``None`` where it has none."""
        if value is None:
            return None
        if value not in self.known:
            self.known[value] = self._made(value)
        return self.known[value]

    def _made(self, value: ir.Value) -> Grid | None:
        node = value.producer()
        if node is None:
            return None
        if node.domain == g.DOMAIN:
            return Grid.of_quantizer(g.Quantizer.read(node)) if node.op_type in g.KINDS else None
        if node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type in _COMBINE:
            return self._combined(node)
        if not _keeps_grid(node):
            return None
        grid = self.of(node.inputs[0])
        if grid is None or not (grid.is_scalar or node.op_type in _SAME_CHANNEL):
            return None
        if node.op_type == "Relu" and grid.low < 0:
            return Grid(grid.scale, 0, max(grid.high, 0), datatype_of_range(0, max(grid.high, 0)))
        if node.op_type == "Pad" and (grid.low > 0 or grid.type == "BIPOLAR"):
            return Grid(grid.scale, min(grid.low, 0), grid.high, datatype_of_range(min(grid.low, 0), grid.high))
        return grid

    def _combined(self, node: ir.Node) -> Grid | None:
        grids = [self.of(value) for value in node.inputs]
        first, *others = grids
        if first is None:
            return None
        low, high = first.low, first.high
        for grid in others:
            if grid is None or not first.same_scale(grid):
                return None
            if node.op_type == "Concat":
                low, high = min(low, grid.low), max(high, grid.high)
            elif node.op_type == "Add":
                low, high = low + grid.low, high + grid.high
            else:
                low, high = low - grid.high, high - grid.low
        same = node.op_type == "Concat" and all(grid is not None and grid.type == first.type for grid in grids)
        return Grid(first.scale, low, high, first.type if same else datatype_of_range(low, high))


class CodeWiring(Grids):
    """Gives the tensor of codes behind a tensor of values; operations in between are repeated on the codes.

    The lowering tells where codes are made, in execution order, through :meth:`put`.
    """

    def __init__(self, model: ir.Model) -> None:
        super().__init__(model)
        self._codes: dict[ir.Value, ir.Value] = {}
        self._repeated: list[tuple[ir.Node, ir.Node]] = []

    def put(self, value: ir.Value, grid: Grid, codes: ir.Value) -> None:
        """Let ``codes`` be the integers of ``value``."""
        self.known[value], self._codes[value] = grid, codes
        annotate(codes, grid.type)

    def codes(self, value: ir.Value) -> ir.Value:
        """The tensor of the integers of ``value``, whose grid is known."""
        if value not in self._codes:
            self._codes[value] = self._repeat(value)
        return self._codes[value]

    def _repeat(self, value: ir.Value) -> ir.Value:
        import onnx_ir as ir

        node, grid = value.producer(), self.of(value)
        assert node is not None and node.graph is not None and grid is not None
        count = len(node.inputs) if node.op_type in _COMBINE else 1
        inputs = [self.codes(v) if i < count and v is not None else v for i, v in enumerate(node.inputs)]
        outputs = [
            ir.Value(name=f"{node.name}.codes{i or ''}", type=v.type, shape=v.shape) for i, v in enumerate(node.outputs)
        ]
        copy = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            attributes=list(node.attributes.values()),
            outputs=outputs,
            name=f"{node.name}.codes",
            metadata_props=dict(node.metadata_props),
        )
        node.graph.insert_after(node, copy)
        self._repeated.append((node, copy))
        for old, new in zip(node.outputs, outputs, strict=True):
            self._codes[old] = new
            known = self.of(old)
            if known is not None:
                annotate(new, known.type)
        return self._codes[value]

    def rename(self) -> None:
        """Repeated operations take the names of those that they replaced, once these are gone."""
        for node, copy in self._repeated:
            if node.graph is None:
                copy.name = node.name
                for old, new in zip(node.outputs, copy.outputs, strict=True):
                    if not new.is_graph_output():
                        new.name = old.name


def annotate(value: ir.Value, type_name: str) -> None:
    """Attach a FINN datatype to a tensor (``quantization_annotation`` of the written graph)."""
    value.meta["quant_parameter_tensor_names"] = {"finn_datatype": type_name}
