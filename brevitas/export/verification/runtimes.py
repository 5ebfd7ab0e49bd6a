"""Programs that execute an artifact: onnxruntime, qonnx, onnx's reference evaluator.

A runtime turns a model into a function from input arrays to output arrays, both by name.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from brevitas.errors import ExportError
from brevitas.export.packages import require
from injector import suggest

if TYPE_CHECKING:
    import onnx

__all__ = ["QONNX_DOMAINS", "RUNTIMES", "Session", "open_session", "version_of"]

Feeds = Mapping[str, np.ndarray]
Session = Callable[[Feeds], dict[str, np.ndarray]]


def _onnxruntime(optimize: bool) -> Callable[[onnx.ModelProto], Session]:
    def open_model(proto: onnx.ModelProto) -> Session:
        import torch

        (ort,) = require("onnxruntime", target="onnxruntime", place="verify")
        options = ort.SessionOptions()
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        # Exact products: without VNNI, u8 x s8 kernels saturate unless told not to; MatMulNBits quantizes activations.
        options.add_session_config_entry("session.x64quantprecision", "1")
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        wanted = {i.name for i in session.get_inputs()}

        def run(feeds: Feeds) -> dict[str, np.ndarray]:
            return dict(zip(names, session.run(names, {k: v for k, v in feeds.items() if k in wanted}), strict=True))

        return run

    return open_model


def _qonnx(proto: onnx.ModelProto) -> Session:
    """Shapes are fixed by the first arrays that are fed: qonnx knows no dynamic dimensions."""
    require("qonnx.core.modelwrapper", target="qonnx", command="pip install qonnx", place="verify")
    outputs = [o.name for o in proto.graph.output]
    prepared: dict[tuple[tuple[int, ...], ...], object] = {}

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        from qonnx.core.onnx_exec import execute_onnx

        constants = {i.name for i in proto.graph.initializer}
        arrays = [np.asarray(feeds[v.name]) for v in proto.graph.input if v.name not in constants]
        key = tuple(a.shape for a in arrays)
        if key not in prepared:
            prepared[key] = _qonnx_model(proto, feeds)
        model = prepared[key]
        names = [v.name for v in model.graph.input]  # type: ignore[attr-defined]
        result = execute_onnx(model, dict(zip(names, arrays, strict=True)))
        return dict(zip(outputs, result.values(), strict=True))

    return run


def _qonnx_model(proto: onnx.ModelProto, feeds: Feeds) -> object:
    import onnx
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.util.cleanup import cleanup_model

    bound = onnx.ModelProto()
    bound.CopyFrom(proto)
    for value in bound.graph.input:
        if value.name in feeds:
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for n in np.asarray(feeds[value.name]).shape:
                shape.dim.add().dim_value = n
    for value in bound.graph.output:
        value.type.tensor_type.ClearField("shape")
    del bound.graph.value_info[:]
    _separate_repeated_inputs(bound.graph)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Some old-style domain attributes", category=UserWarning)
        return cleanup_model(ModelWrapper(bound))


def _separate_repeated_inputs(graph: onnx.GraphProto) -> None:
    """A tensor that is several inputs of one node gets a name for each: qonnx runs no such node otherwise."""
    import onnx

    nodes = []
    for i, node in enumerate(graph.node):
        seen: set[str] = set()
        for position, name in enumerate(node.input):
            if name and name in seen:
                copy = f"{name}::copy{i}_{position}"
                nodes.append(onnx.helper.make_node("Identity", [name], [copy]))
                node.input[position] = copy
            seen.add(name)
        nodes.append(node)
    if len(nodes) > len(graph.node):
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)


def _reference(proto: onnx.ModelProto) -> Session:
    require("onnx.reference", target="reference", command="pip install onnx", place="verify")
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(proto)
    names = [o.name for o in proto.graph.output]

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        return dict(zip(names, evaluator.run(None, dict(feeds)), strict=True))

    return run


def _torch(observed: Any) -> Session:
    from brevitas.export.torchscript.artifact import open_observed

    return open_observed(observed)


# Domains of the operators that only the qonnx package executes.
QONNX_DOMAINS = ("qonnx.custom_op.general", "finn.custom_op.general", "onnx.brevitas")

RUNTIMES: dict[str, Callable[[Any], Session]] = {
    "onnxruntime": _onnxruntime(optimize=False),
    "onnxruntime-optimized": _onnxruntime(optimize=True),
    "qonnx": _qonnx,
    "reference": _reference,
    "torch": _torch,
}


def open_session(runtime: str, proto: Any) -> Session:
    """A function that runs ``proto`` in the runtime of that name."""
    if runtime not in RUNTIMES:
        near = suggest(runtime, RUNTIMES)
        raise ExportError(
            f"verify: unknown runtime {runtime!r}; known: {', '.join(RUNTIMES)}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    import onnx

    if (runtime == "torch") == isinstance(proto, onnx.ModelProto):
        what, other = ("an ONNX graph", "onnxruntime") if runtime == "torch" else ("a TorchScript module", "torch")
        raise ExportError(f"verify: runtime {runtime!r} cannot run {what}; use runtime={other!r}, or leave it out")
    if runtime == "torch":
        return RUNTIMES[runtime](proto)
    custom = next((n for n in proto.graph.node if n.domain in QONNX_DOMAINS), None)
    if custom is not None and runtime != "qonnx":
        raise ExportError(f"verify: runtime {runtime!r} has no {custom.op_type} operator; use runtime='qonnx'")
    with _as_export_error(runtime, "does not load"):
        session = RUNTIMES[runtime](proto)

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        with _as_export_error(runtime, "fails to run"):
            return session(feeds)

    return run


@contextlib.contextmanager
def _as_export_error(runtime: str, what: str) -> Iterator[None]:
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # each runtime has exception classes of its own
        first = str(error).strip().partition("\n")[0]
        raise ExportError(f"verify: {version_of(runtime)} {what} the artifact: {first}") from error


def version_of(runtime: str) -> str:
    """Name and version of the package behind a runtime."""
    from importlib.metadata import PackageNotFoundError, version

    package = {"reference": "onnx"}.get(runtime, runtime.partition("-")[0])
    try:
        return f"{runtime} {version(package)}"
    except PackageNotFoundError:
        return runtime
