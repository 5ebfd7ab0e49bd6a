"""What a report shows, as plain data: made by whoever trained and exported, read by the page and the charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = [
    "ActivationResult",
    "ExportResult",
    "LayerResult",
    "Misread",
    "NetworkResult",
    "Results",
    "VerifiedLayer",
    "total_of",
]


@dataclass(frozen=True)
class LayerResult:
    """Weights of one layer.

    Args:
        name: qualified name.
        bit_width, lowest, highest: width and range of the codes.
        counts: how many weights have code ``lowest``, ``lowest + 1``, …, ``highest``.
        latent_counts: histogram of the trained float weights divided by their scale, over equal bins that span
            ``lowest - 0.5`` to ``highest + 0.5``; weights beyond are clamped and counted in the outer bins.
        scales: one a channel, or one.
    """

    name: str
    bit_width: int
    lowest: int
    highest: int
    counts: Sequence[int]
    latent_counts: Sequence[int]
    scales: Sequence[float]

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(self.counts)

    @property
    def zeros(self) -> float:
        """Fraction of weights whose code is 0."""
        return self.counts[-self.lowest] / self.weights


@dataclass(frozen=True)
class ActivationResult:
    """One activation quantizer: codes from ``lowest`` to ``highest``, in steps of ``scale``."""

    name: str
    bit_width: int
    lowest: int
    highest: int
    scale: float


@dataclass(frozen=True)
class NetworkResult:
    """A network at one precision; accuracies are fractions of the test set.

    ``rounded``: with the float weights, activation ranges calibrated; None for the float network.
    ``size_bits``: weights, biases and scales together.
    """

    label: str
    description: str
    trained: float
    size_bits: int
    rounded: float | None = None
    layers: Sequence[LayerResult] = ()
    activations: Sequence[ActivationResult] = ()


@dataclass(frozen=True)
class VerifiedLayer:
    """Integers of one layer: how many were compared, equal, apart by a rounding tie of one step, and apart by more."""

    name: str
    compared: int
    equal: int
    ties: int
    diverged: int


def total_of(name: str, layers: Sequence[VerifiedLayer]) -> VerifiedLayer:
    """The sum of several rows under one name."""
    fields = ("compared", "equal", "ties", "diverged")
    return VerifiedLayer(name, *(sum(getattr(layer, field) for layer in layers) for field in fields))


@dataclass(frozen=True)
class ExportResult:
    """An exported file and how it ran.

    ``accuracy`` in its runtime, ``model_accuracy`` of the network it came from; ``layers``: the integers that flow
    between layers for ``digits`` digits, and the outputs; ``constants``: weights and biases.
    """

    label: str
    format: str
    runtime: str
    file: str
    file_bytes: int
    accuracy: float
    model_accuracy: float
    digits: int
    layers: Sequence[VerifiedLayer]
    constants: VerifiedLayer

    @property
    def total(self) -> VerifiedLayer:
        """Sum of all layers, without the constants."""
        return total_of("all layers", self.layers)


@dataclass(frozen=True)
class Misread:
    """A test digit: rows of grey values 0 to 255, its class, and the class that a network gave it."""

    pixels: Sequence[Sequence[int]]
    truth: int
    read: int


@dataclass(frozen=True)
class Results:
    """Everything on the page; ``float_network`` first, quantized networks from wide to narrow."""

    float_network: NetworkResult
    networks: Sequence[NetworkResult]
    exports: Sequence[ExportResult]
    misread: Sequence[Misread]
    misread_by: str
    test_digits: int
    train_digits: int
    source: str
    facts: dict[str, str] = field(default_factory=dict)
