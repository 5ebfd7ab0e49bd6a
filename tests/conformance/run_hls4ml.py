"""In the environment of hls4ml: every ``<name>.onnx`` of a folder becomes C++, is compiled with g++, and is run.

Inputs are ``<name>.in.npy``, one sample a row; outputs go to ``<name>.out.npy``.
"""

import sys
from pathlib import Path

import hls4ml
import numpy as np
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
from qonnx.transformation.gemm_to_matmul import GemmToMatMul
from qonnx.util.cleanup import cleanup_model

for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    x = np.load(path.with_suffix(".in.npy"))
    model = cleanup_model(ModelWrapper(str(path)))
    if x.ndim == 4:
        model = cleanup_model(model.transform(ConvertToChannelsLastAndClean(make_input_channels_last=True)))
        x = x.transpose(0, 2, 3, 1)
    model = cleanup_model(model.transform(GemmToMatMul()))
    # Wide enough for every sum: what is left to differ is what the file says.
    config = hls4ml.utils.config.config_from_onnx_model(
        model, granularity="name", backend="Vitis", default_precision="fixed<40,20>"
    )
    project = hls4ml.converters.convert_from_onnx_model(
        model, output_dir=str(path.with_suffix("")), io_type="io_parallel", backend="Vitis", hls_config=config
    )
    project.compile()
    np.save(path.with_suffix(".out.npy"), project.predict(np.ascontiguousarray(x)))
