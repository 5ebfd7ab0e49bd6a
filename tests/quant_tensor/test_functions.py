import numpy as np
import pytest
import torch
import torch.nn.functional as F
from catalogue import PARTS, POOLS, REARRANGING, SELECTING
from grids import assert_on_grid, grids, make, random_codes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from brevitas.errors import QuantMetadataError
from brevitas.quant_tensor import QuantTensor, Source, dropped_by

ANY_DIM = grids(channel_dims=(None, 0, 1, 3))
few = settings(max_examples=25)


def value_of(function, x):
    return function(x.value.clone())


def equals_the_plain_function(function, qt, result):
    return torch.equal(result.value, value_of(function, qt))


@pytest.mark.parametrize("name", REARRANGING)
@few
@given(grid=ANY_DIM)
def test_rearranging_keeps_the_grid(name, grid):
    function = REARRANGING[name]
    result = function(grid.qt)
    assert equals_the_plain_function(function, grid.qt, result)
    assert_on_grid(result)
    assert (result.signed, result.bit_width) == (grid.qt.signed, grid.qt.bit_width)


@pytest.mark.filterwarnings("ignore:.*upsample_nearest. is deprecated")
@pytest.mark.parametrize("name", SELECTING)
@few
@given(grid=ANY_DIM)
def test_selecting_and_clamping_keeps_the_grid(name, grid):
    function = SELECTING[name]
    result = function(grid.qt)
    assert_on_grid(result)
    snaps = "clamp" in name or "clip" in name or "tanh" in name or "6" in name
    if not snaps:
        assert equals_the_plain_function(function, grid.qt, result)


@pytest.mark.parametrize("name", POOLS)
@few
@given(grid=grids(channel_dims=(None, 0, 1)))
def test_pooling_keeps_the_grid(name, grid):
    function = POOLS[name]
    result = function(grid.qt)
    assert equals_the_plain_function(function, grid.qt, result)
    assert_on_grid(result)


@pytest.mark.parametrize("name", PARTS)
@few
@given(grid=ANY_DIM)
def test_parts_keep_the_grid(name, grid):
    function = PARTS[name]
    parts, plain = function(grid.qt), function(grid.qt.value)
    assert len(parts) == len(plain) and isinstance(parts, tuple)
    for part, value in zip(parts, plain, strict=True):
        assert torch.equal(part.value, value)
        assert_on_grid(part)


def per_channel(source=None):
    """Values (2, 3, 2, 2) with scales 0.5, 1, 2 along dim 1 and zero points 0, 1, 2."""
    codes = random_codes(0, (2, 3, 2, 2), 8, False)
    scale, zero_point = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0.0, 1.0, 2.0])
    return make(codes, scale.view(1, 3, 1, 1), zero_point.view(1, 3, 1, 1), signed=False, source=source)


@pytest.mark.parametrize(
    ("function", "shape", "values"),
    [
        (lambda x: x.permute(0, 2, 3, 1), (1, 1, 1, 3), [0.5, 1, 2]),
        (lambda x: x.transpose(0, 1), (3, 1, 1, 1), [0.5, 1, 2]),
        (lambda x: x.unsqueeze(0), (1, 1, 3, 1, 1), [0.5, 1, 2]),
        (lambda x: x.flatten(2), (1, 3, 1), [0.5, 1, 2]),
        (lambda x: x.reshape(2, 3, 4), (1, 3, 1), [0.5, 1, 2]),
        (lambda x: x[:, 1:], (1, 2, 1, 1), [1, 2]),
        (lambda x: x[0], (3, 1, 1), [0.5, 1, 2]),
        (lambda x: x[:, 2], (1, 1, 1), [2]),
        (lambda x: torch.unbind(x, 1)[1], (1, 1, 1), [1]),
        (lambda x: x.chunk(3, 1)[0], (1, 1, 1, 1), [0.5]),
        (lambda x: F.max_pool2d(x, 2), (1, 3, 1, 1), [0.5, 1, 2]),
        (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), (1, 5, 1, 1), [1, 0.5, 1, 2, 1]),
        (lambda x: F.pad(x, (1, 1)), (1, 3, 1, 1), [0.5, 1, 2]),
    ],
)
def test_scales_of_several_elements_follow_their_dim(function, shape, values):
    result = function(per_channel())
    assert tuple(result.scale.shape) == shape
    assert result.scale.flatten().tolist() == values
    assert_on_grid(result)


