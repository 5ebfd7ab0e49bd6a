"""HadamardClassifier: the matrix, the formula, the grid."""

import builtins
import copy
import pickle

import pytest
import torch
from torch import nn

from brevitas.errors import QuantConfigError, QuantMetadataError
from brevitas.nn import HadamardClassifier, QuantIdentity
from brevitas.nn.hadamard_classifier import sylvester
from brevitas.quant_tensor import QuantTensor

H4 = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])


def quantized(shape, zero_point=0.0):
    codes = torch.randint(0, 16, shape).float()
    return QuantTensor((codes - zero_point) * 0.1, 0.1, zero_point, 4, False)


@pytest.mark.parametrize("size", [1, 2, 4, 64])
def test_the_matrix_is_orthogonal(size):
    matrix = sylvester(size)
    assert torch.equal(matrix @ matrix.T, size * torch.eye(size)) and torch.equal(matrix.abs(), torch.ones(size, size))


@pytest.mark.parametrize(("inputs", "classes"), [(4, 4), (3, 4), (4, 2), (3, 3)])
def test_scores_are_those_of_the_formula(inputs, classes):
    layer, x = HadamardClassifier(inputs, classes), torch.randn(5, inputs)
    assert layer.scale.tolist() == [pytest.approx(classes**-0.5)]
    expected = torch.stack([-(classes**-0.5) * H4[:classes, :inputs] @ row / (row.norm() + 1e-8) for row in x])
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x.view(5, 1, inputs)), expected.view(5, 1, classes))


def test_each_sample_has_a_norm_of_its_own():
    layer, x = HadamardClassifier(4, 3), torch.randn(2, 4)
    torch.testing.assert_close(layer(x)[0], layer(x[:1])[0])
    torch.testing.assert_close(layer(10 * x), layer(x))


def test_gradients():
    layer = HadamardClassifier(6, 5, dtype=torch.float64)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, s: torch.func.functional_call(layer, {"scale": s}, x), (x, layer.scale.detach().requires_grad_())
    )
    zero = torch.zeros(1, 6, dtype=torch.float64, requires_grad=True)
    layer(zero).sum().backward()
    assert zero.grad.isfinite().all()
    for dtype in (torch.float16, torch.bfloat16):
        assert not HadamardClassifier(6, 5, dtype=dtype)(torch.zeros(1, 6, dtype=dtype)).any()


@pytest.mark.parametrize("fixed", [True, False])
def test_the_matrix_is_not_in_the_state(fixed):
    layer = HadamardClassifier(6, 5, fixed_scale=fixed)
    assert list(layer.state_dict()) == ["scale"] and len(list(layer.parameters())) == (0 if fixed else 1)
    assert not any(HadamardClassifier(6, 5, fixed_scale=not fixed).load_state_dict(layer.state_dict()))


@pytest.mark.parametrize("zero_point", [0.0, 5.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_metadata(sign, zero_point):
    layer = HadamardClassifier(7, 5, return_quant_tensor=True)
    with torch.no_grad():
        layer.scale.mul_(sign)
    x = quantized((3, 7), zero_point)
    y = layer(x)
    norm = x.value.norm(dim=1, keepdim=True) + 1e-8
    torch.testing.assert_close(y.scale, 0.1 * 5**-0.5 / norm)
    assert y.zero_point.item() == 0 and y.signed and y.is_valid
    codes = -sign * (x.int().double() - zero_point) @ layer.matrix.double().T
    assert torch.equal(y.int(), codes.int())
    assert torch.equal(y.value, HadamardClassifier(7, 5).eval()(x.value) * sign)
    y.scale.sum().backward()
    assert layer.scale.grad.item() == pytest.approx(sign * (0.1 / norm).sum().item())


def test_quant_tensor_and_plain_tensor():
    x = quantized((3, 7))
    layer = HadamardClassifier(7, 5)
    assert type(layer(x)) is torch.Tensor and torch.equal(layer(x), layer(x.value))
    model = nn.Sequential(QuantIdentity(), HadamardClassifier(7, 5, return_quant_tensor=True))
    with pytest.raises(QuantMetadataError) as caught:
        model(torch.randn(2, 7))
    for fragment in ("HadamardClassifier '1'", "needs the input scale", "QuantIdentity '0'", "=False here"):
        assert fragment in str(caught.value)
    scales = torch.full((1, 7), 0.1)
    with pytest.raises(QuantMetadataError, match=r"per-tensor input scale.*\(1, 7\)"):
        model[1](QuantTensor(torch.zeros(2, 7), scales, 0.0, 4, False))


@pytest.mark.parametrize(("arguments", "name"), [((0, 4), "in_channels = 0"), ((4, 2.5), "out_channels = 2.5")])
def test_bad_arguments(arguments, name):
    with pytest.raises(QuantConfigError, match=f"HadamardClassifier: {name} is not legal: expected a positive"):
        HadamardClassifier(*arguments)


def test_numbers():
    layer = HadamardClassifier(6, 5)
    assert (layer.weights_per_output, layer.per_elem_ops, layer.out_channels) == (6, 12, 5)


def test_copies_dtypes_and_compiled_code(monkeypatch):
    original = builtins.__import__

    def without_scipy(name, *args, **kwargs):
        assert not name.startswith("scipy")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_scipy)
    layer, x = HadamardClassifier(6, 5), torch.randn(3, 6)
    monkeypatch.undo()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert HadamardClassifier(6, 5, dtype=dtype)(x.to(dtype)).dtype == dtype
    torch._dynamo.reset()
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))
    assert torch.equal(torch.export.export(layer.eval(), (x,)).module()(x), layer(x))
    on_meta = HadamardClassifier(6, 5, device="meta").to_empty(device="cpu")
    on_meta.reset_parameters()
    assert torch.equal(on_meta(x), layer(x))
