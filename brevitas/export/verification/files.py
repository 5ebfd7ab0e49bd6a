"""Two files compared tensor by tensor.

``verify`` compares a file with the model it was exported from. Where there is no such model, two files are compared:
one and what a converter made of it, or an export and another tool's file of the same network.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from brevitas.errors import ExportError
from brevitas.export.verification.compare import TIE, boundary_distance
from brevitas.export.verification.foreign import ReadModel, ReadQuantizer, read_model
from brevitas.export.verification.report import Row, VerifyReport
from brevitas.export.verification.runtimes import version_of

if TYPE_CHECKING:
    import onnx

__all__ = ["compare_artifacts"]

Pairs = list[tuple[ReadQuantizer, ReadQuantizer]]


def compare_artifacts(
    first: ReadModel | onnx.ModelProto | str | os.PathLike[str],
    second: ReadModel | onnx.ModelProto | str | os.PathLike[str],
    inputs: Any,
) -> VerifyReport:
    """Run two files on the same inputs and compare every quantizer that both have, and the outputs.

    >>> import torch
    >>> from brevitas.export import QONNXManager, StdONNXManager
    >>> from brevitas.nn import QuantLinear
    >>> layer = QuantLinear(4, 2)
    >>> files = [manager.export(layer, input_shape=(1, 4)) for manager in (QONNXManager, StdONNXManager)]
    >>> report = compare_artifacts(*files, torch.randn(1, 4))
    >>> report.equal, report.diverged
    (8, 0)

    Quantizers belong together by what brevitas wrote of them, or by the name of their tensor; where nothing does and
    both files have as many, by their order. Both files run from the inputs on, so that a difference spreads: the first
    diverged row is where to look. A tie is a difference of a step where the first file rounds a value within 2^-18 of
    a boundary, relative. Outputs are compared by position, as floats.

    Args:
        first, second: files, ``onnx.ModelProto`` s, or what :func:`read_model` returned.
        inputs: as for :meth:`ReadModel.run`; a mapping has the names of the first file.

    Returns:
        The report of ``verify``, mode 'end_to_end'. A quantizer that only one file has is a row without numbers.

    Raises:
        ExportError: as :func:`read_model`; other numbers of inputs or outputs; no quantizer in common.
    """
    a, b = (x if isinstance(x, ReadModel) else read_model(x) for x in (first, second))
    for what in ("inputs", "outputs"):
        counts = [len(getattr(x, what)) for x in (a, b)]
        if counts[0] != counts[1]:
            raise ExportError(f"compare_artifacts: the files have {counts[0]} and {counts[1]} {what}")
    pairs, alone = _paired(a.quantizers, b.quantizers)
    if not pairs and (a.quantizers or b.quantizers):
        counts = [len(x.quantizers) for x in (a, b)]
        raise ExportError(f"compare_artifacts: of {counts[0]} and {counts[1]} quantizers no two belong together")
    feeds = a.feeds(inputs)
    mine = [t for p, _ in pairs if p.parameter is None for t in (p.tensor, p.before)]
    other = [q.tensor for _, q in pairs if q.parameter is None]
    ours = a.run(feeds, *dict.fromkeys(t for t in mine if t not in a.inputs)) | feeds
    theirs = b.run(dict(zip(b.inputs, feeds.values(), strict=True)), *dict.fromkeys(other))
    rows = [_row(p, q, ours, theirs) for p, q in pairs]
    rows += [
        Row(_name(q), "", q.tensor, 0, "activation", 0, 0, causes={f"in the {which} file alone": 1}, counted=False)
        for q, which in alone
    ]
    rows += [_output_row(m, ours[m], theirs[n]) for m, n in zip(a.outputs, b.outputs, strict=True)]
    return VerifyReport(rows, f"{version_of(a.runtime)} and {version_of(b.runtime)}", "end_to_end")


def _paired(
    first: tuple[ReadQuantizer, ...], second: tuple[ReadQuantizer, ...]
) -> tuple[Pairs, list[tuple[ReadQuantizer, str]]]:
    """Quantizers that belong together, in the order of the first file, and the others."""
    by_key = {q.key: q for q in second if q.key is not None}
    by_tensor = {q.tensor: q for q in second}
    pairs: Pairs = []
    for p in first:
        q = by_key.get(p.key) if p.key is not None else None
        q = q or by_tensor.get(p.tensor)
        if q is not None:
            pairs.append((p, q))
    if not pairs and len(first) == len(second):
        pairs = list(zip(first, second, strict=True))
    taken = [{id(pair[i]) for pair in pairs} for i in (0, 1)]
    alone = [(q, "first") for q in first if id(q) not in taken[0]]
    return pairs, alone + [(q, "second") for q in second if id(q) not in taken[1]]


def _name(q: ReadQuantizer) -> str:
    return q.key[0].rpartition(".")[0] if q.key else q.tensor


def _row(p: ReadQuantizer, q: ReadQuantizer, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Row:
    kind = "activation" if p.parameter is None else "weight"
    # Codes relative to the zero point: the files may store them in types of different sign.
    mine = p.parameter if p.parameter is not None else p.codes(ours[p.tensor])
    other = q.parameter if q.parameter is not None else q.codes(theirs[q.tensor])
    names = (_name(p), p.operator, p.key[0] if p.key else p.tensor, p.key[1] if p.key else 0, kind)
    causes: Counter[str] = Counter()
    if mine.shape != other.shape:
        causes[f"shape {other.shape} instead of {mine.shape}"] += mine.size
        return Row(*names, mine.size, 0, diverged=mine.size, causes=dict(causes))
    if not np.allclose(np.broadcast_to(p.scale, mine.shape), np.broadcast_to(q.scale, mine.shape), rtol=1e-6, atol=0):
        causes["different scale"] += mine.size
        return Row(*names, mine.size, 0, diverged=mine.size, causes=dict(causes))
    steps = np.abs((mine - np.rint(p.zero_point)) - (other - np.rint(q.zero_point)))
    tie = np.zeros(mine.shape, bool)
    if p.parameter is None:
        before = ours[p.before].astype(np.float64) / p.scale
        boundary, distance = boundary_distance(before, p.rounding)
        tie = (steps == 1) & (distance <= TIE * np.maximum(np.abs(boundary), 1))
    off = (steps != 0) & ~tie
    if tie.any():
        causes["rounding tie"] += int(tie.sum())
    if off.any():
        causes["different constants" if p.parameter is not None else "different codes"] += int(off.sum())
    counts = (mine.size, int((steps == 0).sum()), int(tie.sum()), int(off.sum()), float(steps.max(initial=0)))
    return Row(*names, *counts, causes=dict(causes))


def _output_row(name: str, ours: np.ndarray, theirs: np.ndarray) -> Row:
    if ours.shape != theirs.shape:
        cause = {f"shape {theirs.shape} instead of {ours.shape}": ours.size}
        return Row("", "", name, 0, "output", ours.size, 0, diverged=ours.size, causes=cause)
    most = float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0))
    return Row("", "", name, 0, "output", ours.size, 0, max_abs_difference=most, counted=False)
