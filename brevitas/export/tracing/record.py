"""Record what every quantizer of a model does in one eval forward.

Both halves of the package rest on this: ``capture`` replays the records while torch traces the model, and ``verify``
compares them with what an artifact computes. The model itself is never touched: quantizers are watched on a deep copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from brevitas.core.quant import FloatQuant
from brevitas.core.rounding import DPURoundSte
from brevitas.export.graph import integer_range
from brevitas.export.minifloat import FLOAT_QUANT, FloatFormat
from brevitas.export.tracing.watch import Watched, activation_of, float_value
from brevitas.function.rounding import dpu_round
from brevitas.quant_tensor import QuantTensor

__all__ = ["QONNX_ROUNDING", "Record", "Recorder", "Recording"]

# Our names of rounding modes, and those of the Quant operator (which has none for the last one).
QONNX_ROUNDING = {
    "ROUND": "ROUND",
    "CEIL": "CEIL",
    "FLOOR": "FLOOR",
    "ROUND_TO_ZERO": "DOWN",
    DPURoundSte.__name__: "DPU",
}
_ROUND: dict[str, Callable[[Tensor], Tensor]] = {
    "ROUND": torch.round,
    "CEIL": torch.ceil,
    "FLOOR": torch.floor,
    "DOWN": torch.trunc,
    "DPU": dpu_round,
}


#: Elements of a weight that are examined at once.
_PIECE = 1 << 16


@dataclass(frozen=True)
class Record:
    """One call of one quantizer: where it stands, what went in, what came out.

    ``input`` is the float tensor that was rounded (after the activation function, if the quantizer holds one), float32;
    ``value`` lies on the grid ``(codes - zero_point) * scale``. ``rounding`` is the Quant operator's name of the mode.
    ``kind`` is the operator that stands for the quantizer; ``truncated`` the input of a ``Trunc``, with its grid;
    ``float_format`` which numbers a minifloat quantizer gives.
    """

    quantizer: str
    call: int
    layer: str
    layer_class: str
    role: str
    input: Tensor
    value: Tensor
    scale: Tensor
    zero_point: Tensor
    bit_width: Tensor
    signed: bool
    narrow: bool
    rounding: str
    collected: bool = True
    unsupported: str = ""
    source: Any = None
    truncated: QuantTensor | None = None
    kind: str = "Quant"
    float_format: FloatFormat | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Identity of the call within a model."""
        return self.quantizer, self.call

    @property
    def is_parameter(self) -> bool:
        """True for weights and biases."""
        return self.role in ("weight", "bias")

    @property
    def range(self) -> tuple[int, int]:
        """Least and greatest code."""
        return (-1, 1) if self.kind == "BipolarQuant" else integer_range(int(self.bit_width), self.signed, self.narrow)

    def constants(self) -> tuple[tuple[str, Tensor], ...]:
        """What the node takes besides the tensor, in order, each with the end of its name."""
        scale, zero_point, bits = (
            ("_scale", self.scale),
            ("_zero_point", self.zero_point),
            ("_bit_width", self.bit_width),
        )
        if self.float_format is not None:
            f = self.float_format
            format_ = (
                ("_exponent_bit_width", f.exponent_bits),
                ("_mantissa_bit_width", f.mantissa_bits),
                ("_exponent_bias", f.bias),
                ("_max_val", f.largest),
            )
            return (scale, *((end, torch.tensor(float(number))) for end, number in format_))
        if self.truncated is not None:
            given = (("_in_scale", self.truncated.scale), zero_point, ("_in_bit_width", self.truncated.bit_width))
            return (*given, scale, bits)
        return (scale,) if self.kind == "BipolarQuant" else (scale, zero_point, bits)

    def codes(self) -> Tensor:
        """Integer codes of the recorded values."""
        return self.codes_of(self.value)

    def codes_of(self, values: Tensor) -> Tensor:
        """Integer codes of values on the grid, int64; of minifloats, which number of the format each one is.

        Exact: the quotient of two float32 numbers on a grid is near an integer in float64.
        """
        if self.float_format is not None:
            return torch.from_numpy(self.float_format.codes(values.numpy(), self.scale.numpy()))
        return (torch.round(values.double() / self.scale.double()) + self.zero_point.double()).round().long()

    def quant_tensor(self, dtype: torch.dtype) -> QuantTensor | Tensor:
        """The recorded output as a QuantTensor whose value is computed from the codes in ``dtype``.

        Minifloats are a plain tensor, as in the model.
        """
        if self.float_format is not None:
            return self.value.to(dtype)
        scale, zero_point = self.scale.to(dtype), self.zero_point.to(dtype)
        value = (self.codes().to(dtype) - zero_point) * scale
        return QuantTensor.unchecked(
            value, scale, zero_point, self.bit_width.to(dtype), self.signed, False, self.source
        )


@dataclass(frozen=True)
class Recording:
    """Every record of one forward, in order, and what the forward returned."""

    records: tuple[Record, ...]
    output: Any

    def by_key(self) -> dict[tuple[str, int], Record]:
        """Records by (quantizer, call)."""
        return {r.key: r for r in self.records}


