"""DistributedDataParallel of recurrent layers: one forward is one step of statistics, over all ranks."""

import copy

import torch
from distributed_training import DOUBLE, assert_equal_on_all_ranks, half
from ranks import main
from torch.nn.parallel import DistributedDataParallel

from brevitas.function.ranks import statistics_over
from brevitas.nn import QuantGRU, QuantLSTM, QuantRNN

STEPS = 3


def trained(run, layer, steps, deal):
    optimizer = torch.optim.SGD(layer.parameters(), 0.05)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(8, 4, 3, generator=generator, dtype=DOUBLE)
        optimizer.zero_grad()
        run(deal(x))[0].square().mean().backward()
        optimizer.step()
    return layer


def check_recurrent_layers_train_as_in_one_process():
    for cls in (QuantRNN, QuantLSTM, QuantGRU):
        for steps in (1, STEPS + 2):
            layer = cls(3, 4, num_layers=2, batch_first=True, io_collect_stats_steps=STEPS, dtype=DOUBLE)
            expected = copy.deepcopy(layer)
            # Every parameter has a gradient in every step: none has to be looked for.
            trained(DistributedDataParallel(layer), layer, steps, half)
            with statistics_over(None):
                trained(expected, expected, steps, lambda x: x)
            assert_equal_on_all_ranks(layer)
            for key, value in expected.state_dict().items():
                torch.testing.assert_close(layer.state_dict()[key], value, rtol=1e-9, atol=1e-11, msg=key)


if __name__ == "__main__":
    main(dict(globals()))
