"""Writes the JSON schema of specs beside this file; a test compares them. Run it after adding a directive or preset."""

import json
from pathlib import Path

from brevitas.quant import json_schema

TARGET = Path(__file__).parent / "brevitas-spec-1.json"

if __name__ == "__main__":
    TARGET.write_text(json.dumps(json_schema(), indent=1) + "\n", encoding="utf-8")
    print(TARGET)
