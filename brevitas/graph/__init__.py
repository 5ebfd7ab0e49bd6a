"""What can be asked of, and done to, a whole model."""

from brevitas.graph import layer_pairs as _layer_pairs
from brevitas.graph.converters import register_converter
from brevitas.graph.describe import spec_of
from brevitas.graph.explain import explain
from brevitas.graph.rebuild import apply_spec

del _layer_pairs  # imported to register the converters

__all__ = ["apply_spec", "explain", "register_converter", "spec_of"]
