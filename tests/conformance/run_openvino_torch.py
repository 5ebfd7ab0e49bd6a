"""OpenVINO reads a TorchScript file: arguments are the file, an .npy of inputs, and the .npy that it writes."""

import sys

import numpy as np
import openvino
import torch

module, inputs, written = sys.argv[1:]
x = np.load(inputs)
model = openvino.convert_model(torch.jit.load(module), example_input=torch.from_numpy(x))
exact = {"LP_TRANSFORMS_MODE": "NO", "EXECUTION_MODE_HINT": "ACCURACY"}
(result,) = openvino.compile_model(model, "CPU", exact)(x).values()
np.save(written, result)
