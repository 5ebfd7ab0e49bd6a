"""Module path of earlier versions for the QONNX manager."""

from brevitas.export.manager import QONNXManager

__all__ = ["BrevitasONNXManager"]

BrevitasONNXManager = QONNXManager
