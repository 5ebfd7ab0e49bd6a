"""DistributedDataParallel of a compiled network."""

import torch
import torch._dynamo.testing
from distributed_training import DOUBLE, TRAINING, alone, assert_equal_on_all_ranks, step
from ranks import main
from torch.nn.parallel import DistributedDataParallel
from trained_network import network, optimizer_of


def check_ddp_of_a_compiled_model_trains_as_one_process():
    for backend in ("aot_eager", "inductor"):
        torch._dynamo.reset()
        model = network(DOUBLE)
        counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
        run = DistributedDataParallel(torch.compile(model, fullgraph=True, backend=counter))
        optimizer = optimizer_of(model)
        step(run, optimizer, 0)
        first = counter.frame_count
        for index in range(1, TRAINING):
            step(run, optimizer, index)
        assert counter.frame_count == first, "compiled again from step to step"
        assert_equal_on_all_ranks(model)
        # inductor orders sums otherwise, which moves a value here and there to the next code.
        rtol = 1e-9 if backend == "aot_eager" else 1e-3
        for key, value in alone().state_dict().items():
            mine = model.state_dict()[key]
            torch.testing.assert_close(mine, value, rtol=rtol, atol=rtol, msg=lambda m, k=key: f"{k}: {m}")


if __name__ == "__main__":
    main({name: value for name, value in globals().items() if name.startswith("check_")})
