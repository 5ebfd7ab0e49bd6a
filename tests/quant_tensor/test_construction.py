import copy
import dataclasses
import pickle

import pytest
import torch
from grids import make
from torch.utils import _pytree as pytree

from brevitas.errors import BrevitasError, QuantMetadataError, UnknownOptionError
from brevitas.quant_tensor import QuantTensor, Source

VALUE = torch.tensor([[0.5, -1.0], [0.0, 1.5]])
FIELDS = {"scale": 0.5, "zero_point": 0, "bit_width": 4, "signed": True}


def build(**changes):
    return QuantTensor(**{"value": VALUE, **FIELDS, **changes})


def refusal(**changes):
    with pytest.raises(QuantMetadataError) as caught:
        build(**changes)
    assert isinstance(caught.value, BrevitasError) and isinstance(caught.value, RuntimeError)
    return str(caught.value)


def test_fields_and_aliases():
    qt = build(training=True)
    assert torch.equal(qt.value, VALUE) and qt.tensor is qt.value
    assert (qt.signed, qt.signed_t, qt.training, qt.training_t) == (True, True, True, True)
    assert qt.is_not_none is True
    assert (qt.shape, qt.dtype, qt.device, qt.ndim) == (VALUE.shape, torch.float32, VALUE.device, 2)
    assert (qt.size(), qt.size(0), qt.dim(), qt.numel(), len(qt)) == (VALUE.shape, 2, 2, 4, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numbers_become_tensors_of_the_dtype_of_the_value(dtype):
    qt = QuantTensor(VALUE.to(dtype), 0.5, 0, 4, True)
    for field in (qt.scale, qt.zero_point, qt.bit_width):
        assert field.dtype == dtype and field.shape == ()
    assert (qt.scale.item(), qt.zero_point.item(), qt.bit_width.item()) == (0.5, 0.0, 4.0)


def test_iteration_yields_the_six_fields():
    value, scale, zero_point, bit_width, signed, training = build()
    assert torch.equal(value, VALUE)
    assert (scale.item(), zero_point.item(), bit_width.item(), signed, training) == (0.5, 0.0, 4.0, True, False)
    names = [field.name for field in dataclasses.fields(QuantTensor)]
    assert names == ["value", "scale", "zero_point", "bit_width", "signed", "training"]


@pytest.mark.parametrize("name", FIELDS)
def test_each_missing_field_is_named(name):
    message = refusal(**{name: None})
    assert f"{name} is missing" in message
    assert "plain torch.Tensor" in message


def test_all_missing_fields_are_named_at_once():
    with pytest.raises(QuantMetadataError, match="scale, zero_point, bit_width, signed are missing"):
        QuantTensor(VALUE)
    with pytest.raises(QuantMetadataError, match="QuantTensor from conv1 weights: scale is missing"):
        build(scale=None, source=Source.derived("conv1 weights"))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"value": [1.0]}, ["value must be a torch.Tensor, got list"]),
        ({"value": VALUE.int()}, ["value must be floating point, got torch.int32", "not the code q"]),
        ({"scale": "0.1"}, ["scale must be a torch.Tensor or a number, got str"]),
        ({"scale": True}, ["scale must be a torch.Tensor or a number, got bool"]),
        ({"zero_point": torch.tensor(3)}, ["zero_point must be floating point, got torch.int64", "zero_point.float()"]),
        ({"scale": torch.ones(3)}, ["scale of shape (3,) does not broadcast to the value of shape (2, 2)"]),
        ({"scale": torch.ones(1, 1, 1)}, ["scale of shape (1, 1, 1)", "(1, C, 1, 1)"]),
        ({"zero_point": torch.ones(2, 3)}, ["zero_point of shape (2, 3)"]),
        ({"bit_width": torch.ones(2)}, ["bit_width must have one element, got shape (2,)"]),
        ({"signed": torch.tensor(True)}, ["signed must be True or False, got Tensor", "bool(signed)"]),
        ({"signed": 1}, ["signed must be True or False, got int"]),
        ({"training": "yes"}, ["training must be True or False, got str"]),
        ({"source": "conv"}, ["source must be a Source or None, got str"]),
        (
            {"scale": torch.ones((), device="meta")},
            ["on one device", "value is on cpu and scale on meta", "scale.to(value.device)"],
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, parts):
    message = refusal(**changes)
    for part in parts:
        assert part in message


def test_a_quant_tensor_is_no_value():
    assert "Use its .value" in refusal(value=build())


def test_metadata_that_broadcast_are_kept_as_given():
    scale = torch.rand(2, 1)
    zero_point = torch.zeros(1)
    qt = build(scale=scale, zero_point=zero_point, bit_width=torch.tensor([4.0]))
    assert qt.scale is scale and qt.zero_point is zero_point and qt.bit_width.shape == (1,)


