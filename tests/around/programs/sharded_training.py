"""FSDP2 on two ranks: parameters in shards, quantizers that have finished collecting."""

import copy

import torch
from distributed_training import DOUBLE, assert_equal_to_one_process, half, step
from ranks import main
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn import functional as F
from trained_network import STEPS, Network, images, network, optimizer_of, targets, train

from brevitas.errors import QuantMetadataError
from brevitas.function.ranks import statistics_over
from brevitas.nn import QuantLinear
from brevitas.nn.utils import init_scales


def collected(steps=STEPS):
    """A model that one process has trained for some steps, with every quantizer made to learn."""
    with statistics_over(None):
        model = train(network(DOUBLE), steps)
    assert init_scales(model) == []
    return model


def sharded(model):
    for layer in model.children():
        fully_shard(layer)
    return fully_shard(model)


def full_state(model):
    return {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in model.state_dict().items()}


class Whole:
    """A model of full tensors, to compare with."""

    def __init__(self, model):
        self.state = full_state(model)

    def state_dict(self):
        return self.state


def check_fsdp_trains_as_one_process():
    for steps in (1, STEPS):
        expected = collected(steps)
        model = sharded(copy.deepcopy(expected))
        assert isinstance(model, FSDPModule)
        optimizer, other = optimizer_of(model), optimizer_of(expected)
        for seed in range(4):
            step(model, optimizer, seed)
            with statistics_over(None):
                other.zero_grad()
                F.cross_entropy(expected(images(seed, DOUBLE)), targets(seed)).backward()
                other.step()
        assert_equal_to_one_process(Whole(model), expected)
        model.eval(), expected.eval()
        torch.testing.assert_close(model(half(images(7, DOUBLE))), expected(half(images(7, DOUBLE))))


def check_fsdp_refuses_statistics_that_would_be_lost():
    model = sharded(network(DOUBLE))
    try:
        model(half(images(0, DOUBLE)))
    except QuantMetadataError as error:
        text = str(error)
        assert "QuantIdentity" in text and ", act_quant: Shifted" in text and "init_scales(model)" in text, text
    else:
        raise AssertionError("was not refused")
    model.eval()(half(images(0, DOUBLE)))  # nothing is stored in eval mode
    layer = QuantLinear(4, 2, weight_scaling_impl_type="parameter_from_stats")
    fully_shard(layer)
    try:
        layer(torch.randn(3, 4))
    except QuantMetadataError as error:
        assert "QuantLinear" in str(error) and "weight_quant: " in str(error), error
    else:
        raise AssertionError("was not refused")


def check_a_learned_weight_scale_needs_no_data():
    layer = nn.Sequential(QuantLinear(4, 2, weight_scaling_impl_type="parameter_from_stats"))
    assert init_scales(layer) == []
    fully_shard(layer)
    layer(torch.randn(3, 4)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def check_layers_that_share_a_weight_quantizer_in_one_group():
    torch.manual_seed(0)
    first = QuantLinear(4, 4, weight_scaling_impl_type="stats")
    model = nn.Sequential(first, QuantLinear(4, 4, weight_quant=first.weight_quant)).double()
    twin, x = copy.deepcopy(model), images(0, DOUBLE).flatten()[:12].view(3, 4)
    fully_shard(model)
    model(x).sum().backward()
    twin(x).sum().backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad.full_tensor(), q.grad)


def check_what_has_seen_no_data_is_named():
    assert init_scales(network()) == ["input.act_quant", "relu.act_quant", "grid.act_quant"]


def check_the_state_of_shards_loads_in_one_process():
    expected = collected()
    state = full_state(sharded(copy.deepcopy(expected)))
    twin = Network().to(DOUBLE)
    twin.load_state_dict(state)
    for key, value in expected.state_dict().items():
        assert torch.equal(twin.state_dict()[key], value), key


if __name__ == "__main__":
    main({name: value for name, value in globals().items() if name.startswith("check_")})
