"""Trace a model with torch's exporter while its quantizers replay what was recorded.

Each quantizer call becomes one symbolic ``Quant`` node that carries the index of its record; the record's constants
replace its inputs afterwards, so that the trace stays small. The layers see QuantTensors with the recorded metadata, so
that they behave as in the recorded forward, and no quantizer arithmetic reaches the graph.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from brevitas.export.graph import DOMAIN, DOMAIN_VERSION
from brevitas.export.tracing.record import Record, Recording
from brevitas.export.tracing.watch import Watched, activation_of, exclusive, float_value
from brevitas.quant_tensor import QuantTensor

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "RECORD_ATTRIBUTE",
    "ReplayMismatchError",
    "drop_assertions",
    "quiet",
    "record_index",
    "trace",
    "trace_program",
]

RECORD_ATTRIBUTE = "brevitas_record"
MODEL_ATTRIBUTE = "model"

_CHATTY = ("torch.onnx._internal.exporter._registration", "torch.fx.experimental.symbolic_shapes")
_GRID = ("scale", "zero_point", "bit_width")


class ReplayMismatchError(RuntimeError):
    """The traced forward called other quantizers than the recorded one."""


class _Replayer(Watched):
    """A private copy of a model whose quantizers emit symbolic nodes instead of computing."""

    def __init__(self, model: nn.Module, recording: Recording) -> None:
        super().__init__(model)
        self.placeholder = torch.zeros(())
        self._steps = list(enumerate(recording.records))
        self._recorded = {r.quantizer for r in recording.records}
        self._cursor: Iterator[tuple[int, Record]] = iter(())
        for module in self.model.modules():
            # An average pool sums codes one by one. In the graph it is one operator, whose float noise Trunc removes.
            if hasattr(module, "average_of_values"):
                module.average = module.average_of_values

    def restart(self) -> None:
        """Go back to the first record."""
        self._cursor = iter(self._steps)

    def _next(self, name: str) -> tuple[int, Record]:
        index, r = next(self._cursor, (-1, None))
        if r is None or r.quantizer != name:
            found = "no further call" if r is None else f"'{r.quantizer}'"
            raise ReplayMismatchError(f"the traced forward calls quantizer '{name}' where the recorded one has {found}")
        return index, r

    def _emit(self, index: int, r: Record, x: Tensor) -> QuantTensor | Tensor:
        y = quantizer_node(x, self.placeholder, index, r)
        if r.float_format is not None:
            return y
        return QuantTensor.unchecked(y, r.scale, r.zero_point, r.bit_width, r.signed, False, r.source)

    def on_quantizer(
        self, name: str, module: nn.Module, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Emit the node of the next record."""
        if name not in self._recorded:
            return original(*args, **kwargs)
        index, r = self._next(name)
        x = float_value(args[0])
        return self._emit(index, r, x if r.is_parameter else activation_of(module)(x))

    def on_requantize(
        self, name: str, grid: QuantTensor, value: Tensor, original: Callable[[QuantTensor, Tensor], QuantTensor]
    ) -> QuantTensor:
        """Emit the node of the next record."""
        index, r = self._next(name)
        snapped = self._emit(index, r, value)
        assert isinstance(snapped, QuantTensor)
        return snapped


class _Traced(nn.Module):
    """The replaying model behind plain tensors: QuantTensor arguments are rebuilt, results unpacked."""

    def __init__(self, replayer: _Replayer, inputs: Sequence[Any]) -> None:
        super().__init__()
        self.model = replayer.model
        self.register_buffer("placeholder", replayer.placeholder)
        self._replayer = replayer
        self._inputs = [x if isinstance(x, QuantTensor) else None for x in inputs]
        for i, x in enumerate(self._inputs):
            if x is not None:
                for field in _GRID:
                    self.register_buffer(f"input_{i}_{field}", getattr(x, field).detach().cpu().clone())

    def _rebuilt(self, index: int, tensor: Tensor) -> Any:
        x = self._inputs[index]
        if x is None:
            return tensor
        scale, zero_point, bit_width = (getattr(self, f"input_{index}_{field}") for field in _GRID)
        return QuantTensor.unchecked(tensor, scale, zero_point, bit_width, x.signed, False, x.source)

    def forward(self, *tensors: Tensor) -> Any:
        self._replayer.restart()
        self._replayer.placeholder = self.get_buffer("placeholder")
        output = self._replayer.run_model([self._rebuilt(i, t) for i, t in enumerate(tensors)])
        return pytree.tree_map(float_value, output, is_leaf=lambda leaf: isinstance(leaf, QuantTensor))


