"""Integer networks on disk: arrays in ``NAME.npz``, everything else in ``NAME.json`` beside it.

Format 1. The manifest is a JSON object:

    format          "brevitas.integer"
    version         1
    arrays          {"file": name of the npz, "sha256": of its bytes}
    tensors         [{name, shape, low, high}]: integers, shape of one sample
    inputs          [{name, shape, tensor, scale, zero}]: tensor, scale and zero are null for a float input
    border          [{op, input, output, shape, attributes, arrays, quantizer, call}]: float32 steps before the integers
    steps           [{op, name, inputs, output, attributes, arrays, layer, layer_class, quantizer, call}]
    outputs         [{name, tensor, scale, zero, ops}]: ops is a list of {kind, number, constants}
    deviations      [{layer, quantizer, values, different, most}]: of the multiplier form

Arrays stand in the manifest as keys of the npz: for a step a mapping from their names, elsewhere a list. Integer arrays
are stored in the least type that holds them, float ones as float32. What operations and arrays mean is written in
:mod:`brevitas.export.integer.kernels` and :mod:`brevitas.export.integer.floatops`. Reading unpickles nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from brevitas.errors import ExportError
from brevitas.export.integer.floatops import KINDS, FloatOp
from brevitas.export.integer.kernels import KERNELS
from brevitas.export.integer.multiplier import Deviation
from brevitas.export.integer.network import Border, Input, IntegerNetwork, Output, Step, Tensor

__all__ = ["FORMAT", "VERSION", "load", "save", "smallest"]

FORMAT = "brevitas.integer"
VERSION = 1
Array = np.ndarray[Any, np.dtype[Any]]


def smallest(array: Array) -> Array:
    """An integer array in the least signed type that holds it, any other array as it is.

    >>> smallest(np.array([-128, 127])).dtype, smallest(np.array([1 << 40])).dtype
    (dtype('int8'), dtype('int64'))
    """
    if not np.issubdtype(array.dtype, np.integer):
        return array
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    for dtype in (np.int8, np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return array.astype(dtype)
    return array.astype(np.int64)


class _Arrays:
    """Collects arrays under numbered keys."""

    def __init__(self) -> None:
        self.held: dict[str, Array] = {}

    def add(self, name: str, array: Array) -> str:
        key = f"{len(self.held)}/{name}"
        self.held[key] = smallest(np.asarray(array))
        return key

    def maybe(self, name: str, array: Array | None) -> str | None:
        return None if array is None else self.add(name, array)


def _paths(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The npz and the manifest of a path that names either, or their common stem."""
    given = Path(path)
    stem = given.with_suffix("") if given.suffix in (".npz", ".json") else given
    return stem.with_name(stem.name + ".npz"), stem.with_name(stem.name + ".json")


def save(net: IntegerNetwork, path: str | os.PathLike[str]) -> None:
    """Write both files, each whole or not at all."""
    from brevitas.export.manager import write_atomically

    npz, manifest = _paths(path)
    arrays = _Arrays()
    body = _manifest(net, arrays)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays.held)  # type: ignore[arg-type]
    data = buffer.getvalue()
    head = {
        "format": FORMAT,
        "version": VERSION,
        "arrays": {"file": npz.name, "sha256": hashlib.sha256(data).hexdigest()},
    }
    write_atomically(npz, data)
    write_atomically(manifest, json.dumps({**head, **body}, indent=1).encode())


def _manifest(net: IntegerNetwork, arrays: _Arrays) -> dict[str, Any]:
    def ops(items: Sequence[FloatOp]) -> list[dict[str, Any]]:
        return [
            {"kind": op.kind, "number": op.number, "constants": [arrays.add(op.kind, c) for c in op.constants]}
            for op in items
        ]

    return {
        "tensors": [asdict(t) for t in net.tensors.values()],
        "inputs": [
            {
                "name": i.name,
                "shape": i.shape,
                "tensor": i.tensor,
                "scale": arrays.maybe(f"{i.name}/scale", i.scale),
                "zero": arrays.maybe(f"{i.name}/zero", i.zero),
            }
            for i in net.inputs
        ],
        "border": [
            {**_fields(b), "attributes": dict(b.attributes), "arrays": [arrays.add(b.output, a) for a in b.arrays]}
            for b in net.border
        ],
        "steps": [
            {
                **_fields(s),
                "attributes": dict(s.attributes),
                "arrays": {k: arrays.add(f"{s.name}/{k}", a) for k, a in s.arrays.items()},
            }
            for s in net.steps
        ],
        "outputs": [
            {
                "name": o.name,
                "tensor": o.tensor,
                "scale": arrays.add(f"{o.name}/scale", o.scale),
                "zero": arrays.add(f"{o.name}/zero", o.zero),
                "ops": ops(o.ops),
            }
            for o in net.outputs
        ],
        "deviations": [asdict(d) for d in net.deviations],
    }


