"""Conventions of the canonical graph: one definition of its nodes and of the metadata that they carry.

The canonical graph is an ``onnx_ir.Model`` in which float operators are standard ONNX and every active quantizer is one
node of the domain ``qonnx.custom_op.general``, the QONNX dialect: ``Quant``, ``BipolarQuant`` for the codes -1 and +1,
``Trunc`` where bits of a code are removed. What a target or
``verify`` needs to know of the model besides the operators stands in ``metadata_props``, under the keys below, and
survives in the written file.

    node key                meaning
    brevitas.layer          qualified name of the layer that owns the node ('' = the model itself)
    brevitas.class          class name of that layer
    brevitas.quantizer      quantizer nodes: qualified name of the quantizer ('conv1.weight_quant')
    brevitas.role           weight, bias, input, output, act, snap, ...
    brevitas.call           which call of that quantizer, in execution order, from 0
    brevitas.part           lowered quantizers: quantize, clip, dequantize; codes or values, whose output is the result
    brevitas.constants      JSON list of the parameters that the node reads as integers: quantizer, call, initializer,
                            perm (of the stored codes) and offset (subtracted from them)
    brevitas.offset         of codes that are stored in a type of the other sign
    brevitas.accumulator    nodes that add: least and greatest integer that their sums (with a bias on the accumulator
                            grid) reach, and the width of those, as "min,max,bits"; in written files; see overflow
    brevitas.collected      '0' where runtime statistics were never collected
    brevitas.unsupported    what the quantizer does that its node does not express, in words

    model key               meaning
    brevitas.format         version of these conventions
    brevitas.target         key of the target the file was made for
    brevitas.inputs         JSON list, one entry per graph input: null, or scale, zero_point, bit_width, signed of a
                            QuantTensor
    brevitas.outputs        the same for graph outputs
    brevitas.debug          JSON object: the export_debug_name of each layer that has one
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "DOMAIN",
    "DOMAIN_VERSION",
    "GRID_PRESERVING",
    "KINDS",
    "Quantizer",
    "compact",
    "constant",
    "integer_range",
    "meta",
    "quant_tensor_records",
    "quantizers",
    "source_quantizer",
]

DOMAIN = "qonnx.custom_op.general"
DOMAIN_VERSION = 2
FORMAT_VERSION = "1"

LAYER = "brevitas.layer"
CLASS = "brevitas.class"
QUANTIZER = "brevitas.quantizer"
ROLE = "brevitas.role"
CALL = "brevitas.call"
PART = "brevitas.part"
COLLECTED = "brevitas.collected"
UNSUPPORTED = "brevitas.unsupported"
ACCUMULATOR = "brevitas.accumulator"
CONSTANTS = "brevitas.constants"
OFFSET = "brevitas.offset"
#: Part of a lowered quantizer: the node whose output holds the quantized values, or their codes.
VALUES = "values"
CODES = "codes"
#: Role of the quantizer that stands for a graph input that is given as a QuantTensor.
INPUT_CODES = "input_codes"
NODE_KEYS = (LAYER, CLASS, QUANTIZER, ROLE, CALL, PART, COLLECTED, UNSUPPORTED, ACCUMULATOR, CONSTANTS, OFFSET)

FORMAT = "brevitas.format"
TARGET = "brevitas.target"
INPUTS = "brevitas.inputs"
OUTPUTS = "brevitas.outputs"
DEBUG = "brevitas.debug"

#: Operators of quantizers on an integer grid.
KINDS = ("Quant", "BipolarQuant", "Trunc")

# Operators whose output lies on the grid of their first input.
GRID_PRESERVING = frozenset(
    {
        *("Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Slice", "Gather", "Split"),
        *("MaxPool", "GlobalMaxPool", "Relu", "DepthToSpace", "SpaceToDepth", "Dropout"),
    }
)
PARAMETER_ROLES = frozenset({"weight", "bias"})


def integer_range(bit_width: int, signed: bool, narrow: bool) -> tuple[int, int]:
    """Least and greatest code.

    >>> integer_range(8, True, True), integer_range(4, False, False), integer_range(4, False, True)
    ((-127, 127), (0, 15), (0, 14))
    """
    if signed:
        return -(2 ** (bit_width - 1)) + int(narrow), 2 ** (bit_width - 1) - 1
    return 0, 2**bit_width - 1 - int(narrow)


def meta(node: ir.Node, key: str, default: str = "") -> str:
    """Metadata entry of a node."""
    return node.metadata_props.get(key, default)


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array that an initializer holds, ``None`` where ``value`` is computed or a graph input."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


@dataclass(frozen=True)
class Grid:
    """The grid that the input of a ``Trunc`` node lies on."""

    scale: np.ndarray
    bit_width: float


@dataclass(frozen=True)
class Quantizer:
    """A quantizer node of the canonical graph, read.

    ``scale`` and ``zero_point`` are those of its output, float32 arrays, 0-d where one number serves the tensor.
    ``truncated`` is the grid of the input of a ``Trunc`` node. ``offset`` is added to codes and zero point where they
    are stored in an integer type of the other sign.
    """

    node: ir.Node
    scale: np.ndarray
    zero_point: np.ndarray
    bit_width: float
    signed: bool
    narrow: bool
    rounding: str
    truncated: Grid | None = None
    offset: int = 0

    @staticmethod
    def read(node: ir.Node) -> Quantizer:
        """Read a node; its scales, zero point and widths must be initializers."""
        read = [constant(value) for value in node.inputs[1:]]
        numbers = [number for number in read if number is not None]
        if len(numbers) != len(read):
            raise ValueError(f"quantizer node {node.name!r}: scale, zero point and bit width must be constants")
        if node.op_type == "BipolarQuant":
            zero = np.zeros((), np.float32)
            return Quantizer(node, numbers[0], zero, 1.0, signed=True, narrow=False, rounding="ROUND")
        a = node.attributes
        kind = {
            "signed": bool(a["signed"].as_int()),
            "narrow": bool(a["narrow"].as_int()),
            "rounding": a["rounding_mode"].as_string(),
        }
        if node.op_type == "Trunc":
            in_scale, zero_point, in_bits, out_scale, out_bits = numbers
            grid = Grid(in_scale, float(in_bits.reshape(-1)[0]))
            return Quantizer(node, out_scale, zero_point, float(out_bits.reshape(-1)[0]), **kind, truncated=grid)
        scale, zero_point, bits = numbers
        return Quantizer(node, scale, zero_point, float(bits.reshape(-1)[0]), **kind)

    @property
    def kind(self) -> str:
        """``Quant``, ``BipolarQuant`` or ``Trunc``."""
        return str(self.node.op_type)

    @property
    def is_bipolar(self) -> bool:
        """Whether the codes are -1 and +1."""
        return self.node.op_type == "BipolarQuant"

    @property
    def layer(self) -> str:
        """Qualified name of the owner."""
        return meta(self.node, LAYER)

    @property
    def layer_class(self) -> str:
        """Class name of the owner."""
        return meta(self.node, CLASS)

    @property
    def name(self) -> str:
        """Qualified name of the quantizer."""
        return meta(self.node, QUANTIZER)

    @property
    def role(self) -> str:
        """weight, bias, input, output, act, snap, ..."""
        return meta(self.node, ROLE)

    @property
    def is_parameter(self) -> bool:
        """True for weights and biases, whose values are constants of the graph."""
        return self.role in PARAMETER_ROLES

    @property
    def bits(self) -> int:
        """The width as an integer."""
        return int(self.bit_width)

    @property
    def range(self) -> tuple[int, int]:
        """Least and greatest code, as stored."""
        low, high = (-1, 1) if self.is_bipolar else integer_range(self.bits, self.signed, self.narrow)
        return low + self.offset, high + self.offset

    @property
    def stored_zero_point(self) -> np.ndarray:
        """The zero point of codes as stored."""
        return self.zero_point + np.float32(self.offset)

    @property
    def varying_dims(self) -> tuple[int, ...]:
        """Dimensions of the quantized tensor along which scale or zero point vary."""
        rank = tensor_rank(self.node)
        dims = set()
        for a in (self.scale, self.zero_point):
            dims |= {i + rank - a.ndim for i, n in enumerate(a.shape) if n != 1}
        return tuple(sorted(dims))

    def codes(self) -> np.ndarray:
        """Integer codes (int64) of a parameter, as stored."""
        values = constant(self.node.inputs[0])
        if values is None:
            raise ValueError(
                f"quantizer node {self.node.name!r} quantizes a computed tensor, which has no constant codes"
            )
        return to_codes(values, self.scale, self.stored_zero_point)


def to_codes(values: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    """Integer codes of values that lie on a grid: round(value / scale) + zero point, in float64."""
    codes = np.rint(values.astype(np.float64) / np.asarray(scale, np.float64)) + np.asarray(zero_point, np.float64)
    return np.rint(codes).astype(np.int64)


def compact(codes: np.ndarray) -> np.ndarray:
    """The same integers in the smallest signed type that holds them.

    >>> compact(np.array([-128, 127])).dtype, compact(np.array([200])).dtype
    (dtype('int8'), dtype('int16'))
    """
    ends = (int(codes.min(initial=0)), int(codes.max(initial=0)))
    kinds = (np.int8, np.int16, np.int32, np.int64)
    return codes.astype(next(k for k in kinds if np.iinfo(k).min <= ends[0] and ends[1] <= np.iinfo(k).max))


def tensor_rank(node: ir.Node) -> int:
    """Number of dimensions of the tensor that a quantizer node quantizes."""
    for value in (node.outputs[0], node.inputs[0]):
        if value is not None and value.shape is not None:
            return len(value.shape)
    raise ValueError(f"quantizer node {node.name!r}: shape unknown")


def quantizers(model: ir.Model) -> Iterator[Quantizer]:
    """Every quantizer node in execution order."""
    for node in model.graph:
        if node.domain == DOMAIN and node.op_type in KINDS:
            yield Quantizer.read(node)


def source_quantizer(value: ir.Value | None) -> ir.Node | None:
    """The quantizer node on whose grid ``value`` lies, past grid-preserving operations; else ``None``."""
    while value is not None:
        node = value.producer()
        if node is None:
            return None
        if node.domain == DOMAIN:
            return node
        if node.domain not in ("", "ai.onnx") or node.op_type not in GRID_PRESERVING:
            return None
        value = node.inputs[0]
    return None


def quant_tensor_records(model: ir.Model, key: str) -> list[dict[str, Any] | None]:
    """What is recorded of the graph's inputs (``INPUTS``) or outputs (``OUTPUTS``)."""
    values = model.graph.inputs if key == INPUTS else model.graph.outputs
    text = model.metadata_props.get(key)
    return json.loads(text) if text else [None] * len(values)
