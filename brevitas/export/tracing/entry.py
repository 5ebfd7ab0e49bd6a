"""The one entry: record, replay, canonicalize."""

from __future__ import annotations

import json
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from brevitas.errors import BrevitasError
from brevitas.export import graph as g
from brevitas.export.tracing.canonical import canonicalize, flat_outputs
from brevitas.export.tracing.record import Recorder, Recording
from brevitas.export.tracing.replay import ReplayMismatchError, trace
from brevitas.export.violations import ExportViolationError, Violation
from brevitas.graph.copies import uncompiled

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["CAPTURE_OPSET", "capture"]

CAPTURE_OPSET = 20


def capture(
    model: nn.Module,
    inputs: Sequence[Any],
    *,
    target: str = "capture",
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    batch_names: Sequence[str | None] | None = None,
    optimize: bool = True,
    verbose: bool = False,
) -> ir.Model:
    """The canonical graph of a model, conventions as in :mod:`brevitas.export.graph`.

    ``inputs`` are Tensors or QuantTensors, one per argument of the model's forward. ``batch_names[i]`` makes dimension
    0 of input i dynamic, under that name. The model is copied and never changed. Raises ExportError (E04) where torch's
    exporter cannot trace the model; ``target`` is named in that error.
    """
    model = uncompiled(model)
    _require_float32(model, target)
    recording = _recorded(model, inputs, target)
    outputs = flat_outputs(recording.output)
    if output_names is not None and len(output_names) != len(outputs):
        raise ExportViolationError(
            [
                Violation(
                    "E02",
                    target,
                    f"{len(output_names)} output_names for {len(outputs)} outputs",
                    "one name per model output",
                    "give as many names as outputs",
                )
            ]
        )
    try:
        raw = trace(
            model,
            inputs,
            recording,
            batch_names=batch_names or [None] * len(inputs),
            opset=CAPTURE_OPSET,
            optimize=optimize,
            verbose=verbose,
        )
    except (ReplayMismatchError, torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError, ValueError) as error:
        raise _untraceable(model, target, error, dynamic=any(batch_names or [])) from error
    graph = canonicalize(
        raw,
        recording.records,
        inputs,
        outputs,
        root_class=type(model).__name__,
        input_names=input_names,
        output_names=output_names,
    )
    marked = {name: m.export_debug_name for name, m in model.named_modules() if getattr(m, "export_debug_name", None)}
    if marked:
        graph.metadata_props[g.DEBUG] = json.dumps(marked)
    return graph


def _recorded(model: nn.Module, inputs: Sequence[Any], target: str) -> Recording:
    """What every quantizer does on the inputs; a forward that fails is the caller's mistake, and named."""
    recorder = Recorder(model, probe=True)
    try:
        return recorder.run(inputs)
    except BrevitasError:
        raise
    except Exception as error:
        names = {id(module): name for name, module in recorder.model.named_modules()}
        layer = ""
        for frame, _ in traceback.walk_tb(error.__traceback__):
            layer = names.get(id(frame.f_locals.get("self")), layer)
        line = next((text.strip() for text in str(error).splitlines() if text.strip()), "no message")
        shapes = ", ".join(str(tuple(getattr(x, "shape", ()))) for x in inputs)
        what = f"a forward that fails on inputs of shape {shapes}: {type(error).__name__}: {line}"
        fix = "pass inputs that the model takes, as model.eval()(...) shows"
        cls = type(recorder.model.get_submodule(layer)).__name__
        required = "inputs that the model takes"
        found = Violation("E01", target, what, required, fix, layer=layer, layer_class=cls, cause=error)
        raise ExportViolationError([found]) from error


def _require_float32(model: nn.Module, target: str) -> None:
    found = [
        Violation(
            "E13",
            target,
            f"parameter of type {p.dtype}",
            "torch.float32",
            "export model.float()",
            layer=name.rpartition(".")[0],
            layer_class=type(model.get_submodule(name.rpartition(".")[0])).__name__,
        )
        for name, p in model.named_parameters()
        if p.dtype in (torch.float16, torch.bfloat16, torch.float64)
    ]
    if found:
        raise ExportViolationError(found)


def _untraceable(model: nn.Module, target: str, error: BaseException, dynamic: bool) -> ExportViolationError:
    first: BaseException = error
    while first.__cause__ is not None:
        first = first.__cause__
    line = next((text.strip() for text in str(first).splitlines() if text.strip()), type(first).__name__)
    fix = "remove what depends on the values of tensors from forward (Python if or while; use torch.where)"
    if type(first).__name__ != "GuardOnDataDependentSymNode":
        fix = "see torch.export's documentation for what it traces"
    if dynamic:
        fix = "leave dynamic_axes out, or make the model independent of the batch size (x.flatten(1), x.shape[0])"
    return ExportViolationError(
        [
            Violation(
                "E04",
                target,
                f"torch's exporter cannot trace the model: {type(first).__name__}: {line}",
                "a model that torch.export traces",
                fix,
                layer="",
                layer_class=type(model).__name__,
                cause=error,
            )
        ]
    )