def test_metadata_of_one_element_lose_surplus_dims():
    qt = make(torch.arange(8).view(2, 2, 2, 1), torch.full((1, 1, 1, 1), 0.5))
    assert_on_grid(torch.flatten(qt, 1))
    assert torch.flatten(qt, 1).scale.shape == (1, 1)
    assert qt[0].scale.shape == (1, 1, 1)
    assert qt.sum().dim() == 0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x: torch.flatten(x, 1),
            r"flatten: a reshape from \(2, 3, 2, 2\) to \(2, 12\) merges dim 1.*scale has 3",
        ),
        (lambda x: x.view(6, 4), r"view: a reshape .* to \(6, 4\) merges dim 1.* with dim 0"),
        (lambda x: x.reshape(-1), r"reshape: a reshape .* merges dim 1"),
        (nn.Flatten(), r"flatten: a reshape .*quantize with one scale per tensor"),
    ],
)
def test_a_reshape_that_merges_the_channels_is_refused(function, message):
    with pytest.raises(QuantMetadataError, match=message):
        function(per_channel())


def test_a_reshape_names_the_zero_point_where_only_that_runs_along_the_dim():
    qt = per_channel().set(scale=0.5)
    with pytest.raises(QuantMetadataError, match="along which the zero point has 3 values"):
        qt.flatten(1)


def test_reshape_of_an_empty_tensor():
    qt = per_channel()[:0]
    assert qt.reshape(0, 12).shape == (0, 12) and qt.reshape(0, 12).is_valid


def test_grid_preserving_functions_keep_the_source_unless_they_take_a_part_of_the_grid():
    source = Source.new("quantizer")
    single = make(torch.arange(8).view(2, 4), 0.5, source=source)
    for result in (single[0], single.t(), single.relu(), single.clamp(0, 1), F.pad(single, (1, 1)), single.view(8)):
        assert result.source is source
    several = per_channel(source)
    assert several.permute(1, 0, 2, 3).source is source and F.max_pool2d(several, 2).source is source
    for part in (several[:, 1:], F.pad(several, (0, 0, 0, 0, 1, 1))):
        assert not part.source.is_quantizer and part.source.name == "quantizer"


def test_max_pool_over_several_scales_has_no_grid():
    qt = per_channel().permute(0, 2, 3, 1)
    pooled = F.max_pool2d(qt, (1, 2))
    assert not isinstance(pooled, QuantTensor) and dropped_by(pooled) == "torch.nn.functional.max_pool2d"


def test_max_pool_with_indices():
    qt = per_channel()
    for pooled, indices in (
        F.max_pool2d(qt, 2, return_indices=True),
        nn.MaxPool2d(2, return_indices=True)(qt),
        F.adaptive_max_pool2d(qt, 1, return_indices=True),
    ):
        expected, expected_indices = F.max_pool2d(qt.value, 2, return_indices=True)
        assert_on_grid(pooled)
        assert torch.equal(pooled.value, expected) and torch.equal(indices, expected_indices)


def test_a_zero_needs_two_signed_bits():
    bipolar = make(torch.tensor([[1, -1]]), 0.5, bit_width=1)
    for result in (torch.relu(bipolar), F.pad(bipolar, (1, 0))):
        assert result.bit_width.item() == 2
        assert_on_grid(result)
    wider = make(torch.tensor([[1, -1]]), 0.5, bit_width=2)
    assert torch.relu(wider).bit_width is wider.bit_width


def test_learned_width_gets_its_gradient_through_relu():
    width = torch.tensor(4.0, requires_grad=True)
    qt = QuantTensor(torch.tensor([0.5]), 0.5, 0, width, True)
    torch.relu(qt).bit_width.backward()
    assert width.grad.item() == 1.0


