"""Losses on bit widths: values and gradients by hand, what counts once, errors, training with them."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from brevitas.errors import QuantConfigError, QuantMetadataError
from brevitas.loss import (
    MEGA,
    ActivationBitWidthWeightedBySize,
    BitWidthWeighted,
    QuantLayerOutputBitWidthWeightedByOps,
    WeightBitWidthWeightedBySize,
)
from brevitas.nn import QuantConv1d, QuantConv2d, QuantIdentity, QuantLinear, QuantLSTM, QuantReLU
from brevitas.proxy import WeightQuantProxyFromInjector
from brevitas.quant import Int8ActPerTensorFloat

LOSSES = [WeightBitWidthWeightedBySize, ActivationBitWidthWeightedBySize, QuantLayerOutputBitWidthWeightedByOps]


def learned(bits, prefix=""):
    return {f"{prefix}bit_width_impl_type": "parameter", f"{prefix}bit_width": bits}


class Net(nn.Module):
    """A convolution and two linear layers; all widths are learned but that of the last weight."""

    def __init__(self):
        super().__init__()
        self.inp = QuantIdentity(return_quant_tensor=True, bit_width=4)
        self.conv = QuantConv2d(1, 2, 3, bias=False, return_quant_tensor=True, **learned(3, "weight_"))
        self.relu = QuantReLU(return_quant_tensor=True, **learned(5))
        self.linear = QuantLinear(32, 4, bias=False, return_quant_tensor=True, **learned(6, "weight_"))
        self.head = QuantLinear(4, 2, input_quant=Int8ActPerTensorFloat, **learned(7, "input_"))

    def forward(self, x):
        x = self.relu(self.conv(self.inp(x)))
        return self.head(self.linear(x.flatten(1)))


def net():
    torch.manual_seed(0)
    return Net()


def images(n=3):
    return torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def offset_of(proxy):
    return proxy.tensor_quant.msb_clamp_bit_width_impl.bit_width_offset


# --- Values and gradients ---------------------------------------------------------------------------------------------


def test_weights_are_weighted_by_their_number():
    model = net()
    bits = WeightBitWidthWeightedBySize(model)
    model(images())
    # 18 weights of 3 bits and 128 of 6; the head's weight is not learned.
    assert bits.retrieve().item() == pytest.approx((18 * 3 + 128 * 6) / 146)
    summands = bits.retrieve(as_average=False)
    assert [s.item() for s in summands] == pytest.approx([18 * 3 / 146, 128 * 6 / 146])
    bits.retrieve().backward()
    assert offset_of(model.conv.weight_quant).grad.item() == pytest.approx(18 / 146)
    assert offset_of(model.linear.weight_quant).grad.item() == pytest.approx(128 / 146)
    assert offset_of(model.relu.act_quant).grad is None


@pytest.mark.parametrize("batch", [1, 3])
def test_activations_are_weighted_by_elements(batch):
    model = net()
    bits = ActivationBitWidthWeightedBySize(model)
    model(images(batch))
    # The ReLU makes 2 * 4 * 4 elements of a sample, the input quantizer of the head gets 4.
    assert bits.retrieve().item() == pytest.approx((32 * 5 + 4 * 7) / 36)
    bits.retrieve().backward()
    assert offset_of(model.relu.act_quant).grad.item() == pytest.approx(32 / 36)
    assert offset_of(model.head.input_quant).grad.item() == pytest.approx(4 / 36)


def test_outputs_of_layers_are_weighted_by_operations():
    model = net()
    bits = QuantLayerOutputBitWidthWeightedByOps(model)
    model(images())
    # conv: 32 outputs of 2 * 9 operations; 9 products of 4 signed bits and [-3, 3] reach 216: 9 bits.
    # linear: 4 outputs of 2 * 32 operations; 32 products of [0, 31] and [-31, 31] reach 30752: 16 bits.
    sizes, widths = [32 * 18 / MEGA, 4 * 64 / MEGA], [9, 16]
    expected = sum(s * w for s, w in zip(sizes, widths, strict=True)) / sum(sizes)
    assert bits.retrieve().item() == pytest.approx(expected) and MEGA == 1e6
    assert len(bits.retrieve(as_average=False)) == 2
    bits.retrieve().backward()
    assert offset_of(model.conv.weight_quant).grad > 0 and offset_of(model.relu.act_quant).grad > 0
    only_conv = QuantLayerOutputBitWidthWeightedByOps(model, layer_types=(QuantConv2d,))
    model(images())
    assert only_conv.log() == 9


def test_average_over_calls_and_layers_that_share():
    first = QuantLinear(4, 4, **learned(4, "weight_"))
    second = QuantLinear(4, 2, weight_quant=first.weight_quant)
    alone = QuantLinear(2, 2, **learned(8, "weight_"))
    model = nn.Sequential(first, second, alone)
    bits = WeightBitWidthWeightedBySize(model)
    model(torch.randn(3, 4))
    # One quantizer, two weights: both count.
    assert [s.item() for s in bits.retrieve(as_average=False)] == pytest.approx([16 * 4 / 28, 8 * 4 / 28, 4 * 8 / 28])
    once = bits.retrieve().item()
    model(torch.randn(5, 4))
    assert len(bits.retrieve(as_average=False)) == 6 and bits.retrieve().item() == pytest.approx(once)


def test_steps_of_a_recurrent_layer():
    model = QuantLSTM(3, 5, io_quant=Int8ActPerTensorFloat, **learned(6, "weight_"), **learned(4, "io_"))
    weights, activations = WeightBitWidthWeightedBySize(model), ActivationBitWidthWeightedBySize(model)
    gates = [offset_of(p) for p in model.modules() if isinstance(p, WeightQuantProxyFromInjector)]
    model(torch.randn(7, 2, 3))
    (weights.retrieve() + activations.retrieve()).backward()
    # A gate weighs inputs and states with one quantizer; the average of four equal gates.
    assert [gate.grad.item() for gate in gates] == pytest.approx([1 / 4] * 4)
    assert weights.log() == 6 and activations.log() == 4
    summands = activations.retrieve(as_average=False)
    # The input of all steps at once, and the state before each step or after it.
    assert summands[0].item() == pytest.approx(4 * 7 * 3 / (7 * 3 + (len(summands) - 1) * 5))


def test_widths_of_16_bit_models_are_averaged_in_float32():
    model = nn.Sequential(*(QuantLinear(31, 31, **learned(bits, "weight_")) for bits in (8, 7, 7))).bfloat16()
    bits = WeightBitWidthWeightedBySize(model)
    model(torch.randn(2, 31, dtype=torch.bfloat16))
    assert bits.retrieve().dtype == torch.float32 and bits.log().item() == pytest.approx(22 / 3, rel=1e-6)


# --- Accumulating -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_zero_log_and_remove(loss):
    model = net()
    bits = loss(model)
    assert isinstance(bits, BitWidthWeighted)
    model(images())
    value = bits.log()
    assert not value.requires_grad and value == bits.retrieve().detach()
    bits.zero_accumulated_values()
    for read in (bits.retrieve, bits.log):
        with pytest.raises(QuantMetadataError, match=f"{loss.__name__}: nothing was accumulated; run a forward"):
            read()
    model(images())
    bits.remove()
    bits.remove()
    count = len(bits.retrieve(as_average=False))
    model(images())
    assert len(bits.retrieve(as_average=False)) == count
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("loss", LOSSES)
def test_models_without_what_is_counted(loss):
    with pytest.raises(QuantConfigError, match=f"{loss.__name__}: Sequential has no .*; set "):
        loss(nn.Sequential(QuantLinear(2, 2), QuantReLU()))
    with pytest.raises(QuantConfigError, match=f"{loss.__name__}: expected a torch.nn.Module, got 3"):
        loss(3)


def test_layer_types_need_operations():
    with pytest.raises(QuantConfigError, match="ReLU in layer_types has no per_elem_ops"):
        QuantLayerOutputBitWidthWeightedByOps(net(), layer_types=(nn.ReLU,))
    with pytest.raises(QuantConfigError, match="no layer of the types QuantConv1d that returns a QuantTensor"):
        QuantLayerOutputBitWidthWeightedByOps(net(), layer_types=(QuantConv1d,))


class Checkpointed(Net):
    """The same, with a checkpoint around everything but the input quantizer."""

    reentrant = False

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("loss", LOSSES)
def test_what_a_checkpoint_computes_again_does_not_count_again(loss):
    torch.manual_seed(0)
    model, plain = Checkpointed(), net()
    model.load_state_dict(plain.state_dict())
    found = []
    for each in (model, plain):
        bits = loss(each)
        recomputed = []
        each.relu.register_forward_hook(lambda *a, seen=recomputed: seen.append(1))
        (each(images()).square().mean() + bits.retrieve()).backward()
        assert len(recomputed) == (2 if each is model else 1)
        found.append((len(bits.retrieve(as_average=False)), bits.log(), [p.grad for p in each.parameters()]))
    assert found[0][:2] == found[1][:2]
    for ours, theirs in zip(found[0][2], found[1][2], strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)


def test_a_checkpoint_without_gradients_is_refused():
    model = Checkpointed()
    model.reentrant = True
    bits = WeightBitWidthWeightedBySize(model)
    model(images().requires_grad_())
    with pytest.raises(
        QuantMetadataError, match="'conv.weight_quant' was seen in a forward without gradients.*use_reen"
    ):
        bits.retrieve()
    assert bits.log() > 0
    bits.zero_accumulated_values()
    with torch.no_grad():
        model.eval()(images())
    assert not bits.retrieve().requires_grad  # in eval mode nobody expects it


def test_copies_are_not_watched():
    model = net()
    bits = WeightBitWidthWeightedBySize(model)
    model(images())
    average = torch.optim.swa_utils.AveragedModel(model)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), average):
        copied(images())
    assert len(bits.retrieve(as_average=False)) == 2
    model(images())
    assert len(bits.retrieve(as_average=False)) == 4


@pytest.mark.slow
def test_compiled_in_one_graph_without_recompilation():
    model, eager = net(), net()
    for module in (model.inp, model.relu, model.head.input_quant, eager.inp, eager.relu, eager.head.input_quant):
        module.eval()  # so that both see the same scales
    ours, theirs = ([loss(each) for loss in LOSSES] for each in (model, eager))
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            for run, losses, each in ((compiled, ours, model), (eager, theirs, eager)):
                each.zero_grad()
                for loss in losses:
                    loss.zero_accumulated_values()
                out = run(images())
                (out.square().mean() + sum(loss.retrieve() for loss in losses)).backward()
            assert [loss.log() for loss in ours] == [loss.log() for loss in theirs]
            for mine, other in zip(model.parameters(), eager.parameters(), strict=True):
                # A scale that is still collected has no gradient, which compiled code writes as 0.
                expected = torch.zeros_like(other) if other.grad is None else other.grad
                torch.testing.assert_close(mine.grad, expected, rtol=1e-4, atol=1e-5)


# --- Training ---------------------------------------------------------------------------------------------------------


def task(n, seed):
    """Points in the plane, inside or outside of a ring."""
    points = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed)) * 4 - 2
    return points, (points.norm(dim=1) > 1.3).long()


def train(strength, steps=150):
    torch.manual_seed(0)
    model = nn.Sequential(
        QuantLinear(2, 24, weight_scaling_per_output_channel=True, **learned(8, "weight_")),
        QuantReLU(collect_stats_steps=20, **learned(8)),
        QuantLinear(24, 2, **learned(8, "weight_")),
    )
    losses = [WeightBitWidthWeightedBySize(model), ActivationBitWidthWeightedBySize(model)]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    points, labels = task(512, 0)
    for _ in range(steps):
        for loss in losses:
            loss.zero_accumulated_values()
        optimizer.zero_grad()
        objective = F.cross_entropy(model(points), labels)
        (objective + strength * sum(loss.retrieve() for loss in losses)).backward()
        optimizer.step()
    for loss in losses:
        loss.zero_accumulated_values()
    points, labels = task(512, 1)
    with torch.no_grad():
        right = (model.eval()(points).argmax(1) == labels).float().mean()
    return [loss.log().item() for loss in losses], right.item()


def test_widths_shrink_and_the_task_is_learned():
    free, _ = train(0.0)
    (weights, activations), right = train(0.05)
    assert all(width > 7.0 for width in free)
    assert weights < 5.5 and activations < 5.5, (weights, activations)
    assert right > 0.9  # 0.66 by saying always the same