def _fields(item: Border | Step) -> dict[str, Any]:
    return {k: v for k, v in vars(item).items() if k not in ("attributes", "arrays")}


def load(path: str | os.PathLike[str]) -> IntegerNetwork:
    """Read a network, and refuse what is not one: another format, a newer version, arrays of another network."""
    npz, manifest = _paths(path)
    try:
        head = json.loads(manifest.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ExportError(f"integer network: {manifest} is no JSON: {error}") from error
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise ExportError(f"integer network: {manifest} is no manifest of format {FORMAT!r}")
    if head.get("version") != VERSION:
        raise ExportError(
            f"integer network: {manifest} has version {head.get('version')!r}; this library reads version {VERSION}"
        )
    data = npz.read_bytes()
    try:
        if hashlib.sha256(data).hexdigest() != head["arrays"]["sha256"]:
            raise ExportError(
                f"integer network: {npz} is not the file that {manifest.name} describes; save both again, together"
            )
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            return _read(head, {key: held[key] for key in held.files})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(f"integer network: {manifest} is damaged: {type(error).__name__}: {error}") from error


def _read(head: Mapping[str, Any], arrays: Mapping[str, Array]) -> IntegerNetwork:
    def array(key: str) -> Array:
        found = arrays[key]
        return found.astype(np.int64) if np.issubdtype(found.dtype, np.integer) else found

    def maybe(key: str | None) -> Array | None:
        return None if key is None else array(key)

    def op(item: Mapping[str, Any]) -> FloatOp:
        constants = tuple(array(c) for c in item["constants"])
        return FloatOp(_known(item["kind"], KINDS), constants, float(item["number"]))

    tensors = {t["name"]: Tensor(t["name"], tuple(t["shape"]), int(t["low"]), int(t["high"])) for t in head["tensors"]}
    border_ops = {**KINDS, "quantize": None, "gather": None, "reshape": None}
    net = IntegerNetwork(
        tuple(
            Input(i["name"], tuple(i["shape"]), i["tensor"], maybe(i["scale"]), maybe(i["zero"]))
            for i in head["inputs"]
        ),
        tuple(_border(b, border_ops, array) for b in head["border"]),
        tuple(_step(s, array) for s in head["steps"]),
        tuple(
            Output(o["name"], o["tensor"], array(o["scale"]), array(o["zero"]), tuple(op(p) for p in o["ops"]))
            for o in head["outputs"]
        ),
        tensors,
        tuple(Deviation(**d) for d in head["deviations"]),
    )
    named = {name for s in net.steps for name in (*s.inputs, s.output)} | {o.tensor for o in net.outputs}
    if missing := named - set(tensors):
        raise ValueError(f"tensors {sorted(missing)} are not described")
    return net


def _border(item: Mapping[str, Any], known: Mapping[str, Any], array: Callable[[str], Array]) -> Border:
    op = _known(item["op"], known)
    arrays = tuple(array(a) for a in item["arrays"])
    rest = (item["attributes"], arrays, item["quantizer"], int(item["call"]))
    return Border(op, item["input"], item["output"], tuple(item["shape"]), *rest)


def _step(item: Mapping[str, Any], array: Callable[[str], Array]) -> Step:
    arrays = {k: array(a) for k, a in item["arrays"].items()}
    names = (item["layer"], item["layer_class"], item["quantizer"], int(item["call"]))
    op, inputs = _known(item["op"], KERNELS), tuple(item["inputs"])
    return Step(op, item["name"], inputs, item["output"], item["attributes"], arrays, *names)


def _known(name: str, table: Mapping[str, Any]) -> str:
    if name not in table:
        raise ValueError(f"unknown operation {name!r}; known: {', '.join(table)}")
    return name
