"""A quantized LSTM learns spoken digits, beside the same network in float.

    python examples/spoken_digits.py          # a few minutes on one thread
    python examples/spoken_digits.py --quick  # one epoch each: a look at the road

1. An LSTM and a classifier are trained in float on 2,400 recordings, each a sequence of 13 MFCCs a frame.
2. The same weights go into a quantized LSTM. The ranges of its states, sums and activations are calibrated, and its
   accuracy on 600 other recordings is measured.
3. It is trained, quantized, and measured again. Every weight is then one of 2^b - 1 integers, and so is every input,
   state, sum and activation at every time step.

Data: the Free Spoken Digit Dataset (https://github.com/Jakobovski/free-spoken-digit-dataset), CC BY-SA 4.0. The
speakers are the same in both parts.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

PACKAGES = ("torch", "numpy", "yaml", "dependencies", "brevitas", "quant_zoo", "rich")
REMEDY = "run `make demo` once, or: pip install -c constraints.txt -e '.[demo]'"
INTERRUPTED = "interrupted"


def first_missing_package() -> str | None:
    """What to do about the first package that is not installed."""
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            return f"error: the package {package} is missing: {REMEDY}"
    return None


if __name__ == "__main__":
    # Before the imports, which take seconds: whenever the user interrupts, and whatever is missing, it is one line.
    signal.signal(signal.SIGINT, lambda *_: sys.exit(INTERRUPTED))
    if missing := first_missing_package():
        sys.exit(missing)

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn

import quant_zoo
from brevitas.errors import BrevitasError
from brevitas.nn import QuantLinear, QuantLSTM
from brevitas.quant import Int8ActPerTensorFloat, Int32Bias, Uint8ActPerTensorFloat
from quant_zoo.console import Narrator
from quant_zoo.recipe_format import Calibration, Training
from quant_zoo.training import accuracy, calibrate, carry_over, train

COEFFICIENTS = 13
CLASSES = 10
BATCH = 60
#: Calibration passes over the recordings once, in so many steps; from then on scales are learned.
CALIBRATION_STEPS = 2400 // BATCH


class Signed(Int8ActPerTensorFloat):
    """Inputs, states, sums and tanh."""

    collect_stats_steps = CALIBRATION_STEPS


class Unsigned(Uint8ActPerTensorFloat):
    """Sigmoids."""

    collect_stats_steps = CALIBRATION_STEPS


class Speech(nn.Module):
    """An LSTM over the frames, and a classifier of its last output; ``lstm`` and ``head`` are float or quantized."""

    def __init__(self, lstm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.lstm = lstm
        self.head = head

    def forward(self, frames: Tensor) -> Tensor:
        """Logits, shape (N, 10), of frames, shape (N, T, 13)."""
        output, _ = self.lstm(frames)
        return self.head(output[:, -1])


def in_float(hidden: int) -> Speech:
    return Speech(nn.LSTM(COEFFICIENTS, hidden, batch_first=True), nn.Linear(hidden, CLASSES))


def quantized(hidden: int, weight_bits: int, act_bits: int) -> Speech:
    """The same network on integers. The head takes the scale of the LSTM's last state for its bias."""
    lstm = QuantLSTM(
        COEFFICIENTS,
        hidden,
        batch_first=True,
        weight_bit_width=weight_bits,
        io_quant=Signed,
        io_bit_width=act_bits,
        gate_acc_quant=Signed,
        gate_acc_bit_width=act_bits,
        sigmoid_quant=Unsigned,
        sigmoid_bit_width=act_bits,
        tanh_quant=Signed,
        tanh_bit_width=act_bits,
        cell_state_quant=Signed,
        cell_state_bit_width=act_bits,
        return_quant_tensor=True,
    )
    return Speech(lstm, QuantLinear(hidden, CLASSES, weight_bit_width=weight_bits, bias_quant=Int32Bias))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; the exit status is 0, or 1 after one line that says what is wrong and what to do."""
    options = parse(arguments)
    try:
        run(options)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
    except (BrevitasError, ImportError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    else:
        return 0
    return 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=positive, default=20, help="epochs of either training (default: 20)")
    parser.add_argument("--quick", action="store_true", help="one epoch, 120 test recordings")
    parser.add_argument("--hidden", type=positive, default=64, help="size of the LSTM's state (default: 64)")
    parser.add_argument("--frames", type=positive, default=24, help="last frames that are heard (default: 24)")
    parser.add_argument("--weight-bits", type=bits, default=2, help="bits of a weight, 2 to 8 (default: 2)")
    parser.add_argument("--act-bits", type=bits, default=4, help="bits of everything that flows (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and of the order (default: 0)")
    # On two busy cores two threads were measured up to ten times slower than one.
    parser.add_argument("--threads", type=positive, default=1, help="threads that compute (default: 1)")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return number


def bits(text: str) -> int:
    number = positive(text)
    if not 2 <= number <= 8:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of bits from 2 to 8")
    return number


def run(options: argparse.Namespace) -> None:
    started = time.perf_counter()
    torch.set_num_threads(options.threads)
    narrator = Narrator()
    data = Recordings.load(options)
    narrator.say(f"[bold]Recordings[/bold]: {data.source}")
    narrator.say(f"  {len(data.train_labels):,} for training, {len(data.test_labels):,} for testing\n")
    narrator.say("[bold]Training[/bold]")
    plan = Training(1 if options.quick else options.epochs, BATCH, learning_rate=0.01)

    torch.manual_seed(options.seed)
    float_model = in_float(options.hidden)
    with narrator.phase("float") as step:
        train(float_model, data.train, data.train_labels, plan, seed=options.seed, on_step=step)
    results = [("float", None, data.accuracy_of(float_model), sum(p.numel() for p in float_model.parameters()) * 32)]

    label = f"W{options.weight_bits}A{options.act_bits}"
    model = quantized(options.hidden, options.weight_bits, options.act_bits)
    carry_over(float_model, model)
    with narrator.phase(f"{label}: calibrate") as step:
        calibrate(model, data.train, Calibration(BATCH), seed=options.seed, on_step=step)
    rounded = data.accuracy_of(model)
    with narrator.phase(f"{label}: train quantized") as step:
        train(model, data.train, data.train_labels, plan, seed=options.seed, on_step=step)
    results.append((label, rounded, data.accuracy_of(model), weight_size_in_bits(model)))
    narrator.console.print(table(results))
    narrator.say(f"{time.perf_counter() - started:.0f} s in all.")


@dataclass(frozen=True)
class Recordings:
    """The last frames of each recording, each coefficient scaled to mean 0 and deviation 1 over the training part."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    source: str

    @classmethod
    def load(cls, options: argparse.Namespace) -> Recordings:
        digits = quant_zoo.spoken_digits()
        heard = digits.train_features[digits.train_features.any(-1)]
        mean, deviation = heard.mean(0), heard.std(0)

        def scaled(features: Tensor) -> Tensor:
            # Zeros in front stay zeros: there is nothing to hear.
            kept = features[:, -options.frames :]
            return torch.where(kept.any(-1, keepdim=True), (kept - mean) / deviation, 0.0)

        tests = slice(None, None, 5 if options.quick else 1)
        return cls(
            scaled(digits.train_features),
            digits.train_labels,
            scaled(digits.test_features)[tests],
            digits.test_labels[tests],
            f"{digits.source}, Free Spoken Digit Dataset, CC BY-SA 4.0",
        )

    def accuracy_of(self, model: nn.Module) -> float:
        return accuracy(model, self.test, self.test_labels)


def weight_size_in_bits(model: Speech) -> int:
    """Weights at their bit width, biases at 32 bits."""
    bits_of = {"weight": int(model.head.quant_weight_bit_width()), "bias": 32}
    kinds = [(name.rpartition(".")[2], p.numel()) for name, p in model.named_parameters() if "_quant." not in name]
    return sum(bits_of[kind] * count for kind, count in kinds)


def table(results: Sequence[tuple[str, float | None, float, int]]) -> Table:
    made = Table(title="\nTest accuracy", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(("network", "rounded", "trained", "size in bits", "of float")):
        made.add_column(column, justify="right" if index else "left", no_wrap=True)
    for label, rounded, trained, size in results:
        made.add_row(label, percent(rounded), percent(trained), f"{size:,}", percent(size / results[0][3]))
    return made


def percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f} %"


if __name__ == "__main__":
    sys.exit(main())
