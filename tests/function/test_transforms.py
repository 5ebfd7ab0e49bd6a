"""torch.func: grad, vmap, jacrev and derivatives of derivatives, of every function that has a gradient of its own."""

import pytest
import torch
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn import functional as F

from brevitas.function import ops, ops_ste
from brevitas.function.int_quant_op import int_quant
from brevitas.function.rounding import dpu_round_ste, stochastic_round_ste
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.nn.utils import init_scales
from brevitas.quant import Int32Bias

DOUBLE = torch.float64


def number(value):
    return torch.tensor(value, dtype=DOUBLE)


LOW, HIGH = number(-0.7), number(0.9)
FUNCTIONS = {
    "round_ste": ops_ste.round_ste,
    "ceil_ste": ops_ste.ceil_ste,
    "floor_ste": ops_ste.floor_ste,
    "round_to_zero_ste": ops_ste.round_to_zero_ste,
    "binary_sign_ste": ops_ste.binary_sign_ste,
    "ternary_sign_ste": ops_ste.ternary_sign_ste,
    "abs_binary_sign_grad": ops_ste.abs_binary_sign_grad,
    "scalar_clamp_ste": lambda x: ops_ste.scalar_clamp_ste(x, -0.5, 0.5),
    "scalar_clamp_min_ste": lambda x: ops_ste.scalar_clamp_min_ste(x, -0.5),
    "tensor_clamp_ste": lambda x: ops_ste.tensor_clamp_ste(x, LOW, HIGH),
    "tensor_clamp": lambda x: ops.tensor_clamp(x, LOW, HIGH),
    "divide": lambda x: ops.divide(x, 3.0 + x * x),
    "dpu_round_ste": dpu_round_ste,
    "stochastic_round_ste": lambda x: stochastic_round_ste(x, torch.full_like(x, 0.3)),
    "int_quant": lambda x: int_quant(x, number(0.3), number(0.0), number(3.0), True, True),
    "int_quant clamp_ste": lambda x: int_quant(x, number(0.3), number(1.0), number(3.0), False, False, "FLOOR", True),
    "int_quant scale": lambda x: int_quant(x, x.abs().mean() / 3, number(0.0), number(3.0), True, True),
}


def batch():
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)


def by_autograd(function, x):
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(x), x)
    return gradient


@pytest.mark.parametrize("name", FUNCTIONS)
def test_grad_is_that_of_autograd(name):
    x = batch()[0]

    def loss(x):
        return (FUNCTIONS[name](x) ** 3).sum()

    assert torch.equal(grad(loss)(x), by_autograd(loss, x))
    assert loss(x).item() == (FUNCTIONS[name](x) ** 3).sum().item()


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_is_a_loop(name):
    def loss(x):
        return (FUNCTIONS[name](x) ** 3).sum()

    rows = batch()
    assert torch.equal(vmap(FUNCTIONS[name])(rows), torch.stack([FUNCTIONS[name](row) for row in rows]))
    torch.testing.assert_close(vmap(grad(loss))(rows), torch.stack([by_autograd(loss, row) for row in rows]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_of_derivatives(name):
    x = batch()[0]

    def loss(x):
        return (FUNCTIONS[name](x) ** 3).sum()

    def slope(x):
        return (grad(loss)(x) ** 2).sum()

    def slope_by_autograd(x):
        (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
        return (gradient**2).sum()

    torch.testing.assert_close(grad(slope)(x), by_autograd(slope_by_autograd, x))


def test_a_jacobian():
    x = number([0.1, 0.31, 5.0])
    jacobian = jacrev(FUNCTIONS["int_quant"])(x)
    assert torch.equal(jacobian, torch.diag(number([1.0, 1.0, 0.0])))


def network():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        QuantIdentity(return_quant_tensor=True),
        QuantConv2d(1, 2, 3, bias_quant=Int32Bias, weight_scaling_impl_type="parameter_from_stats"),
        QuantReLU(bit_width=4, return_quant_tensor=True),
        torch.nn.Flatten(),
        QuantLinear(2 * 36, 3, bias_quant=Int32Bias, return_quant_tensor=False),
    ).double()
    model(torch.randn(8, 1, 8, 8, dtype=DOUBLE))
    assert init_scales(model) == []
    return model


def loss_of(model):
    def loss(parameters, x, target):
        return F.cross_entropy(functional_call(model, parameters, (x,)), target)

    return loss, {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_a_network(training):
    model = network().train(training)
    loss, parameters = loss_of(model)
    x, target = torch.randn(4, 1, 8, 8, dtype=DOUBLE), torch.tensor([0, 1, 2, 0])
    gradients = grad(loss)(parameters, x, target)
    model.zero_grad()
    F.cross_entropy(model(x), target).backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(gradients[name], parameter.grad), name


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_each_sample():
    model = network().eval()
    loss, parameters = loss_of(model)
    x, target = torch.randn(4, 1, 8, 8, dtype=DOUBLE), torch.tensor([0, 1, 2, 0])
    per_sample = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x[:, None], target[:, None])
    for index in range(4):
        model.zero_grad()
        F.cross_entropy(model(x[index : index + 1]), target[index : index + 1]).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(per_sample[name][index], parameter.grad, msg=name)
