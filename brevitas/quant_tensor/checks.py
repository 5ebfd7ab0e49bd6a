"""Conditions on metadata, and the messages when they do not hold."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from brevitas.errors import QuantMetadataError
from brevitas.quant_tensor.source import Source, same_scale
from brevitas.utils.module_path import describe_module, find_module, roots_on_stack

if TYPE_CHECKING:
    from brevitas.quant_tensor.tensor import QuantTensor

__all__ = [
    "IDIOM",
    "all_equal",
    "at_least_float32",
    "describe_source",
    "has_data",
    "one_element",
    "require",
    "require_same",
    "require_same_scale",
    "require_same_sign",
    "show",
    "static_shape",
    "untraced",
]

RTOL = 1e-5

IDIOM = """\
Operands of one shared quantizer have equal scales, zero points and signs by construction:
    shared = QuantIdentity(return_quant_tensor=True)
    y = shared(branch_a(x)) + shared(branch_b(x))
or use a layer that re-quantizes both: QuantEltwiseAdd(return_quant_tensor=True)(a, b), QuantCat."""


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """Suspend ``torch.jit.trace``, which would record sizes and warn about conditions on tensors."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def static_shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape as Python integers (or symbols of the compiler), under ``torch.jit.trace`` too."""
    if torch.jit.is_tracing():
        with untraced():
            return tuple(tensor.shape)
    return tuple(tensor.shape)


def one_element(tensor: Tensor) -> bool:
    """Whether the tensor has exactly one element."""
    return tensor.dim() == 0 or all(size == 1 for size in static_shape(tensor))


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself, or a float32 copy of a narrower one."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def all_equal(a: Tensor, b: Tensor, rtol: float = 0.0) -> Tensor:
    """0-dim boolean: whether ``a`` and ``b`` agree everywhere after broadcasting. False where either is NaN."""
    a, b = at_least_float32(a.detach()), at_least_float32(b.detach())
    return ((a - b).abs() <= rtol * torch.maximum(a.abs(), b.abs())).all()


def has_data(tensor: Tensor) -> bool:
    """Whether the tensor has values that Python may look at: not while compiling, nor on the meta device."""
    return not (torch.compiler.is_compiling() or tensor.is_meta or isinstance(tensor, FakeTensor))


def require(condition: Callable[[], Tensor], summary: str, message: Callable[[], str]) -> None:
    """Raise :class:`QuantMetadataError` unless the 0-dim ``condition`` holds.

    Compiled and exported code cannot raise: there the condition becomes an assertion on the device, which carries
    ``summary``.
    """
    if torch.compiler.is_compiling():
        torch._assert_async(condition(), summary)
        return
    with untraced():
        holds = condition()
        if has_data(holds) and not bool(holds):
            raise QuantMetadataError(message())


def describe_source(source: Source | None) -> str:
    """The producer of a grid, with the path of its module where that is known."""
    if source is not None and source.is_quantizer:
        found = find_module(lambda module: getattr(module, "source", None) == source)
        if found and found[0]:
            return f"{source.name} '{found[0]}'"
    return _name(source)


def _name(source: Source | None) -> str:
    return "an unnamed producer" if source is None else source.name


def place() -> str:
    """`` in <innermost running module>`` or nothing."""
    running = list(roots_on_stack())
    return f" in {describe_module(running[-1])}" if running else ""


def show(tensor: Tensor) -> str:
    """The values of a small tensor, the extremes of a large one."""
    flat = tensor.detach().flatten().tolist()
    if len(flat) == 1:
        return f"{flat[0]:.9g}"
    shape = tuple(tensor.shape)
    if len(flat) <= 8:
        return f"[{', '.join(f'{value:.9g}' for value in flat)}] (shape {shape})"
    return f"{len(flat)} values from {min(flat):.9g} to {max(flat):.9g} (shape {shape})"


def require_same(a: QuantTensor, b: QuantTensor, field: str, op: str, rtol: float = 0.0) -> None:
    """Require that ``field`` of two operands agrees numerically."""
    left, right = getattr(a, field), getattr(b, field)
    label = field.replace("_", " ")
    if left is right:
        return
    if not _broadcastable(static_shape(left), static_shape(right)):
        raise QuantMetadataError(_mismatch(a, b, field, label, op))
    require(
        lambda: all_equal(left, right, rtol),
        f"{op}: the operands have different {label}s, from {_name(a.source)} and from {_name(b.source)}",
        lambda: _mismatch(a, b, field, label, op),
    )


def require_same_scale(a: QuantTensor, b: QuantTensor, op: str) -> bool:
    """Require a common scale; True where it is common by construction and may differ while statistics are collected."""
    if a.scale is b.scale:
        return False
    if same_scale(a.source, b.source) and _same_layout(a.scale, b.scale):
        return True
    require_same(a, b, "scale", op, RTOL)
    return False


def require_same_sign(a: QuantTensor, b: QuantTensor, op: str) -> None:
    """Require that both operands are signed or both are unsigned."""
    if a.signed != b.signed:
        raise QuantMetadataError(
            f"{op}{place()}: one operand is signed and one is not: {_sign(a)} from {describe_source(a.source)}, and "
            f"{_sign(b)} from {describe_source(b.source)}. {IDIOM}"
        )


def _sign(x: QuantTensor) -> str:
    return "signed" if x.signed else "unsigned"


def _mismatch(a: QuantTensor, b: QuantTensor, field: str, label: str, op: str) -> str:
    left, right = getattr(a, field), getattr(b, field)
    return (
        f"{op}{place()}: the operands have different {label}s: {show(left)} from {describe_source(a.source)}, and "
        f"{show(right)} from {describe_source(b.source)}. {IDIOM}"
    )


def _same_layout(a: Tensor, b: Tensor) -> bool:
    left, right = static_shape(a), static_shape(b)
    ndim = max(len(left), len(right))
    if math.prod(left) == 1 and math.prod(right) == 1:
        return True
    return (1,) * (ndim - len(left)) + left == (1,) * (ndim - len(right)) + right


def _broadcastable(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(x == y or x == 1 or y == 1 for x, y in zip(reversed(a), reversed(b), strict=False))
