"""What is wrong with the scales of a model, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from brevitas.errors import QuantMetadataError

__all__ = ["Finding", "Kind", "ScaleReport"]

#: ``meeting``: branches of different scales are joined. ``bias``, ``output``, ``weight``: a layer needs the scale of
#: its input for that. ``function``: a function cannot keep the scales. ``metadata``: anything else that a layer needs
#: and does not get. ``stopped``: the forward could not go on.
Kind = Literal["meeting", "bias", "output", "weight", "function", "metadata", "stopped"]


@dataclass(frozen=True)
class Finding:
    """One place where a scale is lost or two do not agree.

    Attributes:
        kind: what sort of place, see ``Kind``.
        path: qualified name of the layer, or of the module whose forward runs the function; empty for the model itself.
        layer: its class.
        function: the torch function, where the place is a call of one; else empty.
        problem: what is needed and what is there.
        producers: where the tensors come from: paths of quantizers and layers, or the function that dropped the scale.
        fix: one line.
    """

    kind: Kind
    path: str
    layer: str
    function: str
    problem: str
    producers: tuple[str, ...]
    fix: str

    @property
    def where(self) -> str:
        """``QuantConv2d 'features.3'``; the class alone for the model itself."""
        return f"{self.layer} '{self.path}'" if self.path else self.layer

    def __str__(self) -> str:
        origin = f"\n   from {' and '.join(self.producers)}" if self.producers else ""
        return f"{self.where}: {self.problem}{origin}\n   fix: {self.fix}"


@dataclass(frozen=True)
class ScaleReport:
    """Every finding of :func:`check_scales`, true where there are any.

    Attributes:
        findings: in the order of the forward.
        model_class: class of the model that was checked.
        model: with ``insert=True`` the new model, else ``None``. The findings are those of this model.
        inserted: paths of the quantizers that were inserted into it.
    """

    findings: tuple[Finding, ...]
    model_class: str
    model: nn.Module | None = None
    inserted: tuple[str, ...] = ()

    def raise_if_any(self) -> None:
        """Raise :class:`QuantMetadataError` with the whole report if there are findings."""
        if self.findings:
            raise QuantMetadataError(str(self))

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __bool__(self) -> bool:
        return bool(self.findings)

    def __str__(self) -> str:
        count = len(self.findings)
        head = f"Scales of {self.model_class}: "
        head += "nothing to mend." if not count else f"{count} finding{'s' if count > 1 else ''}."
        lines = [head, *(f"{number}. {finding}" for number, finding in enumerate(self.findings, 1))]
        if self.inserted:
            lines.append(f"Inserted: {', '.join(self.inserted)}.")
        return "\n".join(lines)
