"""Losses on bit widths under DistributedDataParallel: the widths move as in one process with the whole batch."""

import copy

import torch
from ranks import main
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from brevitas.loss import ActivationBitWidthWeightedBySize, WeightBitWidthWeightedBySize
from brevitas.nn import QuantLinear, QuantReLU


def build():
    torch.manual_seed(0)
    learned = {"bit_width_impl_type": "parameter", "bit_width": 5}
    weights = {f"weight_{name}": value for name, value in learned.items()}
    model = nn.Sequential(
        QuantLinear(4, 8, **weights),
        QuantReLU(scaling_impl_type="const", scaling_init=2.0, **learned),
        QuantLinear(8, 2, **weights),
    )
    return model.double()


def train(model, inner, batches):
    losses = [WeightBitWidthWeightedBySize(inner), ActivationBitWidthWeightedBySize(model)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in batches:
        optimizer.zero_grad()
        for loss in losses:
            loss.zero_accumulated_values()
        error = model(batch).square().mean()
        (error + 0.5 * losses[0].retrieve() + 0.25 * losses[1].retrieve()).backward()
        optimizer.step()
    for loss in losses:
        loss.remove()
    return dict(inner.named_parameters())


def check_widths_move_as_in_one_process():
    model = build()
    alone = copy.deepcopy(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    batches = torch.randn(4, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    half = batches[:, dist.get_rank() :: dist.get_world_size()]
    ours = train(DistributedDataParallel(model), model, half)
    theirs = train(alone, alone, batches)
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-9, atol=1e-12)
        everywhere = [torch.empty_like(parameter) for _ in range(dist.get_world_size())]
        dist.all_gather(everywhere, parameter.detach())
        assert all(torch.equal(each, parameter) for each in everywhere), name
        if "bit_width" in name:
            assert (parameter < start[name] - 0.05).all(), f"{name} does not shrink"


if __name__ == "__main__":
    main(dict(globals()))