@given(grids(channel_dims=(None, 1)), st.floats(-3, 3), st.floats(0, 3))
def test_clamp_is_clip_then_quantize(grid, low, width):
    qt = grid.qt
    high = low + width
    clipped = torch.clamp(qt, low, high)
    assert torch.equal(clipped.value, qt.requantize(qt.value.clamp(low, high)).value)
    assert_on_grid(clipped)


def test_hardtanh_by_hand():
    qt = make(torch.tensor([-8, -3, 0, 3, 7]), 0.3, bit_width=4)
    # 1 / 0.3 = 3.33 snaps to code 3; relu6 clips nothing below 6.
    assert F.hardtanh(qt).int().tolist() == [-3, -3, 0, 3, 3]
    assert F.relu6(qt).int().tolist() == [0, 0, 0, 3, 7]
    assert torch.clamp(qt, -0.4, 0.8).int().tolist() == [-1, -1, 0, 3, 3]
    assert F.hardtanh(qt).scale.item() == qt.scale.item()


def test_clamp_gradient_is_that_of_the_clip():
    value = torch.tensor([-0.9, 0.3, 1.5], requires_grad=True)
    qt = QuantTensor(value, torch.tensor(0.3), 0, 4, True)
    F.hardtanh(qt, -0.5, 1.0).value.backward(torch.tensor([1.0, 10.0, 100.0]))
    assert value.grad.tolist() == [0.0, 10.0, 0.0]


def test_one_replaced_method_sees_every_snap(monkeypatch):
    seen = []

    def recording(self, value):
        seen.append(value)
        return self.like(value)

    monkeypatch.setattr(QuantTensor, "requantize", recording)
    qt = make(torch.tensor([1, 2]), 0.3)
    for function in (torch.clamp, torch.clip):
        function(qt, 0, 1)
    for function in (F.hardtanh, F.relu6, nn.ReLU6(), nn.Hardtanh()):
        function(qt)
    qt.clamp_min(0.1)
    assert len(seen) == 7


def test_clamp_by_tensors_has_no_grid():
    result = torch.clamp(per_channel(), torch.tensor(0.1), torch.tensor(3.0))
    assert not isinstance(result, QuantTensor) and dropped_by(result) == "torch.clamp"


@pytest.mark.parametrize(
    "dropout",
    [
        lambda x: F.dropout(x, 0.5),
        nn.Dropout(0.5),
        nn.Dropout2d(0.5),
        nn.Dropout(0.5, inplace=True),
        lambda x: F.alpha_dropout(x, 0.5, training=True),
        lambda x: torch.dropout(x, 0.5, True),
    ],
)
def test_dropout_keeps_the_metadata_and_scales_the_value(dropout):
    qt = per_channel()
    torch.manual_seed(0)
    result = dropout(qt)
    torch.manual_seed(0)
    assert torch.equal(result.value, dropout(qt.value.clone()))
    assert result.scale is qt.scale and result.bit_width is qt.bit_width


PLAIN = {
    "torch.sigmoid": torch.sigmoid,
    "torch.nn.functional.softmax": lambda x: F.softmax(x, dim=1),
    "torch.nn.functional.linear": lambda x: F.linear(x, torch.ones(3, 2)),
    "torch.conv2d": lambda x: F.conv2d(x, torch.ones(1, 3, 1, 1)),
    "torch.nn.functional.avg_pool2d": nn.AvgPool2d(2),
    "torch.nn.functional.batch_norm": nn.BatchNorm2d(3),
    "torch.nn.functional.pad": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "torch.nn.functional.interpolate": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "torch.Tensor.mean": lambda x: x.mean(),
    "torch.where": lambda x: torch.where(x > 0, x, torch.zeros(())),
    "operator.truediv": lambda x: x / x,
    "operator.add": lambda x: x + 1,
    "operator.mul": lambda x: 2.0 * x,
    "operator.pow": lambda x: x**2,
    "torch.Tensor.add": lambda x: torch.ones(2, 3, 2, 2) + x,
    "torch.add": lambda x: torch.add(x, x, alpha=2),
    "torch.maximum": lambda x: torch.maximum(x, x),
    "torch.cat": lambda x: torch.cat([x, torch.zeros(2, 3, 2, 2)]),
    "torch.einsum": lambda x: torch.einsum("nchw->nc", x),
}


