"""Readers in environments of their own, as runtimes of ``verify``."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from environments import HERE

from brevitas.export.verification import runtimes


class Reader:
    """A script of this folder that runs in an environment and answers through ``exchange.py``.

    The process starts with the first model and serves them all; one that crashed is started again.
    """

    def __init__(self, python: Path, script: str, **options: Any) -> None:
        self.command = [str(python), str(HERE / script)]
        self.options = options
        self._folder = tempfile.TemporaryDirectory(prefix="brevitas-reader-")
        self.folder = Path(self._folder.name)
        self._process: subprocess.Popen[str] | None = None
        self._count = 0

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._folder.cleanup()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, **request: Any) -> None:
        if self._process is None:
            clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
            log = open(self.folder / "log", "w")
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=clean
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({**request, "options": self.options}) + "\n")
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            code = self._process.wait(60)
            self._process = None
            raise RuntimeError(f"the reader ended with code {code}: {(self.folder / 'log').read_text()[-2000:]}")
        error = json.loads(reply).get("error")
        if error:
            raise RuntimeError(error)

    def open(self, proto: onnx.ModelProto) -> runtimes.Session:
        """A session of the reader, as ``verify`` wants it."""
        self._count += 1
        model = self.folder / f"{self._count}.onnx"
        onnx.save(proto, model)

        inputs = [v.name for v in proto.graph.input]
        outputs = [v.name for v in proto.graph.output]

        def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            fed, made = self.folder / "feeds.npz", self.folder / "results.npz"
            np.savez(fed, *(feeds[name] for name in inputs))
            self._ask(model=str(model), feeds=str(fed), results=str(made))
            with np.load(made) as arrays:
                return {name: arrays[f"arr_{i}"] for i, name in enumerate(outputs)}

        return run


@contextmanager
def as_runtime(name: str, reader: Reader) -> Iterator[str]:
    """``verify(..., runtime=name)`` runs the reader."""
    runtimes.RUNTIMES[name] = reader.open
    try:
        yield name
    finally:
        del runtimes.RUNTIMES[name]
