"""Pools: the greatest code of a window, or the sum of its codes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from brevitas.export.integer.bounds import Geometry, linear_bounds
from brevitas.export.integer.builder import Accumulator, Builder, Rule, Unrepresentable
from brevitas.export.integer.floatops import FloatOp
from brevitas.export.integer.rules.grid import integers
from brevitas.export.integer.rules.products import sums
from brevitas.export.integer.values import Array, Claim, Constant, FloatValue, Value, Wire, compressed

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["RULES"]


def _geometry(node: ir.Node, shape: tuple[int, ...]) -> Geometry:
    """Windows of a pool, as onnx defines its output size."""
    size, rank = shape[2:], len(shape) - 2
    a = node.attributes
    kernel = tuple(a["kernel_shape"].as_ints())

    def ints(name: str, default: int, count: int = rank) -> tuple[int, ...]:
        return tuple(a[name].as_ints()) if name in a else (default,) * count

    strides, dilations, pads = ints("strides", 1), ints("dilations", 1), ints("pads", 0, 2 * rank)
    ceil = "ceil_mode" in a and bool(a["ceil_mode"].as_int())
    out = []
    for n, k, s, d, p, q in zip(size, kernel, strides, dilations, pads, pads[rank:], strict=False):
        steps = n + p + q - (d * (k - 1) + 1)
        count = (-(-steps // s) if ceil else steps // s) + 1
        if ceil and (count - 1) * s >= n + p:
            count -= 1  # the last window must start inside the input or its left padding
        out.append(count)
    return Geometry(size, tuple(out), kernel, strides, dilations, tuple(pads[:rank]), (1,) * rank)


def _attributes(geometry: Geometry) -> dict[str, list[int]]:
    return {
        "kernel": list(geometry.kernel),
        "strides": list(geometry.strides),
        "dilations": list(geometry.dilations),
        "begins": list(geometry.begins),
    }


def _spatially_constant(node: ir.Node, arrays: list[Array]) -> None:
    for a in arrays:
        if any(n > 1 for n in compressed(a).shape[2:]):
            raise Unrepresentable(
                "E12",
                f"a scale or constant that varies within a window of {node.op_type}",
                "one per channel",
                "pool before the operation that makes it vary",
            )


def _max_pool(b: Builder, node: ir.Node, values: list[Value | None]) -> Value:
    """Taken on the integers: float operations that never fall commute with it; where they never rise, the least."""
    x = values[0]
    if not isinstance(x, Wire):
        _refuse_floats(node, x)
    assert isinstance(x, Wire)
    if len(node.outputs) > 1:
        raise Unrepresentable("E04", "indices of a max pool", "a max pool alone", "leave return_indices at False")
    if node.op_type == "GlobalMaxPool":
        rank = len(x.shape) - 2
        geometry = Geometry(x.shape[2:], (1,) * rank, x.shape[2:], (1,) * rank, (1,) * rank, (0,) * rank, (1,) * rank)
    else:
        geometry = _geometry(node, x.shape)
    if not x.is_monotone:
        raise Unrepresentable(
            "E04",
            f"a max pool after {x.ops[-1].kind}, which turns",
            "a function that never falls or never rises",
            "quantize before the pool",
        )
    parameters = [x.scale, x.zero, *(c for op in x.ops for c in op.constants)]
    _spatially_constant(node, parameters)
    sign = compressed(x.direction())
    name = b.emit(
        "max_pool",
        node,
        [x.tensor],
        attributes=_attributes(geometry),
        arrays={"sign": sign if (sign < 0).any() else None},
    )
    shape = (*x.shape[:2], *geometry.out)
    low, high = (_over_space(a, f) for a, f in ((x.low, np.min), (x.high, np.max)))
    kept = x.map_parameters(compressed)
    return b.wire(name, shape, kept["scale"], kept["zero"], low, high, ops=kept["ops"], claim=x.claim)


def _over_space(bound: Array, reduce: object) -> Array:
    axes = tuple(range(2, bound.ndim))
    return np.asarray(reduce(bound, axis=axes, keepdims=True))  # type: ignore[operator]


def _refuse_floats(node: ir.Node, x: Value | None) -> None:
    where = "of the model's float input" if isinstance(x, FloatValue) else "of constants"
    raise Unrepresentable("E28", f"{node.op_type} {where}", "a quantized input", "put a QuantIdentity before it")


def _average_pool(b: Builder, node: ir.Node, values: list[Value | None]) -> Value:
    x = integers(b, node, values[0], "input")
    if node.op_type == "GlobalAveragePool":
        return _mean_over(b, node, x, list(range(2, len(x.shape))), True)
    geometry = _geometry(node, x.shape)
    include = "count_include_pad" in node.attributes and bool(node.attributes["count_include_pad"].as_int())
    ceil = "ceil_mode" in node.attributes and bool(node.attributes["ceil_mode"].as_int())
    if not geometry.is_full and (ceil or not include):
        raise Unrepresentable(
            "E23",
            "an average over windows of different sizes (ceil_mode, or padding that does not count)",
            "windows of one size",
            "set ceil_mode=False and padding=0, or count_include_pad=True",
        )
    _spatially_constant(node, [x.scale, x.zero])
    name = b.emit("sum_pool", node, [x.tensor], attributes=_attributes(geometry), arrays={"zero": x.zero})
    wire = _summed(b, node, x, name, (*x.shape[:2], *geometry.out), geometry)
    return wire.then(_mean(int(np.prod(geometry.kernel)), len(x.shape)))


def _mean(count: int, rank: int) -> FloatOp:
    return FloatOp("mean", (np.full((1,) * rank, count, np.float32),))


def _summed(
    b: Builder, node: ir.Node, x: Wire, name: str, shape: tuple[int, ...], geometry: Geometry | None, count: int = 0
) -> Wire:
    """The wire of a sum over windows (or of ``count`` elements), channel by channel."""
    channels = x.shape[1] if geometry is not None else 1
    low, high = x.shifted
    if geometry is not None:
        ends = [np.broadcast_to(_over_space(a, f).reshape(-1), (channels,)) for a, f in ((low, np.min), (high, np.max))]
        weight = np.ones((channels, 1, *geometry.kernel), np.int64)
    else:
        ends = [np.asarray([int(low.min())]).repeat(count), np.asarray([int(high.max())]).repeat(count)]
        weight = np.ones((1, count), np.int64)
    reads = [e.reshape(weight.shape[:2]) for e in ends]
    bounds = linear_bounds(weight, reads[0], reads[1], geometry, None)
    b.accumulators.append(
        Accumulator(
            node,
            bounds,
            weight,
            reads[0],
            reads[1],
            geometry,
            channels,
            x,
            b.steps[-1],
            shape,
            terms=int(np.prod(weight.shape[1:])),
            claim=Claim(1, signed=False, narrow=False, shifted=False),
        )
    )
    wire = sums(b, name, shape, compressed(x.scale), bounds, len(shape) - 2)
    return replace(wire, low=compressed(wire.low), high=compressed(wire.high))


def _mean_over(b: Builder, node: ir.Node, x: Wire, axes: list[int], keep: bool) -> Value:
    """The mean over neighbouring dimensions: one sum."""
    rank = len(x.shape)
    axes = sorted(axis % rank for axis in axes)
    if axes != list(range(axes[0], axes[-1] + 1)) or any(
        compressed(a).shape[i] > 1 for i in axes for a in (x.scale, x.zero)
    ):
        raise Unrepresentable(
            "E04", f"{node.op_type} over dimensions {axes}", "neighbouring dimensions of one scale", "use a pool"
        )
    sizes = [int(np.prod(part)) for part in (x.shape[: axes[0]], [x.shape[i] for i in axes], x.shape[axes[-1] + 1 :])]
    shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    name = b.emit(
        "sum",
        node,
        [x.tensor],
        attributes=dict(zip(("outer", "reduce", "inner"), sizes, strict=True)),
        arrays={"zero": x.zero},
    )
    wire = _summed(b, node, x, name, shape, None, sizes[1])
    op = _mean(sizes[1], rank)
    if keep:
        return wire.then(op)
    fewer = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    name = b.emit("reshape", node, [name], suffix=".flat")
    scale, low, high = (np.squeeze(a, tuple(axes)) for a in (wire.scale, wire.low, wire.high))
    return b.wire(name, fewer, scale, 0, low, high, ops=(_mean(sizes[1], len(fewer)),))


def _reduce_mean(b: Builder, node: ir.Node, values: list[Value | None]) -> Value:
    x = integers(b, node, values[0], "input")
    axes = values[1].array.tolist() if len(values) > 1 and isinstance(values[1], Constant) else None
    if "axes" in node.attributes:
        axes = list(node.attributes["axes"].as_ints())
    if not axes:
        axes = list(range(1, len(x.shape)))
    keep = "keepdims" not in node.attributes or bool(node.attributes["keepdims"].as_int())
    return _mean_over(b, node, x, axes, keep)


RULES: dict[tuple[str, str], Rule] = {
    ("", "MaxPool"): _max_pool,
    ("", "GlobalMaxPool"): _max_pool,
    ("", "AveragePool"): _average_pool,
    ("", "GlobalAveragePool"): _average_pool,
    ("", "ReduceMean"): _reduce_mean,
}
