"""Write docs/reference/ from the registries: `python docs/generate`. The pages are never edited by hand."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from ref_options import options_page, try_values
from ref_presets import entries, presets_page, try_presets

DOCS = Path(__file__).resolve().parents[1]


def pages() -> dict[str, str]:
    """Path below docs/ and text of each generated page."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = entries()
        return {
            "reference/options.md": options_page(try_values()),
            "reference/presets.md": presets_page(found, try_presets(found)),
        }


def main() -> int:
    """Write the pages that changed."""
    for path, text in pages().items():
        target = DOCS / path
        target.parent.mkdir(exist_ok=True)
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")
            print(f"docs/{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
