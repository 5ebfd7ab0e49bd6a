"""Every cell of the capability table is exported again, and the committed page says what came of it."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "capabilities.md"

sys.path.insert(0, str(ROOT / "docs" / "generate"))
generator = importlib.import_module("ref_capabilities")
sys.path.remove(str(ROOT / "docs" / "generate"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("layer", "kind"), generator.cells())
def test_cell(layer, kind):
    rows = PAGE.read_text(encoding="utf-8").splitlines()
    found = generator.row_of(generator.examine(layer, kind))
    assert found in rows, f"docs/reference/capabilities.md is old; run `make docs`. Found: {found}"


def test_the_page_has_every_cell_and_target():
    from brevitas.export import list_targets

    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{target}`" in text for target in list_targets())
    rows = [line for line in text.splitlines() if line.startswith("| Quant")]
    assert [tuple(row.split(" | ")[:2]) for row in rows] == [(f"| {layer}", kind) for layer, kind in generator.cells()]
    assert all("yes" in "".join(r for r in rows if r.startswith(f"| {layer} |")) for layer in generator.LAYERS)
