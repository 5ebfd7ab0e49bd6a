"""A linear layer of another size than its input: one error that names the layer and both sizes."""

import pytest
import torch
from torch import nn

from brevitas.errors import BrevitasError, ShapeError
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = QuantConv2d(3, 16, 5)
        self.act = QuantIdentity(return_quant_tensor=True)
        self.fc1 = QuantLinear(256, 120)

    def forward(self, x):
        return self.fc1(self.act(self.conv1(x)).flatten(1))


def test_the_error_names_the_layer_and_both_sizes():
    with pytest.raises(ShapeError, match=r"QuantLinear 'fc1': .*shape \(2, 400\) has 400 features.*in_features=256"):
        Net()(torch.randn(2, 3, 9, 9))
    assert issubclass(ShapeError, BrevitasError) and issubclass(ShapeError, RuntimeError)  # torch's own is one too


def test_a_tensor_without_dimensions():
    with pytest.raises(ShapeError, match=r"shape \(\) has no features, expected in_features=3"):
        QuantLinear(3, 2)(torch.tensor(1.0))


def test_nothing_is_collected_from_a_refused_input():
    layer = QuantLinear(3, 2, input_quant=QuantIdentity().act_quant.quant_injector)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with pytest.raises(ShapeError):
        layer.train()(torch.randn(2, 4))
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 5, 3), (0, 3)])
def test_inputs_of_every_rank_that_torch_takes(shape):
    assert QuantLinear(3, 2)(torch.randn(shape)).shape == (*shape[:-1], 2)


def test_a_compiled_layer_is_one_graph():
    layer = QuantLinear(3, 2).eval()
    x = torch.randn(4, 3)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), layer(x))
