"""Quantizers that the targets cannot express are refused by name, and the model is left alone."""

import pytest
import torch
from torch import nn

from brevitas import quant
from brevitas.errors import ExportError
from brevitas.export import QONNXManager, StdONNXManager
from brevitas.nn import QuantIdentity, QuantLinear


@pytest.mark.parametrize("manager", [StdONNXManager, QONNXManager])
def test_groups_are_refused(manager, tmp_path):
    model = nn.Sequential(QuantIdentity(return_quant_tensor=True), QuantLinear(64, 3, weight_quant=quant.MXInt8Weight))
    model(torch.randn(4, 64))
    with pytest.raises(ExportError, match=r"E26 .*QuantLinear '1'.*weight_quant"):
        manager.export(model.eval(), input_shape=(1, 64), export_path=tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_binary_activations_are_refused_where_there_is_no_operator_for_them():
    model = nn.Sequential(QuantIdentity(quant.SignedBinaryActPerTensorConst, return_quant_tensor=True))
    with pytest.raises(ExportError, match="E24 .*QuantIdentity '0'.*binary codes, -1 and \\+1.*'qonnx'"):
        StdONNXManager.export(model.eval(), input_shape=(1, 8))
