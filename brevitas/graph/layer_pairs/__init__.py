"""The converters of the library's own layers, one module for each family; importing them registers them."""

from brevitas.graph.layer_pairs import activation, weight, without_weight

__all__ = ["activation", "weight", "without_weight"]
