"""``overflow``: which integers the accumulators of a model can reach, and how wide they must be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from brevitas.export import graph as g
from brevitas.export.integer.bounds import extreme_input
from brevitas.export.integer.builder import Accumulator, Builder
from brevitas.export.integer.entry import canonical_graph
from brevitas.export.integer.kernels import KERNELS
from brevitas.export.integer.network import width
from brevitas.export.integer.values import Array
from brevitas.quant_tensor import accumulator_bit_width, code_range

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["OverflowReport", "OverflowRow", "accumulator_notes", "annotate", "overflow"]


@dataclass(frozen=True, eq=False)
class OverflowRow:
    """The accumulator of one layer.

    Attributes:
        name: the graph's node, which a step of ``to_integer`` has as its name too.
        layer, layer_class: qualified name and class of the layer.
        operation: conv, matmul, sum or sum_pool.
        terms: the greatest number of products (for pools: codes) in one sum.
        minimum, maximum: exact extremes of the sum with its integer bias, one for each output channel.
        partial_minimum, partial_maximum: the same for every partial sum, in any order of addition.
        claimed: width of the accumulator in the library's metadata, which knows widths and not weights; ``None`` where
            an operand has none.
    """

    name: str
    layer: str
    layer_class: str
    operation: str
    terms: int
    minimum: Array
    maximum: Array
    partial_minimum: Array
    partial_maximum: Array
    claimed: int | None
    accumulator: Accumulator

    @property
    def low(self) -> int:
        """The least integer that any channel reaches."""
        return int(self.minimum.min())

    @property
    def high(self) -> int:
        """The greatest integer that any channel reaches."""
        return int(self.maximum.max())

    @property
    def signed(self) -> bool:
        """Whether the sum can be negative."""
        return self.low < 0

    @property
    def bits(self) -> int:
        """The smallest sufficient width of the sum: two's complement where :attr:`signed`, else unsigned."""
        return width(self.low, self.high)

    @property
    def partial_bits(self) -> int:
        """The smallest width that no partial sum overflows, in whatever order the terms are added.

        Two's complement hardware that wraps needs :attr:`bits` alone: a wrapped partial sum comes back. Hardware that
        saturates needs this width.
        """
        return width(int(self.partial_minimum.min()), int(self.partial_maximum.max()))

    def least_input(self) -> tuple[Array, ...]:
        """Codes of the layer's input, (1, ...), at which the sum is :attr:`low` somewhere; two arrays for a product of
        two computed tensors."""
        return _extreme(self.accumulator, greatest=False)

    def greatest_input(self) -> tuple[Array, ...]:
        """Codes of the layer's input at which the sum is :attr:`high` somewhere."""
        return _extreme(self.accumulator, greatest=True)

    def run(self, *codes: Array) -> Array:
        """The accumulators, int64, that the layer makes of codes of its input."""
        step = self.accumulator.step
        xs = [np.asarray(c, np.int64)[None] for c in codes]
        return KERNELS[step.op](xs, self.accumulator.shape, step.attributes, step.arrays)[0]

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data, extremes by channel."""
        bounds = ("minimum", "maximum", "partial_minimum", "partial_maximum")
        return {
            **{k: getattr(self, k) for k in ("name", "layer", "layer_class", "operation", "terms", "low", "high")},
            **{k: getattr(self, k) for k in ("signed", "bits", "partial_bits", "claimed")},
            **{k: [int(v) for v in getattr(self, k)] for k in bounds},
        }

    def cells(self) -> tuple[str, ...]:
        """The row as strings, in the order of the table's headings."""
        kind = "signed" if self.signed else "unsigned"
        claimed = "-" if self.claimed is None else str(self.claimed)
        numbers = (self.terms, self.low, self.high, self.bits)
        return (self.layer or self.name, self.operation, *map(str, numbers), kind, str(self.partial_bits), claimed)


