"""Read an exported ONNX file: where its quantizers are, and copies of it that can be observed.

A quantizer is found through the metadata that every export writes on its nodes. ``observed`` makes a copy whose outputs
include every quantizer's result; ``isolated`` also lets everything behind a quantizer read a fresh graph input in its
place, so that one run evaluates each layer on whatever codes are fed, whatever the layers before it computed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brevitas.errors import ExportError
from brevitas.export import graph as g
from brevitas.export.lowering.integer import PERM
from brevitas.export.minifloat import FLOAT_QUANT

if TYPE_CHECKING:
    import onnx

__all__ = ["Artifact", "Cut", "Parameter", "read_artifact"]

FED = "::model"
_ON_GRID = g.GRID_PRESERVING | {"QuantizeLinear", "DequantizeLinear", "Clip", *g.KINDS}


@dataclass(frozen=True)
class Cut:
    """An activation quantizer: the tensor that carries its result, as integer ``codes`` or as float ``values``.

    ``offset`` was added to codes that are stored in a type of the other sign.
    """

    key: tuple[str, int]
    tensor: str
    form: str
    elem_type: int
    offset: int = 0


@dataclass(frozen=True)
class Parameter:
    """A weight or bias: its integer codes as the file holds them, or the values of minifloats."""

    key: tuple[str, int]
    codes: np.ndarray | None = None
    values: np.ndarray | None = None


@dataclass
class Artifact:
    """An exported model, read.

    ``slack`` bounds by how much the format itself moves what a quantizer call rounds: real units, as they broadcast
    against it.
    """

    proto: onnx.ModelProto
    cuts: list[Cut] = field(default_factory=list)
    parameters: list[Parameter] = field(default_factory=list)
    slack: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """Key of the target that the file was made for."""
        return {p.key: p.value for p in self.proto.metadata_props}.get(g.TARGET, "")

    @property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """Graph inputs that are no initializers."""
        constants = {i.name for i in self.proto.graph.initializer}
        return [v for v in self.proto.graph.input if v.name not in constants]

    @property
    def takes_codes(self) -> list[bool]:
        """For each input, whether it is a float tensor of the integers of a QuantTensor."""
        records = json.loads({p.key: p.value for p in self.proto.metadata_props}.get(g.INPUTS, "[]"))
        return [bool(r and r.get("codes")) for r in records] or [False] * len(self.inputs)

    @property
    def output_names(self) -> list[str]:
        """Names of the graph's outputs."""
        return [v.name for v in self.proto.graph.output]

    @property
    def fixed_batch(self) -> int | None:
        """Size of dimension 0 of the first input, ``None`` where it is dynamic or there is none."""
        dims = self.inputs[0].type.tensor_type.shape.dim if self.inputs else []
        return int(dims[0].dim_value) if dims and dims[0].HasField("dim_value") else None

    def observed(self) -> onnx.ModelProto:
        """A copy whose outputs include every quantizer's result."""
        copy = _copy(self.proto)
        _expose(copy, self.cuts)
        return copy

    def isolated(self) -> tuple[onnx.ModelProto, list[Cut]]:
        """A copy in which every quantizer's readers are fed from outside, and the cuts that have readers.

        The graph input that stands for a cut is named as its tensor plus ``FED``.
        """
        copy = _copy(self.proto)
        shapes = {v.name: v.type.tensor_type.shape for v in (*copy.graph.value_info, *copy.graph.output)}
        fed = []
        for cut in self.cuts:
            readers = [(n, i) for n in copy.graph.node for i, name in enumerate(n.input) if name == cut.tensor]
            if not readers:
                continue
            for node, i in readers:
                node.input[i] = cut.tensor + FED
            value = copy.graph.input.add()
            value.name = cut.tensor + FED
            value.type.tensor_type.elem_type = cut.elem_type
            if cut.tensor in shapes:
                value.type.tensor_type.shape.CopyFrom(shapes[cut.tensor])
            fed.append(cut)
        _expose(copy, self.cuts)
        return copy, fed

    def product_of(self, output: str) -> tuple[str | tuple[str, int], tuple[str, int]] | None:
        """What an output is the product of: the data's quantizer call, or graph input, and the weight's call."""
        made = {name: n for n in self.proto.graph.node for name in n.output}
        constants = {i.name for i in self.proto.graph.initializer}
        node = made.get(output)
        while node is not None and node.op_type in ("Add", "Mul"):
            computed = [i for i in node.input if i not in constants]
            if len(computed) == 1:  # a float bias, or the scale of an integer product
                node = made.get(computed[0])
            else:
                node = next((made[i] for i in computed if i in made and made[i].op_type == "MatMul"), None)
        if node is None or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            return None
        data, weight = (_grid_source(made, tensor) for tensor in node.input[:2])
        for entry in json.loads(_props(node).get(g.CONSTANTS, "[]")):
            if entry["initializer"] == node.input[1]:
                weight = (entry["quantizer"], entry["call"])
        return None if data is None or not isinstance(weight, tuple) else (data, weight)


def _grid_source(made: dict[str, onnx.NodeProto], tensor: str) -> str | tuple[str, int] | None:
    """The quantizer call on whose grid a tensor lies, or the graph input it is, past grid-preserving operations."""
    node = made.get(tensor)
    while node is not None:
        key = _key(node)
        if key is not None:
            return key
        if node.op_type not in _ON_GRID:
            return None
        tensor = node.input[0]
        node = made.get(tensor)
    return tensor


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = type(proto)()
    copy.CopyFrom(proto)
    return copy


