"""The one entry: record, replay, canonicalize."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from brevitas.export.tracing.canonical import canonicalize, flat_outputs
from brevitas.export.tracing.record import Recorder
from brevitas.export.tracing.replay import ReplayMismatchError, trace
from brevitas.export.tracing.watch import uncompiled
from brevitas.export.violations import ExportViolationError, Violation

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
    _refuse_minifloats(model, target)
    recording = Recorder(model, probe=True).run(inputs)
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
    return canonicalize(
        raw,
        recording.records,
        inputs,
        outputs,
        root_class=type(model).__name__,
        input_names=input_names,
        output_names=output_names,
    )


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


def _refuse_minifloats(model: nn.Module, target: str) -> None:
    found = []
    for name, module in model.named_modules():
        if getattr(module, "is_minifloat", False):
            layer = name.rpartition(".")[0]
            found.append(
                Violation(
                    "E24",
                    target,
                    f"minifloat values in {name.rpartition('.')[2]}",
                    "integer quantization",
                    "use an integer preset of brevitas.quant",
                    layer=layer,
                    layer_class=type(model.get_submodule(layer)).__name__,
                    quantizer=name,
                )
            )
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
            )
        ]
    )
