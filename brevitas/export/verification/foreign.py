"""Files made elsewhere: QONNX and QDQ models read into something that runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brevitas.errors import ExportError
from brevitas.export import graph as g
from brevitas.export.packages import require
from brevitas.export.verification.runtimes import QONNX_DOMAINS, open_session, version_of

if TYPE_CHECKING:
    import onnx

__all__ = ["ReadModel", "ReadQuantizer", "read_model"]

Rounding = Callable[[np.ndarray], np.ndarray]


def _by_magnitude(of: Rounding) -> Rounding:
    return lambda x: np.sign(x) * of(np.abs(x))


ROUNDED: dict[str, Rounding] = {
    "ROUND": np.rint,
    "HALF_EVEN": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "DOWN": np.trunc,
    "ROUND_TO_ZERO": np.trunc,
    "UP": _by_magnitude(np.ceil),
    "HALF_UP": _by_magnitude(lambda x: np.floor(x + 0.5)),
    "HALF_DOWN": _by_magnitude(lambda x: np.ceil(x - 0.5)),
}


@dataclass(frozen=True)
class ReadQuantizer:
    """An integer quantizer of a file.

    Attributes:
        tensor: the float tensor that holds its result; ``before`` the one that it quantizes.
        operator: Quant (also named IntQuant), BipolarQuant, or DequantizeLinear for QuantizeLinear and what follows it.
        scale, zero_point: float32, shaped as they broadcast against the tensor.
        low, high: least and greatest code.
        rounding: the mode's name in the file; ROUND where the operator has one.
        parameter: the codes (int64) of a constant, else ``None``.
        key: what brevitas wrote of where it comes from: the quantizer's name and its call, else ``None``.
    """

    tensor: str
    before: str
    operator: str
    scale: np.ndarray
    zero_point: np.ndarray
    low: int
    high: int
    rounding: str = "ROUND"
    parameter: np.ndarray | None = None
    key: tuple[str, int] | None = None

    def codes(self, values: np.ndarray) -> np.ndarray:
        """Integers of quantized values."""
        return g.to_codes(values, self.scale, self.zero_point)


class ReadModel:
    """A model read from a file; :func:`read_model` makes it.

    Attributes:
        proto: the ``onnx.ModelProto``.
        runtime: the program that runs it, as ``verify`` names them.
    """

    def __init__(self, proto: onnx.ModelProto, runtime: str) -> None:
        self.proto = proto
        self.runtime = runtime

    @property
    def inputs(self) -> dict[str, tuple[int | str, ...]]:
        """Shape of each input by name; initializers are none, also where an old file lists them."""
        held = {i.name for i in self.proto.graph.initializer}
        return {
            v.name: tuple(d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim)
            for v in self.proto.graph.input
            if v.name not in held
        }

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        return [v.name for v in self.proto.graph.output]

    @cached_property
    def quantizers(self) -> tuple[ReadQuantizer, ...]:
        """Every integer quantizer with constant scale, zero point and width, in execution order.

        QuantizeLinear and DequantizeLinear that only repeat the grid that their input is on are none.
        """
        return tuple(_quantizers(self.proto))

    def run(self, inputs: Any, *tensors: str) -> dict[str, np.ndarray]:
        """Outputs by name, and the tensors of the given names.

        ``inputs`` is an array or Tensor, a tuple of them, or a mapping by name. Raises ExportError where they do not
        fit or the program fails.
        """
        made = {name for node in self.proto.graph.node for name in node.output}
        for name in tensors:
            if name not in made:
                raise ExportError(f"read_model: no node of the file computes a tensor {name!r}")
        proto = _with_outputs(self.proto, [t for t in tensors if t not in self.outputs])
        return open_session(self.runtime, proto)(self.feeds(inputs))

    def feeds(self, inputs: Any) -> dict[str, np.ndarray]:
        """Arrays by the names of the inputs."""
        names = list(self.inputs)
        if isinstance(inputs, Mapping):
            given = dict(inputs)
        else:
            values = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
            if len(values) != len(names):
                raise ExportError(
                    f"read_model: the file has {len(names)} inputs ({', '.join(names)}), not {len(values)}"
                )
            given = dict(zip(names, values, strict=True))
        if set(given) != set(names):
            raise ExportError(f"read_model: the file's inputs are {', '.join(names)}; given: {', '.join(given)}")
        return {name: _array(value) for name, value in given.items()}

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in self.inputs.items())
        return f"ReadModel({shapes}; {len(self.quantizers)} quantizers, runs in {version_of(self.runtime)})"


def read_model(artifact: onnx.ModelProto | str | os.PathLike[str], *, runtime: str | None = None) -> ReadModel:
    """Read a QONNX or QDQ file, of this library or of another tool, into something that runs.

    >>> import torch
    >>> from brevitas.export import QONNXManager
    >>> from brevitas.nn import QuantLinear
    >>> layer = QuantLinear(4, 2, bias=False, weight_bit_width=3)
    >>> read = read_model(QONNXManager.export(layer, input_shape=(1, 4)))
    >>> [(q.operator, q.low, q.high, q.parameter.shape) for q in read.quantizers]
    [('Quant', -3, 3, (2, 4))]
    >>> torch.allclose(torch.from_numpy(read.run(torch.ones(1, 4))['output']), layer(torch.ones(1, 4)), atol=1e-6)
    True

    Args:
        artifact: the file, or an ``onnx.ModelProto``.
        runtime: 'onnxruntime', 'onnxruntime-optimized', 'qonnx' or 'reference'; by default qonnx where the file has
            operators of its domains, else onnxruntime without graph optimization.

    Raises:
        ExportError: no ONNX file, an operator that no runtime has, a missing package.
        OSError: the file cannot be read.
    """
    require("onnx", target="read_model", place="read_model")
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        proto = onnx.load(Path(artifact)) if isinstance(artifact, str | os.PathLike) else artifact
    except DecodeError as error:
        raise ExportError(f"read_model: {os.fspath(artifact)} is no ONNX file: {error}") from error
    if not isinstance(proto, onnx.ModelProto):
        raise TypeError(f"expected an onnx.ModelProto or a path, got {type(artifact).__name__}")
    domains = {node.domain for node in proto.graph.node} - {"", "ai.onnx"}
    unknown = domains - set(QONNX_DOMAINS) - {"com.microsoft"}
    if unknown:
        nodes = sorted({f"{n.domain}::{n.op_type}" for n in proto.graph.node if n.domain in unknown})
        raise ExportError(f"read_model: no runtime has {', '.join(nodes)}; known domains: {', '.join(QONNX_DOMAINS)}")
    if runtime is None:
        runtime = "qonnx" if domains & set(QONNX_DOMAINS) else "onnxruntime"
    return ReadModel(proto, runtime)


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def _with_outputs(proto: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    copy = type(proto)()
    copy.CopyFrom(proto)
    known = {v.name: v for v in copy.graph.value_info}
    for name in names:
        value = copy.graph.output.add()
        if name in known:
            value.CopyFrom(known[name])
        else:  # the quantized tensors and those before are floats
            value.name = name
            value.type.tensor_type.elem_type = 1
    return copy


def _constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    from onnx import helper, numpy_helper

    held = {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            for attribute in node.attribute:
                value = helper.get_attribute_value(attribute)
                is_tensor = attribute.name == "value"
                held[node.output[0]] = numpy_helper.to_array(value) if is_tensor else np.asarray(value)
    return held


def _quantizers(proto: onnx.ModelProto) -> Iterator[ReadQuantizer]:
    held = _constants(proto)
    made = {name: node for node in proto.graph.node for name in node.output}
    ranks = _ranks(proto)
    on: dict[str, ReadQuantizer] = {}
    for node in proto.graph.node:
        if node.domain in QONNX_DOMAINS and node.op_type in ("Quant", "IntQuant", "BipolarQuant"):
            if all(name in held for name in node.input[1:]):
                yield _quant(node, held)
        elif node.op_type == "DequantizeLinear" and all(name in held for name in node.input[1:]):
            found = _dequantized(node, held, made, ranks)
            if found is not None:
                on[found.tensor] = found
                if found.key is not None or not _repeats(found, _source(found.before, made, on)):
                    yield found


def _source(tensor: str, made: Mapping[str, onnx.NodeProto], on: Mapping[str, ReadQuantizer]) -> ReadQuantizer | None:
    """The quantizer on whose grid a tensor lies, past operations that keep it."""
    while tensor not in on and tensor in made and made[tensor].op_type in g.GRID_PRESERVING:
        tensor = made[tensor].input[0]
    return on.get(tensor)


def _repeats(q: ReadQuantizer, source: ReadQuantizer | None) -> bool:
    return (
        source is not None
        and (q.low, q.high) == (source.low, source.high)
        and all(np.array_equal(getattr(q, a), getattr(source, a)) for a in ("scale", "zero_point"))
    )


def _ranks(proto: onnx.ModelProto) -> dict[str, int]:
    """Numbers of dims of the tensors, which say along which one the scales of an axis lie."""
    from onnx import helper, shape_inference

    copy = _with_outputs(proto, [])
    imported = {i.domain for i in copy.opset_import}
    # Files that the qonnx package wrote may not import the domain that they use.
    missing = {node.domain for node in copy.graph.node} - imported - {"", "ai.onnx"}
    copy.opset_import.extend(helper.make_opsetid(domain, 1) for domain in sorted(missing))
    inferred = shape_inference.infer_shapes(copy).graph
    return {v.name: len(v.type.tensor_type.shape.dim) for v in (*inferred.value_info, *inferred.output)}


def _quant(node: onnx.NodeProto, held: Mapping[str, np.ndarray]) -> ReadQuantizer:
    from onnx import helper

    a = {x.name: helper.get_attribute_value(x) for x in node.attribute}
    numbers = [np.asarray(held[name], np.float32) for name in node.input[1:]]
    rounding = a.get("rounding_mode", b"ROUND").decode().upper()
    bipolar = node.op_type == "BipolarQuant" or (bool(a.get("signed")) and numbers[2].max() == 1)
    if bipolar:
        low, high, zero_point = -1, 1, np.zeros((), np.float32)
    else:
        low, high = g.integer_range(int(numbers[2].max()), bool(a.get("signed", 1)), bool(a.get("narrow", 0)))
        zero_point = numbers[1]
    parameter = None
    if node.input[0] in held:
        steps = np.asarray(held[node.input[0]], np.float64) / numbers[0]
        rounded = np.where(steps >= 0, 1, -1) if bipolar else ROUNDED[rounding](np.clip(steps + zero_point, low, high))
        parameter = rounded.astype(np.int64)
    return ReadQuantizer(
        node.output[0], node.input[0], node.op_type, numbers[0], zero_point, low, high, rounding, parameter, _key(node)
    )


def _dequantized(
    node: onnx.NodeProto,
    held: Mapping[str, np.ndarray],
    made: Mapping[str, onnx.NodeProto],
    ranks: Mapping[str, int],
) -> ReadQuantizer | None:
    """A DequantizeLinear and, unless its codes are constants, the QuantizeLinear and the Clip before it."""
    limits: list[np.ndarray] = []
    source = made.get(node.input[0])
    parameter = held.get(node.input[0])
    if parameter is None:
        if source is not None and source.op_type == "Clip" and all(n in held for n in source.input[1:]):
            limits = [held[n] for n in source.input[1:]]
            source = made.get(source.input[0])
        if source is None or source.op_type != "QuantizeLinear":
            return None
    scale = np.asarray(held[node.input[1]], np.float32)
    stored = held[node.input[2]] if len(node.input) > 2 else np.zeros((), np.uint8 if parameter is None else np.int8)
    codes = stored if parameter is None else parameter
    low, high = _limits(codes.dtype)
    if limits:
        low, high = max(low, int(limits[0])), min(high, int(limits[1]))
    rank = parameter.ndim if parameter is not None else ranks.get(node.output[0], 0)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    shape = (-1, *(1,) * (rank - axis % rank - 1)) if scale.size > 1 and rank else None
    scale, zero_point = (x if shape is None else x.reshape(shape) for x in (scale, np.asarray(stored, np.float32)))
    before = node.input[0] if source is None or parameter is not None else source.input[0]
    held_codes = None if parameter is None else parameter.astype(np.int64)
    return ReadQuantizer(
        node.output[0], before, node.op_type, scale, zero_point, low, high, parameter=held_codes, key=_key(node)
    )


def _limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    from ml_dtypes import iinfo

    info = iinfo(dtype)
    return int(info.min), int(info.max)


def _key(node: onnx.NodeProto) -> tuple[str, int] | None:
    props = {p.key: p.value for p in node.metadata_props}
    return (props[g.QUANTIZER], int(props.get(g.CALL, "0"))) if g.QUANTIZER in props else None
