"""Tensor quantizers: values and gradients by hand or from the formula of the specification."""

import pytest
import torch
from core_catalogue import from_weight, rescaling, shifted_act, weight
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from brevitas.core.bit_width import BitWidthConst, BitWidthParameter
from brevitas.core.function_wrapper import (
    CeilSte,
    FloorSte,
    Identity,
    InplaceTensorClampSte,
    OverTensorView,
    RoundSte,
    RoundToZeroSte,
    TensorClamp,
    TensorClampSte,
)
from brevitas.core.quant import (
    BinaryQuant,
    ClampedBinaryQuant,
    DecoupledIntQuant,
    DelayWrapper,
    IntQuant,
    PrescaledRestrictIntQuant,
    PrescaledRestrictIntQuantWithInputBitWidth,
    TernaryQuant,
    TruncIntQuant,
    TruncMsbScaling,
    TruncScalingWrapper,
)
from brevitas.core.restrict_val import PowerOfTwoRestrictValue
from brevitas.core.scaling import ConstScaling, ParameterScaling, PowerOfTwoIntScaling, StatsFromParameterScaling
from brevitas.core.stats import AbsMax, AbsMinMax
from brevitas.core.zero_point import MinUintZeroPoint
from brevitas.errors import QuantConfigError

ZERO, ONE = torch.tensor(0.0), torch.tensor(1.0)


def t(*values):
    return torch.tensor(values)


def of_weight(stats=None, restrict=None):
    return StatsFromParameterScaling(stats or AbsMax(), OverTensorView(), 0, None, restrict, ())


# ---- checks of the presets (quantizers.md 6) ----


def test_weight_per_tensor():
    y, scale, zero_point, bits = rescaling(of_weight(), narrow=True)(t(1.27, -0.004, 0.016))
    assert scale.item() == pytest.approx(0.01) and zero_point.item() == 0.0 and bits.item() == 8.0
    assert (y / scale).round().tolist() == [127.0, 0.0, 2.0]


def test_weight_power_of_two():
    quant = rescaling(of_weight(restrict=PowerOfTwoRestrictValue()), int_scaling=PowerOfTwoIntScaling(True))
    assert quant(t(0.3, -0.1))[1].item() == 2.0**-8


@pytest.mark.parametrize(("low", "high", "step", "z"), [(-1.0, 3.0, 4.0 / 255, 64.0), (1.0, 3.0, 3.0 / 255, 0.0)])
def test_weight_shifted(low, high, step, z):
    quant = IntQuant(narrow_range=False, signed=False)
    module = rescaling(of_weight(AbsMinMax()), signed=False, zero_point=MinUintZeroPoint(quant, OverTensorView(), ()))
    y, scale, zero_point, _ = module(t(low, high, 2.0))
    assert scale.item() == pytest.approx(step) and zero_point.item() == z
    codes = y / scale + zero_point
    assert torch.allclose(codes, codes.round(), atol=1e-3) and codes.min() >= -1e-3 and codes.max() <= 255.001


@pytest.mark.parametrize("restrict", [None, PowerOfTwoRestrictValue()])
def test_all_zero_weights(restrict):
    x = torch.zeros(4, requires_grad=True)
    int_scaling = PowerOfTwoIntScaling(True) if restrict else None
    y, scale, *_ = rescaling(of_weight(restrict=restrict), narrow=True, int_scaling=int_scaling)(x)
    y.sum().backward()
    assert y.tolist() == [0.0] * 4 and x.grad.isfinite().all()
    assert scale.item() == pytest.approx(2.0**-33 / 128 if restrict else 1e-10 / 127, rel=1e-6)


# ---- IntQuant ----


