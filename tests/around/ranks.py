"""Programs that torchrun starts on two ranks of gloo, and the tests that read their results.

A program is a file of functions ``check_...``; each is run on all ranks and fails by an exception. Starting two
interpreters takes seconds, so one start runs all checks of a program, and each of them is a test nevertheless.
"""

import ast
import json
import os
import subprocess
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch

PROGRAMS = Path(__file__).parent / "programs"
WORLD = 2
SECONDS = 300


def checks_of(program: str) -> list[str]:
    tree = ast.parse((PROGRAMS / f"{program}.py").read_text())
    return [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("check_")]


def start(program: str, folder: Path, **environment: str) -> dict[str, list[str]]:
    """Run a program; for each check what each rank says, ``"ok"`` or a traceback."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD}"]
    command += [str(PROGRAMS / f"{program}.py"), str(folder)]
    path = os.pathsep.join([str(PROGRAMS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment}
    run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=settings)
    files = [folder / f"{rank}.json" for rank in range(WORLD)]
    if not all(file.exists() for file in files):
        raise AssertionError(f"{program} did not end:\n{run.stdout}\n{run.stderr}")
    said = [json.loads(file.read_text()) for file in files]
    return {name: [of_rank.get(name, "was not reached") for of_rank in said] for name in checks_of(program)}


def main(functions: dict[str, object]) -> None:
    """What a program does: run its checks in their order, up to the first that fails on any rank."""
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, results = torch.distributed.get_rank(), {}
    try:
        for name, function in functions.items():
            if not name.startswith("check_"):
                continue
            torch.manual_seed(0)
            results[name] = "has not ended"
            try:
                function()
                results[name] = "ok"
            except Exception:
                results[name] = traceback.format_exc()
            failed = torch.tensor(float(results[name] != "ok"))
            torch.distributed.all_reduce(failed)
            if failed:
                break
    finally:
        Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()
