"""Export: a model becomes a file that other programs run, and ``verify`` compares the two, integer by integer.

    >>> import torch
    >>> from brevitas.export import StdONNXManager, verify
    >>> from brevitas.nn import QuantLinear
    >>> layer = QuantLinear(4, 2)
    >>> proto = StdONNXManager.export(layer, input_shape=(1, 4), export_path='layer.onnx')
    >>> verify(layer, 'layer.onnx', torch.randn(1, 4)).ok
    True

Importing this package needs torch alone; onnx is imported when something is exported.
"""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from brevitas.errors import ExportError
from brevitas.export.debug import DebugHook, enable_debug
from brevitas.export.integer import IntegerNetwork, OverflowReport, overflow, to_integer
from brevitas.export.manager import (
    DPUv1Manager,
    DPUv2Manager,
    FINNManager,
    ONNXManager,
    PyXIRManager,
    QONNXManager,
    StdONNXManager,
    StdQCDQONNXManager,
    StdQOpONNXManager,
    check,
    lower,
)
from brevitas.export.targets import Target, get_target, list_targets, register, unregister
from brevitas.export.torchscript.manager import PytorchQuantManager
from brevitas.export.tracing import capture
from brevitas.export.verification import ReadModel, VerifyReport, compare_artifacts, read_model, verify
from brevitas.export.violations import ExportWarning, Violation

__all__ = [
    "BrevitasONNXManager",
    "DebugHook",
    "ExportError",
    "ExportWarning",
    "IntegerNetwork",
    "OverflowReport",
    "DPUv1Manager",
    "DPUv2Manager",
    "FINNManager",
    "PyXIRManager",
    "PytorchQuantManager",
    "QONNXManager",
    "ReadModel",
    "StdONNXManager",
    "StdQCDQONNXManager",
    "StdQOpONNXManager",
    "Target",
    "TorchQOpManager",
    "VerifyReport",
    "Violation",
    "capture",
    "check",
    "compare_artifacts",
    "enable_debug",
    "export_brevitas_onnx",
    "export_dpuv1_onnx",
    "export_dpuv2_onnx",
    "export_finn_onnx",
    "export_onnx_qcdq",
    "export_onnx_qop",
    "export_qonnx",
    "export_standard_onnx",
    "export_torch_qop",
    "get_target",
    "list_targets",
    "lower",
    "overflow",
    "read_model",
    "register",
    "to_integer",
    "unregister",
    "verify",
]

BrevitasONNXManager = QONNXManager
TorchQOpManager = PytorchQuantManager


def _alias(name: str, manager: type[ONNXManager] | type[PytorchQuantManager]) -> Any:
    def function(
        module: nn.Module,
        input_shape: tuple[int, ...] | None = None,
        export_path: str | os.PathLike[str] | None = None,
        input_t: Any = None,
        **kwargs: Any,
    ) -> Any:
        return manager.export(module, input_shape, export_path, input_t, **kwargs)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"``{manager.__name__}.export`` as a function; the same arguments."
    return function


export_finn_onnx = _alias("export_finn_onnx", FINNManager)
export_qonnx = _alias("export_qonnx", QONNXManager)
export_brevitas_onnx = _alias("export_brevitas_onnx", QONNXManager)
export_standard_onnx = _alias("export_standard_onnx", StdONNXManager)
export_onnx_qcdq = _alias("export_onnx_qcdq", StdQCDQONNXManager)
export_onnx_qop = _alias("export_onnx_qop", StdQOpONNXManager)
export_dpuv1_onnx = _alias("export_dpuv1_onnx", DPUv1Manager)
export_dpuv2_onnx = _alias("export_dpuv2_onnx", DPUv2Manager)
export_torch_qop = _alias("export_torch_qop", PytorchQuantManager)
