import pytest
import torch
from grids import assert_on_grid, code_bounds, make, random_codes, scales, seeds
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from brevitas.errors import QuantMetadataError
from brevitas.quant_tensor import QuantTensor, Source


@st.composite
def pairs(draw, largest_width=10, shape=(3, 5)):
    """Two operands with one scale: their codes, zero points and QuantTensors."""
    scale = torch.tensor(draw(scales))
    operands = []
    for _ in range(2):
        bits, signed = draw(st.integers(1, largest_width)), draw(st.booleans())
        codes = random_codes(draw(seeds), shape, bits, signed)
        lo, hi = code_bounds(bits, signed)
        zero_point = draw(st.integers(lo, hi)) if draw(st.booleans()) and not (signed and bits == 1) else 0
        operands.append((codes, zero_point, make(codes, scale, float(zero_point), bits, signed)))
    return operands


def range_of(qt):
    return code_bounds(int(qt.bit_width), qt.signed)


def assert_codes(qt, codes, zero_point):
    assert qt.is_valid
    assert torch.equal(qt.int().long(), codes)
    assert qt.zero_point.item() == zero_point
    lo, hi = range_of(qt)
    assert lo <= codes.min() and codes.max() <= hi


@given(pairs(largest_width=18))
def test_sums_and_differences_are_exact_on_the_codes(operands):
    (a, z_a, left), (b, z_b, right) = operands
    assert_codes(left + right, a + b, z_a + z_b)
    assert_codes(left - right, a - b, z_a - z_b)
    assert_codes(torch.add(left, right), a + b, z_a + z_b)
    assert_codes(torch.subtract(left, right), a - b, z_a - z_b)
    assert (left + right).signed == (left.signed or right.signed) and (left - right).signed is True


@given(pairs(largest_width=18))
def test_negation_and_absolute_value(operands):
    codes, zero_point, qt = operands[0]
    assert_codes(-qt, -codes, -zero_point)
    assert_codes(torch.neg(qt), -codes, -zero_point)
    assert_codes(abs(qt), (codes - zero_point).abs(), 0)
    assert_codes(qt.abs(), (codes - zero_point).abs(), 0)
    assert (-qt).signed is True and abs(qt).signed is False and abs(qt).bit_width == qt.bit_width
    assert +qt is qt


@given(pairs(largest_width=9))
def test_products_are_exact_on_the_codes(operands):
    (a, z_a, left), (b, z_b, right) = operands
    product = left * right
    assert_codes(product, (a - z_a) * (b - z_b), 0)
    assert product.scale.item() == (left.scale * right.scale).item()
    assert product.signed == (left.signed or right.signed or z_a != 0 or z_b != 0)
    assert product.bit_width.item() == left.bit_width + right.bit_width + (z_a != 0) + (z_b != 0)


@given(pairs(largest_width=6, shape=(5, 5)))
def test_matrix_products_are_exact_on_the_codes(operands):
    (a, z_a, left), (b, z_b, right) = operands
    for product in (left @ right, torch.matmul(left, right), left.matmul(right)):
        assert_codes(product, (a - z_a) @ (b - z_b), 0)
        assert product.source.fan_in == 5


def extreme(bit_width, signed, zero_point, code, shape=(6, 6)):
    return make(torch.full(shape, code), 0.5, float(zero_point), bit_width, signed)


