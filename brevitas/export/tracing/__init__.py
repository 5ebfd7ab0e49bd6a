"""Capture: a model becomes the canonical graph.

    >>> from brevitas.export.tracing import capture
    >>> graph = capture(model, [torch.zeros(1, 3, 32, 32)])                        # doctest: +SKIP
    >>> [n.op_type for n in graph.graph]                                           # doctest: +SKIP
    ['Quant', 'Quant', 'Conv', 'Relu', 'Quant', ...]

The steps: ``record`` one real forward, ``replay`` it while torch's exporter traces the model so that each quantizer
call becomes one node, then ``canonical`` names and annotates the nodes.
"""

from brevitas.export.tracing.entry import capture
from brevitas.export.tracing.record import Record, Recording, record

__all__ = ["Record", "Recording", "capture", "record"]
