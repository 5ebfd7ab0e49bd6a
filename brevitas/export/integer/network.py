"""The integer network: what :func:`brevitas.export.to_integer` returns."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from brevitas.errors import ExportError
from brevitas.export.integer.floatops import FloatOp, apply, quantized, scaled
from brevitas.export.integer.kernels import KERNELS
from injector import suggest

if TYPE_CHECKING:
    from brevitas.export.integer.multiplier import Deviation

__all__ = ["Border", "Input", "IntegerNetwork", "IntegerResult", "Output", "Step", "Tensor"]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Tensor:
    """A tensor of integers: shape of one sample (with its batch of one), and the codes it can hold."""

    name: str
    shape: tuple[int, ...]
    low: int
    high: int

    @property
    def signed(self) -> bool:
        """Whether negative integers occur."""
        return self.low < 0

    @property
    def bits(self) -> int:
        """The least width that holds every integer, in two's complement where negative ones occur."""
        return width(self.low, self.high)


def width(low: int, high: int) -> int:
    """Bits for every integer of a range: two's complement where it reaches below zero, else unsigned.

    >>> width(-8, 7), width(0, 15), width(-8, 8), width(0, 0)
    (4, 4, 5, 1)
    """
    if low >= 0:
        return max(1, int(high).bit_length())
    return max((-int(low) - 1).bit_length(), int(high).bit_length() if high > 0 else 0) + 1


