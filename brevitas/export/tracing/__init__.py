"""Capture: a model becomes the canonical graph.

    >>> import torch
    >>> from brevitas.export import capture
    >>> from brevitas.nn import QuantLinear
    >>> graph = capture(QuantLinear(4, 2), [torch.zeros(1, 4)])
    >>> [node.name for node in graph.graph]
    ['weight_quant', 'Gemm']

The steps: record one real forward, replay it while torch's exporter traces the model so that each quantizer
call becomes one node, then name and annotate the nodes.
"""

from brevitas.export.tracing.entry import capture
from brevitas.export.tracing.record import Record, Recorder, Recording

__all__ = ["Record", "Recorder", "Recording", "capture"]
