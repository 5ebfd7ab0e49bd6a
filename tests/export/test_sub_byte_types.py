"""Weights of few bits in the small integer types of newer opsets."""

import numpy as np
import pytest
import torch
from export_networks import initializers, op_types
from torch import nn

from brevitas import quant
from brevitas.errors import ExportError
from brevitas.export import StdONNXManager, verify
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear


def model_of(bits, preset=quant.Int8WeightPerTensorFloat):
    torch.manual_seed(0)
    first = QuantIdentity(bit_width=4, return_quant_tensor=True)
    conv = QuantConv2d(1, 3, 3, weight_quant=preset, weight_bit_width=bits, bias=False)
    linear = QuantLinear(12, 4, weight_quant=preset, weight_bit_width=bits)
    model = nn.Sequential(first, conv, QuantIdentity(return_quant_tensor=True), nn.Flatten(), linear)
    model.train()(torch.randn(4, 1, 4, 4))
    return model.eval()


@pytest.mark.parametrize(
    ("bits", "preset", "elements", "opset"),
    [
        (4, quant.Int8WeightPerTensorFloat, {"INT4"}, 21),
        (3, quant.Int8WeightPerChannelFloat, {"INT4"}, 21),
        (4, quant.ShiftedUint8WeightPerTensorFloat, {"UINT4"}, 21),
        (2, quant.Int8WeightPerTensorFloat, {"INT2"}, 25),
        (6, quant.Int8WeightPerTensorFloat, {"INT8"}, 20),
    ],
)
def test_weights_are_stored_small_and_read_exactly(bits, preset, elements, opset):
    import onnx

    model = model_of(bits, preset)
    x = torch.randn(4, 1, 4, 4)
    proto = StdONNXManager.export(model, input_t=x, sub_byte_types=True)
    stored = [t for t in proto.graph.initializer if t.name.endswith("_codes")]
    assert {onnx.TensorProto.DataType.Name(t.data_type) for t in stored} == elements
    assert proto.opset_import[0].version == opset
    codes = initializers(proto)["1.weight_codes"].astype(np.int64)
    assert np.array_equal(codes, model[1].int_weight().numpy())
    assert verify(model, proto, x).ok
    plain = StdONNXManager.export(model, input_t=x)
    assert op_types(plain) == op_types(proto), "activations are clipped as ever"
    if bits <= 4:
        assert len(stored[0].raw_data) <= codes.size // (8 // (2 if bits <= 2 else 4)) + 1


def test_an_opset_that_is_too_low(tmp_path):
    with pytest.raises(ExportError, match="E05 .*'1'.*opset_version=20 for int4 values.*opset_version=21"):
        StdONNXManager.export(
            model_of(4),
            input_shape=(1, 1, 4, 4),
            sub_byte_types=True,
            opset_version=20,
            export_path=tmp_path / "m.onnx",
        )
    with pytest.raises(ExportError, match="E05 .*opset_version=21 for int2 values.*opset_version=25"):
        StdONNXManager.export(model_of(2), input_shape=(1, 1, 4, 4), sub_byte_types=True, opset_version=21)
    assert not list(tmp_path.iterdir())
