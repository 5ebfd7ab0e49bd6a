"""The registry of targets. A target is one file: ``check`` and ``lower`` over the canonical graph, and its figures.

    >>> list_targets()
    ['dpuv1', 'dpuv2', 'finn', 'qdq', 'qonnx', 'qop', 'torch']
    >>> get_target('qdq').title
    'standard ONNX, QuantizeLinear / DequantizeLinear'

A user adds one of their own::

    register(Target('mine', 'my accelerator', check=my_check, lower=my_lower))
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from brevitas.export.violations import ExportViolationError, Violation
from injector import suggest

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Target", "get_target", "list_targets", "register", "unregister"]

Check = Callable[["ir.Model", Mapping[str, Any]], list[Violation]]
Lower = Callable[["ir.Model", Mapping[str, Any]], "ir.Model"]


@dataclass(frozen=True)
class Target:
    """How one consumer is served.

    ``check(graph, options)`` returns violations and changes nothing; ``lower(graph, options)`` may change ``graph`` in
    place, returns the model to write and is called only after ``check`` found no error. ``options`` holds every keyword
    of :attr:`options` (with the default where the caller gave none) and ``opset_version``.
    """

    key: str
    title: str
    check: Check
    lower: Lower
    default_opset: int | Callable[[ir.Model, Mapping[str, Any]], int] = 20
    least_opset: int = 13
    options: Mapping[str, Any] = field(default_factory=dict)
    runtime: str = "onnxruntime"


_registered: dict[str, Target] = {}
_BUILT_IN = ("dpuv1", "dpuv2", "finn", "qdq", "qonnx", "qop", "torch")


def register(target: Target) -> Target:
    """Add a target; a key that is taken is an error."""
    if target.key in list_targets():
        raise ValueError(f"target {target.key!r} is registered already; unregister it first")
    _registered[target.key] = target
    return target


def unregister(key: str) -> None:
    """Remove a target that :func:`register` added."""
    if key not in _registered:
        raise ValueError(f"target {key!r} was not added by register(); added: {sorted(_registered)}")
    del _registered[key]


def list_targets() -> list[str]:
    """Keys of the targets that exist, sorted."""
    return sorted({*_BUILT_IN, *_registered})


def get_target(key: str) -> Target:
    """The target of that key; an unknown one raises E04 with the keys that exist."""
    if key in _registered:
        return _registered[key]
    if key in _BUILT_IN:
        target: Target = importlib.import_module(f"brevitas.export.targets.{key}").TARGET
        return target
    near = suggest(str(key), list_targets())
    raise ExportViolationError(
        [
            Violation(
                "E04",
                str(key),
                found=f"target {key!r}",
                required=f"one of {', '.join(list_targets())}",
                fix=f"use target {(near or list_targets())[0]!r}",
            )
        ]
    )
