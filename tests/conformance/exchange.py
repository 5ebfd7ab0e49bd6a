"""Arrays to and from a program in another environment; this file runs in both, and needs NumPy alone.

The reader's script calls :func:`serve` with a function that opens a file: it takes the path of a model, and options,
and returns a function from a list of input arrays to a list of output arrays, in the order of the graph. A request is a
line of JSON on its standard input, and so is the reply.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence

import numpy as np

Run = Callable[[Sequence[np.ndarray]], Iterable[np.ndarray]]


def serve(open_model: Callable[..., Run]) -> None:
    """Answer requests until standard input ends. What a reader prints goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    opened: dict[str, Run] = {}
    for line in sys.stdin:
        request = json.loads(line)
        path = request["model"]
        try:
            if path not in opened:
                opened.clear()
                opened[path] = open_model(path, **request["options"])
            with np.load(request["feeds"]) as arrays:
                feeds = [arrays[f"arr_{i}"] for i in range(len(arrays))]
            np.savez(request["results"], *map(np.asarray, opened[path](feeds)))
            reply = {}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)