def owner_of(model: nn.Module, quantizer: str) -> tuple[str, str, str]:
    """Layer path, layer class and role of a quantizer, from its qualified name."""
    layer = quantizer.rpartition(".")[0]
    return layer, type(model.get_submodule(layer)).__name__, role_of(quantizer)


def _kind(out: QuantTensor, truncated: QuantTensor | None) -> str:
    if truncated is not None:
        return "Trunc"
    return "BipolarQuant" if out.signed and out.bit_width.numel() == 1 and float(out.bit_width) == 1 else "Quant"


def role_of(quantizer: str) -> str:
    """Role of a quantizer, from its qualified name."""
    attribute = quantizer.rpartition(".")[2]
    return "snap" if attribute == "requantize" else attribute.removesuffix("_quant") or "act"


class Recorder(Watched):
    """Records eval forwards of a private copy of a model.

    >>> from brevitas.nn import QuantIdentity
    >>> recording = Recorder(QuantIdentity(bit_width=4)).run([torch.tensor([0.5, -1.0])])
    >>> [(r.quantizer, r.codes().tolist()) for r in recording.records]
    [('act_quant', [4, -8])]
    """

    def __init__(self, model: nn.Module, *, probe: bool = False) -> None:
        """``probe``: also try every activation quantizer on values across and beyond its range (``unsupported``)."""
        super().__init__(model)
        self._probe = probe

    def run(self, inputs: Sequence[Any]) -> Recording:
        """One forward on Tensors or QuantTensors, which are taken to the CPU."""
        self._records: list[Record] = []
        self._calls: dict[str, int] = {}
        output = self.run_model([x.cpu() if isinstance(x, (Tensor, QuantTensor)) else x for x in inputs])
        return Recording(tuple(self._records), output)

    def on_quantizer(
        self, name: str, module: nn.Module, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Let the quantizer run and keep what it returns."""
        out = original(*args, **kwargs)
        if getattr(module, "is_minifloat", False) and isinstance(out, Tensor):
            self._records.append(self._minifloat(name, module, args[0], out))
            return out
        if not isinstance(out, QuantTensor):
            return out
        rounding = str(getattr(module, "rounding_mode", None) or "ROUND")
        never = getattr(module, "never_calibrated", None)
        made = self._record(
            name,
            activation_of(module)(float_value(args[0])),
            out,
            narrow=bool(getattr(module, "is_narrow_range", False)),
            rounding=QONNX_ROUNDING.get(rounding, rounding),
            collected=never is None or not never(),
            truncated=args[0] if role_of(name) == "trunc" and isinstance(args[0], QuantTensor) else None,
        )
        if self._probe and not made.is_parameter and not made.unsupported:
            made = replace(made, unsupported=_probed(made, activation_of(module), original, args[0]))
        self._records.append(made)
        return out

    def _minifloat(self, name: str, module: Any, given: Any, out: Tensor) -> Record:
        call = self._calls[name] = self._calls.get(name, -1) + 1
        layer, layer_class, role = owner_of(self.model, name)
        found, rounding = FloatFormat.of(module.tensor_quant), module.rounding_mode
        never = getattr(module, "never_calibrated", None)
        scale = module.scale().detach()
        unsupported = ""
        if type(module.tensor_quant) is not FloatQuant:
            unsupported = "scales of groups"
        elif not found.signed:
            unsupported = "minifloats without sign"
        elif not found.holds(out.detach().numpy(), scale.numpy()):
            unsupported = "values that are not numbers of its format times its scale"
        return Record(
            quantizer=name,
            call=call,
            layer=layer,
            layer_class=layer_class,
            role=role,
            input=activation_of(module)(float_value(given)).detach(),
            value=out.detach(),
            scale=scale,
            zero_point=torch.zeros(()),
            bit_width=torch.tensor(float(found.signed + found.exponent_bits + found.mantissa_bits)),
            signed=found.signed,
            narrow=False,
            rounding=QONNX_ROUNDING.get(rounding, rounding),
            collected=never is None or not never(),
            unsupported=unsupported,
            kind=FLOAT_QUANT,
            float_format=found,
        )

    def on_requantize(
        self, name: str, grid: QuantTensor, value: Tensor, original: Callable[[QuantTensor, Tensor], QuantTensor]
    ) -> QuantTensor:
        """Let the function run and keep what it returns."""
        out = original(grid, value)
        self._records.append(self._record(name, value, out))
        return out

    def _record(
        self,
        name: str,
        x: Tensor,
        out: QuantTensor,
        narrow: bool = False,
        rounding: str = "ROUND",
        collected: bool = True,
        truncated: QuantTensor | None = None,
    ) -> Record:
        call = self._calls[name] = self._calls.get(name, -1) + 1
        layer, layer_class, role = owner_of(self.model, name)
        made = Record(
            quantizer=name,
            call=call,
            layer=layer,
            layer_class=layer_class,
            role=role,
            input=x.detach(),
            value=out.value.detach(),
            scale=out.scale.detach(),
            zero_point=out.zero_point.detach(),
            bit_width=out.bit_width.detach(),
            signed=bool(out.signed),
            narrow=narrow,
            rounding=rounding,
            collected=collected,
            source=out.source,
            truncated=truncated,
            kind=_kind(out, truncated),
        )
        return replace(made, unsupported=_unsupported(made))


def _probed(r: Record, activation: Callable[[Tensor], Tensor], quantizer: Callable[..., Any], given: Any) -> str:
    """What the quantizer does on values all over its range, and half as far beyond, that a Quant node does not express.

    The recorded input alone may tell nothing: it may be all zeros.
    """
    size = r.value.numel()
    generator = torch.Generator().manual_seed(0)
    for _ in range(-(-64 // size) if size else 0):
        x = _trial(r, given, generator)
        out = quantizer(x)
        if not torch.equal(out.scale, r.scale) or not torch.equal(out.zero_point, r.zero_point):
            return "a scale or zero point that depends on its input"
        truncated = x if r.truncated is not None else None
        found = _unsupported(replace(r, input=activation(float_value(x)), value=out.value, truncated=truncated))
        if found:
            return found
    return ""


def _trial(r: Record, given: Any, generator: torch.Generator) -> Any:
    """An input of the kind that the quantizer was ``given``: codes where it truncates codes, else any values."""
    if r.truncated is not None:
        low, high = integer_range(int(r.truncated.bit_width), r.truncated.signed, False)
        codes = torch.empty(r.value.shape).uniform_(low, high, generator=generator).round()
        return given.set(value=(codes - given.zero_point) * given.scale)
    low, high = r.range
    steps = torch.empty(r.value.shape).uniform_(1.5 * low - 0.5 * high, 1.5 * high - 0.5 * low, generator=generator)
    x = (steps - r.zero_point) * r.scale
    if not isinstance(given, QuantTensor):
        return x
    grid = (given.scale, given.zero_point, given.bit_width, given.signed, False, given.source)
    return QuantTensor.unchecked(x, *grid)


def _unsupported(r: Record) -> str:
    """What the quantizer does that its node does not express; '' where the node reproduces it."""
    return next((found for part in _parts(r) if (found := _unsupported_part(part))), "")


def _parts(r: Record) -> Iterator[Record]:
    """A record in pieces along dim 0, so that examining a large weight takes little memory beside it."""
    rows = len(r.value) if r.value.ndim else 1
    step = max(1, _PIECE * rows // max(r.value.numel(), 1))
    if not r.is_parameter or step >= rows:
        yield r
        return
    for start in range(0, rows, step):
        piece = slice(start, start + step)

        def part(t: Tensor, piece: slice = piece) -> Tensor:
            return t[piece] if t.ndim == r.value.ndim and t.shape[0] == rows else t

        yield replace(r, input=part(r.input), value=part(r.value), scale=part(r.scale), zero_point=part(r.zero_point))


def _unsupported_part(r: Record) -> str:
    if r.bit_width.numel() != 1 or float(r.bit_width) != int(r.bit_width) or int(r.bit_width) < 1:
        return f"a bit width of {r.bit_width.tolist()}, which is not one positive integer"
    low, high = r.range
    codes = r.codes()
    value = ((codes - r.zero_point.double()).float() * r.scale.float()).to(r.value.dtype)
    if not torch.equal(value, r.value):
        return "values that do not lie on its grid (codes - zero point) * scale"
    if codes.numel() and (int(codes.min()) < low or int(codes.max()) > high):
        return f"codes {int(codes.min())}..{int(codes.max())} outside {low}..{high}"
    if r.kind == "BipolarQuant":
        return _not_bipolar(r, codes)
    if r.is_parameter or r.rounding not in _ROUND:
        return ""
    if r.truncated is not None:
        return _not_truncation(r, codes, low, high)
    # Rounding is monotone: up to float noise a code lies between those of a slightly lesser and a slightly greater x.
    before = r.input.double() / r.scale.double() + r.zero_point.double()
    noise = 2.0**-10 + before.abs() * 2.0**-20
    least, greatest = (_ROUND[r.rounding](before + sign * noise).clamp(low, high) for sign in (-1, 1))
    if bool(((codes < least) | (codes > greatest)).any()):
        return "another function of its input than clamp(round(x / scale + zero point))"
    return ""


def _not_bipolar(r: Record, codes: Tensor) -> str:
    if bool(r.zero_point.any()):
        return "codes -1 and +1 with a zero point"
    sign = torch.where(r.input >= 0, 1, -1)
    if not torch.equal(codes.abs(), torch.ones_like(codes)) or not (r.is_parameter or torch.equal(codes, sign)):
        return "another function of its input than its sign"
    return ""


def _not_truncation(r: Record, codes: Tensor, low: int, high: int) -> str:
    given = r.truncated
    assert given is not None
    steps = torch.round(given.value.double() / given.scale.double())
    factor = torch.exp2(torch.round(torch.log2(r.scale.double() / given.scale.double())))
    expected = _ROUND[r.rounding](steps / factor) + r.zero_point.double()
    if not torch.equal(codes.double(), expected.clamp(low, high)):
        return "another function of its input than its code without some bits"
    return ""
