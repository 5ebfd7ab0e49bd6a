"""Validation of constructor arguments. Every message names the argument, the value and what is legal."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from brevitas.errors import QuantConfigError

__all__ = [
    "check_bool",
    "check_int",
    "check_module",
    "check_number",
    "check_permutation",
    "check_shape",
    "check_thresholds",
]


def check_bool(owner: str, name: str, value: Any) -> bool:
    """``value``, a bool."""
    if not isinstance(value, bool):
        raise QuantConfigError(f"{owner}: {name}={value!r} is not a bool. Expected True or False.")
    return value


def check_int(owner: str, name: str, value: Any, low: int, high: int | None = None) -> int:
    """``value``, an int (no bool, no float) in ``[low, high]``."""
    legal = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise QuantConfigError(f"{owner}: {name}={value!r} is not an integer. Expected {legal}.")
    if value < low or (high is not None and value > high):
        raise QuantConfigError(f"{owner}: {name}={value} is out of range. Expected {legal}.")
    return value


def check_number(
    owner: str,
    name: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
    high_open: bool = False,
) -> float:
    """``value`` as a float, finite and in the interval; an ``open`` end is not part of it."""
    legal = f"a number in {'(' if low_open or low is None else '['}{'-inf' if low is None else low}, "
    legal += f"{'inf' if high is None else high}{')' if high_open or high is None else ']'}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise QuantConfigError(f"{owner}: {name}={value!r} is not a number. Expected {legal}.")
    below = low is not None and (value < low or (low_open and value == low))
    above = high is not None and (value > high or (high_open and value == high))
    if below or above or value != value or value in (float("inf"), float("-inf")):
        raise QuantConfigError(f"{owner}: {name}={value} is out of range. Expected {legal}.")
    return float(value)


def check_thresholds(owner: str, name: str, value: Any) -> float | Tensor:
    """``value``, a positive number or a tensor of positive finite numbers."""
    if isinstance(value, Tensor):
        flat = value.detach()
        if flat.numel() == 0 or not bool(((flat > 0) & flat.isfinite()).all()):
            raise QuantConfigError(f"{owner}: {name} has a value that is not > 0 and finite: {flat.flatten()[:8]}.")
        return flat
    return check_number(owner, name, value, low=0.0, low_open=True)


def check_shape(owner: str, name: str, value: Any) -> tuple[int, ...]:
    """``value`` as a tuple of positive ints."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise QuantConfigError(f"{owner}: {name}={value!r} is not a shape. Expected a tuple of positive integers.")
    if any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in value):
        raise QuantConfigError(f"{owner}: {name}={tuple(value)} is not a shape. Expected a tuple of positive integers.")
    return tuple(value)


def check_permutation(owner: str, name: str, value: Any) -> list[int] | None:
    """``value`` as a list that permutes ``0..n-1``, or ``None``."""
    if value is None:
        return None
    if not isinstance(value, Sequence) or not value or sorted(value) != list(range(len(value))):
        raise QuantConfigError(f"{owner}: {name}={value!r} is not a permutation of 0..n-1, such as (1, 0, 2, 3).")
    return list(value)


def check_module(owner: str, name: str, value: Any) -> nn.Module:
    """``value``, a module instance."""
    if not isinstance(value, nn.Module):
        what = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
        raise QuantConfigError(f"{owner}: {name} is {what}. Expected a torch.nn.Module instance.")
    return value
