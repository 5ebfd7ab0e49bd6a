"""Time of one training step of the zoo's LeNet: quantized against float, on the same machine, in the same minute.

    python benchmarks/bench_lenet_step.py

The variants take turns, one step each, so that whatever else the machine does hits all of them alike. Reported: the
median step of each, and the median over all rounds of its ratio to the float step of the same round, with the middle
half of those ratios. One thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

import quant_zoo

VARIANTS = {"float": None, "W8A8": 8, "W4A4": 4, "W2A2": 2}
WARM_UP = 10


def build(bits: int | None) -> nn.Module:
    if bits is None:
        return quant_zoo.load_float("lenet")
    # Statistics are collected in the warm-up, so that what is timed is the learned phase, which is most of a training.
    short = {"act_collect_stats_steps": WARM_UP // 2, "input_collect_stats_steps": WARM_UP // 2}
    return quant_zoo.load("lenet", weight_bit_width=bits, act_bit_width=bits, **short)


def stepper(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()

    def step() -> None:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = torch.rand(options.batch, 1, 28, 28), torch.randint(10, (options.batch,))
    steps = {name: stepper(build(bits), images, labels) for name, bits in VARIANTS.items()}
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    print(f"LeNet training step, batch {options.batch}, {options.rounds} rounds, torch {torch.__version__}, one thread")
    print(f"{'network':<8} {'median':>10} {'of float':>9}   middle half of the ratios")
    for name, seconds in times.items():
        ratios = [mine / reference for mine, reference in zip(seconds, times["float"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{name:<8} {1e3 * statistics.median(seconds):>7.2f} ms {middle:>8.2f}×   {low:.2f} – {high:.2f}")


if __name__ == "__main__":
    main()
