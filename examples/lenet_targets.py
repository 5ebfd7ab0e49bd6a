"""One model on every target: exported, run in the target's program, and compared integer by integer.

Used by readme_lenets.py; it holds for any model with one image input whose layers are used once.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, helper, numpy_helper
from torch import Tensor, nn

from brevitas.errors import ExportError
from brevitas.export import (
    DPUv1Manager,
    DPUv2Manager,
    FINNManager,
    PytorchQuantManager,
    QONNXManager,
    StdQCDQONNXManager,
    StdQOpONNXManager,
    capture,
    lower,
    to_integer,
    verify,
)

__all__ = ["TARGETS", "Cell", "on_every_target"]

TARGETS = {
    "finn": ("FINN", FINNManager),
    "qonnx": ("QONNX", QONNXManager),
    "qdq": ("QDQ", StdQCDQONNXManager),
    "qop": ("QOp", StdQOpONNXManager),
    "torch": ("torch", PytorchQuantManager),
    "dpuv1": ("DPUv1", DPUv1Manager),
    "dpuv2": ("DPUv2", DPUv2Manager),
}
BATCH = 50
#: Ties are at most this part of the values of a layer.
TIES = 1e-3
#: What the order of float additions may change, as a part of the greatest logit.
FLOAT_ORDER = 2.0**-16


@dataclass
class Cell:
    """What was found of one model on one target; ``problems`` say what is not as declared.

    ``codes`` of the refusal; or how many integers were ``compared``, how many of them are ``ties`` of one step, and the
    ``accuracy`` of the exported file in its program (``None``: no program runs it).
    """

    codes: tuple[str, ...] = ()
    compared: int = 0
    ties: int = 0
    accuracy: float | None = None
    problems: list[str] = field(default_factory=list)


def on_every_target(
    model: nn.Module, images: Tensor, labels: Tensor, refused: Mapping[str, Sequence[str]]
) -> dict[str, Cell]:
    """A cell for each target. ``refused``: targets that are to refuse the model, with codes that they must name."""
    size = next(n for n in range(BATCH, 0, -1) if len(images) % n == 0)
    graph = capture(model, [images[:size]])  # one capture for all targets that are made from a graph
    cells, files = {}, {}
    for target in TARGETS:
        cell = cells[target] = Cell()
        try:
            from_graph = target != "torch"
            file = lower(graph, target) if from_graph else PytorchQuantManager.export(model, input_t=images[:size])
        except ExportError as error:
            cell.codes = tuple(sorted({v.code for v in getattr(error, "violations", ())}))
            if target not in refused:
                cell.problems.append(f"refused: {error}")
            elif not set(refused[target]) <= set(cell.codes):
                cell.problems.append(f"refused, but not with all of {', '.join(refused[target])}: {error}")
            continue
        files[target] = file
        if target in refused:
            cell.problems.append(f"exported, and not refused with {', '.join(refused[target])}")
        elif target.startswith("dpu"):
            compare_with_attributes(cell, model, file, files["qdq"])
        else:
            tensors = executed(target, file, images, size)
            cell.accuracy = float((torch.from_numpy(tensors["output"]).argmax(1) == labels).double().mean())
            has_integers = compare(cell, model, file, images)
            if target == "finn" and has_integers:
                compare_with_reference(cell, model, file, images, tensors)
    return cells


def executed(target: str, file: Any, images: Tensor, size: int) -> dict[str, np.ndarray]:
    """The output of an exported file in its program, and for FINN every tensor, by name."""
    if target == "torch":
        with torch.no_grad():
            return {"output": file(images).numpy()}
    if target in ("finn", "qonnx"):
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.core.onnx_exec import execute_onnx

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Some old-style domain attributes", category=UserWarning)
            model = ModelWrapper(file)
        runs = [execute_onnx(model, {"input": x.numpy()}, target == "finn") for x in images.split(size)]
        made = [name for node in file.graph.node for name in node.output if name in runs[0]]
        return {name: np.concatenate([tensors[name] for tensors in runs]) for name in made}
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    # Without VNNI, kernels for unsigned times signed 8-bit integers saturate unless they are told not to.
    settings.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(file.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return {"output": np.concatenate([session.run(None, {"input": x.numpy()})[0] for x in images.split(size)])}


def compare(cell: Cell, model: nn.Module, file: Any, images: Tensor) -> bool:
    """Every integer with the model's, each layer on the model's own; returns whether activations have integers."""
    report = verify(model, file, images)
    with torch.no_grad():
        greatest = float(model(images).abs().max())
    for row in report.rows:
        name = row.quantizer if row.kind == "output" else f"{row.layer}.{row.kind}"
        if not row.counted and row.max_abs_difference > FLOAT_ORDER * greatest:
            cell.problems.append(f"{name}: floats differ by {row.max_abs_difference:.3g}, greatest {greatest:.3g}")
        if row.counted and row.diverged:
            cell.problems.append(f"{name}: {row.diverged} of {row.total} integers differ: {row.remark}")
        if row.counted and row.ties > max(1, TIES * row.total):  # one is no rate
            cell.problems.append(f"{name}: {row.ties} of {row.total} integers are ties")
    cell.compared, cell.ties = report.total, report.ties
    return any(row.kind == "activation" for row in report.rows)


def compare_with_reference(
    cell: Cell, model: nn.Module, file: ModelProto, images: Tensor, tensors: Mapping[str, np.ndarray]
) -> None:
    """Every integer that qonnx computed with the integer reference: all are equal, ties included."""
    reference: dict[str, np.ndarray] = {}

    def keep(step: Any, codes: np.ndarray) -> np.ndarray:
        if step.quantizer:
            reference[step.quantizer] = codes
        return codes

    outputs = to_integer(model, images[:1]).run(images, hook=keep).values
    pairs = {"output": (outputs["output"], tensors["output"])}
    for node in file.graph.node:
        said = {p.key: p.value for p in node.metadata_props}
        if said.get("brevitas.part") == "codes":
            name = said["brevitas.quantizer"]
            pairs[name] = (reference.pop(name), tensors[node.output[0]])
    if reference:
        cell.problems.append(f"not found in the file: {', '.join(reference)}")
    for name, (ours, theirs) in pairs.items():
        different = int((ours.reshape(theirs.shape) != theirs).sum())
        if different:
            cell.problems.append(f"{name}: {different} of {theirs.size} differ from the integer reference")
        cell.compared += theirs.size


def compare_with_attributes(cell: Cell, model: nn.Module, file: ModelProto, qdq: ModelProto) -> None:
    """Integers and attributes of a DPU file with the model's, and its scales with those of the model as QDQ.

    Between layers the model has functions only, which keep the grid of the layer before them.
    """
    arrays, scales = initializers(file), initializers(qdq)
    grid: list[int] | None = None

    def same(name: str, found: Any, expected: Any) -> None:
        found, expected = np.asarray(found), np.asarray(expected)
        cell.compared += expected.size
        if not np.array_equal(found, expected):
            cell.problems.append(f"{name} is {found.tolist()}, the model's {expected.tolist()}")

    for node in file.graph.node:
        if node.domain != "pyxir":
            continue
        said = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name.startswith("vai_quant_")}
        layer = dict(model.named_modules()).get(node.name)
        expected = {}
        if layer is None:
            expected["out"] = grid
        else:
            if grid is None:
                grid = fixed_point(layer, "input")
            for what, argument in (("weight", 1), ("bias", 2)):
                same(f"{node.name}: {what}", arrays[node.input[argument]], getattr(layer, f"int_{what}")())
                expected["weights" if what == "weight" else "biases"] = fixed_point(layer, what)
            expected["out"] = fixed_point(layer, "output")
            for what in ("weight", "bias", "output"):
                scale = getattr(layer, f"quant_{what}_scale")().item()
                same(f"{node.name}: {what} scale as QDQ", scales[f"{node.name}.{what}_scale"].item(), scale)
        expected["in"] = grid
        same(f"{node.name}: names of attributes", sorted(said), sorted(f"vai_quant_{n}" for n in expected))
        for name, pair in expected.items():
            same(f"{node.name}: vai_quant_{name}", said.get(f"vai_quant_{name}"), pair)
        grid = expected["out"]


def fixed_point(layer: nn.Module, what: str) -> list[int]:
    """Width and position of a layer's weight, bias, input or output: ``[b, p]`` where the scale is 2^-p."""
    scale, width = (getattr(layer, f"quant_{what}_{n}")().item() for n in ("scale", "bit_width"))
    return [int(width), -round(np.log2(scale))]


def initializers(proto: ModelProto) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}
