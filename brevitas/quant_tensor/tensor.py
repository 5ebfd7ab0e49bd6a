"""The affine tensor: a real value together with the integer grid it lies on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import GetAttrKey, register_pytree_node

from brevitas.errors import QuantMetadataError, UnknownOptionError
from brevitas.function.int_quant_op import int_quant
from brevitas.function.ops_ste import binary_sign_ste, round_ste
from brevitas.quant_tensor.bit_width import CodeRange, code_range, readable
from brevitas.quant_tensor.checks import (
    RTOL,
    at_least_float32,
    describe_source,
    has_data,
    require,
    require_same,
    require_same_sign,
    untraced,
)
from brevitas.quant_tensor.construction import checked_fields
from brevitas.quant_tensor.metadata import fit
from brevitas.quant_tensor.operators import TensorOperators
from brevitas.quant_tensor.source import Source, forget_source
from injector import suggest

__all__ = ["QuantTensor"]

_FIELDS = ("value", "scale", "zero_point", "bit_width", "signed", "training")
_SIGNIFICANT_BITS = {torch.float16: 11, torch.bfloat16: 8}


@dataclass(frozen=True, init=False, eq=False, repr=False)
class QuantTensor(TensorOperators):
    """A tensor whose values are ``(q - zero_point) * scale`` with integer codes ``q`` of ``bit_width`` bits.

    >>> x = QuantTensor(torch.tensor([0.5, -1.0]), scale=0.5, zero_point=0, bit_width=4, signed=True)
    >>> x.int()
    tensor([ 1, -2], dtype=torch.int32)
    >>> (x + x).bit_width
    tensor(5.)
    >>> torch.relu(x).int(), type(torch.sigmoid(x)).__name__
    (tensor([1, 0], dtype=torch.int32), 'Tensor')

    Immutable and valid by construction: all metadata are mandatory. Functions that keep the grid return a QuantTensor,
    all others compute on the value and return a plain Tensor; any method of a Tensor may be called.

    value: floating point, of any shape. scale, zero_point: floating point, broadcastable to ``value``, on its device.
    bit_width: one element. Numbers become tensors of the dtype of ``value``. signed: whether the codes are signed.
    training: whether the quantizer was in training mode. source: who made the grid; not a field.

    One signed bit means the bipolar codes -1 and +1.

    Raises :class:`QuantMetadataError` where a field is missing or does not fit.
    """

    value: Tensor
    scale: Tensor
    zero_point: Tensor
    bit_width: Tensor
    signed: bool
    training: bool = False
    if TYPE_CHECKING:
        source: Source | None = None
    else:
        # Not a field, so that it takes no part in iteration; dataclasses.replace still hands it on.
        source: InitVar[Source | None] = None

    def __init__(
        self,
        value: Tensor,
        scale: Tensor | float | None = None,
        zero_point: Tensor | float | None = None,
        bit_width: Tensor | float | None = None,
        signed: bool | None = None,
        training: bool = False,
        *,
        source: Source | None = None,
    ) -> None:
        self._fill(*checked_fields(value, scale, zero_point, bit_width, signed, training, source), source)

    def _fill(
        self,
        value: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bit_width: Tensor,
        signed: bool,
        training: bool,
        source: Source | None,
    ) -> None:
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero_point)
        object.__setattr__(self, "bit_width", bit_width)
        object.__setattr__(self, "signed", signed)
        object.__setattr__(self, "training", training)
        object.__setattr__(self, "source", source)

    @classmethod
    def unchecked(
        cls,
        value: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bit_width: Tensor,
        signed: bool,
        training: bool = False,
        source: Source | None = None,
    ) -> QuantTensor:
        """A QuantTensor of fields that are known to be right: nothing is checked or converted."""
        self = object.__new__(cls)
        self._fill(value, scale, zero_point, bit_width, signed, training, source)
        return self

    def like(self, value: Tensor) -> QuantTensor:
        """``value``, known to lie on this grid, with the same metadata."""
        ndim = value.dim()
        return QuantTensor.unchecked(
            value,
            fit(self.scale, ndim),
            fit(self.zero_point, ndim),
            self.bit_width,
            self.signed,
            self.training,
            self.source,
        )

    def requantize(self, value: Tensor) -> QuantTensor:
        """``value`` moved to the nearest points of this grid and clamped to its range; straight-through gradient.

        >>> x = QuantTensor(torch.tensor([0.5]), scale=0.5, zero_point=0, bit_width=4, signed=False)
        >>> x.requantize(torch.tensor([0.7, 0.8, 99.0])).value
        tensor([0.5000, 1.0000, 7.5000])

        Every function that has to move values back onto their grid calls this method, so that one replacement of it
        (an exporter's, say) sees them all.
        """
        snapped = int_quant(
            value, self.scale, self.zero_point, self.bit_width, self.signed, False, rounding="ROUND", clamp_ste=True
        )
        if self._may_be_bipolar():
            bipolar = (binary_sign_ste(value) * self.scale).to(snapped.dtype)
            snapped = torch.where(self.bit_width == 1, bipolar, snapped)
        return self.like(snapped)

    def _may_be_bipolar(self) -> bool:
        """Whether the codes may be -1 and +1. A width that cannot be looked at may be 1."""
        return self.signed and not (readable(self.bit_width) and float(self.bit_width) != 1.0)

    @property
    def is_shifted(self) -> bool:
        """Whether the zero point may be other than 0.

        The source knows; without that the zero point is looked at, and compiled code, which cannot look, answers True
        so as not to count too few bits.
        """
        if self.source is not None and self.source.shifted is not None:
            return self.source.shifted
        if not has_data(self.zero_point):
            return True
        return not self.is_zero_zero_point()

    # --- Codes ---------------------------------------------------------------------------------------------------

    def _code_range(self) -> CodeRange:
        return code_range(self.bit_width, self.signed)

    def _position(self) -> Tensor:
        """The value in units of the grid, wide enough for codes up to 2^20 after arithmetic in float32."""
        wide = torch.float32 if self.value.device.type == "mps" else torch.float64
        return self.value.to(wide) / self.scale.to(wide) + self.zero_point.to(wide)

    def _misfits(self) -> Tensor:
        """Where an element is off the grid or its code out of range."""
        with torch.no_grad():
            position = self._position()
            code = torch.round(position)
            lo, hi = self._code_range()
            outside = (code < lo) | (code > hi)
            if self.signed:
                outside = outside | ((self.bit_width == 1) & (code == 0))
            largest = code.abs().max() if code.numel() else code.sum()
            fan_in = 1 if self.source is None else self.source.fan_in
            tolerance = torch.clamp(2.0**-22 * fan_in**0.5 * largest, min=0.2)
            if self.value.dtype in _SIGNIFICANT_BITS:
                distance = (code - self.zero_point).abs()
                outside = outside | (distance > self._farthest_known_code())
                rounding = distance * 2.0 ** -_SIGNIFICANT_BITS[self.value.dtype]
                tolerance = torch.maximum(tolerance, rounding).clamp(max=0.5)
            # Written so that NaN and infinity misfit.
            return ~((position - code).abs() < tolerance) | outside

    def _farthest_known_code(self) -> Tensor:
        """How far from the zero point a 16-bit value still tells its code.

        Rounding moves a value by up to 2^-p of itself, p being the significant bits: by less than half a step below
        2^(p-1) steps. A multiple of a power of two is not rounded below 2^p.
        """
        bits = _SIGNIFICANT_BITS[self.value.dtype]
        exact = torch.frexp(at_least_float32(self.scale))[0] == 0.5
        return torch.where(exact, 2.0**bits, 2.0 ** (bits - 1))

    @property
    def is_valid(self) -> bool:
        """Whether every element is on the grid, up to float accumulation error, and every code in range."""
        with untraced():
            return not bool(self._misfits().any())

    @property
    def is_not_none(self) -> bool:
        """True: a QuantTensor always has its metadata."""
        return True

    def int(self, float_datatype: bool = False) -> Tensor:
        """The integer codes ``q``, as int32; as floating point with a straight-through gradient if ``float_datatype``.

        >>> x = QuantTensor(torch.tensor([0.0, 1.5]), scale=0.5, zero_point=3, bit_width=4, signed=False)
        >>> x.int(), x.int(float_datatype=True)
        (tensor([3, 6], dtype=torch.int32), tensor([3., 6.]))

        Floating-point codes have the dtype of the value, at least float32. Raises :class:`QuantMetadataError` where
        the tensor is not valid or a code does not fit int32.
        """
        require(lambda: ~self._misfits().any(), "int: the QuantTensor is not valid", self._why_not_valid)
        codes = round_ste(self._position())
        if float_datatype:
            half = self.value.dtype in (torch.float16, torch.bfloat16)
            return codes.to(torch.float32 if half else self.value.dtype)
        require(
            lambda: (codes.detach().abs() < 2**31).all(),
            "int: a code does not fit int32",
            lambda: (
                f"int: a code of this QuantTensor from {describe_source(self.source)} has magnitude "
                f"{float(codes.detach().abs().max()):.0f} and does not fit int32. Use int(float_datatype=True)."
            ),
        )
        return codes.detach().to(torch.int32)

    def _why_not_valid(self) -> str:
        misfits = self._misfits()
        position = self._position().detach()
        where = tuple(misfits.nonzero()[0].tolist())
        lo, hi = self._code_range()
        return (
            f"The QuantTensor from {describe_source(self.source)} is not valid: {int(misfits.sum())} of "
            f"{misfits.numel()} elements do not have an integer code in [{lo.item():.0f}, {hi.item():.0f}] "
            f"({'signed' if self.signed else 'unsigned'}, {self.bit_width.item():g} bits). The first is "
            f"{self.value[where].item():.9g} at {where}, which is {position[where].item():.9g} in units of the grid. "
            f"Values leave the grid while quantization is delayed and behind dropout in training; otherwise scale, "
            f"zero point, bit width or sign do not belong to this value.{self._limit_of_sixteen_bits()}"
        )

    def _limit_of_sixteen_bits(self) -> str:
        if self.value.dtype not in _SIGNIFICANT_BITS:
            return ""
        bits = _SIGNIFICANT_BITS[self.value.dtype]
        return (
            f" {str(self.value.dtype).removeprefix('torch.')} has {bits} significant bits, which tell codes up to "
            f"{2 ** (bits - 1)} steps from the zero point apart (up to {2**bits}, if the scale is a power of two); "
            "evaluate the model in float32 to read wider codes."
        )

    # --- Fields --------------------------------------------------------------------------------------------------

    @property
    def signed_t(self) -> bool:
        """``signed``, under its older name."""
        return self.signed

    @property
    def training_t(self) -> bool:
        """``training``, under its older name."""
        return self.training

    @property
    def device(self) -> torch.device:
        """The device of all fields; :class:`QuantMetadataError` where they disagree."""
        for name in ("scale", "zero_point", "bit_width"):
            device = getattr(self, name).device
            if device != self.value.device:
                raise QuantMetadataError(
                    f"The value of this QuantTensor is on {self.value.device} and its {name} on {device}. "
                    f"Move all fields together with qt.to(device)."
                )
        return self.value.device

    def __iter__(self) -> Iterator[Any]:
        """The six fields, for ``value, scale, zero_point, bit_width, signed, training = qt``."""
        return iter((self.value, self.scale, self.zero_point, self.bit_width, self.signed, self.training))

    def set(self, **fields: Any) -> QuantTensor:
        """A copy with other fields. A copy with another grid has no source unless ``source=`` is given.

        >>> x = QuantTensor(torch.tensor([0.5]), scale=0.5, zero_point=0, bit_width=4, signed=True)
        >>> x.set(bit_width=8).bit_width
        tensor(8.)
        """
        known = (*_FIELDS, "source")
        for name in fields:
            if name not in known:
                near = suggest(name, known)
                hint = f" Did you mean {' or '.join(near)}?" if near else ""
                raise UnknownOptionError(f"set: QuantTensor has no field {name!r}.{hint} Fields: {', '.join(known)}.")
        kept = fields.keys() <= {"value", "training"}
        current = {name: getattr(self, name) for name in _FIELDS}
        current["source"] = self.source if kept else None
        return QuantTensor(**{**current, **fields})

    def detach_(self) -> QuantTensor:
        """Detach the fields of this very object from the graph; returns it."""
        for name in ("value", "scale", "zero_point", "bit_width"):
            field = getattr(self, name)
            # Leaves may be somebody's parameters, and views cannot be detached in place.
            if field.is_leaf or field._is_view():
                object.__setattr__(self, name, field.detach())
            else:
                field.detach_()
        return self

    # --- Checks --------------------------------------------------------------------------------------------------

    @staticmethod
    def check_input_type(other: Any) -> None:
        """Raise :class:`QuantMetadataError` unless ``other`` is a QuantTensor."""
        if not isinstance(other, QuantTensor):
            raise QuantMetadataError(f"Expected a QuantTensor, got {type(other).__name__}.")

    def is_zero_zero_point(self) -> bool:
        """Whether the zero point is 0 everywhere."""
        with untraced():
            return not bool(self.zero_point.any())

    def check_scaling_factors_same(self, other: QuantTensor) -> None:
        """Raise :class:`QuantMetadataError` unless the scales agree to 1e-5 relative."""
        require_same(self, other, "scale", "check_scaling_factors_same", RTOL)

    def check_zero_points_same(self, other: QuantTensor) -> None:
        """Raise :class:`QuantMetadataError` unless the zero points agree."""
        require_same(self, other, "zero_point", "check_zero_points_same")

    def check_bit_width_same(self, other: QuantTensor) -> None:
        """Raise :class:`QuantMetadataError` unless the bit widths agree."""
        require_same(self, other, "bit_width", "check_bit_width_same")

    def check_sign_same(self, other: QuantTensor) -> None:
        """Raise :class:`QuantMetadataError` unless both are signed or both are unsigned."""
        require_same_sign(self, other, "check_sign_same")

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)}" for name in _FIELDS)
        return f"QuantTensor({fields})"


_Context = tuple[bool, bool, "tuple[Any, ...] | None"]


def _flatten(qt: QuantTensor) -> tuple[list[Tensor], _Context]:
    # The source as a tuple of constants: strict torch.export cannot rebuild an object in the structure of an output.
    source = None if qt.source is None else qt.source.as_tuple()
    return [qt.value, qt.scale, qt.zero_point, qt.bit_width], (qt.signed, qt.training, source)


def _flatten_with_keys(qt: QuantTensor) -> tuple[list[tuple[Any, Tensor]], _Context]:
    children, context = _flatten(qt)
    return [(GetAttrKey(name), child) for name, child in zip(_FIELDS, children, strict=False)], context


def _unflatten(children: Iterable[Any], context: _Context) -> QuantTensor:
    # The children may be anything that a tree map put there, so nothing is checked.
    value, scale, zero_point, bit_width = children
    signed, training, source = context
    return QuantTensor.unchecked(
        value, scale, zero_point, bit_width, signed, training, None if source is None else Source(*source)
    )


def _context_from_json(dumped: Any) -> _Context:
    signed, training, source = dumped
    # The numbers of the process that wrote the file mean nothing here.
    known = None if source is None else forget_source(Source(*source))
    return signed, training, None if known is None else known.as_tuple()


register_pytree_node(
    QuantTensor,
    _flatten,
    _unflatten,
    serialized_type_name="brevitas.quant_tensor.QuantTensor",
    to_dumpable_context=list,
    from_dumpable_context=_context_from_json,
    flatten_with_keys_fn=_flatten_with_keys,
)
