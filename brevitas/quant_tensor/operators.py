"""What makes an object behave as a tensor: operators, methods and torch functions, all sent through one dispatcher."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from brevitas.errors import QuantMetadataError
from brevitas.quant_tensor.dispatch import NARY, UNARY
from brevitas.quant_tensor.source import remember_drop

__all__ = ["TensorOperators", "plain_values"]

_FIRST_ARGUMENT = ("input", "tensors", "self")


class _ImmutableError(QuantMetadataError, TypeError):
    """Also what Python raises for objects without item assignment."""


def plain_values(argument: Any) -> Any:
    """The argument with the value in place of every QuantTensor."""
    if isinstance(argument, TensorOperators):
        return argument.value
    if type(argument) in (list, tuple):
        return type(argument)([plain_values(element) for element in argument])
    return argument


def _refuse_in_place(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    name = func.__name__
    functional = name.rstrip("_")
    instead = (
        f"Use {functional}, which returns a new tensor, or work"
        if callable(getattr(Tensor, functional, None))
        else "Work"
    )
    raise QuantMetadataError(
        f"{name}: a QuantTensor is immutable and cannot be written to. {instead} on its plain tensor .value."
    )


for _name in {*dir(Tensor), *dir(torch), *dir(torch.nn.functional)}:
    if _name.endswith("_") and not _name.endswith("__"):
        UNARY[_name] = _refuse_in_place


def _call(func: Callable[..., Any], *args: Any) -> Any:
    return TensorOperators.__torch_function__(func, (), args)


def _unary(func: Callable[..., Any]) -> Callable[[Any], Any]:
    def method(self: Any) -> Any:
        return _call(func, self)

    return method


def _binary(func: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        return _call(func, self, other)

    return method


def _reflected(func: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        return _call(func, other, self)

    return method


class TensorOperators:
    """Base of :class:`QuantTensor`: whatever a tensor can do is done on ``value``, or by a registered handler."""

    value: Tensor

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Hand ``func`` to its handler; without one, or where the handler finds no grid, compute on the values."""
        name = func.__name__
        kwargs = {} if kwargs is None else dict(kwargs)
        if not args:
            for first in _FIRST_ARGUMENT:
                if first in kwargs:
                    args = (kwargs.pop(first),)
                    break
        out = kwargs.get("out")
        if out is None and args:
            handler = UNARY.get(name) if isinstance(args[0], TensorOperators) else None
            if handler is None:
                handler = NARY.get(name)
            if handler is not None:
                result = handler(func, *args, **kwargs)
                if result is not None:
                    return result
        if isinstance(out, TensorOperators):
            raise QuantMetadataError("out: a QuantTensor is immutable and cannot be written to. Omit out=.")
        result = func(*plain_values(args), **{key: plain_values(argument) for key, argument in kwargs.items()})
        remember_drop(result, func)
        return result

    def __getattr__(self, name: str) -> Any:
        """Any other method or property of a tensor."""
        if name.startswith("__") or not hasattr(Tensor, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        attribute = getattr(Tensor, name)
        if not callable(attribute):
            if name in ("T", "mT", "H", "mH"):
                return UNARY["permute"](operator.attrgetter(name), self)
            return getattr(self.value, name)

        def method(*args: Any, **kwargs: Any) -> Any:
            return TensorOperators.__torch_function__(attribute, (), (self, *args), kwargs)

        return method

    @property
    def tensor(self) -> Tensor:
        """The value."""
        return self.value

    @property
    def shape(self) -> torch.Size:
        """Shape of the value."""
        return self.value.shape

    @property
    def ndim(self) -> int:
        """Number of dims of the value."""
        return self.value.ndim

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the value."""
        return self.value.dtype

    def dim(self) -> int:
        """Number of dims of the value."""
        return self.value.dim()

    def numel(self) -> int:
        """Number of elements of the value."""
        return self.value.numel()

    @staticmethod
    def cat(tensors: Any, dim: int = 0) -> Any:
        """``torch.cat`` of QuantTensors with a common scale; per-channel scales along ``dim`` are concatenated."""
        return torch.cat(tensors, dim)

    def __len__(self) -> int:
        return len(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __float__(self) -> float:
        return float(self.value)

    def __int__(self) -> int:
        # Of the value, as for a tensor; the codes are qt.int().
        return int(self.value)

    def __format__(self, spec: str) -> str:
        return format(self.value, spec) if self.dim() == 0 else object.__format__(self, spec)

    def __contains__(self, element: Any) -> bool:
        return bool((self == element).any())

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.value.__array__(*args, **kwargs)

    def __getitem__(self, index: Any) -> Any:
        return _call(operator.getitem, self, index)

    def __setitem__(self, index: Any, element: Any) -> None:
        raise _ImmutableError(
            "qt[...] = ...: a QuantTensor is immutable and cannot be written to. Write to a copy of its plain tensor, "
            "qt.value.clone(), and quantize that."
        )

    def __delitem__(self, index: Any) -> None:
        raise _ImmutableError("del qt[...]: a QuantTensor is immutable, and elements of a tensor cannot be deleted.")

    __hash__ = object.__hash__

    __pos__ = _unary(operator.pos)
    __neg__ = _unary(operator.neg)
    __abs__ = _unary(operator.abs)
    __add__ = _binary(operator.add)
    __radd__ = _reflected(operator.add)
    __sub__ = _binary(operator.sub)
    __rsub__ = _reflected(operator.sub)
    __mul__ = _binary(operator.mul)
    __rmul__ = _reflected(operator.mul)
    __matmul__ = _binary(operator.matmul)
    __rmatmul__ = _reflected(operator.matmul)
    __truediv__ = _binary(operator.truediv)
    __rtruediv__ = _reflected(operator.truediv)
    __floordiv__ = _binary(operator.floordiv)
    __rfloordiv__ = _reflected(operator.floordiv)
    __mod__ = _binary(operator.mod)
    __rmod__ = _reflected(operator.mod)
    __pow__ = _binary(operator.pow)
    __rpow__ = _reflected(operator.pow)
    __lt__ = _binary(operator.lt)
    __le__ = _binary(operator.le)
    __gt__ = _binary(operator.gt)
    __ge__ = _binary(operator.ge)
    __eq__ = _binary(operator.eq)  # type: ignore[assignment]
    __ne__ = _binary(operator.ne)  # type: ignore[assignment]
