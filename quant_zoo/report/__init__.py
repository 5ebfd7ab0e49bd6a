"""The report of a quantized model: one self-contained page, and its charts."""

from quant_zoo.report.charts import accuracy_chart, standalone
from quant_zoo.report.measure import activation_results, float_size_bits, layer_results, quantized_size_bits
from quant_zoo.report.page import report_page
from quant_zoo.report.results import (
    ActivationResult,
    ExportResult,
    LayerResult,
    Misread,
    NetworkResult,
    Results,
    VerifiedLayer,
    total_of,
)

__all__ = [
    "ActivationResult",
    "ExportResult",
    "LayerResult",
    "Misread",
    "NetworkResult",
    "Results",
    "VerifiedLayer",
    "accuracy_chart",
    "activation_results",
    "float_size_bits",
    "layer_results",
    "quantized_size_bits",
    "report_page",
    "standalone",
    "total_of",
]
