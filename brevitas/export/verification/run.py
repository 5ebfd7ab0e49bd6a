"""The entry of the package: feed, run, compare, report."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from brevitas.errors import ExportError
from brevitas.export.integer.network import IntegerNetwork
from brevitas.export.packages import require
from brevitas.export.targets import get_target, list_targets
from brevitas.export.torchscript.artifact import is_torchscript, read_torchscript
from brevitas.export.tracing.canonical import flat_outputs
from brevitas.export.tracing.keywords import by_position
from brevitas.export.tracing.record import Record, Recorder, Recording
from brevitas.export.tracing.watch import float_value
from brevitas.export.verification.artifact import FED, Artifact, Cut, read_artifact
from brevitas.export.verification.compare import Comparison, compare_activation
from brevitas.export.verification.reference import Float64Model, MagnitudeModel
from brevitas.export.verification.report import Row, VerifyReport
from brevitas.export.verification.runtimes import open_session, version_of
from brevitas.quant_tensor import QuantTensor

if TYPE_CHECKING:
    import onnx

__all__ = ["verify"]

MODES = ("isolated", "end_to_end")


def verify(
    model: nn.Module,
    artifact: onnx.ModelProto | str | os.PathLike[str] | IntegerNetwork,
    inputs: Any,
    *,
    runtime: str | None = None,
    mode: str = "isolated",
    chunk: int = 250,
) -> VerifyReport:
    """Run an artifact in its runtime and compare every integer with the model's.

    >>> from brevitas.export import StdONNXManager
    >>> from brevitas.nn import QuantLinear
    >>> layer = QuantLinear(4, 2)
    >>> report = verify(layer, StdONNXManager.export(layer, input_shape=(1, 4)), torch.randn(1, 4))
    >>> report.ok, [row.quantizer for row in report.rows]
    (True, ['weight_quant', 'output'])

    Args:
        model: the model the artifact was exported from; it is copied and never changed.
        artifact: what the manager returned, or the file, or what ``to_integer`` returned.
        inputs: a Tensor, a tuple of Tensors, a QuantTensor, or a dict of inputs by name in the order in which the
            model was exported; dimension 0 is a batch of any size.
        runtime: 'onnxruntime' (float kernels, no fusion), 'onnxruntime-optimized', 'qonnx' or 'reference'; by default
            the one that reads the artifact's format.
        mode: 'isolated' feeds each layer the model's own codes, so that a difference never spreads and must be
            explained where it stands; 'end_to_end' runs the artifact on the inputs alone.
        chunk: how many samples are run at once where the artifact's batch is dynamic.

    Returns:
        A report whose rows hold, for each quantizer, how many codes are equal, are ties of one step (the value before
        rounding, in float64, lies within 2^-18 of a rounding boundary, relative), or diverged.

    Raises:
        ExportError: unknown runtime or mode, a missing package, an artifact without metadata or of another model.
    """
    if mode not in MODES:
        raise ExportError(f"verify: unknown mode {mode!r}; known: {', '.join(MODES)}")
    model, inputs = by_position(model, inputs)
    samples = list(inputs) if isinstance(inputs, (tuple, list)) else [inputs]
    for x in samples:
        if not isinstance(x, (Tensor, QuantTensor)):
            raise TypeError(f"verify: expected a Tensor, a tuple of Tensors, or a QuantTensor, got {type(x).__name__}")
    if isinstance(artifact, IntegerNetwork):
        from brevitas.export.integer.compare import verify_network

        if runtime is not None:
            raise ExportError(f"verify: an integer network runs in NumPy; leave runtime={runtime!r} out")
        return verify_network(model, artifact, samples, mode, chunk)
    require("onnx", target="verify", place="verify")
    read = read_torchscript(artifact) if is_torchscript(artifact) else read_artifact(artifact)
    if runtime is None:
        runtime = get_target(read.target).runtime if read.target in list_targets() else "onnxruntime"
    if not runtime:
        raise ExportError(
            f"verify: no program executes artifacts of target '{read.target}'; export the model to 'qdq' as well, "
            "which has the same scales and integers, and verify that"
        )
    if len(samples) != len(read.inputs):
        raise ExportError(f"verify: the artifact has {len(read.inputs)} inputs, {len(samples)} were given")
    return VerifyReport(_Verification(model, read, runtime, mode).rows(samples, chunk), version_of(runtime), mode)


class _Verification:
    """State of one call: the sessions, the two copies of the model, and the running comparisons."""

    def __init__(self, model: nn.Module, artifact: Artifact, runtime: str, mode: str) -> None:
        self.artifact = artifact
        self.model = model
        self.recorder = Recorder(model)
        self._magnitude_model: MagnitudeModel | None = None
        self._seen_difference = False
        self.exact = Float64Model(model)
        self.isolated = mode == "isolated"
        proto, self.fed = artifact.isolated() if self.isolated else (artifact.observed(), [])
        self.session = open_session(runtime, proto)
        self.comparisons: dict[tuple[str, int], Comparison] = {}
        self.outputs: list[Comparison] = []
        self.records: dict[tuple[str, int], Record] = {}

    def rows(self, samples: list[Any], chunk: int) -> list[Row]:
        """Run everything, chunk by chunk."""
        self.input_scales = {
            info.name: x.scale.detach().cpu().double()
            for info, x in zip(self.artifact.inputs, samples, strict=True)
            if isinstance(x, QuantTensor)
        }
        for batch, used in _chunks(samples, self.artifact.fixed_batch, chunk):
            self._chunk(batch, used)
        rows = [_row(self.records[key], c) for key, c in self.comparisons.items()]
        for name, c in zip(self.artifact.output_names, self.outputs, strict=True):
            rows.append(
                Row(
                    "",
                    "",
                    name,
                    0,
                    "output",
                    c.total,
                    c.equal,
                    c.ties,
                    c.diverged,
                    c.most_steps,
                    c.max_abs_difference,
                    c.tie_distance,
                    dict(c.causes),
                    c.counted,
                )
            )
        return rows

    def _chunk(self, batch: list[Any], used: int) -> None:
        recording = self.recorder.run(batch)
        magnitudes = functools.cache(lambda: self._magnitudes(batch, recording))
        before, _ = self.exact.run(batch, recording)
        by_key = recording.by_key()
        if not self.comparisons:
            self._start(by_key)
        feeds = {
            v.name: _fed_input(x, v, codes)
            for v, x, codes in zip(self.artifact.inputs, batch, self.artifact.takes_codes, strict=True)
        }
        for cut in self.fed:
            feeds[cut.tensor + FED] = _fed_codes(by_key[cut.key], cut)
        results = self.session(feeds)
        for cut in self.artifact.cuts:
            r = by_key[cut.key]
            theirs = results[cut.tensor]
            if cut.form == "values":
                theirs = r.codes_of(torch.from_numpy(theirs)).numpy()
            theirs = theirs.astype(np.int64) - cut.offset
            ours, theirs, exact = (
                r.codes().numpy(),
                theirs,
                before.get(cut.key, r.value.double()).numpy(),
            )
            if ours.ndim and exact.shape == ours.shape and ours.shape[0] > used and r.role not in ("weight", "bias"):
                ours, theirs, exact = ours[:used], theirs[:used], exact[:used]
            compare_activation(
                self.comparisons[cut.key],
                r,
                ours,
                theirs,
                exact,
                functools.partial(self._magnitude, magnitudes, cut.key, ours.shape),
                spread=not self.isolated and self._seen_difference,
                slack=self.artifact.slack.get(cut.key),
            )
            self._seen_difference |= not np.array_equal(ours, theirs)
        self._compare_outputs(recording, results, by_key, used)

    @staticmethod
    def _magnitude(
        magnitudes: Callable[[], dict[tuple[str, int], Tensor]], key: tuple[str, int], shape: tuple[int, ...]
    ) -> np.ndarray:
        found = magnitudes().get(key)
        if found is None:  # a parameter: nothing was summed
            return np.zeros(shape)
        return found.numpy()[: shape[0]] if shape else found.numpy()

    def _magnitudes(self, batch: list[Any], recording: Recording) -> dict[tuple[str, int], Tensor]:
        if self._magnitude_model is None:
            self._magnitude_model = MagnitudeModel(self.model)
        return self._magnitude_model.run(batch, recording)

    def _start(self, by_key: dict[tuple[str, int], Record]) -> None:
        keys = {c.key for c in self.artifact.cuts} | {p.key for p in self.artifact.parameters}
        if keys != set(by_key):
            only_file = sorted({q for q, _ in keys - set(by_key)})
            only_model = sorted({q for q, _ in set(by_key) - keys})
            raise ExportError(
                "verify: the artifact was made from another model; "
                f"quantizers of the artifact alone: {', '.join(only_file) or 'none'}; of the model alone: "
                f"{', '.join(only_model) or 'none'}"
            )
        self.records = by_key
        self.comparisons = {key: Comparison() for key in by_key}
        for parameter in self.artifact.parameters:
            r, codes = by_key[parameter.key], parameter.codes
            if codes is None:
                assert parameter.values is not None
                codes = r.codes_of(torch.from_numpy(np.array(parameter.values))).numpy()
            self.comparisons[parameter.key].add_codes(r.codes().numpy(), codes)
        self.outputs = [Comparison() for _ in self.artifact.output_names]

    def _compare_outputs(
        self, recording: Recording, results: dict[str, np.ndarray], by_key: dict[tuple[str, int], Record], used: int
    ) -> None:
        ours = flat_outputs(recording.output)
        for name, x, comparison in zip(self.artifact.output_names, ours, self.outputs, strict=True):
            mine, theirs = float_value(x).numpy(), results[name]
            if isinstance(x, QuantTensor) and np.issubdtype(theirs.dtype, np.integer):
                theirs = (theirs - x.zero_point.numpy()) * x.scale.numpy()
            if mine.ndim and mine.shape[0] > used:
                mine, theirs = mine[:used], theirs[:used]
            comparison.add_output(mine, theirs, self._step(name, x, by_key))

    def _step(self, name: str, x: Any, by_key: dict[tuple[str, int], Record]) -> np.ndarray | None:
        """Grid of an output: its own scale, or that of the accumulator whose integers it holds.

        ``None`` where it has none, and where it is a quantizer's result, which that quantizer's row counts.
        """
        if any(cut.tensor == name for cut in self.artifact.cuts):
            return None
        if isinstance(x, QuantTensor):
            return x.scale.double().numpy()
        product = self.artifact.product_of(name)
        if product is None:
            return None
        source, weight_key = product
        if any(
            by_key[k].float_format is not None for k in (source, weight_key) if isinstance(k, tuple) and k in by_key
        ):
            return None  # sums of minifloats lie on no grid
        if isinstance(source, tuple):
            data = by_key[source].scale.double() if source in by_key else None
        else:
            data = self.input_scales.get(source)
        if data is None or data.numel() != 1 or weight_key not in by_key:
            return None
        weight = by_key[weight_key].scale.double()
        scale = (data.reshape(()) * weight.reshape(-1)).numpy()
        rank = float_value(x).ndim
        is_conv = by_key[weight_key].value.ndim > 2
        return scale.reshape((1, -1) + (1,) * (rank - 2)) if scale.size > 1 and is_conv else scale


def _row(r: Record, c: Comparison) -> Row:
    kind = r.role if r.is_parameter else "activation"
    return Row(
        r.layer,
        r.layer_class,
        r.quantizer,
        r.call,
        kind,
        c.total,
        c.equal,
        c.ties,
        c.diverged,
        c.most_steps,
        None,
        c.tie_distance,
        dict(c.causes),
    )


def _chunks(samples: list[Any], fixed: int | None, size: int) -> Iterator[tuple[list[Any], int]]:
    """Batches of inputs, and how many of their samples are wanted: a fixed batch is filled up with repeated samples."""
    total = float_value(samples[0]).shape[0] if float_value(samples[0]).ndim else 1
    size = fixed or size
    if fixed is None and total <= size or total == fixed:
        yield samples, total
        return
    for start in range(0, total, size):
        index = torch.arange(start, min(start + size, total))
        used = len(index)
        if fixed is not None and used < fixed:
            index = torch.cat([index, torch.zeros(fixed - used, dtype=torch.long)])
        yield [_select(x, index, total) for x in samples], used


def _select(x: Any, index: Tensor, total: int) -> Any:
    """Samples of a tensor; what has no batch of that size (a constant input) is used whole."""
    value = float_value(x)
    if not value.ndim or value.shape[0] != total:
        return x
    if isinstance(x, QuantTensor):
        return x.set(value=value[index])
    return x[index]


def _fed_input(x: Any, info: onnx.ValueInfoProto, codes: bool) -> np.ndarray:
    import onnx

    dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    if isinstance(x, QuantTensor):
        integer = np.issubdtype(dtype, np.integer)
        return (x.int() if integer or codes else x.value).detach().cpu().numpy().astype(dtype)
    return x.detach().cpu().numpy().astype(dtype)


def _fed_codes(r: Record, cut: Cut) -> np.ndarray:
    import onnx

    if cut.form == "values":
        return r.value.numpy().astype(np.float32)
    return (r.codes().numpy() + cut.offset).astype(onnx.helper.tensor_dtype_to_np_dtype(cut.elem_type))
