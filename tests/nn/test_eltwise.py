"""QuantEltwiseAdd and QuantCat: one grid for all operands, one quantizer for operands and result."""

import copy
import pickle

import pytest
import torch
from torch import nn

from brevitas.errors import QuantConfigError, QuantMetadataError, UnknownOptionError
from brevitas.graph import apply_spec, spec_of
from brevitas.nn import Cat, EltwiseAdd, QuantCat, QuantEltwiseAdd, QuantIdentity, QuantReLU
from brevitas.quant import Int8ActPerTensorFloat, Int8ActPerTensorFloatMinMaxInit, ShiftedUint8ActPerTensorFloat
from brevitas.quant_tensor import QuantTensor

FIXED = Int8ActPerTensorFloatMinMaxInit.let(min_val=-1.0, max_val=1.0)


def on_grid(codes, scale=0.5, bits=4, signed=True):
    return QuantTensor(torch.tensor(codes) * scale, scale, 0.0, bits, signed)


@pytest.mark.parametrize("build", [QuantEltwiseAdd, QuantCat])
def test_without_quantizers_it_is_the_operation(build):
    layer = build(None, None)
    x, y = (torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    if build is QuantEltwiseAdd:
        assert torch.equal(layer(x, y), x + y) and isinstance(layer, EltwiseAdd)
        assert torch.autograd.gradcheck(layer, (x, y))
        assert torch.equal(layer(x, y[:, :, :1]), EltwiseAdd()(x, y[:, :, :1]))
    else:
        assert torch.equal(layer([x, y]), torch.cat([x, y], 1)) and isinstance(layer, Cat)
        assert torch.equal(layer((x, y), dim=-1), Cat()((x, y), -1))
        assert torch.autograd.gradcheck(lambda a, b: layer([a, b]), (x, y))


def test_a_sum_has_the_scale_of_its_operands_and_room_for_their_codes():
    add = QuantEltwiseAdd(FIXED, None, return_quant_tensor=True, input_bit_width=3)
    a, b = torch.tensor([-9.0, 0.3, 9.0]), torch.tensor([-9.0, 0.6, 9.0])
    y = add(a, b)
    # Scale 1 / 4, codes -4..3: -4 + -4, 1 + 2, 3 + 3.
    assert y.int().tolist() == [-8, 3, 6] and y.scale.item() == 0.25
    assert y.bit_width.item() == 4 and y.signed and y.value.tolist() == [-2.0, 0.75, 1.5]


def test_the_sum_is_quantized_by_the_output_quantizer():
    add = QuantEltwiseAdd(FIXED, FIXED, input_bit_width=3, output_bit_width=2, return_quant_tensor=True)
    y = add(torch.tensor([-9.0, 0.3, 9.0]), torch.tensor([-9.0, 0.6, 9.0]))
    # Scale 1 / 2, codes -2..1 of -2.0, 0.75 (a tie between 1 and 2) and 1.5.
    assert y.int().tolist() == [-2, 1, 1] and y.scale.item() == 0.5 and y.bit_width.item() == 2
    assert add.quant_input_bit_width().item() == 3 and add.quant_output_bit_width().item() == 2
    assert add.quant_input_scale().item() == 0.25 and add.quant_output_scale().item() == 0.5
    assert add.is_quant_input_signed and add.is_quant_output_signed and not add.is_quant_output_narrow_range
    assert add.quant_output_zero_point().item() == 0


def test_the_gradient_is_that_of_the_formula():
    add = QuantEltwiseAdd(FIXED, None)
    a, b = torch.tensor([-2.0, 0.3], requires_grad=True), torch.tensor([0.5, 5.0], requires_grad=True)
    add(a, b).backward(torch.tensor([1.0, 10.0]))
    assert a.grad.tolist() == [0.0, 10.0] and b.grad.tolist() == [1.0, 0.0]  # nothing where an operand is clamped


def test_shifted_operands_add_their_zero_points():
    add = QuantEltwiseAdd(ShiftedUint8ActPerTensorFloat, None, return_quant_tensor=True)
    x = torch.linspace(-0.5, 2.0, 64)
    add(x, x.flip(0))
    y = add.eval()(x, x.flip(0))
    z = add.quant_input_zero_point()
    assert z > 0 and y.zero_point == 2 * z and y.is_valid and y.bit_width.item() == 9


def test_a_concatenation_is_on_the_grid_of_its_parts():
    cat = QuantCat(FIXED, None, return_quant_tensor=True, input_bit_width=3)
    y = cat([torch.full((1, 2), 0.3), torch.full((1, 1), 9.0), torch.zeros(1, 3)])
    assert y.int().tolist() == [[1, 1, 3, 0, 0, 0]] and y.bit_width.item() == 3 and y.scale.item() == 0.25
    assert cat([torch.zeros(2, 1), torch.zeros(1, 1)], dim=0).shape == (3, 1)


def test_both_operands_give_statistics_to_one_quantizer():
    add = QuantEltwiseAdd(output_quant=None)
    small, large = torch.linspace(-1, 1, 100), torch.linspace(-4, 4, 100)
    add(small, large)
    add.eval()
    twin = QuantIdentity()
    twin(small), twin(large)
    assert torch.equal(add.quant_input_scale(), twin.eval().quant_act_scale())
    assert add.quant_input_scale() > 1 / 128


@pytest.mark.parametrize("given", ["input", "output"])
@pytest.mark.parametrize("build", [QuantEltwiseAdd, QuantCat])
def test_one_tied_quantizer_serves_operands_and_result(build, given):
    quantizers = (FIXED, None) if given == "input" else (None, FIXED)
    keywords = {f"{given}_bit_width": 3}
    layer = build(*quantizers, tie_input_output_quant=True, return_quant_tensor=True, **keywords)
    assert layer.input_quant is layer.output_quant and layer.tie_input_output_quant
    assert len(list(layer.parameters())) == 1
    a, b = torch.tensor([[-9.0, 0.3]]), torch.tensor([[-9.0, 0.6]])
    y = layer(a, b) if build is QuantEltwiseAdd else layer([a, b])
    assert y.scale.item() == 0.25 and y.bit_width.item() == 3
    assert y.int().tolist() == ([[-4, 3]] if build is QuantEltwiseAdd else [[-4, 1, -4, 2]])
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.input_quant is twin.output_quant and twin.input_quant is not layer.input_quant
        twin.load_state_dict(layer.state_dict())


def test_two_quantizers_cannot_be_tied():
    with pytest.raises(QuantConfigError, match=r"input_quant=Int8A.* and output_quant=Int8A.*Set output_quant=None"):
        QuantEltwiseAdd(tie_input_output_quant=True)
    with pytest.raises(QuantConfigError, match="tie_input_output_quant = 1 is not legal"):
        QuantCat(output_quant=None, tie_input_output_quant=1)
    off = QuantEltwiseAdd(None, None, tie_input_output_quant=True)
    assert off(torch.ones(1), torch.ones(1)).item() == 2.0


def test_operands_on_different_grids_need_the_input_quantizer():
    a, b = on_grid([1.0, 2.0]), on_grid([1.0, 2.0], scale=0.25)
    model = nn.Sequential()
    model.add = QuantEltwiseAdd(None, None)
    with pytest.raises(QuantMetadataError, match=r"different scales: 0.5 .*0.25"):
        model.add(a, b)
    assert model.add(a, a).tolist() == [1.0, 2.0]
    y = QuantEltwiseAdd(output_quant=None, return_quant_tensor=True)(a, b)
    assert isinstance(y, QuantTensor)
    with pytest.raises(QuantMetadataError, match="one operand is signed"):
        QuantCat(None, None)([a, on_grid([1.0, 2.0], signed=False)], dim=0)


@pytest.mark.parametrize("build", [QuantEltwiseAdd, QuantCat])
def test_a_grid_that_is_not_there_cannot_be_returned(build):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = QuantReLU()
            self.join = build(None, None, return_quant_tensor=True)

        def forward(self, x):
            operands = (on_grid([[1.0, 2.0]]), self.relu(x))
            return self.join(*operands) if build is QuantEltwiseAdd else self.join(operands)

    with pytest.raises(QuantMetadataError) as error:
        Net()(torch.ones(1, 2))
    text = str(error.value)
    assert f"{build.__name__} 'join'" in text and "QuantReLU 'relu'" in text and "set input_quant=" in text


@pytest.mark.parametrize("wanted", [True, False])
def test_quant_tensors_and_plain_tensors_go_in(wanted):
    add = QuantEltwiseAdd(FIXED, FIXED, return_quant_tensor=wanted)
    a, b = torch.tensor([0.25]), torch.tensor([0.5])
    for x in (a, on_grid([0.5])):
        assert isinstance(add(x, b), QuantTensor) == wanted and add(x, b).sum().item() == 0.75


def test_bad_arguments():
    with pytest.raises(UnknownOptionError, match="'bit_width' = 4.*input_"):
        QuantEltwiseAdd(bit_width=4)
    with pytest.raises(QuantConfigError, match="expected True or False"):
        QuantEltwiseAdd(return_quant_tensor=None)
    with pytest.raises(TypeError, match="QuantCat: expected a list or tuple of tensors, got a Tensor"):
        QuantCat()(torch.zeros(2))
    with pytest.raises(TypeError, match=r"expected a list or tuple of tensors, got \[\]"):
        QuantCat()([])
    assert {p.dtype for p in QuantCat(dtype=torch.float64).parameters()} == {torch.float64}


class Residual(nn.Module):
    """A float model that names its addition and concatenation."""

    def __init__(self):
        super().__init__()
        self.add, self.cat = EltwiseAdd(), Cat()

    def forward(self, x):
        return self.cat([self.add(x, 2 * x), x])


RULES = {
    "rules": [
        {"match": "cat", "input": "Int8ActPerTensorFloat", "output": {"base": "Int8ActPerTensorFloat", "bit_width": 4}},
        {
            "match": "add",
            "output": {"base": "Int8ActPerTensorFloat", "bit_width": 5},
            "layer": {"tie_input_output_quant": True, "return_quant_tensor": True},
        },
    ]
}


def test_rules_make_them_and_describe_them():
    model = apply_spec(Residual(), RULES)
    assert type(model.add) is QuantEltwiseAdd and type(model.cat) is QuantCat
    assert model.add.input_quant is model.add.output_quant and model.add.quant_input_bit_width().item() == 5
    assert model.cat.quant_output_bit_width().item() == 4 and model.cat.quant_input_bit_width().item() == 8
    described = spec_of(model)
    assert described["rules"][0] == {
        "match": "add",
        "input": {"base": "Int8ActPerTensorFloat", "bit_width": 5},
        "layer": {"tie_input_output_quant": True, "return_quant_tensor": True},
    }
    again = apply_spec(Residual(), described)
    assert again.add.input_quant is again.add.output_quant and spec_of(again) == described
    assert again.state_dict().keys() == model.state_dict().keys()
    x = torch.randn(2, 3)
    model(x)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x), model.eval()(x))
    back = apply_spec(model, "rules: [{keep: float}]")
    assert type(back.add) is EltwiseAdd and type(back.cat) is Cat


def test_rules_change_a_tied_quantizer_in_both_places():
    model = apply_spec(Residual(), RULES)
    changed = apply_spec(model, {"rules": [{"match": "add", "input": {"bit_width": 3}}]})
    assert changed.add.input_quant is changed.add.output_quant and changed.add.quant_output_bit_width().item() == 3
    assert changed.add.input_quant.tracked_module_list == [changed.add]
    plain = apply_spec(model, {"rules": [{"match": "add", "layer": {"return_quant_tensor": False}}]})
    assert plain.add.input_quant is plain.add.output_quant and plain.add.return_quant_tensor is False
    for name, tied in (("add", False), ("cat", True)):
        with pytest.raises(QuantConfigError, match=f"'{name}' is {not tied}; it is fixed when the layer is made"):
            apply_spec(model, {"rules": [{"match": name, "layer": {"tie_input_output_quant": tied}}]})


def test_a_quantizer_is_shared_with_other_layers():
    owner = QuantIdentity(Int8ActPerTensorFloat, return_quant_tensor=True)
    add = QuantEltwiseAdd(owner.act_quant, None, return_quant_tensor=True)
    assert add.input_quant is owner.act_quant and owner.act_quant.tracked_module_list == [owner, add]
