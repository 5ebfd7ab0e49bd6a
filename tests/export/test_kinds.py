"""Quantizers other than round-and-clamp: the nodes that stand for them, and the integers that readers compute."""

import numpy as np
import pytest
import torch
from torch import nn

from brevitas import quant
from brevitas.errors import ExportError
from brevitas.export import QONNXManager, StdONNXManager, verify
from brevitas.nn import QuantIdentity, QuantLinear
from brevitas.proxy import TruncQuantProxyFromInjector


class Truncating(nn.Module):
    """Quantizes its input, then removes bits."""

    def __init__(self, trunc: type, bits: int = 8, signed: bool = True, **options):
        super().__init__()
        first = quant.Int8ActPerTensorFloat if signed else quant.Uint8ActPerTensorFloat
        self.first = QuantIdentity(first, bit_width=bits, return_quant_tensor=True, **options)
        self.trunc_quant = TruncQuantProxyFromInjector(self, trunc)

    def forward(self, x):
        return self.trunc_quant(self.first(x))


def trained(model, x):
    model.train()(x)
    return model.eval()


def nodes(proto, *op_types):
    return [n for n in proto.graph.node if n.op_type in op_types]


def attributes(node):
    return {a.name: a.s.decode() if a.type == 3 else a.i for a in node.attribute}


@pytest.mark.parametrize("manager", [StdONNXManager, QONNXManager])
def test_binary_weights(manager):
    weight = quant.SignedBinaryWeightPerTensorConst
    model = nn.Sequential(QuantIdentity(return_quant_tensor=True), QuantLinear(8, 3, bias=False, weight_quant=weight))
    x = torch.randn(64, 8)
    proto = manager.export(trained(model, x), input_t=x)
    report = verify(model, proto, x)
    assert report.diverged == 0 and report.ties == 0, report
    codes = model[1].int_weight().numpy()
    assert set(np.unique(codes)) == {-1, 1}
    if manager is QONNXManager:
        (node,) = nodes(proto, "BipolarQuant")
        assert len(node.input) == 2 and not node.attribute
    else:
        stored = [i for i in proto.graph.initializer if i.name.endswith("_codes")]
        assert np.array_equal(np.frombuffer(stored[0].raw_data, np.int8).reshape(stored[0].dims), codes)


def test_binary_activations_in_qonnx():
    model = nn.Sequential(QuantIdentity(quant.SignedBinaryActPerTensorConst, return_quant_tensor=True))
    x = torch.tensor([[0.0, -0.0, 1e-30, -1e-30, 2.0, -3.0]])
    proto = QONNXManager.export(model.eval(), input_t=x)
    assert verify(model, proto, x).diverged == 0
    assert model(x).int().tolist() == [[1, 1, 1, -1, 1, -1]]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("rounding", ["floor", "round", "ceil", "round_to_zero"])
@pytest.mark.parametrize("manager", [StdONNXManager, QONNXManager])
def test_truncation(manager, rounding, signed):
    class To4(quant.TruncTo8bit):
        bit_width = 4
        float_to_int_impl_type = rounding

    model = Truncating(To4, signed=signed)
    low = -128 if signed else 0
    x = torch.arange(low, low + 256).reshape(1, 256) * 0.037
    proto = manager.export(trained(model, x), input_t=x)
    codes = model.first(x).int().numpy()
    assert len(np.unique(codes)) > 250
    rounded = {"floor": np.floor, "round": np.rint, "ceil": np.ceil, "round_to_zero": np.trunc}[rounding](codes / 16)
    ours = model(x).int().numpy()
    assert np.array_equal(ours, np.clip(rounded, -8 if signed else 0, 7 if signed else 15))
    report = verify(model, proto, x)
    assert report.diverged == 0, report
    if rounding != "round":
        assert report.ties == 0
    if manager is QONNXManager:
        (node,) = nodes(proto, "Trunc")
        mode = {"floor": "FLOOR", "round": "ROUND", "ceil": "CEIL", "round_to_zero": "DOWN"}[rounding]
        assert len(node.input) == 6
        assert attributes(node) == {"signed": int(signed), "narrow": 0, "rounding_mode": mode}


@pytest.mark.parametrize("manager", [StdONNXManager, QONNXManager])
def test_truncation_of_codes_with_a_zero_point_is_refused(manager):
    model = Truncating(quant.TruncTo8bit)
    model.first = QuantIdentity(quant.ShiftedUint8ActPerTensorFloat, return_quant_tensor=True)
    with pytest.raises(ExportError, match="E21 .*Truncating.*zero point .* of truncated codes.*required 0"):
        manager.export(trained(model, torch.randn(4, 16) - 1), input_shape=(4, 16))
