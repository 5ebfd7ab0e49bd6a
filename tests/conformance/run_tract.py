"""tract, in Rust, through its Python bindings."""

import tract
from exchange import serve


def open_model(path):
    runnable = tract.onnx().load(path).into_model().into_runnable()
    return lambda feeds: [value.to_numpy() for value in runnable.run(feeds)]


serve(open_model)
