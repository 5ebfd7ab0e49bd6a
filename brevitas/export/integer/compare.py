"""``verify`` for integer networks: every quantizer's codes against the model's, by the same rules as for files."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from brevitas.errors import ExportError
from brevitas.export.integer.network import IntegerNetwork, Output, Step
from brevitas.export.tracing.canonical import flat_outputs
from brevitas.export.tracing.record import Recorder, Recording
from brevitas.export.tracing.watch import float_value
from brevitas.export.verification.compare import Comparison, compare_activation
from brevitas.export.verification.reference import Float64Model, MagnitudeModel
from brevitas.export.verification.report import Row, VerifyReport
from brevitas.quant_tensor import QuantTensor

__all__ = ["verify_network"]

Array = np.ndarray[Any, np.dtype[Any]]
Key = tuple[str, int]


def verify_network(
    model: nn.Module, net: IntegerNetwork, samples: Sequence[Any], mode: str, chunk: int
) -> VerifyReport:
    """Run the network on the samples, chunk by chunk; the rows are activations and outputs.

    In mode 'isolated' every quantizer's codes are compared, then replaced by the model's.
    """
    if len(samples) != len(net.inputs):
        raise ExportError(f"verify: the network has {len(net.inputs)} inputs, {len(samples)} were given")
    state = _State(model, net, isolated=mode == "isolated")
    if any(t.shape[:1] != (1,) for t in net.tensors.values()):
        chunk = 1  # the model keeps its batch in another dimension: of one sample both have the same shape
    total = float_value(samples[0]).shape[0]
    for start in range(0, total, chunk):
        state.run([_part(x, slice(start, start + chunk)) for x in samples])
    return VerifyReport(state.rows(), "to_integer (NumPy)", mode)


def _part(x: Any, where: slice) -> Any:
    return x.set(value=x.value[where]) if isinstance(x, QuantTensor) else x[where]


class _State:
    def __init__(self, model: nn.Module, net: IntegerNetwork, isolated: bool) -> None:
        self.net, self.isolated, self.model = net, isolated, model
        self.recorder, self.exact = Recorder(model), Float64Model(model)
        self.found: dict[Key, Comparison] = {}
        self.outputs = {o.name: Comparison() for o in net.outputs}
        self.recording = Recording((), None)
        self.seen_difference = False

    def run(self, batch: list[Any]) -> None:
        """Compare one batch."""
        self.recording = self.recorder.run(batch)
        by_key = self.recording.by_key()
        before, _ = self.exact.run(batch, self.recording)
        magnitudes = functools.cache(lambda: MagnitudeModel(self.model).run(batch, self.recording))

        def hook(step: Step, result: Array) -> Array:
            key = (step.quantizer, step.call)
            if not step.quantizer:
                return result
            if key not in by_key:
                raise ExportError(f"verify: the network was made from another model, which has {step.quantizer}")
            r = by_key[key]
            ours = r.codes().numpy()
            theirs = result.reshape(ours.shape) if result.size == ours.size else result
            compare_activation(
                self.found.setdefault(key, Comparison()),
                r,
                ours,
                theirs,
                before.get(key, r.value.double()).numpy(),
                lambda: _numpy(magnitudes().get(key), ours),
                spread=not self.isolated and self.seen_difference,
            )
            self.seen_difference |= not np.array_equal(ours, theirs)
            return ours.reshape(result.shape) if self.isolated and result.size == ours.size else result

        result = self.net.run(*(_given(x) for x in batch), hook=hook)
        for output, x in zip(self.net.outputs, flat_outputs(self.recording.output), strict=True):
            ours, theirs = float_value(x).numpy(), result.values[output.name]
            self.outputs[output.name].add_output(ours, theirs.reshape(ours.shape), self._step(output, ours.ndim))

    def _step(self, output: Output, rank: int) -> Array | None:
        """Grid of an output's accumulator; ``None`` where its quantizer's row counts it, or where functions follow."""
        by_quantizer = any(s.output == output.tensor and s.quantizer for s in self.net.steps)
        by_quantizer |= any(b.output == output.tensor and b.quantizer for b in self.net.border)
        if by_quantizer or any(op.kind not in ("add", "relu") for op in output.ops):
            return None
        return np.asarray(output.scale, np.float64).reshape((1,) * (rank - output.scale.ndim) + output.scale.shape)

    def rows(self) -> list[Row]:
        """What was found, in the order of the model."""
        rows = []
        for key, r in self.recording.by_key().items():
            if key in self.found:
                rows.append(_row(r.layer, r.layer_class, r.quantizer, r.call, "activation", self.found[key]))
        return rows + [_row("", "", name, 0, "output", c) for name, c in self.outputs.items()]


def _numpy(found: Tensor | None, like: Array) -> Array:
    return np.zeros(like.shape) if found is None else found.numpy()


def _given(x: Any) -> Array:
    array: Array = (x.int() if isinstance(x, QuantTensor) else x).detach().cpu().numpy()
    return array


def _row(layer: str, layer_class: str, name: str, call: int, kind: str, c: Comparison) -> Row:
    return Row(
        layer,
        layer_class,
        name,
        call,
        kind,
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
