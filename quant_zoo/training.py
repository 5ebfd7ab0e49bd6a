"""Training, calibration and measurement of the zoo's models: the loops that its recipes describe.

>>> import quant_zoo
>>> from quant_zoo.training import accuracy
>>> digits = quant_zoo.mnist_digits()
>>> 0 <= accuracy(quant_zoo.load_float("lenet"), digits.test_images, digits.test_labels) <= 1
True
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant_zoo.recipe_format import Calibration, Training

__all__ = ["Step", "accuracy", "calibrate", "carry_over", "train"]


@dataclass(frozen=True)
class Step:
    """One step of a loop: its number from 1, of how many; the epoch from 1; the loss (NaN while calibrating)."""

    number: int
    total: int
    epoch: int
    loss: float


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    plan: Training,
    *,
    seed: int = 0,
    on_step: Callable[[Step], None] | None = None,
) -> None:
    """Train ``model`` in place as ``plan`` says; the same seed gives the same order of images and the same shifts.

    Args:
        model: from (N, C, H, W) images to (N, classes) logits; left in training mode.
        images, labels: training set, float32 and int64; the last incomplete batch of an epoch is left out.
        on_step: called after each step.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=plan.learning_rate)
    steps_per_epoch = _full_batches(images, plan.batch_size)
    total = plan.epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, plan.learning_rate, total_steps=total, pct_start=plan.warm_up
    )
    model.train()
    number = 0
    for epoch in range(1, plan.epochs + 1):
        for batch in _batches(len(images), plan.batch_size, generator):
            loss = F.cross_entropy(model(_shifted(images[batch], plan.shift, generator)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            number += 1
            if on_step is not None:
                on_step(Step(number, total, epoch, loss.item()))


def calibrate(
    model: nn.Module,
    images: Tensor,
    plan: Calibration,
    *,
    seed: int = 0,
    on_step: Callable[[Step], None] | None = None,
) -> None:
    """Let activation quantizers collect their statistics in one pass over ``images``; no weight changes.

    Statistics are collected by forwards in training mode; without gradients and without an optimizer nothing else
    moves. The model is left in eval mode.
    """
    generator = torch.Generator().manual_seed(seed)
    total = _full_batches(images, plan.batch_size)
    model.train()
    with torch.no_grad():
        for number, batch in enumerate(_batches(len(images), plan.batch_size, generator), start=1):
            model(images[batch])
            if on_step is not None:
                on_step(Step(number, total, 1, float("nan")))
    model.eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 250) -> float:
    """Fraction of images whose largest logit is that of their label; the model's training flag is left as found."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            correct = sum(
                int((model(x).argmax(1) == y).sum())
                for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True)
            )
    finally:
        model.train(was_training)
    return correct / len(labels)


def carry_over(source: nn.Module, target: nn.Module) -> None:
    """Copy every parameter of the float ``source`` into the quantized ``target``, which keeps its own quantizer state.

    Raises:
        KeyError: ``source`` has a parameter that ``target`` lacks, or ``target`` has a weight or bias of its own.
    """
    owned = {name for name, _ in source.named_parameters()}
    result = target.load_state_dict(source.state_dict(), strict=False)
    orphans = [key for key in result.missing_keys if key.rpartition(".")[2] in ("weight", "bias")]
    if result.unexpected_keys or orphans or not owned:
        raise KeyError(f"parameters do not match: not in target {result.unexpected_keys}, not in source {orphans}")


def _full_batches(images: Tensor, batch_size: int) -> int:
    steps = len(images) // batch_size
    if steps == 0:
        raise ValueError(f"{len(images)} images are less than one batch of {batch_size}")
    return steps


def _batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    order = torch.randperm(count, generator=generator)
    for start in range(0, count - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def _shifted(images: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    if shift == 0:
        return images
    rows, columns = torch.randint(-shift, shift + 1, (2,), generator=generator).tolist()
    return torch.roll(images, (rows, columns), (2, 3))
