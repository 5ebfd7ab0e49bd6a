"""From a traced program with one symbolic node per quantizer to modules on torch's quantized tensors.

quantizer            quantize_per_tensor [clamp], and dequantize where real values are read
conv, linear         prepacked torch.ao.nn.quantized modules, between the quantizers around them
everything else      as traced, on real values
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from brevitas.export.graph import integer_range
from brevitas.export.tracing.canonical import flat_outputs
from brevitas.export.tracing.record import Record, Recording
from brevitas.export.tracing.replay import record_index
from brevitas.quant_tensor import QuantTensor

__all__ = ["Emitted", "Grid", "Packed", "Quantized", "quantized_module"]

_aten = torch.ops.aten
_PRODUCTS = {_aten.conv1d.default: "Conv1d", _aten.conv2d.default: "Conv2d", _aten.linear.default: "Linear"}
#: Functions whose result lies on the grid of their first argument.
_GRID_PRESERVING = (
    *(_aten.flatten.using_ints, _aten.reshape.default, _aten.view.default, _aten.permute.default),
    *(_aten.transpose.int, _aten.squeeze.dim, _aten.unsqueeze.default, _aten.contiguous.default, _aten.clone.default),
    *(_aten.dropout.default, _aten.alias.default, _aten.detach.default, _aten.pad.default),
    *(_aten.relu.default, _aten.max_pool1d.default, _aten.max_pool2d.default, _aten.adaptive_max_pool2d.default),
)


#: Functions that take sizes, and the methods of tensors that do the same.
_SIZED = {_aten.reshape.default: "reshape", _aten.view.default: "reshape", _aten.expand.default: "expand"}


@dataclass(frozen=True)
class Grid:
    """Grid of a quantized tensor: scale, zero point, type, and the range of the codes."""

    scale: float
    zero_point: int
    signed: bool
    low: int
    high: int

    @staticmethod
    def of(r: Record) -> Grid:
        """Grid of a recorded quantizer."""
        return Grid(float(r.scale), int(r.zero_point), r.signed, *r.range)

    @property
    def dtype(self) -> torch.dtype:
        """``torch.qint8`` or ``torch.quint8``."""
        return torch.qint8 if self.signed else torch.quint8


@dataclass(frozen=True)
class Emitted:
    """Where an activation's codes are in the emitted module: which of its quantized tensors, counted in order."""

    key: tuple[str, int]
    position: int
    grid: Grid


@dataclass(frozen=True)
class Packed:
    """A product of the emitted module, in order: its name, what it holds, and what it gives.

    ``slack`` bounds by how much rounding a float bias to the accumulator's grid moves the result, as it broadcasts
    against that; ``None`` where it moves nothing.
    """

    name: str
    weight: Record
    bias: Record | None
    output: tuple[str, int]
    slack: Tensor | None


@dataclass(frozen=True)
class Quantized:
    """A module on quantized tensors, and where in it the recorded quantizers are."""

    module: nn.Module
    emitted: list[Emitted]
    packed: list[Packed]


def quantized_module(program: fx.GraphModule, recording: Recording, inputs: Sequence[Any]) -> Quantized:
    """The module that computes the program on quantized tensors.

    ``inputs`` are those that the program was traced on; QuantTensors among them are given as quantized tensors.
    QuantTensors that the model returned come out as quantized tensors.
    """
    rewriter = _Rewriter(program, recording)
    rewriter.run(inputs, flat_outputs(recording.output))
    return Quantized(rewriter.module, rewriter.emitted, rewriter.packed)


