"""What an export refuses, said once for every target.

>>> v = Violation('E11', 'qdq', layer='conv1', layer_class='QuantConv2d', found='weight bit width 12',
...               required='8 bits at opset 20', fix='pass opset_version=21')
>>> print(v)
E11 [qdq] QuantConv2d 'conv1': found weight bit width 12; required 8 bits at opset 20; fix: pass opset_version=21
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from brevitas.errors import ExportError, MissingPackageError

__all__ = ["CODES", "ExportViolationError", "ExportWarning", "Violation", "raise_violations"]

CODES = {
    "E01": "none or both of input_shape and input_t",
    "E02": "unknown keyword or keyword value",
    "E03": "input QuantTensor that is not valid or that the target cannot take",
    "E04": "no representation in this target",
    "E05": "opset too low",
    "E06": "back end or package missing",
    "E10": "bit width has no datatype",
    "E11": "bit width too large",
    "E12": "scale granularity not supported",
    "E13": "signedness or data type not supported",
    "E14": "scale is not a power of two",
    "E15": "geometry cannot be expressed",
    "E20": "quantizer in an unsupported place",
    "E21": "zero point is not 0",
    "E22": "bias not quantized or not on the accumulator grid",
    "E23": "pooling constraint",
    "E24": "quantizer kind not supported",
    "E25": "too many thresholds",
    "E26": "group-wise or random quantizer",
    "E27": "rounding mode not supported",
    "E28": "missing input, weight or output quantization",
    "W30": "a quantizer has never collected statistics",
    "W31": "the consumer leaves something as it is",
    "W32": "products of 8-bit integers may saturate in the consumer (check alone says so)",
}


class ExportWarning(UserWarning):
    """Something that an export lets pass and that is worth a look."""


@dataclass(frozen=True)
class Violation:
    """One rule of one target that one place of the model breaks.

    ``code`` is a key of :data:`CODES`; ``target`` the target's key; ``layer`` the qualified name ('' is the model
    itself) and ``layer_class`` its class, both ``None`` where no layer is meant (``place`` then says what is).
    ``cause`` is the exception behind it, where there was one.
    """

    code: str
    target: str
    found: str
    required: str
    fix: str
    layer: str | None = None
    layer_class: str | None = None
    place: str = "call of export"
    quantizer: str | None = None
    cause: BaseException | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse codes that the table does not hold."""
        if self.code not in CODES:
            raise ValueError(f"unknown violation code {self.code!r}; known: {', '.join(CODES)}")

    @property
    def is_warning(self) -> bool:
        """True where the export proceeds."""
        return self.code.startswith("W")

    @property
    def where(self) -> str:
        """The layer (class and path), or the place where no layer is meant."""
        if self.layer is None:
            return self.place
        name = f"'{self.layer}'" if self.layer else "(the model itself)"
        return f"{self.layer_class or 'layer'} {name}"

    def __str__(self) -> str:
        """One line: code, target, layer, found, required, fix."""
        return (
            f"{self.code} [{self.target}] {self.where}: found {self.found}; required {self.required}; fix: {self.fix}"
        )


class ExportViolationError(ExportError):
    """An :class:`~brevitas.errors.ExportError` that holds its violations in ``.violations``, one message line each."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        self.violations = tuple(violations)
        if not violations:
            raise ValueError("an ExportViolationError needs at least one violation")
        head = f"the model cannot be exported to '{violations[0].target}'"
        if all(v.code == "E06" for v in violations):
            head = "a package is missing"
        super().__init__("\n".join([f"{head}:", *(f"  {v}" for v in self.violations)]))

    def __reduce__(self) -> tuple[type, tuple[tuple[Violation, ...]]]:
        """Pickle by the violations, from which the message is made."""
        return type(self), (tuple(replace(v, cause=None) for v in self.violations),)


class MissingExportPackageError(ExportViolationError, MissingPackageError):
    """E06: a package that an export or a runtime needs is not installed."""


def raise_violations(violations: Iterable[Violation]) -> None:
    """Warn about the warnings, then raise one error with everything else, if there is anything else."""
    unique = list(dict.fromkeys(violations))
    errors = [v for v in unique if not v.is_warning]
    for v in unique:
        if v.is_warning:
            warnings.warn(str(v), ExportWarning, stacklevel=3)
    if errors:
        raise ExportViolationError(errors) from next((v.cause for v in errors if v.cause is not None), None)
