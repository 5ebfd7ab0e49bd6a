"""Makes the helper that starts programs on two ranks importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "around"))