@pytest.mark.parametrize("name", PLAIN)
def test_everything_else_gives_a_plain_tensor_that_remembers_the_function(name):
    qt = per_channel()
    result = PLAIN[name](qt)
    assert type(result) is torch.Tensor
    assert torch.equal(result, PLAIN[name](qt.value))
    assert dropped_by(result) == name


def test_dropped_by_knows_only_its_own_results():
    assert dropped_by(torch.ones(1)) is None
    assert dropped_by(torch.sigmoid(torch.ones(1))) is None
    assert dropped_by(per_channel()) is None
    assert dropped_by(None) is None
    assert dropped_by(torch.sigmoid(per_channel()) * 2) is None


def test_the_memory_does_not_keep_the_tensor_alive():
    from brevitas.quant_tensor import source

    before = len(source._dropped)
    kept = torch.sigmoid(per_channel())
    assert len(source._dropped) == before + 1
    del kept
    assert len(source._dropped) == before


def test_comparisons_are_those_of_a_tensor():
    qt = make(torch.tensor([1, 2]), 0.5)
    assert (qt == 0.5).tolist() == [True, False] and (qt != qt).tolist() == [False, False]
    assert (qt > 0.7).tolist() == [False, True] and (qt >= qt.value).all()
    assert torch.equal(torch.ones(2) < qt, torch.tensor([False, False]))
    assert len({qt, qt}) == 1


def test_other_attributes_of_a_tensor():
    qt = make(torch.tensor([[1, 2, 3]]), 0.5)
    assert qt.T.shape == (3, 1) and isinstance(qt.T, QuantTensor)
    assert qt.requires_grad is False and qt.is_contiguous() and qt.stride() == (3, 1)
    assert qt.max().item() == 1.5 and float(qt[0, 0]) == 0.5 and bool(qt[0, 0]) is True
    assert np.asarray(qt).tolist() == [[0.5, 1.0, 1.5]]
    assert not hasattr(qt, "no_such_name")
    with pytest.raises(AttributeError, match="'QuantTensor' object has no attribute 'no_such_name'"):
        _ = qt.no_such_name


def test_view_as_another_dtype_is_plain():
    assert type(per_channel().view(torch.int32)) is torch.Tensor


def test_keyword_input():
    qt = make(torch.tensor([1, -2]), 0.5)
    assert_on_grid(torch.relu(input=qt))
    assert_on_grid(torch.cat(tensors=[qt, qt]))
    assert_on_grid(torch.add(input=qt, other=qt))
    assert_on_grid(F.max_pool1d(input=qt.view(1, 1, 2), kernel_size=2))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.relu_(), "relu_: a QuantTensor is immutable and cannot be written to. Use relu"),
        (lambda x: x.add_(1), "Use add, which returns a new tensor"),
        (lambda x: torch.relu_(x), "relu_: a QuantTensor is immutable"),
        (lambda x: x.copy_(x), "copy_: a QuantTensor is immutable"),
        (lambda x: x.requires_grad_(), "cannot be written to. Work on its plain tensor"),
        (lambda x: torch.sigmoid(torch.ones(2, 3, 2, 2), out=x), r"Omit out="),
    ],
)
def test_writing_is_refused(function, message):
    qt = per_channel()
    before = qt.value.clone()
    with pytest.raises(QuantMetadataError, match=message):
        function(qt)
    assert torch.equal(qt.value, before)


def test_in_place_modules_leave_the_argument_alone():
    qt = per_channel()
    before = qt.value.clone()
    nn.Sequential(nn.ReLU(True), nn.Dropout(0.5, True), nn.ReLU6(True), nn.Hardtanh(inplace=True))(qt)
    assert torch.equal(qt.value, before)


def test_a_plain_tensor_may_be_written_from_one():
    qt = make(torch.tensor([1, 2]), 0.5)
    plain = torch.zeros(2)
    plain[:] = qt
    plain += qt
    assert plain.tolist() == [1.0, 2.0] and type(plain) is torch.Tensor
