"""AMD Quark quantizes a float file to XINT8: arguments are the file, an .npy of calibration inputs, and the result."""

import os
import sys
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader
from quark.onnx import ModelQuantizer, QConfig


class Samples(CalibrationDataReader):
    def __init__(self, samples):
        self.samples = iter(samples)

    def get_next(self):
        sample = next(self.samples, None)
        return None if sample is None else {"input": sample[None]}


floats, samples, written = (str(Path(argument).resolve()) for argument in sys.argv[1:])
os.chdir(Path(written).parent)  # it leaves a table of what it did
ModelQuantizer(QConfig.get_default_config("XINT8")).quantize_model(floats, written, Samples(np.load(samples)))
