"""The TorchScript module of target ``torch`` in OpenVINO's PyTorch front end: the integers of torch's own kernels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from environments import environment, run
from export_networks import calibrated
from torch import nn

from brevitas.export import PytorchQuantManager, verify
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import Int8WeightPerChannelFloat, Int32Bias, ShiftedUint8ActPerTensorFloat, Uint8ActPerTensorFloat

pytestmark = pytest.mark.slow


class Network(nn.Module):
    """Two convolutions with pooling and a linear layer, unsigned codes everywhere."""

    def __init__(self, act_bits=8, **weight):
        super().__init__()
        shifted, product = ShiftedUint8ActPerTensorFloat, {"bias_quant": Int32Bias, **weight}
        act = {"act_quant": Uint8ActPerTensorFloat, "bit_width": act_bits, "return_quant_tensor": True}
        self.inp = QuantIdentity(shifted, return_quant_tensor=True)
        self.conv1 = QuantConv2d(3, 6, 3, padding=1, **product)
        self.relu1 = QuantReLU(**act)
        self.conv2 = QuantConv2d(6, 8, 3, **product)
        self.relu2 = QuantReLU(**act)
        self.fc = QuantLinear(32, 10, **product)
        self.out = QuantIdentity(shifted)

    def forward(self, x):
        x = F.max_pool2d(self.relu1(self.conv1(self.inp(x))), 2)
        return self.out(self.fc(torch.flatten(self.relu2(self.conv2(x)), 1)))


NETWORKS = {
    "W8A8": {},
    "W4A4": {"act_bits": 4, "weight_bit_width": 4},
    "per channel": {"weight_quant": Int8WeightPerChannelFloat},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_openvino_s_pytorch_front_end(name, tmp_path):
    python = environment("openvino-torch")
    torch.manual_seed(5)
    model = calibrated(Network(**NETWORKS[name]), (32, 3, 8, 8))
    x = torch.randn(32, 3, 8, 8)
    file = tmp_path / "model.pt"
    PytorchQuantManager.export(model, input_t=x, export_path=file)
    assert verify(model, file, x).ok
    np.save(tmp_path / "x.npy", x.numpy())
    run(python, "run_openvino_torch.py", [file, tmp_path / "x.npy", tmp_path / "y.npy"])
    with torch.no_grad():
        expected = model(x).numpy()
    steps = np.rint((np.load(tmp_path / "y.npy") - expected) / float(model.out.quant_act_scale()))
    # It computes the whole file: a tie in an early layer may move the results of one sample, by a step.
    assert np.abs(steps).max() <= 1 and (steps != 0).any(1).sum() <= 1, np.unique(steps, return_counts=True)
