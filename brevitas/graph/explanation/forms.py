"""The result of ``explain``: a text that has other forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from brevitas.errors import QuantConfigError
from brevitas.graph.explanation.drawing import draw
from brevitas.graph.explanation.facts import Part
from brevitas.graph.explanation.page import page
from brevitas.graph.explanation.tree import rich_tree, tree_text

__all__ = ["Explanation"]


class Explanation(str):
    """An explanation: the text itself, with one line a value, and methods for its other forms.

    >>> from brevitas import explain
    >>> from brevitas.nn import QuantLinear
    >>> why = explain(QuantLinear(4, 2, weight_bit_width=3).weight_quant)
    >>> print(why.tree(color=False))
    QuantLinear (...), weight_quant=Int8WeightPerTensorFloat
    └── tensor_quant = RescalingIntQuant(...)  (WeightQuantSolver, weight.py:...)
    ...
    >>> why.svg()[:4], why.html()[:15]
    ('<svg', '<!doctype html>')

    A notebook shows the drawing, and ``rich.print`` the tree.
    """

    parts: tuple[Part, ...]

    def __new__(cls, parts: Sequence[Part]) -> Explanation:
        """The text of the parts."""
        made = super().__new__(cls, "\n".join(part.text for part in parts))
        made.parts = tuple(parts)
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.parts,)

    @property
    def text(self) -> str:
        """The text as a plain ``str``."""
        return str.__str__(self)

    def tree(self, *, color: bool | None = None, width: int | None = None) -> str:
        """What each value was built from, as a tree to print.

        Args:
            color: with terminal colours, which needs ``rich``; by default where standard output is a terminal.
            width: columns to fold coloured lines at; not folded by default.
        """
        return tree_text(self.parts, color, width)

    def svg(self) -> str:
        """A drawing of every value and who consumed it, as one SVG without references to other files.

        Raises:
            QuantConfigError: a class without a layer, which resolves to nothing that could be drawn.
        """
        loose = [part for part in self.parts if not part.resolved]
        if loose:
            raise QuantConfigError(
                f"explain({loose[0].title}).svg(): what a class resolves to depends on its layer; explain the "
                "quantizer of a layer, for example explain(layer.weight_quant)"
            )
        return draw(self.parts)

    def html(self) -> str:
        """A page with the drawings and a table of the values, as one HTML document without references."""
        return page(self.parts)

    def _repr_html_(self) -> str | None:
        return self.svg() if all(part.resolved for part in self.parts) else None

    def __rich__(self) -> Any:
        return rich_tree(self.parts)
