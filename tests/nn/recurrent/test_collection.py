"""One forward is one step of statistics collection, whatever its length."""

import pytest
import torch
from torch import nn

from brevitas.core.stats.running import CollectThenLearn
from brevitas.nn import QuantGRU, QuantIdentity, QuantLSTM, QuantRNN
from brevitas.quant import Int8ActPerTensorFloat, ShiftedUint8ActPerTensorFloat


class MaxStats(Int8ActPerTensorFloat):
    """The statistic is the largest magnitude, and the estimate a true average."""

    scaling_stats_op = "MAX"
    scaling_stats_momentum = None


def estimators(layer):
    return {name: m for name, m in layer.named_modules() if isinstance(m, CollectThenLearn)}


@pytest.mark.parametrize("cls", [QuantRNN, QuantLSTM, QuantGRU])
@pytest.mark.parametrize("length", [1, 7])
def test_a_forward_counts_once_in_every_quantizer(cls, length):
    layer = cls(3, 4, num_layers=2, bidirectional=True)
    for step in range(1, 4):
        layer(torch.randn(length, 2, 3))
        assert {int(m.counter) for m in estimators(layer).values()} == {step}
    layer.eval()(torch.randn(length, 2, 3))
    assert {int(m.counter) for m in estimators(layer).values()} == {3}


def test_the_statistic_is_that_of_all_the_quantizer_has_seen():
    layer = QuantRNN(3, 4, io_quant=MaxStats, gate_acc_quant=MaxStats, weight_quant=None, bias_quant=None)
    reference = nn.RNN(3, 4)
    reference.load_state_dict(layer.torch_parameters())
    x = torch.randn(6, 2, 3)
    layer(x)
    output, _ = reference(x)  # the first forward collects in float
    seen = {name: float(m.running_stats) for name, m in estimators(layer).items()}
    io = next(value for name, value in seen.items() if name.startswith("io_quant"))
    acc = next(value for name, value in seen.items() if name.startswith("layers.0.gate.gate_acc_quant"))
    assert io == pytest.approx(max(x.abs().max().item(), output.abs().max().item()))
    assert acc == pytest.approx(torch.atanh(output).abs().max().item(), rel=1e-4)
    second = 3 * torch.randn(6, 2, 3)
    layer(second)
    io = next(float(m.running_stats) for name, m in estimators(layer).items() if name.startswith("io_quant"))
    assert io == pytest.approx((x.abs().max().item() + second.abs().max().item()) / 2)


def test_the_scale_stands_still_during_a_forward():
    layer = QuantLSTM(3, 4, return_quant_tensor=True)
    scales = []
    layer.io_quant.register_forward_hook(lambda m, given, result: scales.append(result.scale))
    layer(torch.randn(5, 2, 3))
    before = layer.io_quant.tensor_quant.scaling_impl.running_stats.clone()
    scales.clear()
    layer(9 * torch.randn(5, 2, 3))
    assert len(scales) == 6 and all(torch.equal(scale, before / 128) for scale in scales)


def test_collection_ends_after_the_declared_number_of_forwards():
    layer = QuantLSTM(3, 4, io_collect_stats_steps=2, return_quant_tensor=True)
    impl = layer.io_quant.tensor_quant.scaling_impl
    x = torch.randn(5, 2, 3)
    for _ in range(2):
        layer(x)
    assert int(impl.counter) == 2 and not impl.initialised
    estimate = impl.running_stats.clone()
    layer(2 * x)
    assert impl.initialised and torch.equal(impl.value.detach().view(()), estimate)
    output, _ = layer(2 * x)
    output.value.sum().backward()
    assert impl.value.grad.abs().max() > 0
    assert torch.equal(output.scale.detach(), estimate / 128)


def test_every_parameter_has_a_gradient_from_the_first_step_on():
    for cls in (QuantRNN, QuantLSTM, QuantGRU):
        layer = cls(3, 4, num_layers=2, bidirectional=True)
        for _ in range(2):
            layer.zero_grad()
            layer(torch.randn(3, 2, 3))[0].sum().backward()
            missing = [name for name, p in layer.named_parameters() if p.grad is None]
            assert not missing
            assert not layer.io_quant.tensor_quant.scaling_impl.value.grad.any()  # exactly zero while collecting


def test_a_shared_quantizer_that_has_an_estimate_counts_once_more():
    identity = QuantIdentity()
    identity(torch.randn(4, 3))
    layer = QuantLSTM(3, 4, io_quant=identity.act_quant)
    layer(torch.randn(5, 2, 3))
    assert int(identity.act_quant.tensor_quant.scaling_impl.counter) == 2


def test_zero_points_are_collected_alike():
    layer = QuantLSTM(3, 4, io_quant=ShiftedUint8ActPerTensorFloat, return_quant_tensor=True)
    output, (h, _) = layer(torch.randn(5, 2, 3))
    assert output.is_valid and output.zero_point > 0 and torch.equal(output.zero_point, h.zero_point)
    assert {int(m.counter) for m in estimators(layer).values()} == {1}


def test_statistics_of_each_batch_have_a_scale_for_each_call_and_one_step_for_all():
    layer = QuantLSTM(3, 4, io_scaling_impl_type="STATS", io_collect_stats_steps=None, return_quant_tensor=True)
    estimate = layer.io_quant.tensor_quant.scaling_impl.runtime_stats
    output, (h, _) = layer(torch.randn(5, 2, 3))
    assert int(estimate.counter) == 1 and torch.equal(output.scale, h.scale)
    output, _ = layer.eval()(torch.randn(5, 2, 3))
    assert torch.equal(output.scale, estimate.running_stats / 128) and output.is_valid


def test_a_delay_lasts_for_forwards_not_for_time_steps():
    layer = QuantRNN(3, 4, io_quant_delay_steps=2, gate_acc_quant=None, weight_quant=None, bias_quant=None)
    x = torch.randn(5, 2, 3)
    reference = nn.RNN(3, 4)
    reference.load_state_dict(layer.torch_parameters())
    equal = [bool(torch.allclose(layer(x)[0], reference(x)[0], atol=1e-6)) for _ in range(3)]
    assert equal == [True, True, False]


def test_loading_tells_whether_there_is_an_estimate():
    source, target = QuantLSTM(3, 4), QuantLSTM(3, 4)
    x = torch.randn(5, 2, 3)
    source(x)
    target.load_state_dict(source.state_dict())
    for layer in (source, target):
        layer(2 * x)
    for key, value in source.state_dict().items():
        assert torch.equal(value, target.state_dict()[key]), key
