"""Small floats in the canonical graph: ``FloatQuant`` nodes, and integers that count the numbers of a format.

    >>> import numpy as np
    >>> e2m1 = FloatFormat(2, 1, 1, 6.0)  # 0, 0.5, 1, 1.5, 2, 3, 4, 6
    >>> e2m1.codes(np.array([0.0, 0.5, 1.5, 3.0, -6.0]), np.float32(1.0))
    array([ 0,  1,  3,  5, -7])

A minifloat has no integer code ``q`` with ``x = q * scale``. Its numbers are ordered, and counting them from 0 gives
integers in which one step is one number of the format: ``verify`` compares those.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from brevitas.export import graph as g

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["FLOAT_QUANT", "FloatFormat", "FloatQuantizer", "float_quantizers"]

#: Operator of a minifloat quantizer, in the domain of the canonical graph's quantizers.
FLOAT_QUANT = "FloatQuant"

# Formats that ONNX has a type for: exponent, mantissa, bias, largest number, infinities -> name of the type.
_TYPES = {
    (4, 3, 7, 448.0, False): "FLOAT8E4M3FN",
    (5, 2, 15, 57344.0, True): "FLOAT8E5M2",
    (4, 3, 8, 240.0, False): "FLOAT8E4M3FNUZ",
    (5, 2, 16, 57344.0, False): "FLOAT8E5M2FNUZ",
}


@dataclass(frozen=True)
class FloatFormat:
    """Which numbers there are: widths of exponent and mantissa, bias, the largest finite number, and what lies beyond.

    A format with ``saturating`` clamps; another gives infinity beyond its largest number, NaN if it has none.
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int
    largest: float
    has_inf: bool = False
    has_nan: bool = False
    saturating: bool = True
    signed: bool = True

    @staticmethod
    def of(float_quant: Any) -> FloatFormat:
        """The format of a :class:`brevitas.core.quant.FloatQuant`."""
        e, m, bias = (
            getattr(float_quant, f"{name}_impl")()
            for name in ("exponent_bit_width", "mantissa_bit_width", "exponent_bias")
        )
        largest = float(float_quant.float_clamp_impl.specials(e, m, bias))
        has_inf, saturating = bool(float_quant.inf_values), bool(float_quant.saturating)
        return FloatFormat(
            int(e),
            int(m),
            int(bias),
            largest=largest,
            has_inf=has_inf,
            # A quantizer that does not clamp gives NaN where its format has no infinity.
            has_nan=bool(float_quant.nan_values) or not (saturating or has_inf),
            saturating=saturating,
            signed=bool(float_quant.signed),
        )

    @property
    def name(self) -> str:
        """``e4m3``, and what tells it from others of those widths."""
        return f"e{self.exponent_bits}m{self.mantissa_bits} (bias {self.bias}, largest {self.largest:g})"

    @property
    def onnx_type(self) -> str | None:
        """Name of the ONNX type with exactly these numbers, ``None`` where there is none."""
        if not self.signed:
            return None
        key = (self.exponent_bits, self.mantissa_bits, self.bias, self.largest, self.has_inf)
        return _TYPES.get(key)

    def spacing(self, v: np.ndarray) -> np.ndarray:
        """Distance of the numbers of the format around ``v``, in float64."""
        with np.errstate(divide="ignore"):
            exponent = np.floor(np.log2(np.abs(v, dtype=np.float64)))
        exponent = np.where(np.isfinite(exponent), exponent, 1 - self.bias)
        exponent = np.clip(exponent, 1 - self.bias, 2**self.exponent_bits - 1 - self.bias)
        return np.exp2(exponent - self.mantissa_bits)

    def codes(self, values: np.ndarray, scale: np.ndarray | np.floating[Any]) -> np.ndarray:
        """Which number of the format each value is, counted from 0 (int64); infinity and NaN come after the largest."""
        v = values.astype(np.float64) / np.asarray(scale, np.float64)
        v = np.where(np.isposinf(v), 2 * self.largest, np.where(np.isneginf(v), -2 * self.largest, v))
        v = np.where(np.isnan(v), 4 * self.largest, v)
        spacing = self.spacing(v)
        binade = np.log2(spacing) + self.mantissa_bits - (1 - self.bias)
        counted = np.sign(v) * (binade * 2**self.mantissa_bits + np.rint(np.abs(v) / spacing))
        return np.rint(counted).astype(np.int64)

    def holds(self, values: np.ndarray, scale: np.ndarray) -> bool:
        """Whether every finite value is a number of the format times the scale, up to the rounding of the product."""
        v = values.astype(np.float64) / np.asarray(scale, np.float64)
        v = v[np.isfinite(v)]
        steps = v / self.spacing(v)
        near = np.abs(steps - np.rint(steps)) <= 2.0**-20 * np.abs(steps)
        within = np.abs(v) <= self.largest * (1 + 2.0**-20)
        return bool(np.all(near & within))


@dataclass(frozen=True)
class FloatQuantizer:
    """A ``FloatQuant`` node of the canonical graph, read. ``scale`` is float32, 0-d where one number serves."""

    node: ir.Node
    scale: np.ndarray
    format: FloatFormat
    rounding: str

    @staticmethod
    def read(node: ir.Node) -> FloatQuantizer:
        """Read a node; everything but the tensor must be initializers."""
        numbers = [number for value in node.inputs[1:] if (number := g.constant(value)) is not None]
        if len(numbers) < len(node.inputs) - 1:
            raise ValueError(f"quantizer node {node.name!r}: scale and format must be constants")
        scale, *widths = numbers
        e, m, bias, largest = (float(number.reshape(-1)[0]) for number in widths)
        a = {name: bool(node.attributes[name].as_int()) for name in ("has_inf", "has_nan", "saturation")}
        made = FloatFormat(
            int(e),
            int(m),
            int(bias),
            largest,
            a["has_inf"],
            a["has_nan"],
            saturating=a["saturation"],
        )
        return FloatQuantizer(node, scale, made, node.attributes["rounding_mode"].as_string())

    @property
    def layer(self) -> str:
        """Qualified name of the owner."""
        return g.meta(self.node, g.LAYER)

    @property
    def layer_class(self) -> str:
        """Class name of the owner."""
        return g.meta(self.node, g.CLASS)

    @property
    def name(self) -> str:
        """Qualified name of the quantizer."""
        return g.meta(self.node, g.QUANTIZER)

    @property
    def is_parameter(self) -> bool:
        """True for weights and biases, whose values are constants of the graph."""
        return g.meta(self.node, g.ROLE) in g.PARAMETER_ROLES

    @property
    def varying_dims(self) -> tuple[int, ...]:
        """Dimensions of the quantized tensor along which the scale varies."""
        offset = g.tensor_rank(self.node) - self.scale.ndim
        return tuple(i + offset for i, n in enumerate(self.scale.shape) if n != 1)


def float_quantizers(model: ir.Model) -> Iterator[FloatQuantizer]:
    """Every minifloat quantizer node in execution order."""
    for node in model.graph:
        if node.domain == g.DOMAIN and node.op_type == FLOAT_QUANT:
            yield FloatQuantizer.read(node)
