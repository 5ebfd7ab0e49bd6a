"""The converters of the library's own layers, one module for each family; importing them registers them."""

from brevitas.graph.layer_pairs import activation, attention, recurrent, weight, without_weight

__all__ = ["activation", "attention", "recurrent", "weight", "without_weight"]
