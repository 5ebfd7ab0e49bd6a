"""QONNX files through hls4ml: C++ on fixed-point types, compiled with g++, bit for bit the model's numbers.

It takes per-tensor scales that are powers of two; per-channel weight scales crash it.
"""

import shutil

import numpy as np
import pytest
import torch
from environments import environment, run
from export_networks import calibrated
from finn_models import qt
from torch import nn

from brevitas.export import QONNXManager
from brevitas.nn import QuantConv2d, QuantLinear, QuantMaxPool2d, QuantReLU
from brevitas.quant import (
    Int8ActPerTensorFixedPoint,
    Int8Bias,
    Int8WeightPerTensorFixedPoint,
    Uint8ActPerTensorFixedPoint,
)

pytestmark = pytest.mark.slow
WEIGHT = {"weight_quant": Int8WeightPerTensorFixedPoint, "bias_quant": Int8Bias}


def dense(bits):
    return nn.Sequential(
        qt(Int8ActPerTensorFixedPoint, bit_width=6),
        QuantLinear(12, 10, weight_bit_width=bits, **WEIGHT),
        QuantReLU(Uint8ActPerTensorFixedPoint, bit_width=bits, return_quant_tensor=True),
        QuantLinear(10, 4, weight_bit_width=bits, **WEIGHT),
        qt(Int8ActPerTensorFixedPoint, bit_width=8),
    )


def convolutional():
    return nn.Sequential(
        qt(Int8ActPerTensorFixedPoint, bit_width=6),
        QuantConv2d(1, 2, 3, weight_bit_width=4, **WEIGHT),
        QuantReLU(Uint8ActPerTensorFixedPoint, bit_width=4, return_quant_tensor=True),
        QuantMaxPool2d(2),
        QuantConv2d(2, 3, 2, weight_bit_width=4, **WEIGHT),
        qt(Int8ActPerTensorFixedPoint, bit_width=8),
    )


MODELS = {
    "dense_4": (lambda: dense(4), (32, 12)),
    "dense_8": (lambda: dense(8), (32, 12)),
    "convolutional": (convolutional, (8, 1, 8, 8)),
}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("hls4ml compiles with g++, which is not installed")
    python = environment("hls4ml", heavy=True)
    folder = tmp_path_factory.mktemp("hls4ml")
    expected = {}
    for name, (build, shape) in MODELS.items():
        torch.manual_seed(3)
        model = calibrated(build(), shape)
        x = torch.randn(shape)
        QONNXManager.export(model, (1, *shape[1:]), folder / f"{name}.onnx")
        np.save(folder / f"{name}.in.npy", x.numpy())
        with torch.no_grad():
            expected[name] = model(x).value.numpy()
    run(python, "run_hls4ml.py", [folder], patience=900)
    return folder, expected


@pytest.mark.parametrize("name", MODELS)
def test_the_compiled_program_gives_the_model_s_numbers(executed, name):
    folder, expected = executed
    found = np.load(folder / f"{name}.out.npy")
    ours = expected[name]
    assert len(np.unique(ours)) > 8
    assert np.array_equal(found.reshape(ours.shape), ours)