class _Rewriter:
    """Rewrites a traced program node by node, in order."""

    def __init__(self, program: fx.GraphModule, recording: Recording) -> None:
        # A plain module of the same graph: that of a program refuses eval().
        self.module = fx.GraphModule(program, program.graph)
        self.graph = self.module.graph
        self.records = recording.records
        self.emitted: list[Emitted] = []
        self.packed: list[Packed] = []
        self._codes: dict[fx.Node, tuple[fx.Node, Grid]] = {}
        self._count = 0

    def run(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Rewrite the graph."""
        self._take_codes(inputs)
        by_output = {id(p.quantizer): p for p in self._products()}
        for node in list(self.graph.nodes):
            index = record_index(node)
            if index is not None and not self.records[index].is_parameter:
                self._activation(node, self.records[index], by_output.get(id(node)))
        self._trace_sizes()
        self._give_codes(outputs)
        self.graph.eliminate_dead_code()
        for node in list(self.graph.nodes):  # the guard of shapes that torch.export adds
            if node.op == "call_module" and str(node.target).startswith("_guards"):
                self.graph.erase_node(node)
        self.module.delete_all_unused_submodules()
        self.graph.lint()
        self.module.recompile()

    def _trace_sizes(self) -> None:
        """Sizes of a free batch as methods of tensors: tracing turns those of operators into the numbers they were."""
        sizes = set()
        for node in list(self.graph.nodes):
            if node.target is _aten.sym_size.int:
                new = self._call_method("size", node, *node.args)
                self._replace(node, new)
                sizes.add(new)
            elif node.target in _SIZED and any(size in sizes for size in node.args[1]):
                self._replace(node, self._call_method(_SIZED[node.target], node, node.args[0], *node.args[1]))
            elif node.op == "call_function" and sizes & set(node.all_input_nodes):
                raise NotImplementedError(f"the batch size is an argument of {node.target}")

    def _take_codes(self, inputs: Sequence[Any]) -> None:
        given = [node for node in self.graph.nodes if node.op == "placeholder"]
        for node, x in zip(given, inputs, strict=True):
            if isinstance(x, QuantTensor):
                bits = int(x.bit_width)
                grid = Grid(float(x.scale), int(x.zero_point), x.signed, *integer_range(bits, x.signed, False))
                with self.graph.inserting_after(node):
                    real = self.graph.call_method("dequantize", (node,))
                node.replace_all_uses_with(real, delete_user_cb=lambda user, real=real: user is not real)
                self._codes[real] = node, grid

    def _give_codes(self, outputs: Sequence[Any]) -> None:
        (last,) = (node for node in self.graph.nodes if node.op == "output")
        values = list(last.args[0])
        for i, x in enumerate(outputs):
            if isinstance(x, QuantTensor) and self._is_on_grid(values[i]):
                with self.graph.inserting_before(last):
                    values[i] = self._codes_of(values[i])
        last.args = (tuple(values),)

    # --- Products ----------------------------------------------------------------------------------------------

    def _products(self) -> Iterator[_Product]:
        for node in self.graph.nodes:
            kind = _PRODUCTS.get(node.target)
            weight = self._parameter(node.args[1]) if kind else None
            if kind is None or weight is None:
                continue
            value, relu = node, False
            reader = _only_user(value)
            if reader is not None and reader.target is _aten.relu.default:
                value, relu = reader, True
                reader = _only_user(value)
            if reader is not None and record_index(reader) is not None:
                yield _Product(node, kind, weight, relu, reader)

    def _parameter(self, node: Any) -> Record | None:
        index = record_index(node) if isinstance(node, fx.Node) else None
        return self.records[index] if index is not None and self.records[index].is_parameter else None

    def _bias(self, node: Any) -> Tensor | None:
        if node is None:
            return None
        record = self._parameter(node)
        if record is not None:
            return record.value.float()
        owner, _, leaf = str(node.target).rpartition(".")
        return getattr(self.module.get_submodule(owner), leaf).detach().float()

    # --- Activations -------------------------------------------------------------------------------------------

    def _activation(self, node: fx.Node, r: Record, product: _Product | None) -> None:
        with self.graph.inserting_before(node):
            grid = Grid.of(r)
            low = grid.low
            if product is None:
                codes = self._quantize(node.args[0][0], grid)  # type: ignore[index]
            else:
                codes = self._product(product, r)
                low = max(low, grid.zero_point) if product.relu else low
            codes = self._clamped(codes, grid, low)
            real = self.graph.call_method("dequantize", (codes,))
        self.emitted.append(Emitted(r.key, self._count - 1, grid))
        node.replace_all_uses_with(real)
        self._codes[real] = codes, grid
        self.graph.erase_node(node)

    def _counted(self, node: fx.Node) -> fx.Node:
        """Count a node that gives a quantized tensor."""
        self._count += 1
        return node

    def _quantize(self, x: Any, grid: Grid) -> fx.Node:
        arguments = (x, grid.scale, grid.zero_point, grid.dtype)
        return self._counted(self.graph.call_function(torch.quantize_per_tensor, arguments))

    def _clamped(self, codes: fx.Node, grid: Grid, low: int) -> fx.Node:
        if (low, grid.high) == ((-128, 127) if grid.signed else (0, 255)):
            return codes
        # qnnpack's clamp takes the memory of channels-last tensors, which convolutions give, for another order.
        codes = self.graph.call_method("contiguous", (codes,))
        bounds = ((bound - grid.zero_point) * grid.scale for bound in (low, grid.high))
        return self._counted(self.graph.call_function(torch.clamp, (codes, *bounds)))

    def _is_on_grid(self, node: fx.Node) -> bool:
        while node not in self._codes:
            if node.target not in _GRID_PRESERVING:
                return False
            node = node.args[0]  # type: ignore[assignment]
        return True

    def _codes_of(self, node: fx.Node) -> fx.Node:
        """Codes of a real value on a quantizer's grid, quantized again behind what moves values."""
        if node in self._codes:
            return self._codes[node][0]
        source = node
        while source not in self._codes:
            source = source.args[0]  # type: ignore[assignment]
        codes = self._quantize(node, self._codes[source][1])
        self._codes[node] = codes, self._codes[source][1]
        return codes

    def _product(self, p: _Product, r: Record) -> fx.Node:
        args: list[Any] = list(p.node.args)
        bias = args[2] if len(args) > 2 else None
        codes = self._codes_of(args[0])
        module = _packed(p.kind, p.weight, self._bias(bias), args[3:])
        module.scale, module.zero_point = float(r.scale), int(r.zero_point)
        name = _free_name(self.module, p.weight.layer or p.kind.lower())
        self.module.add_submodule(name, module)
        slack = None
        if bias is not None and self._parameter(bias) is None:
            slack = p.weight.scale.double() * self._codes[args[0]][1].scale / 2
            # (channels, 1, ...) for convolutions, (channels,) for linear layers
            slack = slack.reshape(-1) if p.kind == "Linear" or slack.numel() == 1 else slack.flatten(0, 1)
        self.packed.append(Packed(name, p.weight, self._parameter(bias), r.key, slack))
        return self._counted(self.graph.call_module(name, (codes,)))

    def _call_method(self, name: str, before: fx.Node, *args: Any) -> fx.Node:
        with self.graph.inserting_before(before):
            return self.graph.call_method(name, args)

    def _replace(self, node: fx.Node, new: fx.Node) -> None:
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)


