"""An explanation as data, and its forms: text, tree, drawing, page."""

from brevitas.graph.explanation.facts import Fact, Part, Was, part_of_proxy, part_of_quantizer
from brevitas.graph.explanation.forms import Explanation

__all__ = ["Explanation", "Fact", "Part", "Was", "part_of_proxy", "part_of_quantizer"]
