"""Straight-through and plain functions: value bit for bit, gradient as in the table, in eager mode and TorchScript."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import brevitas.function as F
from brevitas.function import autograd_ste_ops, ops_ste, shape

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SPECIAL = [0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 1e-8, -1e-8, 1e4, -1e4, float("inf"), float("-inf")]


def sign_up(x):
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


UNARY = {
    "round_ste": ("RoundSteFn", torch.round),
    "ceil_ste": ("CeilSteFn", torch.ceil),
    "floor_ste": ("FloorSteFn", torch.floor),
    "round_to_zero_ste": ("RoundToZeroSteFn", lambda x: torch.sign(x) * torch.floor(torch.abs(x))),
    "binary_sign_ste": ("BinarySignSteFn", sign_up),
    "ternary_sign_ste": ("TernarySignSteFn", torch.sign),
    "abs_binary_sign_grad": ("AbsBinarySignGradFn", torch.abs),
}
CLAMPS = {
    "scalar_clamp_ste": ("ScalarClampSteFn", (-1.0, 2.0), lambda x: x.clamp(-1.0, 2.0)),
    "scalar_clamp_min_ste": ("ScalarClampMinSteFn", (0.5,), lambda x: x.clamp(min=0.5)),
    "tensor_clamp_ste": (
        "TensorClampSteFn",
        (torch.tensor(-1.0), torch.tensor(2.0)),
        lambda x: x.clamp(-1.0, 2.0),
    ),
}


def value_and_gradient(function, x, *others):
    x = x.clone().requires_grad_()
    grad = torch.linspace(-1.0, 2.0, x.numel()).to(x.dtype).view(x.shape)
    y = function(x, *others)
    y.backward(grad)
    return y.detach(), x.grad, grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", UNARY)
@given(values=st.lists(st.floats(-1e4, 1e4, width=32), max_size=6))
def test_unary(name, dtype, values):
    class_name, plain = UNARY[name]
    x = torch.tensor(SPECIAL + values).to(dtype)
    for function in (getattr(F, name), getattr(autograd_ste_ops, class_name).apply):
        y, gradient, grad = value_and_gradient(function, x)
        assert y.dtype == dtype and torch.equal(y, plain(x))
        expected = grad * sign_up(x) if name == "abs_binary_sign_grad" else grad
        assert torch.equal(gradient, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CLAMPS)
def test_clamps(name, dtype):
    class_name, others, plain = CLAMPS[name]
    x = torch.tensor(SPECIAL).to(dtype)
    for function in (getattr(F, name), getattr(autograd_ste_ops, class_name).apply):
        y, gradient, grad = value_and_gradient(function, x, *others)
        assert y.dtype == dtype and torch.equal(y, plain(x)) and torch.equal(gradient, grad)


@pytest.mark.parametrize("name", [*UNARY, *CLAMPS])
def test_script_and_inference_mode_agree_with_eager(name):
    function = getattr(F, name)
    others = CLAMPS[name][1] if name in CLAMPS else ()
    x = torch.tensor(SPECIAL)
    eager = value_and_gradient(function, x, *others)
    scripted = torch.jit.script(function)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(eager, value_and_gradient(scripted, x, *others), strict=True))
    with torch.inference_mode():
        assert torch.equal(function(x, *others), eager[0])


@pytest.mark.parametrize("name", [*UNARY, *CLAMPS, "tensor_clamp", "divide"])
def test_torch_accepts_the_registration(name):
    x = torch.tensor([0.4, -1.6, 3.0], requires_grad=True)
    others = CLAMPS[name][1] if name in CLAMPS else ()
    if name == "tensor_clamp":
        others = (torch.tensor(-1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True))
    if name == "divide":
        others = (torch.tensor(0.3, requires_grad=True),)
    opcheck(getattr(torch.ops.brevitas, name).default, (x, *others))


def test_every_straight_through_function_is_covered_here():
    assert set(ops_ste.__all__) == {*UNARY, *CLAMPS, "tensor_clamp_ste_"}
    assert set(F.__all__) >= set(ops_ste.__all__)


def test_bounds_of_a_straight_through_clamp_get_no_gradient():
    low, high = torch.tensor(-1.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    x = torch.tensor([-2.0, 0.0, 2.0], requires_grad=True)
    F.tensor_clamp_ste(x, low, high).sum().backward()
    assert low.grad is None and high.grad is None


def test_in_place_straight_through_clamp():
    leaf = torch.tensor([-2.0, 0.0, 2.0], requires_grad=True)
    x = leaf * 1.0
    y = F.tensor_clamp_ste_(x, torch.tensor(-1.0), torch.tensor(1.0))
    assert y is x or y.data_ptr() == x.data_ptr()
    assert x.tolist() == [-1.0, 0.0, 1.0]
    (y * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert leaf.grad.tolist() == [1.0, 2.0, 3.0]
    plain = torch.tensor([-2.0, 0.0, 2.0])
    assert F.tensor_clamp_(plain, torch.tensor(-1.0), torch.tensor(1.0)) is plain
    assert plain.tolist() == [-1.0, 0.0, 1.0]


def test_tensor_clamp_gradients():
    x = torch.tensor([[-3.0, -1.0, 0.0, 2.0, 5.0]], requires_grad=True)
    low = torch.tensor(-1.0, requires_grad=True)
    high = torch.tensor([[2.0], [4.0]], requires_grad=True)
    y = F.tensor_clamp(x, low, high)
    assert y.tolist() == [[-1.0, -1.0, 0.0, 2.0, 2.0], [-1.0, -1.0, 0.0, 2.0, 4.0]]
    y.backward(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [10.0, 20.0, 30.0, 40.0, 50.0]]))
    assert x.grad.tolist() == [[0.0, 22.0, 33.0, 44.0, 0.0]]  # inside and at the bounds, both rows
    assert low.grad.item() == 11.0
    assert high.grad.tolist() == [[5.0], [50.0]]


def test_tensor_clamp_when_the_bounds_cross_gives_the_lower_one():
    assert F.tensor_clamp(torch.tensor(0.0), torch.tensor(3.0), torch.tensor(1.0)).item() == 3.0


def test_plain_signs_and_truncation():
    x = torch.tensor([-1.5, -0.0, 0.0, 0.7, float("nan")], requires_grad=True)
    y = F.binary_sign(x)
    assert y[:4].tolist() == [-1.0, 1.0, 1.0, 1.0] and y[4].isnan()
    assert F.round_to_zero(x)[:4].tolist() == [-1.0, 0.0, 0.0, 0.0]
    F.binary_sign(x)[:4].sum().backward()
    assert x.grad.tolist() == [0.0] * 5
    assert F.identity(x) is x


@pytest.mark.parametrize("bits", range(1, 33))
def test_integer_ranges(bits):
    b = torch.tensor(float(bits), dtype=torch.float64)
    assert F.max_int(True, False, b).item() == F.max_int(True, True, b).item() == 2 ** (bits - 1) - 1
    assert F.min_int(True, False, b).item() == -(2 ** (bits - 1))
    assert F.min_int(True, True, b).item() == -(2 ** (bits - 1)) + 1
    assert F.max_int(False, False, b).item() == 2**bits - 1
    assert F.max_int(False, True, b).item() == 2**bits - 2
    assert F.min_int(False, True, b).item() == 0.0
    for dtype in (torch.float32, torch.float16):
        for signed in (True, False):
            exact = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
            value = F.max_int(signed, False, b.to(dtype)).item()
            assert value <= exact and (value == exact or bits > 24)


def test_integer_ranges_are_differentiable():
    b = torch.tensor(4.0, requires_grad=True)
    (F.max_int(True, False, b) - 3.0 * F.min_int(True, False, b) + F.min_int(False, False, b)).backward()
    torch.testing.assert_close(b.grad, torch.tensor(4.0 * 8.0 * 0.6931471805599453))


def test_shapes():
    x = torch.zeros(2, 3, 4, 5)
    for function, rows in (
        (shape.over_tensor, (120,)),
        (shape.over_output_channels, (2, 60)),
        (shape.over_batch_over_tensor, (2, 60)),
        (shape.over_batch_over_output_channels, (2, 3, 20)),
    ):
        assert x.view(function(x)).shape == rows
        assert torch.jit.script(function)(x) == function(x)
