"""The README's promises about errors: a misspelt option names itself, its layer and the right spelling."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from brevitas.errors import QuantConfigError, UnknownOptionError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def example() -> str:
    return re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL).group(1)


def run(text: str) -> None:
    exec(compile(text, "readme_example.py", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize(
    ("right", "wrong", "layer"),
    [
        ("weight_bit_width=4", "weight_bit_widht=4", "QuantLinear"),
        ("QuantReLU(bit_width=4", "QuantReLU(bit_wdth=4", "QuantReLU"),
        ("weight_quant=Int4Weight", "weigth_quant=Int4Weight", "QuantConv2d"),
        ("    bit_width = 4", "    bit_widt = 4", "QuantConv2d"),
        ("bias_quant=Int32Bias),\n    QuantReLU", "bias_qant=Int32Bias),\n    QuantReLU", "QuantConv2d"),
        ("return_quant_tensor=True),\n    QuantConv2d", "return_quant_tenser=True),\n    QuantConv2d", "QuantIdentity"),
    ],
)
def test_one_letter_changed_names_option_layer_and_right_spelling(example, right, wrong, layer):
    assert example.count(right) == 1
    with pytest.raises((UnknownOptionError, QuantConfigError)) as caught:
        run(example.replace(right, wrong))
    message = str(caught.value)
    for option in (wrong, right):
        name = option.replace("QuantReLU(", "").strip().split("=")[0].strip()
        assert name in message, message
    assert layer in message


def test_explain_prints_where_the_readme_set_its_bit_width(example):
    from brevitas import explain

    namespace: dict = {"__name__": "readme"}
    exec(compile(example, "readme_example.py", "exec"), namespace)
    text = explain(namespace["model"][1].weight_quant)
    line = next(row for row in text.splitlines() if row.strip().startswith("bit_width "))
    number = example[: example.index("bit_width = 4")].count("\n") + 1
    assert "Int4Weight" in line and f"readme_example.py:{number}" in line


def imported_with(folder: Path, statement: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(ROOT)!r}]; {statement}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=120)


def test_another_injector_is_named_in_one_line(tmp_path):
    (tmp_path / "injector").mkdir()
    (tmp_path / "injector" / "__init__.py").write_text("class Injector: pass\n")
    result = imported_with(tmp_path, "import brevitas.nn")
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError:") and "'injector'" in last and str(tmp_path) in last and "pip" in last


def test_another_brevitas_is_named_in_one_line(tmp_path):
    (tmp_path / "brevitas").mkdir()
    (tmp_path / "brevitas" / "__init__.py").write_text("__version__ = '0.12'\n")
    result = imported_with(tmp_path, "import quant_zoo")
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError:") and "'import brevitas' finds another one" in last and str(tmp_path) in last