@given(
    values=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=6),
    signed=st.booleans(),
    narrow=st.booleans(),
    rounding=st.sampled_from([RoundSte, CeilSte, FloorSte, RoundToZeroSte]),
    clamp=st.sampled_from([TensorClamp, TensorClampSte]),
)
def test_composed_modules_give_the_numbers_of_the_operator(values, signed, narrow, rounding, clamp):
    class OwnRounding(nn.Module):
        def __init__(self):
            super().__init__()
            self.impl = rounding()

        def forward(self, x):
            return self.impl(x)

    standard = IntQuant(narrow, signed, rounding(), clamp())
    composed = IntQuant(narrow, signed, OwnRounding(), clamp())
    assert standard.is_standard and not composed.is_standard
    results = []
    for module in (standard, composed):
        leaves = [t(*values), torch.tensor(0.5), torch.tensor(3.0), torch.tensor(4.0)]
        x, scale, zero_point, bits = (leaf.requires_grad_() for leaf in leaves)
        y = module(scale, zero_point, bits, x)
        y.sum().backward()
        code = module.to_int(scale, zero_point, bits, x)
        assert torch.equal((code - zero_point) * scale, y)
        results.append([y.detach(), *(torch.zeros(()) if leaf.grad is None else leaf.grad for leaf in leaves)])
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    for left, right in zip(results[0][2:], results[1][2:], strict=True):
        torch.testing.assert_close(left, right.expand_as(left), rtol=1e-5, atol=1e-3)


def test_a_replaced_rounding_takes_effect():
    quant = IntQuant(False, True)
    x, scale, bits = t(0.7), ONE, torch.tensor(4.0)
    assert quant(scale, ZERO, bits, x).item() == 1.0
    quant.float_to_int_impl = FloorSte()
    assert quant(scale, ZERO, bits, x).item() == 0.0 == quant.to_int(scale, ZERO, bits, x).item()
    quant.float_to_int_impl = Identity()
    assert quant(scale, ZERO, bits, x).item() == pytest.approx(0.7)


def test_ranges_of_a_quantizer():
    bits = torch.tensor(8.0)
    assert (IntQuant(True, True).min_int(bits).item(), IntQuant(True, True).max_int(bits).item()) == (-127.0, 127.0)
    assert (IntQuant(False, False).min_int(bits).item(), IntQuant(False, False).max_int(bits).item()) == (0.0, 255.0)
    decoupled = DecoupledIntQuant(False, True)
    assert (decoupled.min_int(bits).item(), decoupled.max_int(bits).item()) == (-128.0, 127.0)


def test_learned_width_receives_gradient_from_clamped_values():
    width = BitWidthParameter(3)
    quant = rescaling(ConstScaling(1.0), width=width)
    x = t(5.0, 0.1)
    y, scale, *_ = quant(x)
    y.sum().backward()
    assert y.tolist() == [0.75, 0.0] and scale.item() == 0.25
    # y = (2^(b-1) - 1) / 2^(b-1) for the clamped value: dy/db = ln2 / 2^(b-1), and s' = -ln2 s acts on both
    clamped = 0.6931472 * 0.25
    inside = -0.6931472 * 0.25 * (0.0 - 0.1 / 0.25)
    assert width.bit_width_offset.grad.item() == pytest.approx(clamped + inside, rel=1e-5)


# ---- compositions ----


def test_prescaled():
    quant = PrescaledRestrictIntQuant(IntQuant(False, True), BitWidthConst(4))
    y, scale, zero_point, bits = quant(t(0.26, -5.0), torch.tensor(0.1))
    assert y.tolist() == pytest.approx([0.3, -0.8]) and bits.item() == 4.0 and zero_point.item() == 0.0
    quant = PrescaledRestrictIntQuantWithInputBitWidth(IntQuant(False, True), Identity())
    y, scale, zero_point, bits = quant(t(0.26, -5.0), torch.tensor(0.1), torch.tensor(3.0))
    assert y.tolist() == pytest.approx([0.3, -0.4]) and bits.item() == 3.0
    assert "msb_clamp_bit_width_impl" in dict(quant.named_children())