@pytest.mark.parametrize("a_bits", [1, 2, 4])
@pytest.mark.parametrize("b_bits", [1, 3, 8])
@pytest.mark.parametrize("signs", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("shifted", [(False, False), (True, False), (False, True), (True, True)])
def test_the_width_suffices_for_extreme_codes(a_bits, b_bits, signs, shifted):
    bipolar = [bits == 1 and signed for bits, signed in zip((a_bits, b_bits), signs, strict=True)]
    for a in code_bounds(a_bits, signs[0]):
        for b in code_bounds(b_bits, signs[1]):
            for z_a in code_bounds(a_bits, signs[0]) if shifted[0] and not bipolar[0] else (0,):
                for z_b in code_bounds(b_bits, signs[1]) if shifted[1] and not bipolar[1] else (0,):
                    left, right = extreme(a_bits, signs[0], z_a, a), extreme(b_bits, signs[1], z_b, b)
                    for result, codes in (
                        (left + right, a + b),
                        (left - right, a - b),
                        (left * right, (a - z_a) * (b - z_b)),
                        (-left, -a),
                        (abs(left), abs(a - z_a)),
                        (left @ right, 6 * (a - z_a) * (b - z_b)),
                    ):
                        lo, hi = range_of(result)
                        assert lo <= codes <= hi


A = make(torch.tensor([1, -8]), 0.5, bit_width=4)
B = make(torch.tensor([15, 3]), 0.5, zero_point=3.0, bit_width=4, signed=False)


@pytest.mark.parametrize(
    ("result", "value", "scale", "zero_point", "signed", "bit_width"),
    [
        # -8..7 plus 0..15 is -8..22; minus it is -23..7; both need 6 bits signed.
        (A + B, [6.5, -4.0], 0.5, 3, True, 6),
        (A - B, [-5.5, -4.0], 0.5, -3, True, 6),
        # 0..15 minus -8..7 is -7..23.
        (B - A, [5.5, 4.0], 0.5, 3, True, 6),
        (B + B, [12.0, 0.0], 0.5, 6, False, 5),
        (A * A, [0.25, 16.0], 0.25, 0, True, 8),
        # B is shifted: signed, and one bit wider.
        (A * B, [3.0, 0.0], 0.25, 0, True, 9),
        (B * B, [36.0, 0.0], 0.25, 0, True, 10),
        # 8..-7 needs 5 bits; 0..-15 needs 5.
        (-A, [-0.5, 4.0], 0.5, 0, True, 5),
        (-B, [-6.0, 0.0], 0.5, -3, True, 5),
        (abs(A), [0.5, 4.0], 0.5, 0, False, 4),
        (abs(B), [6.0, 0.0], 0.5, 0, False, 4),
        # Two products of -8..7 and -8..7: -112..128 needs 9 bits signed.
        (A @ A, 16.25, 0.25, 0, True, 9),
        # -8..7 times -15..15, twice: -240..240 needs 9 bits signed.
        (A @ B, 3.0, 0.25, 0, True, 9),
        (torch.cat([A, A]), [0.5, -4.0, 0.5, -4.0], 0.5, 0, True, 4),
        (torch.stack([A, A]), [[0.5, -4.0], [0.5, -4.0]], 0.5, 0, True, 4),
    ],
)
def test_results_by_hand(result, value, scale, zero_point, signed, bit_width):
    assert isinstance(result, QuantTensor)
    assert result.value.tolist() == value
    assert (result.scale.item(), result.zero_point.item()) == (scale, zero_point)
    assert (result.signed, result.bit_width.item()) == (signed, bit_width)
    assert result.is_valid


def test_training_is_that_of_either_operand():
    training = A.set(training=True)
    assert (training + A).training and (A * training).training and (-training).training
    assert torch.cat([A, training]).training and not (A + A).training


def test_arithmetic_replaces_the_source():
    source = Source.new("quantizer", shifted=False)
    a = A.set(source=source)
    for result, name in (
        (a + a, "add"),
        (a - a, "sub"),
        (a * a, "mul"),
        (-a, "neg"),
        (abs(a), "abs"),
        (a @ a, "matmul"),
    ):
        assert result.source.name == f"the result of {name}" and not result.source.is_quantizer
        assert result.source.shifted is False
    assert (+a).source is source


def test_whether_a_sum_is_shifted():
    shifted, symmetric = B.set(source=Source.new("b", shifted=True)), A.set(source=Source.new("a", shifted=False))
    assert (shifted + symmetric).source.shifted is True
    assert (symmetric + symmetric).source.shifted is False
    assert (symmetric + A).source.shifted is None
    assert (shifted + A).source.shifted is True


def test_the_source_tells_whether_an_operand_is_shifted():
    known = A.set(source=Source.new("shifted quantizer", shifted=True))
    assert (known * A).bit_width.item() == 9 and known.is_shifted
    assert not A.is_shifted and B.is_shifted


def test_numbers_and_plain_tensors_give_plain_tensors():
    plain = torch.tensor([1.0, 2.0])
    for result, expected in (
        (A + 1, [1.5, -3.0]),
        (1 - A, [0.5, 5.0]),
        (A * plain, [0.5, -8.0]),
        (plain + A, [1.5, -2.0]),
        (plain - A, [0.5, 6.0]),
        (plain @ A, -7.5),
        (A / A, [1.0, 1.0]),
        (2 / A, [4.0, -0.5]),
        (A // 1, [0.0, -4.0]),
        (A % 3, [0.5, 2.0]),
        (2**A, [2**0.5, 2**-4]),
    ):
        assert type(result) is torch.Tensor
        assert result.tolist() == pytest.approx(expected)


def test_gradients_flow_to_values_and_scales():
    scale = torch.tensor(0.5, requires_grad=True)
    value = torch.tensor([0.5, -1.0], requires_grad=True)
    a = QuantTensor(value, scale, 0, 4, True)
    total = a + a
    total.value.sum().backward(retain_graph=True)
    assert value.grad.tolist() == [2.0, 2.0]
    (total * a).scale.backward()
    assert scale.grad.item() == 1.0  # d(s * s) / ds


# --- Scales that do not agree -------------------------------------------------------------------------------------

LEFT = A.set(source=Source.derived("QuantConv2d 'left'"))
RIGHT = A.set(scale=0.25, source=Source.derived("QuantConv2d 'right'"))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("add", lambda a, b: a + b),
        ("sub", lambda a, b: a - b),
        ("cat", lambda a, b: torch.cat([a, b])),
        ("cat", lambda a, b: QuantTensor.cat([a, b], 0)),
        ("stack", lambda a, b: torch.stack([a, b])),
    ],
)
def test_different_scales_are_refused_with_both_producers(name, function, training):
    left, right = LEFT.set(training=training), RIGHT.set(training=training)
    with pytest.raises(QuantMetadataError) as caught:
        function(left, right)
    message = str(caught.value)
    assert message.startswith(f"{name}: the operands have different scales: 0.5 from QuantConv2d 'left', and 0.25 from")
    assert "QuantConv2d 'right'" in message
    assert "shared = QuantIdentity(return_quant_tensor=True)" in message
    assert "y = shared(branch_a(x)) + shared(branch_b(x))" in message
    assert "QuantEltwiseAdd(return_quant_tensor=True)(a, b)" in message


