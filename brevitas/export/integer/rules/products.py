"""Convolutions and matrix products: exact sums of integer products."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from brevitas.export.integer.bounds import Bounds, Geometry, linear_bounds
from brevitas.export.integer.builder import Accumulator, Builder, Rule, Unrepresentable
from brevitas.export.integer.floatops import FloatOp
from brevitas.export.integer.rules.elementwise import append
from brevitas.export.integer.rules.grid import integers, per_tensor
from brevitas.export.integer.rules.moves import evaluated
from brevitas.export.integer.values import Array, Claim, Constant, Value, Wire, aligned, compressed

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["RULES", "sums"]


def _of_zeros(node: ir.Node, values: list[Value | None]) -> Constant | None:
    """The product of a first operand that is nothing but zeros, such as the first state of a recurrent layer."""
    x, weight = values[0], values[1]
    if not isinstance(x, Constant) or x.array.any() or not isinstance(weight, Wire) or weight.codes is None:
        return None
    bias = values[2] if len(values) > 2 else None
    arrays = [
        v.values() if isinstance(v, Wire) else v.array for v in (x, weight, bias) if isinstance(v, (Wire, Constant))
    ]
    made = evaluated(node, [a.astype(np.float32) for a in arrays])[0]
    return made if isinstance(made, Constant) else None


def _ints(node: ir.Node, name: str, default: list[int]) -> tuple[int, ...]:
    return tuple(node.attributes[name].as_ints()) if name in node.attributes else tuple(default)


def _weight(b: Builder, node: ir.Node, value: Value | None) -> Wire:
    weight = integers(b, node, value, "weight")
    if weight.codes is None:
        raise Unrepresentable(
            "E04", f"weights of {node.op_type} that are computed", "constant weights", "use MatMul for data by data"
        )
    return weight


def _per_output(node: ir.Node, weight: Wire, axis: int) -> Array:
    """Scale of a weight: 0-d, or one number per index of ``axis``."""
    scale = compressed(weight.scale)
    if scale.size != 1 and scale.size != scale.shape[axis]:
        raise Unrepresentable(
            "E26",
            f"a weight scale of shape {scale.shape}, which varies within an output channel",
            "one scale, or one an output channel",
            "set scaling_per_output_type='channel' or 'tensor' in the weight quantizer",
        )
    return scale.reshape(-1) if scale.size > 1 else scale.reshape(())


def _channelwise(bound: Array, channels: int, reduce: Any) -> Array:
    """Bounds of an input per channel, (C,)."""
    other = tuple(i for i in range(bound.ndim) if i != 1)
    return np.broadcast_to(reduce(bound, axis=other), (channels,))


def _conv(b: Builder, node: ir.Node, values: list[Value | None]) -> Value:
    if (constant := _of_zeros(node, values)) is not None:
        return constant
    x = integers(b, node, values[0], "input")
    weight = _weight(b, node, values[1])
    assert weight.codes is not None
    codes = weight.codes - weight.zero
    spatial, group = codes.ndim - 2, int(node.attributes["group"].as_int()) if "group" in node.attributes else 1
    if "auto_pad" in node.attributes and node.attributes["auto_pad"].as_string() not in ("NOTSET", "VALID"):
        raise Unrepresentable("E15", "automatic padding", "explicit pads", "capture the model again")
    ones, kernel = [1] * spatial, codes.shape[2:]
    strides, dilations = _ints(node, "strides", ones), _ints(node, "dilations", ones)
    pads = _ints(node, "pads", [0] * 2 * spatial)
    size = x.shape[2:]
    transposed = node.op_type == "ConvTranspose"
    scale = _per_output(node, weight, 1 if transposed else 0)
    if transposed:
        extra = _ints(node, "output_padding", [0] * spatial)
        reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        out = [
            (n - 1) * s + r + 1 + e - p - q
            for n, s, r, e, p, q in zip(size, strides, reach, extra, pads, pads[spatial:], strict=False)
        ]
        geometry = Geometry(
            size,
            tuple(out),
            kernel,
            (1,) * spatial,
            dilations,
            tuple(r - p for r, p in zip(reach, pads, strict=False)),
            strides,
        )
        codes = _turned(codes, group)
        if scale.ndim and group > 1:
            scale = np.tile(scale, group)  # one scale an output channel of a group, for every group
    else:
        reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        out = [
            (n + p + q - r) // s + 1 for n, s, r, p, q in zip(size, strides, reach, pads, pads[spatial:], strict=False)
        ]
        geometry = Geometry(size, tuple(out), kernel, strides, dilations, tuple(pads[:spatial]), (1,) * spatial)
    m, per_group = codes.shape[:2]
    in_scale = compressed(x.scale)
    if in_scale.size > 1 and group == x.shape[1] and in_scale.size == in_scale.shape[1]:
        in_scale = np.repeat(in_scale.reshape(-1), m // group)  # depthwise: each output reads one channel
    else:
        in_scale = per_tensor(node, x, "input")
    out_scale = np.asarray(in_scale, np.float32) * np.asarray(scale, np.float32)
    bias = values[2] if len(values) > 2 else None
    integer_bias = _integer_bias(bias, out_scale, m)
    name = b.emit(
        "conv",
        node,
        [x.tensor],
        attributes={
            "strides": list(geometry.strides),
            "dilations": list(dilations),
            "begins": list(geometry.begins),
            "upsample": list(geometry.upsample),
            "group": group,
        },
        arrays={"weight": codes, "zero": x.zero, "bias": integer_bias},
    )
    low, high = x.shifted
    ends = [_channelwise(a, x.shape[1], f) for a, f in ((low, np.min), (high, np.max))]
    reads = [np.repeat(e.reshape(group, per_group), m // group, axis=0) for e in ends]
    bounds = linear_bounds(codes, reads[0], reads[1], geometry, integer_bias)
    shape = (x.shape[0], m, *out)
    b.accumulators.append(
        Accumulator(
            node,
            bounds,
            codes,
            reads[0],
            reads[1],
            geometry,
            group,
            x,
            b.steps[-1],
            shape,
            integer_bias,
            terms=per_group * _taps(geometry),
            claim=weight.claim,
            bias_claim=_claim(bias),
        )
    )
    wire = sums(b, name, shape, out_scale.reshape(-1, *(1,) * spatial), bounds, spatial)
    return wire if integer_bias is not None else _plus(b, node, wire, bias, (-1, *(1,) * spatial))


def _claim(bias: Value | None) -> Claim | None:
    return bias.claim if isinstance(bias, Wire) else None


def _taps(geometry: Geometry) -> int:
    """Greatest number of taps present at one position."""
    return int(np.prod([geometry.patterns(dim)[0].sum(axis=1).max() for dim in range(len(geometry.size))]))


def _turned(codes: Array, group: int) -> Array:
    """Weights of a transposed convolution, (C, M / group, *kernel), as those of one on a stretched input."""
    flipped = np.flip(codes, tuple(range(2, codes.ndim)))
    split = flipped.reshape(group, -1, *codes.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(split.reshape(-1, codes.shape[0] // group, *codes.shape[2:]))


def _integer_bias(bias: Value | None, scale: Array, m: int) -> Array | None:
    """Codes of a bias on the accumulator grid, (M,)."""
    if not isinstance(bias, Wire) or bias.codes is None:
        return None
    own = bias.scale.reshape(-1)
    grid = scale.reshape(-1)
    if bias.ops or own.size not in (1, grid.size, m) or not np.allclose(own, grid, rtol=1e-6, atol=0):
        return None
    return np.broadcast_to((bias.codes - bias.zero).reshape(-1), (m,)).astype(np.int64)


def _plus(b: Builder, node: ir.Node, wire: Wire, bias: Value | None, shape: tuple[int, ...]) -> Value:
    """The float bias, which waits for the quantizer."""
    if bias is None:
        return wire
    values = bias.array if isinstance(bias, Constant) else bias.values() if isinstance(bias, Wire) else None
    if values is None:
        raise Unrepresentable("E04", "a bias that is computed", "a constant bias", "quantize it with bias_quant")
    return append(b, node, wire, FloatOp("add", (values.astype(np.float32).reshape(shape),)))


def sums(b: Builder, name: str, shape: tuple[int, ...], scale: Array, bounds: Bounds, spatial: int) -> Wire:
    """The wire of an accumulator, whose zero is 0."""
    ends = (a.reshape(-1, *(1,) * spatial) for a in (bounds.least, bounds.most))
    return b.wire(name, shape, scale, 0, *ends)


def _gemm(b: Builder, node: ir.Node, values: list[Value | None]) -> Value:
    if (constant := _of_zeros(node, values)) is not None:
        return constant
    a = node.attributes
    if any(a[k].as_float() != 1.0 for k in ("alpha", "beta") if k in a) or ("transA" in a and a["transA"].as_int()):
        raise Unrepresentable("E04", "Gemm with factors", "alpha = beta = 1 and transA = 0", "use a linear layer")
    weight = _weight(b, node, values[1])
    if "transB" in a and a["transB"].as_int():
        weight = _transposed(weight)
    return _linear(b, node, integers(b, node, values[0], "input"), weight, values[2] if len(values) > 2 else None)


def _transposed(w: Wire) -> Wire:
    assert w.codes is not None
    return replace(w, shape=w.shape[::-1], codes=w.codes.T, **w.map_parameters(np.transpose))


def _matmul(b: Builder, node: ir.Node, values: list[Value | None]) -> Value:
    if (constant := _of_zeros(node, values)) is not None:
        return constant
    x, y = (integers(b, node, v, what) for v, what in zip(values, ("input", "weight"), strict=True))
    if y.codes is not None and y.codes.ndim == 2 and x.codes is None:
        return _linear(b, node, x, y, None)
    if x.codes is not None or y.codes is not None:
        raise Unrepresentable(
            "E04",
            "a product whose first operand is constant",
            "data times a weight matrix",
            "write x @ weight, or F.linear",
        )
    return _data_by_data(b, node, x, y)


def _linear(b: Builder, node: ir.Node, x: Wire, weight: Wire, bias: Value | None) -> Value:
    assert weight.codes is not None
    codes = weight.codes - weight.zero
    scale = per_tensor(node, x, "input") * _per_output(node, weight, 1)
    integer_bias = _integer_bias(bias, scale, codes.shape[1])
    name = b.emit("matmul", node, [x.tensor], arrays={"weight": codes, "zero": x.zero, "bias": integer_bias})
    low, high = x.shifted
    over = tuple(range(low.ndim - 1)), tuple(range(high.ndim - 1))
    k, m = codes.shape
    ends = [np.broadcast_to(f(a, axis=o), (k,)) for a, f, o in ((low, np.min, over[0]), (high, np.max, over[1]))]
    reads = [np.broadcast_to(e, (m, k)) for e in ends]
    rows = np.ascontiguousarray(codes.T)
    bounds = linear_bounds(rows, reads[0], reads[1], None, integer_bias)
    shape = (*x.shape[:-1], m)
    b.accumulators.append(
        Accumulator(
            node,
            bounds,
            rows,
            reads[0],
            reads[1],
            None,
            1,
            x,
            b.steps[-1],
            shape,
            integer_bias,
            terms=k,
            claim=weight.claim,
            bias_claim=_claim(bias),
        )
    )
    wire = sums(b, name, shape, np.asarray(scale, np.float32), bounds, 0)
    return wire if integer_bias is not None else _plus(b, node, wire, bias, (-1,))


def _data_by_data(b: Builder, node: ir.Node, x: Wire, y: Wire) -> Value:
    """Both operands computed: the extremes are those of one product, as often as products are added."""
    scale = per_tensor(node, x, "first operand") * per_tensor(node, y, "second operand")
    rank = max(len(x.shape), len(y.shape))
    name = b.emit("matmul", node, [x.tensor, y.tensor], arrays={"zero": x.zero, "zero_y": y.zero})
    ends = [(int(a.min()), int(c.max())) for a, c in (x.shifted, y.shifted)]
    products = [p * q for p in ends[0] for q in ends[1]]
    k = x.shape[-1]
    least, most = k * min(products), k * max(products)
    nowhere = np.zeros((1, 0), np.int64)
    ends_of_sum = [np.asarray([v]) for v in (least, most, min(least, 0), max(most, 0))]
    bounds = Bounds(ends_of_sum[0], ends_of_sum[1], ends_of_sum[2], ends_of_sum[3], (nowhere, nowhere))
    reads = [np.full((1, k), e) for e in ends[0]]
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    shape = (*batch, x.shape[-2], y.shape[-1])
    b.accumulators.append(
        Accumulator(
            node,
            bounds,
            None,
            reads[0],
            reads[1],
            None,
            1,
            x,
            b.steps[-1],
            shape,
            terms=k,
            claim=y.claim,
            other=y,
        )
    )
    return b.wire(name, shape, aligned(np.asarray(scale), rank), 0, least, most)


RULES: dict[tuple[str, str], Rule] = {
    ("", "Conv"): _conv,
    ("", "ConvTranspose"): _conv,
    ("", "Gemm"): _gemm,
    ("", "MatMul"): _matmul,
}