def quantizer_node(x: Tensor, placeholder: Tensor, index: int, r: Record) -> Tensor:
    """Emit one quantizer node into the traced graph; ``canonical`` puts the record's constants for the placeholders."""
    attributes: dict[str, Any] = {RECORD_ATTRIBUTE: index}
    rounding = "ROUND" if r.is_parameter else r.rounding
    if r.float_format is not None:
        f = r.float_format
        attributes |= {"has_inf": int(f.has_inf), "has_nan": int(f.has_nan), "has_subnormal": 1}
        attributes |= {"saturation": int(f.saturating), "rounding_mode": rounding}
    elif r.kind != "BipolarQuant":
        attributes |= {"signed": int(r.signed), "narrow": int(r.narrow), "rounding_mode": rounding}
    inputs = (x, *(placeholder,) * len(r.constants()))
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{r.kind}", inputs, attributes, dtype=x.dtype, shape=x.shape, version=DOMAIN_VERSION
    )


@contextlib.contextmanager
def quiet(verbose: bool) -> Iterator[None]:
    """Keep the exporter's own chatter (absent torchvision, deprecations inside torch) from the user's terminal."""
    if verbose:
        yield
        return
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        # torch prints its graph to stderr when it gives up; what the model prints was seen while recording.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def drop_assertions(program: torch.export.ExportedProgram) -> None:
    """Equal scales were checked while recording; the assertions that stand for the check have no ONNX form."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and "_assert" in str(node.target) and not node.users:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def trace_program(
    model: nn.Module, inputs: Sequence[Any], recording: Recording, batches: Sequence[str | bool]
) -> torch.export.ExportedProgram:
    """The program of a private copy of ``model``, in which each quantizer call is one symbolic operator.

    ``batches[i]`` makes dimension 0 of input i dynamic; inputs of one name have equal batches. The caller holds
    ``exclusive`` and has gradients off.
    """
    traced = _Traced(_Replayer(model, recording), inputs).eval()
    tensors = tuple(float_value(x).detach().cpu() for x in inputs)
    dims: dict[str | bool, Any] = {}
    shapes: list[dict[int, Any]] = []
    for i, name in enumerate(batches):
        if name is False:
            shapes.append({})
            continue
        shapes.append({0: dims.setdefault(name, torch.export.Dim(str(name)))})
        if tensors[i].shape[0] == 1:  # torch takes a size of 1 for a constant
            tensors = (*tensors[:i], torch.cat([tensors[i]] * 2), *tensors[i + 1 :])
    return torch.export.export(traced, tensors, dynamic_shapes=(tuple(shapes),) if dims else None, strict=False)


def record_index(node: torch.fx.Node) -> int | None:
    """The record that a node of a traced program stands for; ``None`` where it is no quantizer."""
    keys = node.kwargs.get("attr_keys")
    if node.op != "call_function" or not isinstance(keys, list | tuple) or RECORD_ATTRIBUTE not in keys:
        return None
    positions, ints = node.kwargs["attr_pos"], node.kwargs["attr_ints"]
    return int(ints[positions[list(keys).index(RECORD_ATTRIBUTE)][0]])  # type: ignore[index, arg-type]


def trace(
    model: nn.Module,
    inputs: Sequence[Any],
    recording: Recording,
    *,
    batch_names: Sequence[str | None],
    opset: int,
    optimize: bool = True,
    verbose: bool = False,
) -> ir.Model:
    """Run torch's exporter on a private copy of ``model`` and return its raw graph.

    ``batch_names[i]`` names dimension 0 of input i where that dimension is dynamic.
    """
    with exclusive, quiet(verbose), torch.no_grad():
        program = trace_program(model, inputs, recording, [name or False for name in batch_names])
        drop_assertions(program)
        exported = torch.onnx.export(program, dynamo=True, opset_version=opset, optimize=optimize, verbose=verbose)
    assert exported is not None
    _name_dimensions(exported.model, batch_names)
    return exported.model


def _name_dimensions(model: ir.Model, batch_names: Sequence[str | None]) -> None:
    """Give dynamic dimensions the names that were asked for, where the tracer made up symbols."""
    import onnx_ir as ir

    names: dict[str, str] = {}
    for value, name in zip(model.graph.inputs, batch_names, strict=True):
        if name is not None and value.shape is not None:
            names[str(value.shape[0])] = name
    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    for value in values:
        for i, dim in enumerate(value.shape or ()):
            if str(dim) in names and value.shape is not None:
                value.shape[i] = ir.SymbolicDim(names[str(dim)])
