"""Where every tensor of one forward comes from: the layer, or the function that gave up a grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from brevitas.quant_tensor import QuantTensor, keeps_grid
from brevitas.quant_tensor.dispatch import NARY
from brevitas.quant_tensor.source import function_name

__all__ = ["OUTSIDE", "Origin", "Origins", "tensors_in"]


@dataclass(frozen=True)
class Origin:
    """The producer of a tensor, in words, and how to get the scale from it.

    ``text`` is ``'features.2' (return_quant_tensor=False)`` or ``torch.sigmoid in Block 'block'``; ``fix`` is empty
    where nothing can be done at the producer.
    """

    text: str
    fix: str = ""


OUTSIDE = Origin("outside quantized layers")


def tensors_in(tree: Any) -> Iterator[Any]:
    """Every Tensor and QuantTensor in nested lists, tuples and dicts."""
    if isinstance(tree, Tensor | QuantTensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for each in tree:
            yield from tensors_in(each)
    elif isinstance(tree, dict):
        for each in tree.values():
            yield from tensors_in(each)


class Origins(TorchFunctionMode):
    """While active, hands the origin of plain tensors on through every torch function.

    A function that would keep a grid keeps the origin; behind any other function the origin is that function, since a
    grid would have been lost there.
    """

    def __init__(self, place: Callable[[], str]) -> None:
        super().__init__()
        self._place = place
        self._known = WeakTensorKeyDictionary()

    def of(self, x: Any) -> Origin:
        """Origin of a Tensor, or of the value of a QuantTensor."""
        tensor = x.value if isinstance(x, QuantTensor) else x
        return OUTSIDE if tensor is None else self._known.get(tensor, OUTSIDE)

    def note(self, tree: Any, origin: Origin) -> None:
        """Let ``origin`` be that of every tensor in ``tree``."""
        for each in tensors_in(tree):
            self._known[each.value if isinstance(each, QuantTensor) else each] = origin

    def dropped(self, result: Any, func: Callable[..., Any]) -> None:
        """Let the function be the origin of its results, which have no grid."""
        name = function_name(func)
        self.note(
            result,
            Origin(
                f"{name} in {self._place()}, which does not keep a scale",
                f"quantize the result of {name}, for example with QuantIdentity(return_quant_tensor=True)",
            ),
        )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function; the results of plain tensors inherit their origin."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = list(tensors_in([args, kwargs]))
        if any(isinstance(each, QuantTensor) for each in given):
            return result  # QuantTensor's own dispatcher has seen it
        known = next((self._known[each] for each in given if each in self._known), None)
        if known is None or not any(each.is_floating_point() for each in tensors_in(result)):
            return result
        joins_one = func.__name__ in NARY and len(given) < 2  # such as x + 1
        if func.__name__ == "__get__" or (keeps_grid(func) and not joins_one):  # properties such as .T
            self.note(result, known)
        else:
            self.dropped(result, func)
        return result
