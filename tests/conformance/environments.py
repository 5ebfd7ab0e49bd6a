"""Environments of readers whose pins conflict with ours: built on first use in ``.venv-conformance/<name>``.

    python tests/conformance/environments.py finn-base      # builds it, or says that it is there

``requirements/<name>.txt`` is installed, then ``<name>.nodeps.txt``, if there is one, without dependencies. A test that
needs an environment skips where it cannot be built in two minutes; under ``make conformance`` it takes the time that it
needs, and not being able to build it is a failure.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / ".venv-conformance"
WHOLE = bool(os.environ.get("BREVITAS_CONFORMANCE"))
PATIENCE = 1800 if WHOLE else 120


def requirement_files(name: str) -> list[Path]:
    """The files that say what is installed, in order."""
    files = [HERE / "requirements" / f"{name}{end}.txt" for end in ("", ".nodeps")]
    if not files[0].is_file():
        raise FileNotFoundError(f"no {files[0]}; there are {sorted(f.stem for f in files[0].parent.glob('*.txt'))}")
    return [file for file in files if file.is_file()]


def build(name: str, patience: float = PATIENCE) -> Path:
    """The environment's interpreter; built where it is missing or its requirements changed."""
    folder = ENVIRONMENTS / name
    files = requirement_files(name)
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() + sys.version
    python, stamp = folder / "bin" / "python", folder / ".stamp"
    ENVIRONMENTS.mkdir(exist_ok=True)
    with open(ENVIRONMENTS / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers of one run build it once
        if stamp.is_file() and stamp.read_text() == wanted:
            return python
        deadline = time.monotonic() + patience
        shutil.rmtree(folder, ignore_errors=True)

        def step(*command: str) -> None:
            left = deadline - time.monotonic()
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=max(left, 1))

        step(sys.executable, "-m", "venv", str(folder))
        for file in files:
            alone = ["--no-deps", "--no-build-isolation"] if file.name.endswith(".nodeps.txt") else []
            step(str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *alone, "-r", str(file))
        stamp.write_text(wanted)
    return python


def environment(name: str, *, heavy: bool = False) -> Path:
    """For tests: the environment's interpreter, or a skip that says why there is none."""
    if heavy and not WHOLE:
        pytest.skip(f"{name} is large to install; `make conformance` runs this")
    try:
        return build(name)
    except subprocess.TimeoutExpired:
        reason = f"{name} does not install in {PATIENCE} s"
    except subprocess.CalledProcessError as error:
        last = (error.stderr or "").strip().splitlines()[-1:] or [str(error)]
        reason = f"{name} does not install with Python {sys.version.split()[0]}: {last[0]}"
    if WHOLE:
        pytest.fail(reason)
    pytest.skip(f"{reason}; `make conformance` takes longer")


def run(python: Path, script: str, arguments: Sequence[str | Path], patience: float = 600) -> str:
    """Run a script of this folder in an environment; what it prints, or its error."""
    command = [str(python), str(HERE / script), *map(str, arguments)]
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience, env=clean)
    if done.returncode:
        raise AssertionError(f"{script} failed in {python}:\n{done.stderr.strip()[-600:]}")
    return done.stdout


if __name__ == "__main__":
    for wanted_name in sys.argv[1:]:
        print(build(wanted_name))
