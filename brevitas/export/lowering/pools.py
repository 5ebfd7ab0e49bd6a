"""Average pooling followed by truncation, as it stands in the canonical graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from brevitas.export import graph as g
from brevitas.export.lowering.codes import Grid

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Pool"]


@dataclass(frozen=True)
class Pool:
    """An ``AveragePool`` or ``GlobalAveragePool`` over two dimensions whose output a ``Trunc`` node truncates."""

    node: ir.Node
    trunc: g.Quantizer
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[int, ...]
    ceil_mode: bool

    @property
    def data(self) -> ir.Value:
        """What is averaged."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def area(self) -> int:
        """Number of values in a window."""
        return int(np.prod(self.kernel))

    @staticmethod
    def read(trunc: g.Quantizer) -> Pool | None:
        """The pooling before a ``Trunc`` node, ``None`` where something else is truncated."""
        value = trunc.node.inputs[0]
        node = None if value is None else value.producer()
        if node is None or node.domain != "" or node.op_type not in ("AveragePool", "GlobalAveragePool"):
            return None
        source = node.inputs[0]
        if source is None or source.shape is None or len(source.shape) != 4:
            return None
        a = node.attributes
        if node.op_type == "GlobalAveragePool":
            if not all(isinstance(n, int) for n in source.shape[2:]):
                return None
            kernel = tuple(int(n) for n in source.shape[2:])
            return Pool(node, trunc, kernel, kernel, (0, 0, 0, 0), ceil_mode=False)

        def ints(name: str, default: Sequence[int]) -> tuple[int, ...]:
            return tuple(a[name].as_ints() if name in a else default)

        kernel = ints("kernel_shape", (1, 1))
        ceil_mode = "ceil_mode" in a and bool(a["ceil_mode"].as_int())
        return Pool(node, trunc, kernel, ints("strides", (1, 1)), ints("pads", (0, 0, 0, 0)), ceil_mode)

    @staticmethod
    def input_bits(grid: Grid) -> int:
        """Width of the codes that are summed."""
        return 1 if grid.type in ("BINARY", "BIPOLAR") else int(grid.type.lstrip("UINT"))

    def removed_bits(self) -> int:
        """How many bits the truncation removes from the sum of a window."""
        given = self.trunc.truncated
        assert given is not None
        ratio = self.trunc.scale.astype(np.float64).reshape(-1)[0] / given.scale.astype(np.float64).reshape(-1)[0]
        return round(float(np.log2(ratio)))

    def operator_shift(self, grid: Grid) -> int:
        """How many bits ``QuantAvgPool2d`` removes, by its own rule."""
        greatest = self.area * (2 ** self.input_bits(grid) - 1)
        return max(greatest.bit_length() - self.trunc.bits, 0)
