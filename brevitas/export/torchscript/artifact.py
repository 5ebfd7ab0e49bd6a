"""Read an exported TorchScript module, and run it with its quantized tensors given and seen from outside."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from brevitas.errors import ExportError
from brevitas.export import graph as g
from brevitas.export.torchscript.manager import METADATA
from brevitas.export.verification.artifact import FED, Artifact, Cut, Parameter

if TYPE_CHECKING:
    import onnx

__all__ = ["Observed", "TorchArtifact", "is_torchscript", "open_observed", "read_torchscript"]

_PRODUCTS = ("quantized::conv1d", "quantized::conv2d", "quantized::linear")
_ENGINE = "qnnpack"


@contextmanager
def _engine() -> Iterator[None]:
    """The engine whose products do not saturate, for a while."""
    before = torch.backends.quantized.engine
    if _ENGINE not in torch.backends.quantized.supported_engines:
        yield
        return
    torch.backends.quantized.engine = _ENGINE
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def is_torchscript(artifact: Any) -> bool:
    """Whether an artifact, or the file at a path, is a TorchScript module."""
    if isinstance(artifact, torch.jit.ScriptModule):
        return True
    if not isinstance(artifact, str | os.PathLike) or not Path(artifact).is_file():
        return False
    with open(artifact, "rb") as file:
        return file.read(2) == b"PK"


@dataclass(frozen=True)
class Observed:
    """A module's graph with more inputs and outputs: quantized tensors that are fed, and those that are seen.

    ``grids`` are those of the quantized tensors, and of inputs that are quantized, by name.
    """

    module: torch.jit.ScriptModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    grids: Mapping[str, Mapping[str, Any]]
    fed: tuple[str, ...]
    seen: tuple[str, ...]


class TorchArtifact(Artifact):
    """An exported TorchScript module, read."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        text = getattr(module, METADATA, None)
        if text is None:
            raise ExportError(
                "verify: the TorchScript module carries no brevitas metadata; export it with PytorchQuantManager"
            )
        self.module = module
        metadata = json.loads(text)
        self._inputs = [(f"input_{i}", grid) for i, grid in enumerate(metadata["inputs"])]
        self._grids = {name: grid for name, grid in self._inputs if grid is not None}
        cuts = []
        for entry in metadata["activations"]:
            # By position: copies of a graph number their values anew.
            name = _name(entry["position"])
            self._grids[name] = entry
            cuts.append(Cut(_key(entry["key"]), name, "codes", _element_type(entry)))
        slack = {_key(e["output"]): np.asarray(e["slack"]) for e in metadata["products"] if e["slack"] is not None}
        super().__init__(None, cuts, list(_parameters(module, metadata["products"])), slack)  # type: ignore[arg-type]

    @property
    def target(self) -> str:
        """``torch``."""
        return "torch"

    @property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """The module's inputs, described as ONNX describes them."""
        from onnx import helper

        return [helper.make_tensor_value_info(name, _element_type(grid), None) for name, grid in self._inputs]

    @property
    def takes_codes(self) -> list[bool]:
        """No input is a float tensor of integers: codes are those of quantized tensors."""
        return [False] * len(self._inputs)

    @property
    def output_names(self) -> list[str]:
        """Names of the module's outputs, by position."""
        return [f"output_{i}" for i in range(len(_results(self.module.graph)))]

    @property
    def fixed_batch(self) -> int | None:
        """``None``: the size of a batch is not part of the module's interface."""
        return None

    def observed(self) -> Any:
        """The graph with every quantizer's result among its outputs."""
        return self._observed([])

    def isolated(self) -> Any:
        """The graph in which every quantizer's readers are fed from outside, and the cuts that have readers."""
        read = {_name(i) for i, value in enumerate(_quantized_values(self.module.graph)) if value.uses()}
        fed = [cut for cut in self.cuts if cut.tensor in read]
        return self._observed([cut.tensor for cut in fed]), fed

    def _observed(self, fed: Sequence[str]) -> Observed:
        names = tuple(name for name, _ in self._inputs)
        seen = tuple(cut.tensor for cut in self.cuts)
        return Observed(self.module, names, tuple(self.output_names), self._grids, tuple(fed), seen)

    def product_of(self, output: str) -> None:
        """Unknown: outputs that are no quantizer's result are compared as real values."""
        return None


