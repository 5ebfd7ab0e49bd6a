"""In the environment of finn-base: execute every ``<n>.onnx`` of a folder on ``<n>.in.npz``, into ``<n>.out.npz``.

Each model is also run after finn-base has inferred shapes and datatypes anew, into ``<n>.inferred.npz``.
"""

import sys
from pathlib import Path

import numpy as np
from finn.core.modelwrapper import ModelWrapper
from finn.core.onnx_exec import execute_onnx
from finn.transformation.infer_datatypes import InferDataTypes
from finn.transformation.infer_shapes import InferShapes

for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    feeds = dict(np.load(path.with_suffix(".in.npz")))
    model = ModelWrapper(str(path))
    np.savez(path.with_suffix(".out.npz"), **execute_onnx(model, feeds))
    for transformation in (InferShapes(), InferDataTypes()):
        model = model.transform(transformation)
    np.savez(path.with_suffix(".inferred.npz"), **execute_onnx(model, feeds))
