"""Float32 operations that the model applies to the values of an accumulator, one number at a time.

``FloatOp.exact`` evaluates as torch does on this machine (its batch norm fuses multiplication and addition, its sigmoid
is its own); that decides thresholds. ``FloatOp.numpy`` needs NumPy alone; that dequantizes outputs and prepares inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["KINDS", "FloatOp", "apply", "apply_exactly", "quantized", "scaled"]

Array = np.ndarray[Any, np.dtype[Any]]


def _round_dpu(x: Array) -> Array:
    return np.where((x < 0) & (x - np.floor(x) == 0.5), np.ceil(x), np.rint(x))


#: Rounding modes by the names of the canonical graph; DPU takes negative ties up.
ROUND: dict[str, Callable[[Array], Array]] = {
    "ROUND": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "DOWN": np.trunc,
    "DPU": _round_dpu,
}


@dataclass(frozen=True, eq=False)
class FloatOp:
    """One operation; ``constants`` are float32 arrays that broadcast against the tensor.

    ``kind`` is a key of :data:`KINDS`. ``number`` is the slope of a leaky_relu, the epsilon of a batch_norm.
    """

    kind: str
    constants: tuple[Array, ...] = ()
    number: float = 0.0

    def numpy(self, x: Array, constants: Sequence[Array] | None = None) -> Array:
        """The operation on a float32 array, with ``constants`` in place of its own where given."""
        with np.errstate(over="ignore"):
            result: Array = KINDS[self.kind](x, self.number, *(self.constants if constants is None else constants))
        return result.astype(np.float32, copy=False)

    def exact(self, x: Array, constants: Sequence[Array]) -> Array:
        """The same as torch computes it; ``x`` is (cells, values), constants are (cells, 1)."""
        if self.kind not in _TORCH:
            return self.numpy(x, constants)
        import torch

        given = [torch.from_numpy(np.ascontiguousarray(a, np.float32)) for a in (x, *constants)]
        with torch.no_grad():
            result: Array = _TORCH[self.kind](torch, *given, number=self.number).numpy()
        return result

    def direction(self) -> Array:
        """+1 where the operation never falls, -1 where it never rises."""
        if self.kind in ("mul", "div"):
            return np.where(self.constants[0] < 0, -1, 1)
        if self.kind == "batch_norm":
            return np.where(self.constants[0] < 0, -1, 1)
        return np.asarray(-1 if self.kind == "neg" else 1)

    @property
    def is_monotone(self) -> bool:
        """Whether the function never turns."""
        return self.kind not in ("gelu", "gelu_tanh", "hard_swish", "abs")

    @property
    def is_proved_monotone(self) -> bool:
        """Whether float rounding cannot break monotony: true of arithmetic, not of approximated functions."""
        return self.is_monotone and self.kind not in ("sigmoid", "tanh", "hard_sigmoid")


def _batch_norm(x: Array, eps: float, weight: Array, bias: Array, mean: Array, var: Array) -> Array:
    factor = (np.float32(1) / np.sqrt(var + np.float32(eps))) * weight
    shift = bias.astype(np.float64) - mean.astype(np.float64) * factor
    return (x.astype(np.float64) * factor + shift.astype(np.float32)).astype(np.float32)


def _sigmoid(x: Array, _: float) -> Array:
    return np.float32(1) / (np.float32(1) + np.exp(-x))


def _gelu(x: Array, _: float) -> Array:
    return np.asarray([v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in x.reshape(-1).tolist()]).reshape(x.shape)


def _clip(x: Array, _: float, low: Array, high: Array) -> Array:
    return np.minimum(np.maximum(x, low), high)


KINDS: dict[str, Callable[..., Array]] = {
    "add": lambda x, _, c: x + c,
    "mul": lambda x, _, c: x * c,
    "div": lambda x, _, c: x / c,
    "mean": lambda x, _, c: x / c,
    "neg": lambda x, _: -x,
    "relu": lambda x, _: np.maximum(x, np.float32(0)),
    "leaky_relu": lambda x, slope: np.where(x > 0, x, x * np.float32(slope)),
    "clip": _clip,
    "batch_norm": _batch_norm,
    "sigmoid": _sigmoid,
    "tanh": lambda x, _: np.tanh(x),
    "abs": lambda x, _: np.abs(x),
    "hard_sigmoid": lambda x, _: np.clip(x + np.float32(3), 0, 6) / np.float32(6),
    "hard_swish": lambda x, _: x * np.clip(x + np.float32(3), 0, 6) / np.float32(6),
    "gelu": _gelu,
    "gelu_tanh": lambda x, _: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}

_TORCH: dict[str, Callable[..., Any]] = {
    # Cells stand for channels.
    "batch_norm": lambda torch, x, weight, bias, mean, var, number: torch.nn.functional.batch_norm(
        x.T.contiguous(), mean[:, 0], var[:, 0], weight[:, 0], bias[:, 0], eps=number
    ).T.contiguous(),
    "sigmoid": lambda torch, x, number: torch.sigmoid(x),
    "tanh": lambda torch, x, number: torch.tanh(x),
    "hard_sigmoid": lambda torch, x, number: torch.nn.functional.hardsigmoid(x),
    "hard_swish": lambda torch, x, number: torch.nn.functional.hardswish(x),
    "gelu": lambda torch, x, number: torch.nn.functional.gelu(x),
    "gelu_tanh": lambda torch, x, number: torch.nn.functional.gelu(x, approximate="tanh"),
}


def scaled(shifted: Array, scale: Array) -> Array:
    """Integers times a float32 scale, rounded once to float32."""
    return (shifted.astype(np.float64) * np.asarray(scale, np.float64)).astype(np.float32)


def apply(ops: Sequence[FloatOp], x: Array) -> Array:
    """All operations in turn, in NumPy."""
    for op in ops:
        x = op.numpy(x)
    return x


def apply_exactly(ops: Sequence[FloatOp], x: Array, constants: Sequence[Sequence[Array]]) -> Array:
    """All operations in turn, as torch computes them."""
    for op, own in zip(ops, constants, strict=True):
        x = op.exact(x, own)
    return x


def quantized(x: Array, scale: Array, zero: Array, low: int, high: int, rounding: str) -> Array:
    """Codes: clamp(round(x / scale + zero)), in float32 as the model computes them."""
    with np.errstate(over="ignore"):
        steps = x / np.asarray(scale, np.float32) + np.asarray(zero, np.float32)
    return np.clip(ROUND[rounding](steps), low, high).astype(np.int64)
