"""Exports to ONNX under the module path of earlier versions; the same functions as in :mod:`brevitas.export`."""

from brevitas.export import (
    enable_debug,
    export_brevitas_onnx,
    export_finn_onnx,
    export_onnx_qcdq,
    export_qonnx,
    export_standard_onnx,
)

__all__ = [
    "enable_debug",
    "export_brevitas_onnx",
    "export_finn_onnx",
    "export_onnx_qcdq",
    "export_qonnx",
    "export_standard_onnx",
]
