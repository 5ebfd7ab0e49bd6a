"""What models may be given: several inputs, inputs by name, and models that live elsewhere."""

import pytest
import torch
from export_networks import op_types
from torch import nn

from brevitas import quant
from brevitas.errors import ExportError, ShapeError
from brevitas.export import QONNXManager, StdONNXManager, export_torch_qop, verify
from brevitas.nn import QuantIdentity, QuantLinear


class Two(nn.Module):
    """Two inputs, one of them optional, and an option that is no tensor."""

    def __init__(self):
        super().__init__()
        self.inp = QuantIdentity(quant.Uint8ActPerTensorFloat, return_quant_tensor=True)
        self.fc = QuantLinear(4, 3, output_quant=quant.ShiftedUint8ActPerTensorFloat)

    def forward(self, x, other=None, *, shift=None, scale=2.0):
        y = self.fc(self.inp(x))
        y = y if other is None else y + other
        return (y if shift is None else y + shift) * scale


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = Two()
    net.train()(torch.rand(16, 4))
    return net.eval()


INPUTS = {"shift": torch.ones(5, 3), "x": torch.rand(5, 4)}


@pytest.mark.parametrize("manager", [StdONNXManager, QONNXManager])
def test_inputs_by_name(model, manager):
    proto = manager.export(model, input_t=INPUTS)
    assert [i.name for i in proto.graph.input] == ["shift", "x"]
    report = verify(model, proto, INPUTS)
    assert report.ok, report
    assert {row.quantizer for row in report.rows} >= {"inp.act_quant", "fc.weight_quant"}, "layers keep their paths"
    assert op_types(proto).count("Add") == op_types(manager.export(model, input_t=INPUTS["x"])).count("Add") + 1
    assert "forward" not in vars(model)


def test_inputs_by_name_of_a_torchscript_module(model):
    exported = export_torch_qop(model, input_t=INPUTS)
    assert verify(model, exported, INPUTS).ok
    assert torch.allclose(exported(*INPUTS.values()), model(**INPUTS))


def test_names_that_forward_does_not_have(model, tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(ExportError, match="E01 .*an input 'shfit'.*x, other, shift, scale.*write 'shift'"):
        StdONNXManager.export(model, input_t={"x": INPUTS["x"], "shfit": INPUTS["shift"]}, export_path=path)
    with pytest.raises(ExportError, match="E01 .*no input 'x', which forward needs.*add 'x'"):
        StdONNXManager.export(model, input_t={"shift": INPUTS["shift"]}, export_path=path)
    with pytest.raises(ExportError, match="E01 .*input_t of type str"):
        StdONNXManager.export(model, input_t={"x": "a"}, export_path=path)
    assert not path.exists()


def test_several_inputs(model):
    x = (torch.rand(5, 4), torch.rand(5, 3))
    proto = StdONNXManager.export(model, input_t=x, input_names=["image", "other"])
    assert [i.name for i in proto.graph.input] == ["image", "other"]
    assert verify(model, proto, x).ok


def test_a_forward_that_fails_names_the_layer_and_both_sizes(model, tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(ShapeError, match=r"QuantLinear 'fc'.*\(2, 5\).*in_features=4"):
        StdONNXManager.export(model, input_shape=(2, 5), export_path=path)
    plain = nn.Sequential(QuantIdentity(), nn.Linear(4, 3)).eval()
    with pytest.raises(ExportError, match=r"E01 .*Linear '1'.*shape \(2, 5\).*2x5 and 4x3.*model.eval\(\)") as caught:
        StdONNXManager.export(plain, input_shape=(2, 5), export_path=path)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_model_on_a_gpu(model):
    x = torch.rand(5, 4)
    there = model.cuda()
    assert verify(there, StdONNXManager.export(there, input_t=x.cuda()), x).ok
    assert next(there.parameters()).is_cuda