def _expose(proto: onnx.ModelProto, cuts: Sequence[Cut]) -> None:
    present = {v.name for v in proto.graph.output}
    shapes = {v.name: v.type.tensor_type.shape for v in proto.graph.value_info}
    for cut in cuts:
        if cut.tensor not in present:
            value = proto.graph.output.add()
            value.name = cut.tensor
            value.type.tensor_type.elem_type = cut.elem_type
            if cut.tensor in shapes:
                value.type.tensor_type.shape.CopyFrom(shapes[cut.tensor])


def _props(node: onnx.NodeProto) -> dict[str, str]:
    return {p.key: p.value for p in node.metadata_props}


def _key(node: onnx.NodeProto) -> tuple[str, int] | None:
    props = _props(node)
    return (props[g.QUANTIZER], int(props.get(g.CALL, "0"))) if g.QUANTIZER in props else None


def read_artifact(artifact: onnx.ModelProto | str | os.PathLike[str]) -> Artifact:
    """Read a model, or the file that holds it.

    Raises ExportError where it is no ONNX file, or carries none of the metadata that brevitas writes, so that nothing
    can be compared.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        proto = onnx.load(Path(artifact)) if isinstance(artifact, (str, os.PathLike)) else artifact
    except DecodeError as error:
        raise ExportError(f"verify: {os.fspath(artifact)} is no ONNX file: {error}") from error
    if not isinstance(proto, onnx.ModelProto):
        raise TypeError(f"expected an onnx.ModelProto or a path, got {type(artifact).__name__}")
    constants = {i.name: i for i in proto.graph.initializer}
    read = Artifact(proto)
    known: set[tuple[str, int]] = set()
    types = {v.name: v.type.tensor_type.elem_type for v in (*proto.graph.value_info, *proto.graph.output)}
    for node in proto.graph.node:
        key, props = _key(node), _props(node)
        for entry in json.loads(props.get(g.CONSTANTS, "[]")):
            parameter = _stored(entry, constants)
            if parameter.key not in known:
                known.add(parameter.key)
                read.parameters.append(parameter)
        if key is None or key in known:
            continue
        if node.op_type in (*g.KINDS, FLOAT_QUANT) or props.get(g.PART) == g.VALUES:
            known.add(key)
            if node.input[0] in constants and node.op_type not in g.KINDS:
                read.parameters.append(Parameter(key, values=_float_values(node, constants)))
            elif node.input[0] in constants:
                values, scale, *rest = (onnx.numpy_helper.to_array(constants[i]) for i in node.input[:4])
                codes = g.to_codes(values, scale, rest[0] if rest else np.zeros(()))
                if len(rest) > 1:  # stored parameters lie in range; a constant of the model's code may not
                    flags = {a.name: bool(a.i) for a in node.attribute if a.name in ("signed", "narrow")}
                    codes = codes.clip(*g.integer_range(int(rest[1].item()), flags["signed"], flags["narrow"]))
                read.parameters.append(Parameter(key, codes))
            else:
                read.cuts.append(Cut(key, node.output[0], "values", onnx.TensorProto.FLOAT))
        elif props.get(g.PART) == g.CODES:
            known.add(key)
            offset = int(props.get(g.OFFSET, "0"))
            read.cuts.append(Cut(key, node.output[0], "codes", types[node.output[0]], offset))
        elif node.op_type == "DequantizeLinear":
            known.add(key)
            if node.input[0] in constants:
                codes = onnx.numpy_helper.to_array(constants[node.input[0]]).astype(np.int64)
                read.parameters.append(Parameter(key, _unpermuted(codes, props)))
            else:
                zero_point = constants[node.input[2]]
                read.cuts.append(Cut(key, node.input[0], "codes", zero_point.data_type))
    if not known and not {p.key for p in proto.metadata_props} >= {g.FORMAT}:
        raise ExportError(
            "verify: the artifact carries no brevitas metadata (brevitas.quantizer on its nodes); export it with a "
            "manager of brevitas.export, and keep metadata_props when other tools rewrite it"
        )
    return read


def _float_values(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> np.ndarray[Any, Any]:
    """Values of a minifloat parameter: those that FloatQuant reads, or float8 numbers times their scale."""
    import onnx

    stored, scale = (onnx.numpy_helper.to_array(constants[name]) for name in node.input[:2])
    if node.op_type == FLOAT_QUANT:
        return stored
    if scale.ndim:
        axis = next(a.i for a in node.attribute if a.name == "axis")
        scale = scale.reshape([-1 if i == axis else 1 for i in range(stored.ndim)])
    values: np.ndarray[Any, Any] = stored.astype(np.float32) * scale
    return values


def _stored(entry: dict[str, Any], constants: dict[str, onnx.TensorProto]) -> Parameter:
    """A parameter whose codes are the constant of an operator on integers."""
    import onnx

    stored = onnx.numpy_helper.to_array(constants[entry["initializer"]])
    if "scale" in entry:  # real values
        return Parameter(
            (entry["quantizer"], entry["call"]), g.to_codes(stored, np.asarray(entry["scale"]), np.zeros(()))
        )
    codes = stored.astype(np.int64) - entry["offset"]
    if entry["perm"] is not None:
        codes = codes.transpose(np.argsort(entry["perm"]))
    if entry.get("shape") is not None:
        codes = codes.reshape(entry["shape"])
    return Parameter((entry["quantizer"], entry["call"]), codes)


def _unpermuted(codes: np.ndarray[Any, Any], props: dict[str, str]) -> np.ndarray[Any, Any]:
    if PERM not in props:
        return codes
    perm = [int(i) for i in props[PERM].split(",")]
    return codes.transpose(np.argsort(perm))
