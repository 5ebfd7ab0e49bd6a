"""Two ranks, each with half of every batch, against one process that sees the whole batches."""

import contextlib
import copy

import torch
from ranks import main
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from trained_network import STEPS, images, network, optimizer_of, sequence, targets, train

from brevitas import config
from brevitas.function.ranks import statistics_over

DOUBLE = torch.float64
TRAINING = 2 * STEPS


def alone(steps=TRAINING, seed=0):
    """The model that one process trains."""
    with statistics_over(None):
        return train(network(DOUBLE), steps, seed)


def half(x):
    """This rank's part, as a DistributedSampler deals it out."""
    return x[dist.get_rank() :: 2]


def step(run, optimizer, seed, contexts=(contextlib.nullcontext,), call=None):
    """One optimizer step on one micro-batch for each context; the loss is their mean."""
    optimizer.zero_grad()
    for index, context in enumerate(contexts):
        s = seed * len(contexts) + index
        with context():
            out = (call or run)(half(images(s, DOUBLE)))
            (F.cross_entropy(out, half(targets(s))) / len(contexts)).backward()
    optimizer.step()


def assert_equal_on_all_ranks(model):
    for key, value in model.state_dict().items():
        gathered = [torch.empty_like(value) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, value.contiguous())
        assert torch.equal(gathered[0], gathered[1]), f"{key} differs between ranks: {gathered}"


def assert_equal_to_one_process(model, expected, rtol=1e-9, atol=1e-11):
    for key, value in expected.state_dict().items():
        mine = model.state_dict()[key]
        if value.is_floating_point():
            torch.testing.assert_close(mine, value, rtol=rtol, atol=atol, msg=lambda m, key=key: f"{key}: {m}")
        else:
            assert torch.equal(mine, value), key
    # The statistics of the input depend on the data alone, and maxima on no order: bit for bit.
    scale = "input.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.running_stats"
    assert torch.equal(model.state_dict()[scale], expected.state_dict()[scale])


def ddp_trained(model, steps=TRAINING, **options):
    run = DistributedDataParallel(model, **options)
    optimizer = optimizer_of(model)
    for index in range(steps):
        step(run, optimizer, index)
    return run


def check_ddp_trains_as_one_process_in_every_phase():
    for steps in (1, STEPS, STEPS + 1, TRAINING):
        model = network(DOUBLE)
        ddp_trained(model, steps)
        assert_equal_on_all_ranks(model)
        assert_equal_to_one_process(model, alone(steps))


def check_ddp_with_recurrence_and_attention():
    model = sequence(DOUBLE)
    ddp_trained(model)
    assert_equal_on_all_ranks(model)
    with statistics_over(None):
        expected = train(sequence(DOUBLE), TRAINING)
    # Here percentiles are taken of values on a grid, many of them equal; one of them receives the gradient, and which
    # one depends on their order.
    assert_equal_to_one_process(model, expected, rtol=1e-4, atol=1e-6)


def check_ddp_with_a_static_graph():
    model = network(DOUBLE)
    ddp_trained(model, static_graph=True)
    assert_equal_on_all_ranks(model)
    assert_equal_to_one_process(model, alone())


def check_ddp_without_broadcast_of_buffers():
    model = network(DOUBLE)
    ddp_trained(model, broadcast_buffers=False)
    assert_equal_on_all_ranks(model)
    assert_equal_to_one_process(model, alone())


def check_ddp_accumulates_gradients_without_synchronising():
    model, expected = network(DOUBLE), network(DOUBLE)
    run = DistributedDataParallel(model)
    optimizer, other = optimizer_of(model), optimizer_of(expected)
    for index in range(TRAINING):
        step(run, optimizer, index, (run.no_sync, contextlib.nullcontext))
        with statistics_over(None):
            other.zero_grad()
            for s in (2 * index, 2 * index + 1):
                (F.cross_entropy(expected(images(s, DOUBLE)), targets(s)) / 2).backward()
            other.step()
    assert_equal_on_all_ranks(model)
    assert_equal_to_one_process(model, expected)


def check_ddp_with_gradient_checkpointing():
    class Checkpointed(nn.Module):
        def __init__(self, model, reentrant):
            super().__init__()
            self.model, self.reentrant = model, reentrant

        def forward(self, x):
            # TorchScript does not let the exception pass by which torch ends a repetition early.
            with set_checkpoint_early_stop(not config.JIT_ENABLED):
                return checkpoint(self.model, x.requires_grad_(), use_reentrant=self.reentrant)

    for reentrant in (False, True):
        model = network(DOUBLE)
        run = DistributedDataParallel(Checkpointed(model, reentrant))
        optimizer = optimizer_of(model)
        for index in range(TRAINING):
            step(run, optimizer, index)
        assert_equal_on_all_ranks(model)
        assert_equal_to_one_process(model, alone())


def check_ddp_with_two_forwards_before_a_backward():
    model = network(DOUBLE)
    run = DistributedDataParallel(model)
    x = half(images(0, DOUBLE))
    (run(x) + run(2 * x)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def check_ddp_with_parts_of_other_sizes_and_an_empty_part():
    model, expected = network(DOUBLE), network(DOUBLE)
    run = DistributedDataParallel(model, broadcast_buffers=False)
    for index, split in enumerate((5, 8, 2, 4)):
        x = images(index, DOUBLE)
        run(x[:split] if dist.get_rank() == 0 else x[split:]).sum().backward()
        with statistics_over(None):
            expected(x).sum().backward()
    assert_equal_on_all_ranks(model)
    assert_equal_to_one_process(model, expected)
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(2 * p.grad, q.grad, rtol=1e-9, atol=1e-11)  # the loss is a sum, not a mean


def check_a_saved_model_goes_on_alone_and_back():
    model = network(DOUBLE)
    ddp_trained(model, 2)
    single = network(DOUBLE)
    single.load_state_dict(copy.deepcopy(model.state_dict()))
    again = network(DOUBLE)
    again.load_state_dict(single.state_dict())
    assert_equal_on_all_ranks(again)
    ddp_trained(again, 2)
    assert_equal_on_all_ranks(again)


if __name__ == "__main__":
    main(dict(globals()))