@dataclass(frozen=True)
class _Product:
    node: fx.Node
    kind: str
    weight: Record
    relu: bool
    quantizer: fx.Node


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _packed(kind: str, weight: Record, bias: Tensor | None, geometry: Sequence[Any]) -> Any:
    """A prepacked module with the integers of a recorded weight."""
    import torch.ao.nn.quantized as quantized

    if kind == "Linear":
        out_features, in_features = weight.value.shape
        module: Any = quantized.Linear(in_features, out_features, bias_=bias is not None)
    else:
        ndim = weight.value.ndim - 2
        stride, padding, dilation, groups = _geometry(geometry, ndim)
        out_channels, per_group, *kernel = weight.value.shape
        module = getattr(quantized, kind)(
            per_group * groups, out_channels, tuple(kernel), stride, padding, dilation, groups, bias is not None
        )
    codes = weight.codes().to(torch.int8)
    if weight.scale.numel() == 1:
        packed = torch._make_per_tensor_quantized_tensor(codes, float(weight.scale), 0)
    else:
        scales = weight.scale.reshape(-1).double()
        packed = torch._make_per_channel_quantized_tensor(codes, scales, torch.zeros_like(scales, dtype=torch.long), 0)
    module.set_weight_bias(packed, bias)
    return module


def _geometry(given: Sequence[Any], ndim: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
    """Stride, padding, dilation and groups of a traced convolution, whose defaults are left out."""
    full = [*given, *([1], [0], [1], 1)[len(given) :]]
    spatial = [tuple(v) * ndim if len(v) == 1 else tuple(v) for v in full[:3]]
    return spatial[0], spatial[1], spatial[2], int(full[3])


def _free_name(module: nn.Module, path: str) -> str:
    base = path.replace(".", "_")
    name, n = base, 0
    while hasattr(module, name):
        n += 1
        name = f"{base}_{n}"
    return name
