"""Keywords of an export: which exist, which values they take, and what is written for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from brevitas.errors import QuantMetadataError
from brevitas.export.targets import Target
from brevitas.export.violations import Violation
from brevitas.quant_tensor import QuantTensor
from injector import suggest

__all__ = ["ExportOptions", "read_inputs", "read_options"]

COMMON: Mapping[str, Any] = {
    "opset_version": None,
    "input_names": None,
    "output_names": None,
    "dynamic_axes": None,
    "do_constant_folding": True,
    "keep_initializers_as_inputs": False,
    "verbose": False,
    "enable_onnx_checker": True,
}


@dataclass(frozen=True)
class ExportOptions:
    """Every keyword with its value; ``specific`` holds those of the target."""

    opset_version: int | None = None
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    dynamic_axes: Mapping[str, Any] | None = None
    do_constant_folding: bool = True
    keep_initializers_as_inputs: bool = False
    verbose: bool = False
    enable_onnx_checker: bool = True
    specific: Mapping[str, Any] = field(default_factory=dict)

    def for_target(self) -> dict[str, Any]:
        """What ``check`` and ``lower`` of a target see."""
        return {"opset_version": self.opset_version, **self.specific}

    def interface(self, count: int) -> list[str]:
        """Names of ``count`` graph inputs."""
        if self.input_names:
            return list(self.input_names)
        return ["input"] if count == 1 else [f"input_{i}" for i in range(count)]

    def batch_names(self, count: int) -> list[str | None]:
        """Name of the dynamic dimension 0 of each input, ``None`` where it is fixed."""
        names: list[str | None] = []
        for name in self.interface(count):
            axes = (self.dynamic_axes or {}).get(name)
            if not axes:
                names.append(None)
            else:
                names.append(str(axes[0]) if isinstance(axes, Mapping) else "batch")
        return names


def read_options(target: Target, keywords: Mapping[str, Any], inputs: int) -> tuple[ExportOptions, list[Violation]]:
    """Keywords as options, and what is wrong with them (E02)."""
    found: list[Violation] = []

    def wrong(what: str, required: str, fix: str) -> None:
        found.append(Violation("E02", target.key, what, required, fix))

    known = {**COMMON, **target.options}
    for name in keywords:
        if name not in known:
            near = suggest(name, known)
            hint = f"write {' or '.join(near)}" if near else "leave it out"
            wrong(f"unknown keyword {name!r}", f"one of {', '.join(sorted(known))}", hint)
    values = {**known, **{k: v for k, v in keywords.items() if k in known}}
    opset = values["opset_version"]
    if opset is not None and (isinstance(opset, bool) or not isinstance(opset, int)):
        wrong(f"opset_version={opset!r}", "an integer or None", "pass an integer such as 20")
        values["opset_version"] = None
    for name, default in known.items():
        if isinstance(default, bool) and not isinstance(values[name], bool):
            wrong(f"{name}={values[name]!r}", "True or False", f"pass {name}=True or {name}=False")
            values[name] = default
    for name in ("input_names", "output_names"):
        names = values[name]
        if names is None:
            continue
        if isinstance(names, str) or not all(isinstance(n, str) and n for n in names) or len(set(names)) != len(names):
            wrong(f"{name}={names!r}", "a list of different, non-empty strings", f"pass {name}=['...']")
            values[name] = None
    if values["input_names"] is not None and len(values["input_names"]) != inputs:
        wrong(
            f"{len(values['input_names'])} input_names for {inputs} input{'s' if inputs != 1 else ''}",
            "one name per model input",
            "give as many names as inputs",
        )
        values["input_names"] = None
    options = ExportOptions(**{k: values[k] for k in COMMON}, specific={k: values[k] for k in target.options})
    found.extend(_axes_violations(target, options, inputs))
    return options, found


def _axes_violations(target: Target, options: ExportOptions, inputs: int) -> list[Violation]:
    axes = options.dynamic_axes
    if axes is None:
        return []
    form = "dynamic_axes={'input': {0: 'batch'}} or {'input': [0]}"
    if not isinstance(axes, Mapping):
        return [
            Violation(
                "E02", target.key, f"dynamic_axes={axes!r}", "a mapping from input or output names", f"pass {form}"
            )
        ]
    found = []
    known = options.interface(inputs)
    outputs = list(options.output_names or ["output"])
    for name, dims in axes.items():
        if name not in known and name not in outputs and not str(name).startswith("output"):
            near = suggest(str(name), [*known, *outputs])
            found.append(
                Violation(
                    "E02",
                    target.key,
                    f"dynamic_axes of an unknown input {name!r}",
                    f"one of {', '.join(known)}",
                    f"write {' or '.join(near or known)}",
                )
            )
        elif not isinstance(dims, (Mapping, Sequence)) or isinstance(dims, str) or set(dims) - {0}:
            found.append(
                Violation(
                    "E02",
                    target.key,
                    f"dynamic_axes of {name!r}: {dims!r}",
                    "dimension 0, the batch, alone",
                    f"pass {form}",
                )
            )
    return found


def read_inputs(target: str, input_shape: Any, input_t: Any) -> tuple[list[Any], list[Violation]]:
    """The tensors a model is run on, and what is wrong with them (E01, E03)."""
    if (input_shape is None) == (input_t is None):
        both = "both input_shape and input_t" if input_t is not None else "neither input_shape nor input_t"
        return [], [
            Violation(
                "E01",
                target,
                both,
                "exactly one of input_shape and input_t",
                "pass input_shape=(1, 3, 32, 32), for example",
            )
        ]
    if input_shape is not None:
        if not isinstance(input_shape, (tuple, list)) or not all(
            isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in input_shape
        ):
            tensor = isinstance(input_shape, (Tensor, QuantTensor))
            return [], [
                Violation(
                    "E01",
                    target,
                    f"a {type(input_shape).__name__} as input_shape" if tensor else f"input_shape={input_shape!r}",
                    "a tuple of positive integers (input_t takes tensors)",
                    "pass input_t=" if tensor else "pass input_shape=(1, 3, 32, 32), for example",
                )
            ]
        return [torch.zeros(tuple(input_shape))], []
    inputs = list(input_t) if isinstance(input_t, (tuple, list)) else [input_t]
    found = []
    for i, x in enumerate(inputs):
        if isinstance(x, QuantTensor):
            found.extend(_quant_tensor_violations(target, i, x))
        elif not isinstance(x, Tensor):
            found.append(
                Violation(
                    "E01",
                    target,
                    f"input_t of type {type(x).__name__}",
                    "a Tensor, a tuple of Tensors, or a QuantTensor",
                    "pass tensors",
                    place=f"model input {i}",
                )
            )
        elif x.dtype in (torch.float16, torch.bfloat16, torch.float64):
            found.append(
                Violation(
                    "E13", target, f"data type {x.dtype}", "torch.float32", "pass x.float()", place=f"model input {i}"
                )
            )
    return inputs, found


def _quant_tensor_violations(target: str, index: int, x: QuantTensor) -> list[Violation]:
    try:
        valid = bool(x.is_valid)
    except QuantMetadataError:
        valid = False
    if valid:
        return []
    fields = (
        f"scale {x.scale.flatten()[:4].tolist()}, zero point {x.zero_point.flatten()[:4].tolist()}, "
        f"bit width {x.bit_width.tolist()}, signed {x.signed}"
    )
    return [
        Violation(
            "E03",
            target,
            f"a QuantTensor that is not valid ({fields})",
            "values (q - zero_point) * scale with codes in range",
            "make it with a QuantIdentity",
            place=f"model input {index}",
        )
    ]
