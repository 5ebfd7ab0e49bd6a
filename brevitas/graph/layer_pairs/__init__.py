"""The converters of the library's own layers, one module for each family; importing them registers them."""

from brevitas.graph.layer_pairs import activation, recurrent, weight, without_weight

__all__ = ["activation", "recurrent", "weight", "without_weight"]