def test_decoupled_gradients():
    quant = DecoupledIntQuant(True, True)
    leaves = [t(0.26, 9.0), torch.tensor(0.1), torch.tensor(0.2)]
    x, pre_scale, scale = (leaf.requires_grad_() for leaf in leaves)
    y = quant(pre_scale, ZERO, scale, ZERO, torch.tensor(4.0), x)
    assert y.tolist() == pytest.approx([0.6, 1.4])  # codes 3 and 7
    y.sum().backward()
    assert x.grad.tolist() == pytest.approx([2.0, 0.0])
    assert scale.grad.item() == pytest.approx(10.0)
    assert pre_scale.grad.item() == pytest.approx(-0.2 * 0.26 / 0.01)


def test_shifted_activation_maps_real_zero_to_a_code():
    quant = shifted_act(steps=1)
    y, scale, zero_point, _ = quant(torch.linspace(-1.0, 3.0, 101))
    assert zero_point == zero_point.round()
    assert quant(torch.zeros(3))[0].tolist() == [0.0] * 3
    assert scale.item() == pytest.approx((2.6 + 0.6) / 255, rel=0.02)


# ---- binary and ternary ----


@pytest.mark.parametrize(
    ("build", "outside", "d_scale"),
    [
        (lambda s: BinaryQuant(s), 1.0, -1.0 + 1.0 + 1.0 - 1.0),
        (lambda s: ClampedBinaryQuant(s), 0.0, 0.0 - 0.5 + 0.5),
        (lambda s: ClampedBinaryQuant(s, TensorClampSte()), 1.0, 0.0),
    ],
)
def test_binary(build, outside, d_scale):
    scaling = ParameterScaling(0.5)
    x = t(-2.0, 0.0, 0.3, -0.2).requires_grad_()
    y, scale, zero_point, bits = build(scaling)(x)
    y.backward(torch.ones(4))
    assert y.tolist() == [-0.5, 0.5, 0.5, -0.5] and scale.item() == 0.5
    assert zero_point.item() == 0.0 and bits.item() == 1.0
    assert x.grad.tolist() == [0.5 * outside, 0.5, 0.5, 0.5]


def test_clamped_binary_scale_gets_the_term_of_the_bound():
    scaling = ParameterScaling(0.5)
    ClampedBinaryQuant(scaling)(t(2.0, 0.1))[0].sum().backward()
    # g sign for both, plus g s through the upper bound of the clamped value
    assert scaling.value.grad.tolist() == [2.0 + 0.5]


def test_ternary():
    scaling = ParameterScaling(2.0)
    x = t(-3.0, -1.0, 0.9, 1.1, 0.0).requires_grad_()
    y, scale, zero_point, bits = TernaryQuant(scaling, 0.5)(x)
    y.backward(t(1.0, 2.0, 3.0, 4.0, 5.0))
    assert y.tolist() == [-2.0, 0.0, 0.0, 2.0, 0.0] and bits.item() == 2.0
    assert x.grad.tolist() == [2.0, 0.0, 0.0, 8.0, 0.0]
    assert scaling.value.grad.tolist() == [-1.0 + 4.0]


def test_latent_weights_are_clipped_in_training_only():
    quant = ClampedBinaryQuant(ConstScaling(0.5), InplaceTensorClampSte())
    latent = nn.Parameter(t(-2.0, 0.1))
    quant.eval()(latent)
    assert latent.tolist() == pytest.approx([-2.0, 0.1])
    y, *_ = quant.train()(latent)
    y.sum().backward()
    assert latent.tolist() == pytest.approx([-0.5, 0.1]) and latent.grad.tolist() == [0.5, 0.5]


# ---- truncation ----


def trunc(rounding, width=4, scaling=None, **kwargs):
    return TruncIntQuant(rounding, BitWidthConst(width), scaling, **kwargs)


def test_truncation_of_the_specification():
    y, scale, zero_point, bits = trunc(RoundSte())(
        t(0.04, -0.05, 0.31, -0.44), torch.tensor(0.01), ZERO, torch.tensor(8.0), True
    )
    assert (y / scale).round().tolist() == [0.0, 0.0, 2.0, -3.0]
    assert scale.item() == pytest.approx(0.16) and zero_point.item() == 0.0 and bits.item() == 4.0