@dataclass(frozen=True, eq=False)
class Step:
    """One operation on integers (see :mod:`brevitas.export.integer.kernels`) and the layer that it stands for.

    ``quantizer`` and ``call`` say which quantizer call of the model gives the codes that the step gives, if one does.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)
    layer: str = ""
    layer_class: str = ""
    quantizer: str = ""
    call: int = 0


@dataclass(frozen=True, eq=False)
class Border:
    """A step in float32 before the first quantizer: an operation, ``gather`` or ``reshape``, or ``quantize``."""

    op: str
    input: str
    output: str
    shape: tuple[int, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    arrays: tuple[Array, ...] = ()
    quantizer: str = ""
    call: int = 0

    def run(self, x: Array) -> Array:
        """The step on (samples, *shape)."""
        if self.op == "quantize":
            scale, zero = self.arrays
            a = self.attributes
            if a["bipolar"]:
                return np.where(x >= 0, 1, -1)
            return quantized(x, scale, zero, a["low"], a["high"], a["rounding"])
        if self.op in ("gather", "reshape"):
            return KERNELS[self.op]([x], self.shape, self.attributes, dict(zip(["table"], self.arrays, strict=False)))
        return FloatOp(self.op, self.arrays, self.attributes["number"]).numpy(x)


@dataclass(frozen=True, eq=False)
class Input:
    """A model input: float values, or the codes of a QuantTensor (``tensor`` then names them, with their grid)."""

    name: str
    shape: tuple[int, ...]
    tensor: str | None = None
    scale: Array | None = None
    zero: Array | None = None


@dataclass(frozen=True, eq=False)
class Output:
    """A model output: integers, and the float32 steps that make the model's values of them.

    ``values = ops((codes - zero) * scale)``: scale, and for example a float bias, stay outside the integer part.
    """

    name: str
    tensor: str
    scale: Array
    zero: Array
    ops: tuple[FloatOp, ...] = ()

    def dequantize(self, codes: Array) -> Array:
        """Float values of the codes, float32."""
        return apply(self.ops, scaled(codes - self.zero, self.scale))


@dataclass(frozen=True, eq=False)
class IntegerResult:
    """What a run gave, by output name: ``codes`` (int64) and ``values`` (float32)."""

    codes: dict[str, Array]
    values: dict[str, Array]


Hook = Callable[[Step, Array], Array]


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """A quantized model as integer tensors and exact integer operations; runs in NumPy alone.

    >>> import torch
    >>> from brevitas.export import to_integer
    >>> from brevitas.nn import QuantIdentity, QuantLinear
    >>> model = torch.nn.Sequential(QuantIdentity(bit_width=4, return_quant_tensor=True), QuantLinear(3, 2)).eval()
    >>> net = to_integer(model, input_shape=(1, 3))
    >>> result = net.run(np.zeros((5, 3), np.float32))
    >>> result.codes['output'].shape, result.values['output'].dtype
    ((5, 2), dtype('float32'))

    ``steps`` are integer operations, ``border`` the float ones before the first quantizer, ``outputs`` say how codes
    become the model's floats.
    """

    inputs: tuple[Input, ...]
    border: tuple[Border, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Output, ...]
    tensors: Mapping[str, Tensor]
    deviations: tuple[Deviation, ...] = ()

    def run(self, *inputs: Any, hook: Hook | None = None) -> IntegerResult:
        """Run on a batch.

        Args:
            inputs: one array for each model input, (samples, ...), or one dict of arrays by input name: floats, which
                the model's own input quantizer turns into codes, or integers, which are codes already. Torch tensors
                are taken too.
            hook: called with every step that gives codes or accumulators, and what it gives, (samples, *shape); what it
                returns goes on.

        Returns:
            Codes and float values of every output, by name.

        Raises:
            ExportError: another number of inputs, another shape, or codes out of range.
        """
        env = self._prepared(inputs, hook)
        for step, result in self._steps(env, hook):
            env[step.output] = result
        codes = {o.name: env[o.tensor] for o in self.outputs}
        values = {o.name: o.dequantize(codes[o.name]) for o in self.outputs}
        return IntegerResult(*({k: _batch(v) for k, v in d.items()} for d in (codes, values)))

    def codes(self, *inputs: Any) -> dict[str, Array]:
        """Integers of every tensor of the network, by name, for a batch (arguments as of :meth:`run`)."""
        env = self._prepared(inputs, None)
        for step, result in self._steps(env, None):
            env[step.output] = result
        return {name: _batch(env[name]) for name in self.tensors}

    def _steps(self, env: dict[str, Array], hook: Hook | None) -> Any:
        for step in self.steps:
            xs = [env[name] for name in step.inputs]
            result = KERNELS[step.op](xs, self.tensors[step.output].shape, step.attributes, step.arrays)
            yield step, result if hook is None else hook(step, result)

    def _prepared(self, inputs: Sequence[Any], hook: Hook | None) -> dict[str, Array]:
        """Codes of every input tensor, and the floats before them."""
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            names = [spec.name for spec in self.inputs]
            if set(names) != set(inputs[0]):
                raise ExportError(f"integer network: inputs are {', '.join(names)}; given: {', '.join(inputs[0])}")
            inputs = [inputs[0][name] for name in names]
        if len(inputs) != len(self.inputs):
            raise ExportError(f"integer network: the network has {len(self.inputs)} inputs, {len(inputs)} were given")
        env: dict[str, Array] = {}
        given_codes = set()
        for spec, x in zip(self.inputs, inputs, strict=True):
            array = np.asarray(x.detach().cpu().numpy() if hasattr(x, "detach") else x)
            if array.ndim != len(spec.shape) or array.shape[1:] != spec.shape[1:]:
                expected = ", ".join(["samples", *map(str, spec.shape[1:])])
                raise ExportError(
                    f"integer network: input {spec.name!r} has shape {array.shape}; expected ({expected})"
                )
            array = array[:, None]  # one sample has a batch of one
            if np.issubdtype(array.dtype, np.integer):
                env[self._checked_codes(spec, array)] = array.astype(np.int64)
                given_codes.add(spec.name)
            elif spec.tensor is not None:
                assert spec.scale is not None and spec.zero is not None
                codes = np.rint(array.astype(np.float64) / spec.scale + spec.zero).astype(np.int64)
                env[self._checked_codes(spec, codes)] = codes
            else:
                env[spec.name] = array.astype(np.float32)
        for border in self.border:
            if border.output in env or border.input in given_codes:
                continue
            result = border.run(env[border.input])
            if hook is not None and border.quantizer:
                step = Step("quantize", border.output, (border.input,), border.output)
                result = hook(_of_quantizer(step, border), result)
            env[border.output] = result
        return env

    def _checked_codes(self, spec: Input, codes: Array) -> str:
        """Name of the tensor that takes an input's codes; refuses codes that it cannot hold."""
        readers = [b for b in self.border if b.input == spec.name]
        name = spec.tensor
        if name is None:
            if len(readers) != 1 or readers[0].op != "quantize":
                raise ExportError(
                    f"integer network: input {spec.name!r} cannot be given as codes, because "
                    f"{'several operations read' if len(readers) != 1 else 'a float operation reads'} it; give floats"
                )
            name = readers[0].output
        tensor = self.tensors[name]
        if codes.size and not tensor.low <= int(codes.min()) <= int(codes.max()) <= tensor.high:
            raise ExportError(
                f"integer network: input {spec.name!r} holds codes {int(codes.min())}..{int(codes.max())}; expected "
                f"{tensor.low}..{tensor.high}"
            )
        return name

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every step as a row for reading: codes in and out, thresholds, widths."""
        return tuple(
            Layer(step, tuple(self.tensors[i] for i in step.inputs), self.tensors[step.output]) for step in self.steps
        )

    def layer(self, name: str) -> Layer:
        """The row of a step, by its name."""
        rows = {row.name: row for row in self.layers}
        if name not in rows:
            near = suggest(name, rows)
            raise ExportError(
                f"integer network: no step is named {name!r}; steps: {', '.join(rows)}"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
        return rows[name]

    def __str__(self) -> str:
        """A table of the steps."""
        head = ("step", "operation", "layer", "integers in", "integers out", "bits", "thresholds")
        lines = [head, *(row.cells() for row in self.layers)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        table = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([f"integer network: {len(self.steps)} steps", *table, *map(str, self.deviations)])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``path`` (.npz) and a JSON manifest beside it (:mod:`brevitas.export.integer.storage`)."""
        from brevitas.export.integer.storage import save

        save(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> IntegerNetwork:
        """Read what :meth:`save` wrote. Nothing is unpickled."""
        from brevitas.export.integer.storage import load

        return load(path)

    def write_c(self, path: str | os.PathLike[str], *, name: str | None = None, main: bool = False) -> None:
        """Write a C header without dependencies (:mod:`brevitas.export.integer.c_header`)."""
        from brevitas.export.integer.c_header import write

        write(self, path, name=name, main=main)


@dataclass(frozen=True, eq=False)
class Layer:
    """A step of the network with the tensors that it reads and writes."""

    step: Step
    inputs: tuple[Tensor, ...]
    output: Tensor

    @property
    def name(self) -> str:
        """Name of the step, that of the graph's node."""
        return self.step.name

    @property
    def thresholds(self) -> Array | None:
        """Thresholds, (rows, codes - 1), of a requantization; else ``None``.

        With a sign of -1 the row counts against negated accumulators.
        """
        return self.step.arrays.get("thresholds")

    def cells(self) -> tuple[str, ...]:
        """The row as strings."""
        t = self.thresholds
        return (
            self.name,
            self.step.op,
            f"{self.step.layer_class} {self.step.layer!r}" if self.step.layer else self.step.layer_class,
            ", ".join(f"{x.low}..{x.high}" for x in self.inputs),
            f"{self.output.low}..{self.output.high}",
            f"{self.output.bits}{'s' if self.output.signed else 'u'}",
            "" if t is None else f"{t.shape[0]} x {t.shape[1]}",
        )


def _of_quantizer(step: Step, border: Border) -> Step:
    from dataclasses import replace

    return replace(step, quantizer=border.quantizer, call=border.call)


def _batch(x: Array) -> Array:
    """(samples, 1, ...) -> (samples, ...)."""
    return x[:, 0] if x.ndim > 1 and x.shape[1] == 1 else x
