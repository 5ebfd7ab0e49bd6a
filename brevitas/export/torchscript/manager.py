"""The manager of the target ``torch``."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brevitas.export.manager import examine, writable, write_atomically
from brevitas.export.targets import get_target
from brevitas.export.torchscript.program import Quantized, quantized_module
from brevitas.export.tracing.keywords import by_position
from brevitas.export.tracing.record import Record, Recorder
from brevitas.export.tracing.replay import drop_assertions, quiet, trace_program
from brevitas.export.tracing.watch import exclusive
from brevitas.export.violations import ExportViolationError, Violation, raise_violations
from brevitas.graph.copies import uncompiled
from brevitas.quant_tensor import QuantTensor
from injector import suggest

__all__ = ["METADATA", "PytorchQuantManager"]

#: Attribute of the module: where its quantizers are, as JSON.
METADATA = "brevitas_metadata"


class PytorchQuantManager:
    """PyTorch's own quantized operators: prepacked layers between quantized tensors, as TorchScript.

    torch 2.13 warns that quantized tensors will be removed; this target lasts as long as they do.
    """

    target = "torch"
    target_name = "torch"

    @classmethod
    def export(
        cls,
        module: nn.Module,
        input_shape: tuple[int, ...] | None = None,
        export_path: str | os.PathLike[str] | None = None,
        input_t: Any = None,
        **kwargs: Any,
    ) -> torch.jit.ScriptModule:
        """Export a model in eval mode and leave it exactly as it was found.

        >>> from brevitas.nn import QuantIdentity, QuantLinear
        >>> from brevitas.quant import Uint8ActPerTensorFloat
        >>> act = Uint8ActPerTensorFloat
        >>> model = nn.Sequential(QuantIdentity(act, return_quant_tensor=True), QuantLinear(4, 2, output_quant=act))
        >>> exported = PytorchQuantManager.export(model, input_shape=(1, 4))
        >>> exported(torch.randn(3, 4)).shape
        torch.Size([3, 2])

        Args:
            module: the model; it is copied, on the CPU, and never changed.
            input_shape: shape of the one float32 input.
            export_path: file to write, atomically and after every check, for ``torch.jit.load``.
            input_t: instead of ``input_shape`` a Tensor, a tuple of Tensors, a QuantTensor, or a dict of inputs by
                name, which the module takes in order; it takes a quantized tensor where a QuantTensor is given, and
                returns one where the model returns a QuantTensor.

        Returns:
            A frozen TorchScript module. Its batch size is free where torch can trace the model with a free one.

        Raises:
            ExportError: with every violation, one line each; nothing is written then.
            OSError: ``export_path`` cannot be written.

        torch's operators round float biases to the accumulator's grid, which moves a code here and there by one step;
        quantized biases (Int8Bias, ...) lie on it. Weights are packed for ``torch.backends.quantized.engine``, and
        packed anew when the file is loaded under another one. Without VNNI, products of 8-bit unsigned activations
        saturate in every engine but qnnpack.
        """
        path = None if export_path is None else writable(Path(export_path))
        _refuse_keywords(kwargs)
        target = get_target(cls.target)
        _, found, _ = examine(module, target, input_shape, input_t, {})
        raise_violations(found)
        named, input_t = by_position(uncompiled(module), input_t)
        inputs = [torch.zeros(tuple(input_shape))] if input_shape is not None else _as_list(input_t)
        exported = _traced(named, inputs)
        if path is not None:
            buffer = io.BytesIO()
            torch.jit.save(exported, buffer)
            write_atomically(path, buffer.getvalue())
        return exported


def _refuse_keywords(keywords: dict[str, Any]) -> None:
    known = ("input_shape", "export_path", "input_t")
    found = []
    for name in keywords:
        near = suggest(name, known)
        fix = f"write {' or '.join(near)}" if near else "leave it out"
        found.append(Violation("E02", "torch", f"unknown keyword {name!r}", f"one of {', '.join(known)}", fix))
    if found:
        raise ExportViolationError(found)


def _as_list(input_t: Any) -> list[Any]:
    return list(input_t) if isinstance(input_t, tuple | list) else [input_t]


def _traced(model: nn.Module, inputs: Sequence[Any]) -> torch.jit.ScriptModule:
    inputs = [x.cpu() for x in inputs]
    with exclusive, quiet(False), torch.no_grad():
        recording = Recorder(model).run(inputs)
        made = None
        sizes = {x.shape[0] if x.ndim else None for x in inputs}
        batches: list[list[str | bool]] = [["batch"] * len(inputs)] if len(sizes) == 1 and None not in sizes else []
        batches.append([False] * len(inputs))
        for batch in batches:
            try:
                program = trace_program(model, inputs, recording, batch)
                drop_assertions(program)
                made = quantized_module(program.module(), recording, inputs)
                break
            except Exception:
                # Many models cannot be traced with a free batch size, for reasons of as many types.
                if batch[0] is False:
                    raise
        assert made is not None
        made.module.eval()
        scripted = torch.jit.trace(made.module, tuple(_given(x) for x in inputs), check_trace=False, strict=False)
        scripted._c._register_attribute(METADATA, torch._C.StringType.get(), _metadata(made, inputs))
        # Packed weights stay attributes: torch's ONNX exporter does not find those that freezing makes constants.
        return torch.jit.freeze(scripted, preserved_attrs=[METADATA, *(p.name for p in made.packed)])


def _given(x: Any) -> Tensor:
    """An input as the module takes it."""
    if not isinstance(x, QuantTensor):
        return x
    dtype = torch.int8 if x.signed else torch.uint8
    return torch._make_per_tensor_quantized_tensor(x.int().to(dtype), float(x.scale), int(x.zero_point))


def _metadata(made: Quantized, inputs: Sequence[Any]) -> str:
    """Where in the module the quantizers are, for ``verify``."""
    activations = [
        {"key": list(e.key), "position": e.position, **_fields(e.grid.scale, e.grid.zero_point, e.grid.signed)}
        for e in made.emitted
    ]
    given = [_fields(x.scale, x.zero_point, x.signed) if isinstance(x, QuantTensor) else None for x in inputs]
    products = [
        {
            "weight": list(p.weight.key),
            "bias": None if p.bias is None else _bias(p.bias),
            "output": list(p.output),
            "slack": None if p.slack is None else p.slack.tolist(),
        }
        for p in made.packed
    ]
    return json.dumps({"inputs": given, "activations": activations, "products": products})


def _fields(scale: Any, zero_point: Any, signed: bool) -> dict[str, Any]:
    return {"scale": float(scale), "zero_point": int(zero_point), "signed": signed}


def _bias(r: Record) -> dict[str, Any]:
    scale = torch.broadcast_to(r.scale.reshape(-1), r.value.shape)
    return {"key": list(r.key), "scale": scale.double().tolist()}