def read_torchscript(artifact: torch.jit.ScriptModule | str | os.PathLike[str]) -> TorchArtifact:
    """Read a module, or the file that holds it, with weights packed for the engine that does not saturate.

    Raises ExportError where it carries none of the metadata that brevitas writes.
    """
    if isinstance(artifact, torch.jit.ScriptModule):
        buffer: Any = io.BytesIO()
        torch.jit.save(artifact, buffer)
        buffer.seek(0)
    else:
        buffer = os.fspath(artifact)
    with _engine():  # loading is what packs
        return TorchArtifact(torch.jit.load(buffer))


def _quantized_values(graph: Any) -> list[Any]:
    """Values that hold quantized tensors, in order of computation: those that the metadata count."""
    found: list[Any] = []
    quantized: set[str] = set()
    for node in graph.nodes():
        kind = node.kind()
        follows = kind in ("aten::clamp", "aten::contiguous") and next(node.inputs()).debugName() in quantized
        if kind not in ("aten::quantize_per_tensor", *_PRODUCTS) and not follows:
            continue
        quantized.add(node.output().debugName())
        if kind != "aten::contiguous":
            found.append(node.output())
    return found


def _parameters(module: torch.jit.ScriptModule, entries: Sequence[Mapping[str, Any]]) -> Iterator[Parameter]:
    products = [node for node in module.graph.nodes() if node.kind() in _PRODUCTS]
    for node, entry in zip(products, entries, strict=True):
        weight, bias = _attribute(module, list(node.inputs())[1]).unpack()
        codes = weight.int_repr().numpy().astype(np.int64)
        # A packed one-dimensional kernel is unpacked as one of two dimensions.
        codes = codes[:, :, 0] if node.kind() == "quantized::conv1d" and codes.ndim == 4 else codes
        yield Parameter(_key(entry["weight"]), codes)
        if entry["bias"] is not None:
            codes = g.to_codes(bias.detach().numpy(), np.asarray(entry["bias"]["scale"]), np.zeros(()))
            yield Parameter(_key(entry["bias"]["key"]), codes)


def _attribute(module: torch.jit.ScriptModule, value: Any) -> Any:
    """The object that a value of the module's graph is: an attribute of an attribute of the module."""
    node = value.node()
    if node.kind() != "prim::GetAttr":
        return module
    return getattr(_attribute(module, next(node.inputs())), node.s("name"))


def _element_type(grid: Mapping[str, Any] | None) -> int:
    """ONNX's number of the type of the codes of a grid; that of float32 without one."""
    return 1 if grid is None else 3 if grid["signed"] else 2


def _key(entry: Any) -> tuple[str, int]:
    return entry[0], int(entry[1])


def _name(position: int) -> str:
    return f"quantized_{position}"


def _results(graph: Any) -> list[Any]:
    (last,) = graph.outputs()
    node = last.node()
    return list(node.inputs()) if node.kind() == "prim::TupleConstruct" else [last]


def open_observed(observed: Observed) -> Any:
    """The observed graph as a function from arrays to arrays, both by name."""
    graph = observed.module.graph.copy()
    by_name = {_name(i): value for i, value in enumerate(_quantized_values(graph))}
    for name in observed.fed:
        value = by_name[name]
        stand_in = graph.addInput()
        for use in list(value.uses()):
            use.user.replaceInput(use.offset, stand_in)
    results = [*_results(graph), *(by_name[name] for name in observed.seen)]
    graph.eraseOutput(0)
    for value in results:
        graph.registerOutput(value)
    graph.makeMultiOutputIntoTuple()
    with _engine():
        function = torch._C._create_function_from_graph("observed", graph)

    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = [_tensor(feeds[name], observed.grids.get(name)) for name in observed.inputs]
        given += [_tensor(feeds[name + FED], observed.grids[name]) for name in observed.fed]
        with _engine(), torch.no_grad():
            found = function(observed.module._c, *given)
        return {n: _array(t) for n, t in zip((*observed.outputs, *observed.seen), found, strict=True)}

    return run


def _tensor(array: np.ndarray, grid: Mapping[str, Any] | None) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if grid is None:
        return tensor
    return torch._make_per_tensor_quantized_tensor(tensor, grid["scale"], grid["zero_point"])


def _array(tensor: Tensor) -> np.ndarray:
    return (tensor.int_repr() if tensor.is_quantized else tensor.detach()).numpy()