@given(
    codes=st.lists(st.integers(0, 255), min_size=1, max_size=8),
    z=st.integers(0, 255),
    width=st.integers(2, 10),
    rounding=st.sampled_from([(RoundSte, torch.round), (FloorSte, torch.floor)]),
)
def test_truncation_in_integers(codes, z, width, rounding):
    module, plain = rounding
    q, shift = torch.tensor(codes, dtype=torch.float64), 2 ** max(8 - width, 0)
    high = 2**width - 1
    z_new = min(max(round(z / shift), 0), high)
    expected = (plain((q - z) / shift) + z_new).clamp(0, high)
    x = (q - z) * 0.25
    y, scale, zero_point, _ = trunc(module(), width).double()(
        x, torch.tensor(0.25), torch.tensor(float(z)), torch.tensor(8.0), False
    )
    assert zero_point.item() == z_new and scale.item() == 0.25 * shift
    assert torch.equal(y, (expected - z_new) * 0.25 * shift)


def test_truncation_passes_gradients_where_it_does_not_clamp():
    x = t(0.04, 0.31, 1.27).requires_grad_()
    trunc(RoundSte(), 3)(x, torch.tensor(0.01), ZERO, torch.tensor(8.0), True)[0].sum().backward()
    assert x.grad.tolist() == pytest.approx([1.0, 1.0, 0.0])  # 127 / 32 rounds to 4, beyond 3


def test_learned_truncation_stays_between_one_and_the_whole_shift():
    scaling = TruncScalingWrapper()
    eight, four = torch.tensor(8.0), torch.tensor(4.0)
    assert scaling(eight, four).item() == 16.0 == TruncMsbScaling()(eight, four).item()
    for value, factor in ((1.2, 8.0), (-2.0, 4.0), (9.0, 1.0)):
        with torch.no_grad():
            scaling.value.fill_(value)
        assert scaling(eight, four).item() == factor
    scaling.value.grad = None
    scaling(eight, four).backward()
    assert scaling.value.grad.item() == pytest.approx(-0.6931472)
    assert scaling(four, eight).item() == 1.0


# ---- delay ----


def test_delay_counts_training_calls_only():
    delay = DelayWrapper(2)
    x, y = t(0.3), t(0.0)
    assert delay.eval()(x, y).item() == 0.0 and delay.delay_impl.steps_left.item() == 2
    delay.train()
    assert [delay(x, y).item() for _ in range(4)] == pytest.approx([0.3, 0.3, 0.0, 0.0])
    assert delay.delay_impl.steps_left.item() == 0
    assert not DelayWrapper(0).state_dict() and DelayWrapper(0)(x, y).item() == 0.0


def test_delayed_quantizers_return_their_input():
    x = torch.linspace(-1, 1, 5)
    for quant in (
        rescaling(ConstScaling(0.5), quant_delay_steps=1),
        BinaryQuant(ConstScaling(0.5), 1),
        ClampedBinaryQuant(ConstScaling(0.5), quant_delay_steps=1),
        TernaryQuant(ConstScaling(0.5), 0.5, 1),
    ):
        assert torch.equal(quant(x)[0], x) and not torch.equal(quant(x)[0], x)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: IntQuant(1, True), "narrow_range=1"),
        (lambda: IntQuant(False, True, RoundSte), "float_to_int_impl is the class RoundSte"),
        (lambda: IntQuant(False, True, quant_delay_steps=-1), "quant_delay_steps=-1"),
        (lambda: TernaryQuant(ConstScaling(1.0), 1.0), "threshold=1.0"),
        (lambda: BinaryQuant(0.1), "scaling_impl is 0.1"),
        (lambda: rescaling(from_weight(), width=8), "bit_width_impl is 8"),
    ],
)
def test_illegal_arguments_are_named(build, named):
    with pytest.raises(QuantConfigError, match=named):
        build()


def test_weights_of_the_catalogue_are_what_the_tests_think():
    assert weight().shape == (4, 3, 2, 2)
