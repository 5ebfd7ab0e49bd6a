"""Where a grid comes from, and which function gave one up."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Source", "dropped_by", "forget_source", "remember_drop", "same_scale", "same_source"]

_uids = itertools.count(1)


@dataclass(frozen=True)
class Source:
    """The quantizer, or the operation, that produced the grid of a :class:`QuantTensor`.

    >>> shared = Source.new("QuantIdentity activation")
    >>> shared.is_quantizer, Source.derived("add").is_quantizer
    (True, False)

    ``uid`` identifies a quantizer; two tensors of one quantizer share their grid by construction. ``name`` is for
    messages. ``fan_in`` is the number of products summed in one element, from which the tolerance of
    :attr:`QuantTensor.is_valid` follows. ``shifted`` tells whether the zero point may be other than zero; ``None``:
    not known statically. ``scale_uid`` identifies the quantizer whose scale this is: sums of tensors of one quantizer
    keep its scale, but not its zero point and width.
    """

    NO_UID: ClassVar[int] = -1

    uid: int
    name: str
    fan_in: int = 1
    shifted: bool | None = None
    scale_uid: int = -1

    def __post_init__(self) -> None:
        if self.is_quantizer:
            object.__setattr__(self, "scale_uid", self.uid)

    @classmethod
    def new(cls, name: str, fan_in: int = 1, shifted: bool | None = None) -> Source:
        """A source for a new quantizer, with a number of its own."""
        return cls(next(_uids), name, fan_in, shifted)

    @classmethod
    def derived(cls, name: str, fan_in: int = 1, shifted: bool | None = None, scale_uid: int = -1) -> Source:
        """A source for the result of an operation: two results of one operation need not share a grid."""
        return cls(cls.NO_UID, name, fan_in, shifted, scale_uid)

    def __reduce__(self) -> Any:
        # A copy is another quantizer with a scale of its own, and numbers of another process mean nothing here.
        return _copied, (self.name, self.fan_in, self.shifted, self.is_quantizer)

    def as_tuple(self) -> tuple[int, str, int, bool | None, int]:
        """The fields, from which ``Source(*fields)`` makes an equal one."""
        return self.uid, self.name, self.fan_in, self.shifted, self.scale_uid

    @property
    def is_quantizer(self) -> bool:
        """Whether equal sources mean an equal grid."""
        return self.uid >= 0


def _copied(name: str, fan_in: int, shifted: bool | None, is_quantizer: bool) -> Source:
    return Source.new(name, fan_in, shifted) if is_quantizer else Source.derived(name, fan_in, shifted)


def same_source(a: Source | None, b: Source | None) -> bool:
    """Whether two grids are equal by construction."""
    return a is not None and b is not None and a.is_quantizer and a.uid == b.uid


def same_scale(a: Source | None, b: Source | None) -> bool:
    """Whether two scales are equal by construction."""
    return a is not None and b is not None and a.scale_uid >= 0 and a.scale_uid == b.scale_uid


def forget_source(source: Source | None) -> Source | None:
    """The source of a part of a grid, such as a slice of the channels: no longer equal to the whole."""
    return None if source is None else replace(source, uid=Source.NO_UID, scale_uid=Source.NO_UID)


_dropped = WeakTensorKeyDictionary()


def remember_drop(result: Any, func: Callable[..., Any]) -> None:
    """Remember that ``func`` made the tensors in ``result`` from a :class:`QuantTensor` and dropped its metadata."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    if isinstance(result, Tensor):
        if result.is_floating_point():
            _dropped[result] = func
    elif isinstance(result, (tuple, list)):
        for element in result:
            remember_drop(element, func)


def dropped_by(tensor: Any) -> str | None:
    """Name of the torch function that made this plain tensor from a :class:`QuantTensor`, where one did.

    >>> import torch
    >>> from brevitas.quant_tensor import QuantTensor
    >>> x = QuantTensor(torch.tensor([0.5, 1.0]), scale=0.5, zero_point=0, bit_width=4, signed=True)
    >>> dropped_by(torch.sigmoid(x))
    'torch.sigmoid'

    Known in eager mode only, and for as long as the tensor lives.
    """
    func = _dropped.get(tensor) if isinstance(tensor, Tensor) else None
    return None if func is None else function_name(func)


def function_name(func: Callable[..., Any]) -> str:
    """``torch.nn.functional.softmax``, ``torch.cat``, ``torch.Tensor.mean``."""
    name = getattr(func, "__name__", str(func))
    module = getattr(func, "__module__", None)
    if module is None:
        return f"torch.Tensor.{name}"
    if module == "_operator":
        return f"operator.{name}"
    return f"torch.nn.functional.{name}" if module in ("torch._C._nn", "torch.nn.functional") else f"torch.{name}"
