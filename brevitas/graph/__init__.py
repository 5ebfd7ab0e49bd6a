"""What can be asked of, and done to, a whole model."""

from brevitas.graph.explain import explain

__all__ = ["explain"]