@dataclass(frozen=True, eq=False)
class OverflowReport:
    """Result of :func:`overflow`; prints as a table, one row an accumulator."""

    rows: Sequence[OverflowRow]

    def __iter__(self) -> Iterator[OverflowRow]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> OverflowRow:
        """The row of a layer (its first, if it computes several), or of a node."""
        for row in self.rows:
            if name in (row.layer, row.name):
                return row
        raise KeyError(f"no accumulator of {name!r}; there are {', '.join(r.layer or r.name for r in self.rows)}")

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {"rows": [row.to_dict() for row in self.rows]}

    def __str__(self) -> str:
        head = ("layer", "operation", "terms", "minimum", "maximum", "bits", "", "bits in any order", "claimed")
        lines = [head, *(row.cells() for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        left = (0, 1, 6)
        return "\n".join(
            "  ".join(
                c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )


def overflow(
    model: nn.Module | ir.Model, inputs: Any = None, *, input_shape: Sequence[int] | None = None
) -> OverflowReport:
    """Exact reachable extremes of every accumulator of a model, from its integer weights and the codes of its inputs.

    >>> import torch
    >>> from brevitas.nn import QuantIdentity, QuantLinear
    >>> fc = QuantLinear(2, 1, bias=False, weight_bit_width=4)
    >>> with torch.no_grad():
    ...     _ = fc.weight.copy_(torch.tensor([[0.7, -0.5]]))  # codes 7 and -5
    >>> model = torch.nn.Sequential(QuantIdentity(bit_width=4, return_quant_tensor=True), fc).eval()
    >>> row = overflow(model, input_shape=(1, 2))['1']
    >>> row.low, row.high, row.bits  # 7 * -8 - 5 * 7 and 7 * 7 - 5 * -8
    (-91, 89, 8)
    >>> row.greatest_input()[0], row.claimed
    (array([[ 7, -8]]), 8)

    Every code that a quantizer can give counts as possible, whatever the data. Positions of the output near padding
    have their own extremes, and are covered: a tap on padding contributes 0. The extremes are those of the final sum
    with a bias on the accumulator grid; those of partial sums in any order stand beside them. A float bias is no part
    of the accumulator. Where the zero points or widths of an input vary within a channel, the bounds hold, and may not
    be reached.

    Args:
        model: a model (copied, in eval mode), or a captured graph.
        inputs, input_shape: as for ``to_integer``.

    Returns:
        An :class:`OverflowReport` over convolutions, linear layers, products of two tensors, and average pools, in
        order of execution. Layers whose input or weight is not quantized have no integers, and no row.

    Raises:
        ExportError: neither or both of ``inputs`` and ``input_shape``, or a model that cannot be captured.
    """
    graph = canonical_graph(model, inputs, input_shape)
    return OverflowReport([_row(a) for a in _accumulators(graph)])


def _accumulators(graph: ir.Model) -> list[Accumulator]:
    return Builder(graph, None).run().accumulators


def _row(a: Accumulator) -> OverflowRow:
    b = a.bounds
    layer, layer_class = g.meta(a.node, g.LAYER), g.meta(a.node, g.CLASS)
    ends = (b.least, b.most, b.partial_least, b.partial_most)
    return OverflowRow(str(a.node.name), layer, layer_class, a.step.op, a.terms, *ends, _claimed(a), a)


def _claimed(a: Accumulator) -> int | None:
    x, w, bias = a.source.claim, a.claim, a.bias_claim
    if x is None or w is None or (a.bias is not None and bias is None):
        return None
    bits = accumulator_bit_width(
        x.bits,
        w.bits,
        a.terms,
        input_signed=x.signed,
        weight_signed=w.signed,
        weight_narrow_range=w.narrow,
        input_shifted=x.shifted,
        weight_shifted=w.shifted,
        bias_range=None if a.bias is None or bias is None else code_range(bias.bits, bias.signed, bias.narrow),
    )
    return int(bits)


def _extreme(a: Accumulator, greatest: bool) -> tuple[Array, ...]:
    b, x = a.bounds, a.source
    if a.other is not None:
        return _extreme_product(a, a.other, greatest)
    channel = int(np.argmax(b.most) if greatest else np.argmin(b.least))
    if a.step.op == "sum":
        return (np.broadcast_to(x.high if greatest else x.low, x.shape).copy(),)
    assert a.weight is not None
    where = b.where[1 if greatest else 0][channel]
    read = extreme_input(a.weight[channel], a.low[channel], a.high[channel], a.geometry, where.tolist(), greatest)
    shifted = np.clip(0, *x.shifted) + np.zeros(x.shape, np.int64)
    if a.geometry is None:
        shifted[...] = read
    else:
        per_group = a.weight.shape[1]
        first = channel // (len(a.weight) // a.group) * per_group
        shifted[0, first : first + per_group] = read
    return (shifted + x.zero,)


def _extreme_product(a: Accumulator, other: Any, greatest: bool) -> tuple[Array, ...]:
    """Constant operands whose product is extreme."""
    ends = [(int(lo.min()), int(hi.max())) for lo, hi in (a.source.shifted, other.shifted)]
    pairs = [(p * q, p, q) for p in ends[0] for q in ends[1]]
    _, p, q = max(pairs) if greatest else min(pairs)
    return tuple(np.full(w.shape, v) + w.zero for w, v in ((a.source, p), (other, q)))


def accumulator_notes(graph: ir.Model) -> dict[str, str]:
    """For each node of a canonical graph that accumulates, the text of its ``brevitas.accumulator`` entry."""
    accumulators = Builder(graph, None, keep_weights=False).run().accumulators
    return {row.name: f"{row.low},{row.high},{row.bits}" for row in map(_row, accumulators)}


def annotate(lowered: ir.Model, notes: dict[str, str]) -> None:
    """Write the notes on the nodes that a lowering made of those of the canonical graph, found by their names."""
    for node in lowered.graph:
        if node.op_type not in ACCUMULATING:
            continue
        name = node.name or ""
        found = [key for key in notes if name == key or name.startswith(f"{key}.")]
        if found:
            node.metadata_props[g.ACCUMULATOR] = notes[max(found, key=len)]


#: Operators that accumulate, in the canonical graph or in a target.
ACCUMULATING = frozenset(
    {
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"),
        *("AveragePool", "GlobalAveragePool", "QuantAvgPool2d", "ReduceMean", "ReduceSum"),
    }
)
