"""check_scales(insert=True): branches that are joined go through one new quantizer, and nothing else changes."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from brevitas.errors import QuantConfigError, QuantMetadataError
from brevitas.graph import check_scales
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import Int8ActPerTensorFixedPoint, Int32Bias, Uint8ActPerTensorFloat
from brevitas.quant_tensor import QuantTensor


def images(seed=0):
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    """The residual block as people write it first: the sum joins an activation and an accumulator."""

    label = "of the class"

    def __init__(self, channels):
        super().__init__()
        self.conv1 = QuantConv2d(channels, channels, 3, padding=1, bias=False)
        self.relu1 = QuantReLU(return_quant_tensor=True)
        self.conv2 = QuantConv2d(channels, channels, 3, padding=1, bias=False, return_quant_tensor=True)
        self.relu2 = QuantReLU(return_quant_tensor=True)
        self.unused = nn.Linear(2, 2)
        self.gain = 1.0

    def forward(self, x):
        return self.relu2(self.conv2(self.relu1(self.conv1(x))) + x)


class Residual(nn.Module):
    """Blocks, and a forward around them that cannot be traced."""

    def __init__(self):
        super().__init__()
        self.input = QuantIdentity(return_quant_tensor=True)
        self.blocks = nn.ModuleList([Block(3), Block(3)])
        self.fc = QuantLinear(3 * 36, 2, bias_quant=Int32Bias)

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        x = self.input(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(torch.flatten(x, 1))


def train(model, steps=6):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(images()) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def inserted(model, example=None, **options):
    report = check_scales(model, images() if example is None else example, insert=True, **options)
    assert not report, str(report)
    return report


def test_a_residual_network_is_mended_and_trains():
    torch.manual_seed(0)
    model = Residual()
    with pytest.raises(QuantMetadataError, match="different scales"):
        model(images())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    report = inserted(model)
    assert report.inserted == ("blocks.0.add_quant", "blocks.1.add_quant")
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert str(report).endswith("nothing to mend.\nInserted: blocks.0.add_quant, blocks.1.add_quant.")
    new = report.model
    assert type(new) is Residual and isinstance(model.blocks[0], Block) and new.training
    added = set(new.state_dict()) - set(state)
    assert {key.split(".act_quant")[0] for key in added} == set(report.inserted)
    assert set(state) <= set(new.state_dict())
    for block in new.blocks:
        for quantizer in (block.add_quant.act_quant, block.relu1.act_quant):
            for module in quantizer.modules():
                if hasattr(module, "collect_stats_steps"):
                    module.collect_stats_steps = 2
    losses = train(new, 12)
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for name, p in new.named_parameters() if "unused" not in name)
    assert not check_scales(new, images())


def test_the_new_block_computes_the_idiom():
    torch.manual_seed(0)
    model = nn.Sequential(QuantIdentity(return_quant_tensor=True), Block(3))
    new = inserted(model).model
    first, block, shared = new[0], new[1], new[1].add_quant
    for steps in range(3):
        new(images(steps))
    new.eval()
    for quantizer_steps in range(2):
        x = first(images(9))
        branch = block.conv2(block.relu1(block.conv1(x)))
        s = shared.quant_act_scale()

        def through_shared(t, s=s):
            return torch.clamp(torch.round(t / s), -128, 127) * s

        expected = block.relu2(through_shared(x.value) + through_shared(branch.value))
        out = new(images(9))
        assert torch.equal(out.value, expected.value) and torch.equal(out.scale, expected.scale)
        new.train()(images(20 + quantizer_steps)), new.eval()
    # The first convolution still reads the input's own grid.
    assert torch.equal(block.conv1(x), F.conv2d(x.value, block.conv1.quant_weight().value, padding=1))


def test_copies_pickles_and_attributes():
    new = inserted(nn.Sequential(QuantIdentity(return_quant_tensor=True), Block(3))).model
    new(images())
    for twin in (copy.deepcopy(new), pickle.loads(pickle.dumps(new)), copy.deepcopy(copy.deepcopy(new))):
        assert list(twin.state_dict()) == list(new.state_dict())
        assert twin[1].gain == 1.0 and type(twin[1]).__name__ == "Block" and isinstance(twin[1].unused, nn.Linear)
        assert torch.equal(twin(images(1)).value, copy.deepcopy(new)(images(1)).value)
        before = new[1].add_quant.quant_act_scale().item()
        twin(100 * images(1))
        assert new[1].add_quant.quant_act_scale().item() == before


class Joining(nn.Module):
    """Four quantizers with scales of their own, joined as the test says."""

    def __init__(self, join, preset=None):
        super().__init__()
        for name in "abcd":
            options = {} if preset is None else {"act_quant": preset}
            setattr(self, name, QuantIdentity(return_quant_tensor=True, **options))
        self.join = join

    def forward(self, x):
        return self.join(self.a(x), self.b(2 * x), self.c(3 * x), self.d(x - 1))


def joined_by_sum(a, b, c, d):
    return a + b + c - d


def joined_by_cat(a, b, c, d):
    return torch.cat([a, b], 1), torch.stack((c, d))


def joined_after_a_product(a, b, c, d):
    return a * b + c * d


@pytest.mark.parametrize(
    ("join", "names"),
    [
        (joined_by_sum, ("add_quant",)),  # sums of one quantizer keep its scale: one is enough
        (joined_by_cat, ("cat_quant", "stack_quant")),
        (joined_after_a_product, ("add_quant",)),
    ],
)
def test_functions_that_join(join, names):
    report = inserted(Joining(join))
    assert report.inserted == names
    outputs = report.model(images())
    for out in outputs if isinstance(outputs, tuple) else (outputs,):
        assert isinstance(out, QuantTensor)


def test_the_sign_and_the_class_of_the_new_quantizer():
    unsigned = inserted(Joining(joined_by_sum, Uint8ActPerTensorFloat)).model.add_quant
    assert unsigned.act_quant.is_signed is False
    assert inserted(Joining(joined_by_sum)).model.add_quant.act_quant.is_signed is True
    given = inserted(Joining(joined_by_sum), shared_quant=Int8ActPerTensorFixedPoint).model
    assert given.add_quant.act_quant.quant_injector is not unsigned.act_quant.quant_injector
    scale = given.add_quant.quant_act_scale()
    assert torch.frexp(scale)[0] == 0.5


def test_dtype_and_mode_follow_the_model():
    new = inserted(Joining(joined_by_sum).double().eval(), images().double()).model
    assert new.add_quant.quant_act_scale().dtype == torch.float64 and not new.add_quant.training


def test_a_block_that_is_called_twice_gets_one_quantizer():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.input, self.block = QuantIdentity(return_quant_tensor=True), Block(3)

        def forward(self, x):
            return self.block(self.block(self.input(x)))

    assert inserted(Twice()).inserted == ("block.add_quant",)


def test_other_findings_stay_in_the_report():
    model = nn.Sequential(Joining(joined_by_sum), nn.Sigmoid(), QuantLinear(6, 2, bias_quant=Int32Bias))
    report = check_scales(model, images(), insert=True)
    assert report.inserted == ("0.add_quant",) and [f.kind for f in report] == ["bias"]


def test_nothing_to_insert_gives_a_copy():
    model = nn.Sequential(QuantIdentity(return_quant_tensor=True))
    report = inserted(model)
    assert report.inserted == () and report.model is not model and type(report.model) is nn.Sequential


@pytest.mark.slow
def test_the_new_model_compiles_as_a_whole():
    torch._dynamo.reset()
    new = inserted(nn.Sequential(QuantIdentity(return_quant_tensor=True), Block(3))).model
    for step in range(2):
        new(images(step))
    twin = copy.deepcopy(new)
    compiled = torch.compile(new, fullgraph=True, backend="eager")
    assert torch.equal(compiled(images(5)).value, twin(images(5)).value)


def test_a_compiled_model_is_mended_uncompiled():
    model = torch.compile(nn.Sequential(Joining(joined_by_sum)), backend="eager")
    report = inserted(model)
    assert type(report.model) is nn.Sequential and report.model_class == "Sequential"
    assert report.inserted == ("0.add_quant",)


def test_an_operator_that_assigns():
    def join(a, b, c, d):
        a += b
        return a

    assert inserted(Joining(join)).inserted == ("add_quant",)


# --- Refusals --------------------------------------------------------------------------------------------------------


def branching(a, b, c, d):
    return a + b if a.value.sum() > 1e9 else c + d


def asking(a, b, c, d):
    return a + b if isinstance(a, QuantTensor) else b


@pytest.mark.parametrize(
    ("join", "message"),
    [
        (
            branching,
            r"the forward of Joining '1' cannot be traced by torch\.fx: TraceError.*shared\(a\) \+ shared\(b\)",
        ),
        (asking, r"traced by torch\.fx, the forward of '1' gives other outputs.*write it by hand"),
    ],
)
def test_a_forward_that_cannot_be_traced_is_refused(join, message):
    model = nn.Sequential(nn.Identity(), Joining(join))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(QuantConfigError, match=message):
        check_scales(model, images(), insert=True)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [f.kind for f in check_scales(model, images())] == ["meeting"]


def test_a_module_with_hooks_is_refused():
    model = nn.Sequential(Joining(joined_by_sum))
    model[0].register_forward_hook(lambda module, args, out: None)
    with pytest.raises(QuantConfigError, match="Joining '0' has hooks, which a graph would lose"):
        check_scales(model, images(), insert=True)