def test_immutable():
    qt = build()
    for name in ("value", "scale", "signed"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(qt, name, 1)
    with pytest.raises(TypeError):
        qt[0] = 1.0
    assert torch.equal(qt.value, VALUE)


def test_device_names_the_field_that_disagrees():
    qt = QuantTensor.unchecked(VALUE, torch.ones((), device="meta"), VALUE.new_zeros(()), VALUE.new_ones(()), True)
    with pytest.raises(QuantMetadataError, match=r"value .* is on cpu and its scale on meta.*qt.to\(device\)"):
        _ = qt.device


def test_unchecked_takes_the_fields_as_they_are():
    fields = (VALUE, torch.tensor(0.5), torch.tensor(0.0), torch.tensor(4.0), True, True, Source.new("q"))
    qt = QuantTensor.unchecked(*fields)
    assert all(given is kept for given, kept in zip(fields, (*qt, qt.source), strict=True))


def test_set():
    source = Source.new("quantizer")
    qt = build(source=source)
    assert qt.set(value=VALUE * 2).source is source
    wider = qt.set(bit_width=8)
    assert wider.bit_width.item() == 8 and wider.source is None and qt.bit_width.item() == 4
    assert qt.set(scale=1.0, source=source).source is source
    with pytest.raises(UnknownOptionError, match=r"no field 'bitwidth'\. Did you mean bit_width\?"):
        qt.set(bitwidth=8)
    with pytest.raises(TypeError):
        qt.set(bitwidth=8)
    with pytest.raises(QuantMetadataError, match="scale is missing"):
        qt.set(scale=None)


def test_repr_shows_the_fields():
    text = repr(build())
    assert text.startswith("QuantTensor(value=tensor(") and "bit_width=4.0, signed=True, training=False)" in text


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_copies(copied):
    qt = build(source=Source.derived("conv", 9, False), training=True)
    other = copied(qt)
    assert type(other) is QuantTensor and other.source == qt.source
    for field, same in zip(qt, other, strict=True):
        assert torch.equal(field, same) if isinstance(field, torch.Tensor) else field == same


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_the_copy_of_a_quantizer_is_another_quantizer(copied):
    source = Source.new("quantizer", shifted=False)
    first, second = copied([build(source=source), build(source=source)])
    assert first.source == second.source and first.source.is_quantizer
    assert first.source.uid != source.uid and (first.source.name, first.source.shifted) == ("quantizer", False)


def test_dataclasses_replace_keeps_the_source():
    source = Source.new("quantizer")
    assert dataclasses.replace(build(source=source), value=VALUE * 2).source is source


def test_torch_save(tmp_path):
    qt = build(source=Source.new("quantizer"))
    torch.save({"qt": qt}, tmp_path / "qt.pt")
    loaded = torch.load(tmp_path / "qt.pt", weights_only=False)["qt"]
    assert torch.equal(loaded.value, qt.value) and loaded.source.name == qt.source.name


def test_pytree_children_and_context():
    source = Source.new("quantizer", fan_in=3, shifted=False)
    qt = build(source=source, training=True)
    leaves, spec = pytree.tree_flatten(qt)
    assert [leaf.item() for leaf in leaves[1:]] == [0.5, 0.0, 4.0] and leaves[0] is qt.value
    back = pytree.tree_unflatten(leaves, spec)
    assert (back.signed, back.training, back.source) == (True, True, source)
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(qt)[0]]
    assert paths == [".value", ".scale", ".zero_point", ".bit_width"]


def test_pytree_skips_validation():
    mapped = pytree.tree_map(lambda leaf: None, build())
    assert mapped.value is None and mapped.signed is True


def test_pytree_structure_can_be_saved():
    for source in (None, Source.derived("conv", 9, True), Source.new("quantizer")):
        leaves, spec = pytree.tree_flatten({"a": build(source=source)})
        loaded = pytree.treespec_loads(pytree.treespec_dumps(spec))
        qt = pytree.tree_unflatten(leaves, loaded)["a"]
        assert qt.signed is True and torch.equal(qt.value, VALUE)
        if source is None:
            assert qt.source is None
        else:
            assert (qt.source.name, qt.source.fan_in, qt.source.shifted) == (source.name, source.fan_in, source.shifted)
            assert not qt.source.is_quantizer  # the numbers of another process


def test_detach():
    scale = torch.tensor(0.5, requires_grad=True)
    qt = build(value=VALUE * scale, scale=scale * 1.0)
    for detached in (qt.detach(), torch.detach(qt)):
        assert isinstance(detached, QuantTensor)
        assert not detached.value.requires_grad and not detached.scale.requires_grad
    assert qt.value.requires_grad


def test_detach_in_place_changes_this_object_and_no_parameter():
    scale = torch.nn.Parameter(torch.tensor(0.5))
    value = VALUE * scale
    qt = build(value=value, scale=scale, zero_point=(scale * torch.zeros(1))[0])
    assert qt.detach_() is qt
    assert not any(field.requires_grad for field in (qt.value, qt.scale, qt.zero_point))
    assert qt.value is value and scale.requires_grad


def test_to_moves_every_field_and_converts_the_value():
    qt = make(torch.tensor([1, 2]), 0.1)
    half = qt.half()
    assert half.value.dtype == torch.float16 and half.scale.dtype == torch.float32 and half.is_valid
    assert qt.to(torch.float64).dtype == torch.float64
    assert qt.to("meta").device == torch.device("meta")
    assert isinstance(qt.cpu(), QuantTensor)
    assert not isinstance(qt.to(torch.int32), QuantTensor)


def test_source_numbers():
    first, second = Source.new("a"), Source.new("a")
    assert first != second and first.is_quantizer and first.scale_uid == first.uid
    assert not Source.derived("add").is_quantizer
    assert Source(*first.as_tuple()) == first
    assert hash(Source(1, "a")) == hash(Source(1, "a"))
