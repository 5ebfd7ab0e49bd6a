"""What the tests run is what their requirements say."""

from importlib.metadata import version

import pytest
from environments import HERE, ROOT

FOLDER = HERE / "requirements"
OWN = ["onnxruntime", "qonnx", "torch"]


def pins(text):
    return dict(line.split("==") for line in text.splitlines() if "==" in line and not line.startswith("#"))


@pytest.mark.parametrize("name", OWN)
def test_programs_of_the_project_s_own_environment_have_the_project_s_versions(name):
    asked = pins((FOLDER / f"{name}.txt").read_text())
    held = pins((ROOT / "constraints.txt").read_text())
    assert asked and asked.items() <= held.items()
    assert {package: version(package).partition("+")[0] for package in asked} == asked


def test_every_file_says_what_it_is_for():
    files = sorted(FOLDER.glob("*.txt"))
    assert {*OWN, "openvino", "tvm", "tract", "iree", "simplifiers", "quark", "finn-base", "hls4ml"} <= {
        file.stem for file in files
    }
    for file in files:
        first, *rest = file.read_text().splitlines()
        assert first.startswith("# ") and any("=" in line for line in rest), file.name
