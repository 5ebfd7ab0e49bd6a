"""Where a model loses a scale, or joins branches of different scales."""

from brevitas.graph.scale_flow.check import check_scales
from brevitas.graph.scale_flow.report import Finding, ScaleReport

__all__ = ["Finding", "ScaleReport", "check_scales"]
