"""The page about custom parts keeps its word about packages: what one registers is found without an import."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# Each test is a fresh interpreter.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "custom-parts.md"


def block(fragment: str) -> str:
    """The one python block of the page that contains a text."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    found = [text for text in blocks if fragment in text]
    assert len(found) == 1, (fragment, len(found))
    return found[0]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with the package of the page as pip would install it."""
    imports = [
        "import torch",
        "from torch import Tensor, nn",
        "import brevitas.jit",
        "from brevitas.quant import Int8WeightPerTensorFloat",
    ]
    module = "\n".join([*imports, block("class AbsMedian"), block("def register_all")])
    (tmp_path / "quant_medians.py").write_text(f"print('imported')\n{module}")
    toml = re.search(r"^```toml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL).group(1)
    group, name, target = re.fullmatch(r'\[project.entry-points."(.+)"\]\n(\w+) = "(.+)"\n', toml).groups()
    info = tmp_path / "quant_medians-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: quant-medians\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
    return tmp_path


def run(folder: Path, code: str) -> list[str]:
    prelude = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(ROOT)!r}]\n"
    script = folder / "script.py"
    script.write_text(prelude + textwrap.dedent(code))
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=folder, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_a_package_is_found_when_its_name_is_met(installed):
    lines = run(
        installed,
        """
        import torch
        from brevitas import explain
        from brevitas.nn import QuantLinear
        from brevitas.quant.registry import preset

        QuantLinear(6, 3)
        print("known names need no package")
        layer = QuantLinear(6, 3, weight_scaling_stats_op="abs_median")
        with torch.no_grad():
            layer.weight.copy_(torch.arange(1.0, 19.0).reshape(3, 6))
        print(round(layer.quant_weight_scale().item() * 127, 4))
        layer(torch.rand(2, 6)).sum().backward()
        assert layer.weight.grad is not None
        print(preset("MedianWeight").__module__)
        print("AbsMedian" in explain(layer.weight_quant))
        """,
    )
    # Three times the lower median of 1 to 18.
    assert lines == ["known names need no package", "imported", "27.0", "quant_medians", "True"]


def test_a_preset_of_a_package_is_found(installed):
    code = "from brevitas.quant.registry import preset, presets\nprint(preset('MedianWeight').__name__)\n"
    assert run(installed, code) == ["imported", "MedianWeight"]


def test_without_the_package_the_name_is_refused(tmp_path):
    lines = run(
        tmp_path,
        """
        from brevitas.errors import QuantConfigError
        from brevitas.nn import QuantLinear

        try:
            QuantLinear(6, 3, weight_scaling_stats_op="abs_median")
        except QuantConfigError as error:
            print("abs_median" in str(error))
        """,
    )
    assert lines == ["True"]


def test_a_package_that_fails_is_named_once_and_harms_nobody_else(installed):
    info = installed / "broken-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[brevitas.quant]\nbad = no_such_module:register_all\n")
    lines = run(
        installed,
        """
        from brevitas.errors import QuantConfigError
        from brevitas.nn import QuantLinear

        try:
            QuantLinear(6, 3, weight_scaling_stats_op="abs_median")
        except QuantConfigError as error:
            print(error)
        QuantLinear(6, 3, weight_scaling_stats_op="abs_median")
        """,
    )
    assert lines[0] == "imported" and len(lines) == 2
    assert "'bad = no_such_module:register_all'" in lines[1] and "of broken failed with ModuleNotFoundError" in lines[1]
