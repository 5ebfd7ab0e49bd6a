"""Makes the helpers beside the tests importable, and starts the programs that run on two ranks."""

import json
import sys
from pathlib import Path

import pytest
from filelock import FileLock

sys.path.insert(0, str(Path(__file__).parent))

import ranks as ranks_of_programs


@pytest.fixture(scope="session")
def on_two_ranks(tmp_path_factory, request):
    """Asserts that a check of a program succeeded on both ranks; each program is started once, by one worker."""
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        folder = folder.parent  # that of all workers

    def assert_check(program: str, check: str, **environment: str) -> None:
        results = folder / f"{'-'.join([program, *environment])}.json"
        with FileLock(f"{results}.lock"):
            if not results.exists():
                said = ranks_of_programs.start(program, tmp_path_factory.mktemp(program), **environment)
                results.write_text(json.dumps(said))
        said = json.loads(results.read_text())[check]
        failed = [f"rank {rank}: {text}" for rank, text in enumerate(said) if text != "ok"]
        assert not failed, "\n".join(failed)

    return assert_check
