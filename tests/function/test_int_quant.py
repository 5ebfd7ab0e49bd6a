"""``int_quant`` against formulas in float64, against its composed reference, and in every way torch can run it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

from brevitas.errors import QuantConfigError
from brevitas.function import int_quant, int_quant_reference
from brevitas.function.int_quant_op import ROUNDINGS

OP = torch.ops.brevitas.int_quant.default
ROUND_OF = {"ROUND": torch.round, "CEIL": torch.ceil, "FLOOR": torch.floor, "ROUND_TO_ZERO": torch.trunc}


def bounds(bits, signed, narrow):
    if signed:
        return -(2 ** (bits - 1)) + (1 if narrow else 0), 2 ** (bits - 1) - 1
    return 0, 2**bits - (2 if narrow else 1)


def expected(x, scale, zero_point, bits, signed, narrow, rounding, clamp_ste, grad):
    """The table of the specification in float64: y and the gradients to x, scale, zero point and bit width."""
    x, s, z, g = x.double(), scale.double(), zero_point.double(), grad.double()
    low, high = bounds(bits, signed, narrow)
    code = ROUND_OF[rounding](x / s + z)
    clamped = code.clamp(low, high)
    inside = (code >= low) & (code <= high)
    nothing = torch.zeros_like(g)
    power = 2.0 ** (bits - 1) if signed else 2.0**bits
    d_bound = ((code > high).double() - ((code < low) & signed).double()) * power * math.log(2)
    if clamp_ste:
        return (clamped - z) * s, g, g * (clamped - z - x / s), nothing, nothing
    return (
        (clamped - z) * s,
        torch.where(inside, g, 0.0),
        g * (clamped - z - torch.where(inside, x / s, 0.0)),
        torch.where(inside, 0.0, -g * s),
        torch.where(inside, 0.0, g * s * d_bound),
    )


def run(function, tensors, options, grad):
    leaves = [t.clone().requires_grad_() for t in tensors]
    y = function(*leaves, *options)
    y.backward(grad)
    return y.detach(), [torch.zeros_like(t) if t.grad is None else t.grad for t in leaves]


@st.composite
def problems(draw):
    """Inputs whose codes are computed exactly in every dtype: x = (k + r / 8) / 2^e, scale = 2^-e."""
    channels, n = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    per_channel = draw(st.booleans())
    shape = (channels, 1) if per_channel else ()
    exponent = draw(st.integers(-2, 4))
    eighths = draw(st.lists(st.integers(-160, 160), min_size=channels * n, max_size=channels * n))
    x = torch.tensor(eighths, dtype=torch.float64).view(channels, n) / 8.0 * 2.0**-exponent
    scale = torch.full(shape, 2.0**-exponent, dtype=torch.float64)
    if per_channel:
        scale = scale * 2.0 ** torch.arange(channels, dtype=torch.float64).view(shape)
    zero_point = torch.full(shape, float(draw(st.integers(-3, 12))), dtype=torch.float64)
    signed = draw(st.booleans())
    bits = draw(st.integers(2, 5))
    options = (signed, draw(st.booleans()), draw(st.sampled_from(ROUNDINGS)), draw(st.booleans()))
    grad = torch.tensor(
        draw(st.lists(st.sampled_from([-2.0, -0.5, 0.0, 1.0, 3.0]), min_size=channels * n, max_size=channels * n)),
        dtype=torch.float64,
    ).view(channels, n)
    return x, scale, zero_point, bits, options, grad


TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(problem=problems())
def test_values_and_gradients_are_those_of_the_table(dtype, problem):
    x, scale, zero_point, bits, options, grad = problem
    x, scale, zero_point, grad = x.to(dtype), scale.to(dtype), zero_point.to(dtype), grad.to(dtype)
    y, *elementwise = expected(x, scale, zero_point, bits, *options, grad)
    tensors = (x, scale, zero_point, torch.tensor(float(bits), dtype=dtype))
    wanted = [g.sum_to_size(t.shape) for g, t in zip(elementwise, tensors, strict=True)]
    for function in (int_quant, int_quant_reference):
        got, gradients = run(function, tensors, options, grad)
        assert got.dtype == dtype
        assert torch.equal(got, y.to(dtype))
        for value, want, tensor in zip(gradients, wanted, tensors, strict=True):
            assert value.dtype == tensor.dtype and value.shape == tensor.shape
            torch.testing.assert_close(value.double(), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * 10)


@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8),
    scale=st.floats(2.0**-8, 8.0, width=32),
    zero_point=st.integers(0, 200),
    options=st.tuples(st.booleans(), st.booleans(), st.sampled_from(ROUNDINGS), st.booleans()),
)
def test_equals_its_reference_for_arbitrary_floats(values, scale, zero_point, options):
    tensors = (torch.tensor(values), torch.tensor(scale), torch.tensor(float(zero_point)), torch.tensor(8.0))
    grad = torch.linspace(-1.0, 1.0, len(values))
    y, gradients = run(int_quant, tensors, options, grad)
    y_ref, gradients_ref = run(int_quant_reference, tensors, options, grad)
    assert torch.equal(y, y_ref)
    torch.testing.assert_close(gradients[0], gradients_ref[0], rtol=1e-6, atol=0.0)  # g s / s rounds twice
    size = float((tensors[0].abs() / scale).max()) + 300.0
    for value, reference in zip(gradients[1:], gradients_ref[1:], strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-5, atol=1e-5 * size)


@pytest.mark.parametrize("needs", [(1, 0, 0, 0), (1, 1, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 0, 0)])
@pytest.mark.parametrize("clamp_ste", [True, False])
def test_gradients_do_not_depend_on_which_of_them_are_asked_for(needs, clamp_ste):
    tensors = (torch.linspace(-3, 3, 13), torch.tensor(0.3), torch.tensor(1.0), torch.tensor(4.0))
    options = (True, False, "ROUND", clamp_ste)
    y_all, gradients_all = run(int_quant, tensors, options, torch.ones(13))
    leaves = [t.clone().requires_grad_(bool(n)) for t, n in zip(tensors, needs, strict=True)]
    y = int_quant(*leaves, *options)
    assert torch.equal(y, y_all)
    if any(needs):
        y.backward(torch.ones(13))
    for leaf, need, gradient in zip(leaves, needs, gradients_all, strict=True):
        assert torch.equal(leaf.grad, gradient) if need else leaf.grad is None


def test_values_on_the_grid_are_reproduced_exactly():
    scale = torch.tensor(1.27 / 127)
    grid = torch.arange(-128.0, 128.0) * scale
    assert torch.equal(int_quant(grid, scale, torch.tensor(0.0), torch.tensor(8.0), True, False), grid)


def test_an_input_within_half_a_step_outside_the_range_still_gets_a_gradient():
    x = torch.tensor([7.4, 7.6], requires_grad=True)
    int_quant(x, torch.tensor(1.0), torch.tensor(0.0), torch.tensor(4.0), True, False).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]


def test_all_equal_codes_under_a_second_derivative():
    x = torch.tensor([0.3, -0.7, 9.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    y = int_quant(x, scale, torch.tensor(0.0), torch.tensor(3.0), True, False)
    (first,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    # Inside, d2(y^2)/dx2 = 2 (straight through); outside the range nothing reaches x.
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.tolist() == [2.0, 2.0, 0.0]


@pytest.mark.parametrize("bits", [25, 31, 32])
def test_codes_of_wide_widths_stay_inside_the_range_in_float32(bits):
    for signed in (True, False):
        for dtype in (torch.float32, torch.float64):
            x = torch.tensor([-1e12, 1e12], dtype=dtype)
            y = int_quant(x, torch.ones((), dtype=dtype), torch.zeros(()), torch.tensor(float(bits)), signed, False)
            low, high = bounds(bits, signed, False)
            assert low == int(y[0]) and int(y[1]) <= high and high - int(y[1]) < 2 ** max(bits - 24, 0)


def test_all_ways_of_running_it_agree():
    tensors = (torch.linspace(-3, 3, 13).view(1, 13), torch.tensor([[0.3]]), torch.tensor(2.0), torch.tensor(4.0))
    options = (False, False, "ROUND", False)
    grad = torch.linspace(-1, 1, 13).view(1, 13)
    eager = run(int_quant, tensors, options, grad)
    scripted = torch.jit.script(int_quant)
    for _ in range(3):  # TorchScript optimises after it has profiled
        y, gradients = run(scripted, tensors, options, grad)
        assert torch.equal(y, eager[0])
        assert all(torch.equal(a, b) for a, b in zip(gradients, eager[1], strict=True))
    torch._dynamo.reset()
    y, gradients = run(torch.compile(int_quant, fullgraph=True, backend="aot_eager"), tensors, options, grad)
    assert torch.equal(y, eager[0])
    for a, b in zip(gradients, eager[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    with torch.inference_mode():
        assert torch.equal(int_quant(*tensors, *options), eager[0])
    traced = torch.jit.trace(lambda *t: int_quant(*t, *options), tensors)
    assert torch.equal(traced(*tensors), eager[0])


@pytest.mark.slow
def test_inductor_agrees():
    tensors = (torch.linspace(-3, 3, 13), torch.tensor(0.3), torch.tensor(2.0), torch.tensor(4.0))
    options = (False, False, "ROUND", False)
    torch._dynamo.reset()
    eager = run(int_quant, tensors, options, torch.ones(13))
    y, gradients = run(torch.compile(int_quant, fullgraph=True), tensors, options, torch.ones(13))
    assert torch.equal(y, eager[0])
    for a, b in zip(gradients, eager[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


class _Quantize(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.1))
        self.register_buffer("zero_point", torch.tensor(0.0))
        self.register_buffer("bit_width", torch.tensor(4.0))

    def forward(self, x):
        return int_quant(x, self.scale, self.zero_point, self.bit_width, True, False)


@pytest.mark.parametrize("strict", [True, False])
def test_export_keeps_the_operator_and_decomposes_it_on_request(strict):
    x = torch.linspace(-1, 1, 7)
    exported = torch.export.export(_Quantize().eval(), (x,), strict=strict)
    targets = [n.target for n in exported.graph.nodes if n.op == "call_function"]
    assert OP in targets
    assert torch.equal(exported.module()(x), _Quantize()(x))
    decomposed = exported.run_decompositions()
    assert OP not in [n.target for n in decomposed.graph.nodes if n.op == "call_function"]
    assert torch.equal(decomposed.module()(x), _Quantize()(x))


def test_autocast_keeps_the_dtype_of_x():
    x = torch.linspace(-1, 1, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = int_quant(x, torch.tensor(0.125), torch.tensor(0.0), torch.tensor(4.0), True, False)
        half = int_quant(x.bfloat16(), torch.tensor(0.125), torch.tensor(0.0), torch.tensor(4.0), True, False)
    assert y.dtype == torch.float32 and half.dtype == torch.bfloat16
    assert torch.equal(y, (x / 0.125).round().clamp(-8, 7) * 0.125)


@pytest.mark.parametrize("clamp_ste", [True, False])
def test_torch_accepts_the_registration(clamp_ste):
    x = torch.randn(4, 6, requires_grad=True)
    scale = torch.rand(4, 1) + 0.3
    opcheck(OP, (x, scale.requires_grad_(), torch.tensor(1.0), torch.tensor(4.0), True, False, "ROUND", clamp_ste))


def test_an_unknown_rounding_is_named():
    one = torch.tensor(1.0)
    with pytest.raises(QuantConfigError, match="rounding='NEAREST'.*ROUND_TO_ZERO"):
        int_quant(one, one, one, one, True, False, "NEAREST")


def test_nan_stays_nan():
    x = torch.tensor([float("nan"), 1.0], requires_grad=True)
    y = int_quant(x, torch.tensor(1.0), torch.tensor(0.0), torch.tensor(4.0), True, False)
    y.sum().backward()
    assert y[0].isnan() and y[1].item() == 1.0 == x.grad[1].item()