def test_the_message_names_the_layer_and_the_quantizers():
    class Quantizer(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.source, self.scale = Source.new("QuantIdentity activation"), scale

        def forward(self, x):
            return QuantTensor(x, self.scale, 0, 8, True, source=self.source)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch_a, self.branch_b = Quantizer(0.5), Quantizer(0.25)

        def forward(self, x):
            return self.branch_a(x) + self.branch_b(x)

    model = nn.Sequential(nn.Identity(), Block())
    with pytest.raises(QuantMetadataError) as caught:
        model(torch.ones(2))
    message = str(caught.value)
    assert message.startswith("add in Block '1': the operands have different scales")
    assert "0.5 from QuantIdentity activation '1.branch_a'" in message
    assert "0.25 from QuantIdentity activation '1.branch_b'" in message


def test_scales_of_several_elements_are_compared_everywhere():
    codes = torch.arange(6).view(2, 3)
    scale = torch.tensor([[0.5, 1.0, 2.0]])
    a, b = make(codes, scale), make(codes, scale.clone())
    assert_on_grid(a + b)
    with pytest.raises(QuantMetadataError, match=r"\[0.5, 1, 2\] \(shape \(1, 3\)\) from .*\[0.5, 1, 4\]"):
        a + make(codes, torch.tensor([[0.5, 1.0, 4.0]]))
    with pytest.raises(QuantMetadataError, match=r"and 1 from"):
        a + make(codes, 1.0)
    assert_on_grid(make(codes, torch.ones(1, 3)) + make(codes, 1.0))
    wide = make(torch.zeros(1, 9), torch.arange(1.0, 10.0).view(1, 9))
    with pytest.raises(QuantMetadataError, match=r"9 values from 1 to 9 \(shape \(1, 9\)\)"):
        wide + make(torch.zeros(1, 9), 1.0)


def test_scales_along_different_dims_are_compared_and_refused():
    codes = torch.zeros(3, 3)
    rows, columns = make(codes, torch.tensor([[0.5], [1.0], [2.0]])), make(codes, torch.tensor([[0.5, 1.0, 2.0]]))
    with pytest.raises(QuantMetadataError, match="different scales"):
        rows + columns
    narrow = make(torch.zeros(2, 4), torch.tensor([[0.5, 1.0, 2.0, 4.0]]))
    with pytest.raises(QuantMetadataError, match="different scales"):
        torch.cat([columns[:2], narrow], 1)[:, 1:4] + narrow[:, :3]


def test_a_part_of_the_channels_does_not_pass_for_the_whole():
    source = Source.new("per-channel quantizer")
    qt = make(torch.zeros(2, 4), torch.tensor([[0.5, 1.0, 2.0, 4.0]]), source=source)
    assert_on_grid(qt[:, :2] + qt[:, :2])
    with pytest.raises(QuantMetadataError, match="different scales"):
        qt[:, :2] + qt[:, 2:]
    with pytest.raises(QuantMetadataError, match="different scales"):
        qt.t().unsqueeze(1) + qt[:, :1]


def test_nearly_equal_scales_are_accepted():
    near = A.set(scale=0.5 * (1 + 1e-6))
    assert (A + near).scale is A.scale
    with pytest.raises(QuantMetadataError):
        A + A.set(scale=0.5 * (1 + 1e-4))
    with pytest.raises(QuantMetadataError):
        A + A.set(scale=float("nan"))


def test_half_precision_scales_are_compared_in_float32():
    small = QuantTensor(torch.zeros(1, dtype=torch.float16), 1e-3, 0, 8, True)
    assert (small + small.set(scale=torch.tensor(1e-3, dtype=torch.float16))).scale is small.scale
    with pytest.raises(QuantMetadataError):
        small + small.set(scale=torch.tensor(1.01e-3, dtype=torch.float16))


# --- One shared quantizer ------------------------------------------------------------------------------------------


def shared_operands(*values, dims=()):
    source = Source.new("shared")
    return [make(torch.tensor([4, 8]), torch.full(dims, value), source=source) for value in values]


def test_operands_of_a_shared_quantizer_take_the_mean_scale():
    a, b = shared_operands(0.5, 0.25)
    assert (a + b).scale.item() == 0.375 and (a - b).scale.item() == 0.375
    assert torch.cat([a, b]).scale.item() == 0.375 and torch.stack([a, b]).scale.item() == 0.375
    assert (a + b).value.tolist() == [3.0, 6.0]


def test_sums_of_three_operands_of_a_shared_quantizer():
    a, b, c = shared_operands(0.5, 0.25, 0.125)
    assert (a + b + c).scale.item() == (0.375 + 0.125) / 2
    assert (a - (-b)).scale.item() == 0.375
    assert torch.cat([a, b, c]).scale.item() == pytest.approx(0.875 / 3)
    assert torch.cat([torch.cat([a, b]), c]).scale.item() == (0.375 + 0.125) / 2


@given(scales, st.integers(2, 7))
def test_equal_scales_of_a_shared_quantizer_pass_unchanged(scale, count):
    operands = shared_operands(*[scale] * count)
    assert torch.cat(operands).scale.item() == operands[0].scale.item()
    assert (operands[0] + operands[1]).scale.item() == operands[0].scale.item()


def test_products_are_never_taken_for_operands_of_a_shared_quantizer():
    a, b = shared_operands(0.5, 0.25)
    with pytest.raises(QuantMetadataError):
        (a * a) + (b * b)


def test_gradient_of_a_shared_scale():
    scale = torch.tensor(0.5, requires_grad=True)
    source = Source.new("shared")
    a, b = (QuantTensor(torch.tensor([0.5]), scale * 1.0, 0, 4, True, source=source) for _ in range(2))
    (a + b).scale.backward()
    assert scale.grad.item() == 1.0


# --- cat and stack --------------------------------------------------------------------------------------------------


def channels(scale, zero_point=0.0, bits=8, signed=True, source=None):
    count = len(scale)
    codes = random_codes(count, (2, count, 3), bits, signed)
    return make(codes, torch.tensor(scale).view(1, count, 1), zero_point, bits, signed, source=source)


def test_scales_along_the_dim_are_concatenated():
    a, b = channels([0.5, 1.0]), channels([2.0, 4.0, 8.0], bits=4)
    joined = torch.cat([a, b], dim=1)
    assert joined.scale.shape == (1, 5, 1) and joined.scale.flatten().tolist() == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert joined.bit_width.item() == 8 and not joined.source.is_quantizer
    assert_on_grid(joined)
    assert torch.equal(torch.cat([a, b], -2).scale, joined.scale)
    assert torch.equal(QuantTensor.cat([a, b], dim=1).value, joined.value)


def test_a_single_scale_is_spread_beside_several():
    joined = torch.cat([channels([0.5, 1.0]), make(torch.ones(2, 3, 3), 2.0)], 1)
    assert joined.scale.flatten().tolist() == [0.5, 1.0, 2.0, 2.0, 2.0]
    assert_on_grid(joined)


def test_zero_points_along_the_dim_are_concatenated():
    zero_point = torch.tensor([1.0, 2.0]).view(1, 2, 1)
    a = channels([0.5, 0.5], zero_point=zero_point, signed=False)
    joined = torch.cat([a, channels([0.5, 0.5], signed=False)], 1)
    assert joined.zero_point.flatten().tolist() == [1.0, 2.0, 0.0, 0.0]
    assert_on_grid(joined)


def test_channels_in_another_dim_must_agree():
    a = channels([0.5, 1.0])
    assert_on_grid(torch.cat([a, a.clone()], 0))
    assert_on_grid(torch.stack([a, a], 1))
    assert torch.stack([a, a], 1).scale.shape == (1, 1, 2, 1)
    with pytest.raises(QuantMetadataError, match="different scales"):
        torch.cat([a, channels([0.5, 2.0])], 0)


def test_cat_refuses_other_zero_points_and_signs():
    with pytest.raises(QuantMetadataError, match="cat: the operands have different zero points: 0 from"):
        torch.cat([A, A.set(zero_point=1)])
    with pytest.raises(
        QuantMetadataError, match="cat: one operand is signed and one is not: signed from .*, and unsigned from"
    ):
        torch.cat([A, A.set(signed=False)])


def test_cat_takes_the_widest():
    assert torch.cat([A, A.set(bit_width=8), A]).bit_width.item() == 8
    assert torch.concat([A, A]).bit_width is A.bit_width
    assert isinstance(torch.concatenate((A, A), axis=0), QuantTensor)


def test_cat_of_a_shared_quantizer_keeps_its_source():
    a, b = shared_operands(0.5, 0.5)
    assert torch.cat([a, b]).source is a.source
    assert torch.cat([a, a.clone().set(source=Source.new("other"))]).source.name == "the result of cat"


def test_cat_with_a_plain_tensor_is_plain():
    for result in (torch.cat([A, A.value]), torch.stack([A.value, A]), QuantTensor.cat([A.value, A])):
        assert type(result) is torch.Tensor


def test_matmul_of_several_scales_has_no_grid():
    several = make(torch.ones(2, 2), torch.tensor([[0.5, 1.0]]))
    assert type(several @ several) is torch.Tensor


def test_matmul_with_vectors_fits_the_metadata():
    matrix = make(torch.ones(2, 2), torch.full((1, 1), 0.5))
    vector = make(torch.ones(2), 0.5)
    product = matrix @ vector
    assert product.value.tolist() == [0.5, 0.5] and product.scale.shape == (1,)
    assert_on_grid(product)


def test_broadcast_operands():
    total = make(torch.ones(2, 3), 0.5) + make(torch.arange(3), torch.full((1,), 0.5))
    assert total.int().tolist() == [[1, 2, 3], [1, 2, 3]]


def test_a_failed_operation_changes_nothing():
    before = [field.clone() if isinstance(field, torch.Tensor) else field for field in LEFT]
    with pytest.raises(QuantMetadataError):
        LEFT + RIGHT
    for field, same in zip(LEFT, before, strict=True):
        assert torch.equal(field, same) if isinstance(field, torch.Tensor) else field == same


def test_meta_tensors_are_not_compared():
    meta = LEFT.to("meta")
    assert (meta + RIGHT.to("meta")).shape == (2,)


@given(st.lists(st.integers(-(2**19), 2**19 - 1), min_size=2, max_size=8), scales)
def test_sums_of_large_codes_stay_exact(codes, scale):
    codes = torch.tensor(codes)
    a, b = make(codes, scale, bit_width=20), make(codes.flip(0), scale, bit_width=20)
    assert torch.equal((a + b).int().long(), codes + codes.flip(0))
    assert torch.equal((a - b).int().long(), codes - codes.flip(0))
