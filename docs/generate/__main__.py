"""Write docs/reference/ and docs/schema/ from the registries: `python docs/generate`. They are never edited by hand."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
from ref_capabilities import capabilities_page
from ref_options import options_page, try_values
from ref_presets import entries, presets_page, try_presets

from brevitas.quant import json_schema

DOCS = Path(__file__).resolve().parents[1]
CAPABILITIES = "reference/capabilities.md"


def pages() -> dict[str, str]:
    """Path below docs/ and text of each generated page."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = entries()
        return {
            "reference/options.md": options_page(try_values()),
            "reference/presets.md": presets_page(found, try_presets(found)),
            "schema/brevitas-spec-1.json": json.dumps(json_schema(), indent=1) + "\n",
        }


def capabilities() -> str:
    """The table of layers and targets, which takes longer than the other pages: tests hold it row by row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return capabilities_page()


def main() -> int:
    """Write the pages that changed."""
    for path, text in {**pages(), CAPABILITIES: capabilities()}.items():
        target = DOCS / path
        target.parent.mkdir(exist_ok=True)
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")
            print(f"docs/{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
