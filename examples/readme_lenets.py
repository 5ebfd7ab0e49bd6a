"""Five LeNets on every target: train each on real digits, export it wherever that is possible, run it there, compare.

    python examples/readme_lenets.py           # a few minutes
    python examples/readme_lenets.py --quick   # one short epoch, 100 test digits: a look at the table

1. A float LeNet is trained on 4,000 MNIST digits, padded to 3 x 32 x 32. Each quantized LeNet starts from its weights.
2. Each of them is handed to each target: FINN, QONNX, ONNX as QDQ and as integer operators (QOp), PyTorch's quantized
   operators, DPUv1, DPUv2.
3. What is exported runs in the target's program on the test digits, and is compared with the model integer by integer;
   what is refused is refused with the codes of the rules that the model breaks.

The exit status is 1 where a cell of the table is not as LENETS declares it.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

PACKAGES = (
    *("torch", "numpy", "yaml", "dependencies", "brevitas", "quant_zoo"),
    *("rich", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "qonnx"),
)
REMEDY = "run `make demo`, or: pip install -c constraints.txt -e '.[demo]'"
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
import torch.nn.functional as F
from lenet_targets import TARGETS, Cell, on_every_target
from rich import box
from rich.table import Table
from torch import Tensor, nn

import quant_zoo
from brevitas.errors import BrevitasError, ShapeError
from brevitas.export.violations import CODES
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import (
    Int8ActPerTensorFixedPoint,
    Int8ActPerTensorFloat,
    Int8Bias,
    Int8BiasPerTensorFixedPointInternalScaling,
    Int8WeightPerTensorFixedPoint,
    Int8WeightPerTensorFloat,
    Int16Bias,
    ShiftedUint8ActPerTensorFloat,
    ShiftedUint8WeightPerTensorFloat,
)
from quant_zoo.console import Narrator
from quant_zoo.recipe_format import Calibration, Training
from quant_zoo.training import accuracy, calibrate, carry_over, train

# --- the networks ---------------------------------------------------------------------------------------------------


class FloatLeNet(nn.Module):
    """Two convolutions and three linear layers, on 3 x 32 x 32 images."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        out = F.max_pool2d(F.relu(self.conv1(x)), 2)
        out = F.max_pool2d(F.relu(self.conv2(out)), 2)
        out = out.view(out.shape[0], -1)
        out = F.relu(self.fc1(out))
        out = F.relu(self.fc2(out))
        return self.fc3(out)


class WeightLeNet(FloatLeNet):
    """Weights alone are quantized; activations stay in float."""

    def __init__(self):
        super().__init__()
        self.conv1 = QuantConv2d(3, 6, 5, weight_bit_width=3)
        self.conv2 = QuantConv2d(6, 16, 5, weight_bit_width=3)
        self.fc1 = QuantLinear(16 * 5 * 5, 120, weight_bit_width=3)
        self.fc2 = QuantLinear(120, 84, weight_bit_width=3)
        self.fc3 = QuantLinear(84, 10, weight_bit_width=3)


class LowPrecisionLeNet(nn.Module):
    """Integers from the first activation to the logits, which ``output_quant`` quantizes too."""

    def __init__(self, output_quant=None):
        super().__init__()
        low = {"weight_bit_width": 3, "bias_quant": Int8Bias}
        self.quant_inp = QuantIdentity(bit_width=4, return_quant_tensor=True)
        self.conv1 = QuantConv2d(3, 6, 5, **low)
        self.relu1 = QuantReLU(bit_width=4, return_quant_tensor=True)
        self.conv2 = QuantConv2d(6, 16, 5, **low)
        self.relu2 = QuantReLU(bit_width=4, return_quant_tensor=True)
        self.fc1 = QuantLinear(16 * 5 * 5, 120, **low)
        self.relu3 = QuantReLU(bit_width=4, return_quant_tensor=True)
        self.fc2 = QuantLinear(120, 84, **low)
        self.relu4 = QuantReLU(bit_width=4, return_quant_tensor=True)
        self.fc3 = QuantLinear(84, 10, output_quant=output_quant, **low)

    def forward(self, x):
        out = self.quant_inp(x)
        out = F.max_pool2d(self.relu1(self.conv1(out)), 2)
        out = F.max_pool2d(self.relu2(self.conv2(out)), 2)
        out = out.view(out.shape[0], -1)
        out = self.relu3(self.fc1(out))
        out = self.relu4(self.fc2(out))
        return self.fc3(out)


class MixedLeNet(FloatLeNet):
    """Integers up to ``fc1``, float behind it; every quantized layer has its own output quantizer."""

    def __init__(self, weight_quant=ShiftedUint8WeightPerTensorFloat, bias_quant=Int16Bias, act_bit_width=8):
        super().__init__()
        act = ShiftedUint8ActPerTensorFloat
        first = {"input_quant": act, "input_bit_width": act_bit_width}
        mixed = {
            "weight_quant": weight_quant,
            "bias_quant": bias_quant,
            "output_quant": act,
            "output_bit_width": act_bit_width,
        }
        self.conv1 = QuantConv2d(3, 6, 5, **first, **mixed, return_quant_tensor=True)
        self.conv2 = QuantConv2d(6, 16, 5, **mixed, return_quant_tensor=True)
        self.fc1 = QuantLinear(16 * 5 * 5, 120, **mixed)


class FixedPointLeNet(FloatLeNet):
    """Every scale a power of two, and biases with scales of their own."""

    def __init__(self):
        super().__init__()
        fixed = {
            "weight_quant": Int8WeightPerTensorFixedPoint,
            "bias_quant": Int8BiasPerTensorFixedPointInternalScaling,
            "output_quant": Int8ActPerTensorFixedPoint,
            "return_quant_tensor": True,
        }
        self.conv1 = QuantConv2d(3, 6, 5, input_quant=Int8ActPerTensorFixedPoint, **fixed)
        self.conv2 = QuantConv2d(6, 16, 5, **fixed)
        self.fc1 = QuantLinear(16 * 5 * 5, 120, **fixed)
        self.fc2 = QuantLinear(120, 84, **fixed)
        self.fc3 = QuantLinear(84, 10, **{**fixed, "return_quant_tensor": False})


# --- what is declared of them ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Declared:
    """A LeNet, and the codes with which targets refuse it; every other target takes it."""

    title: str
    make: Callable[[], nn.Module]
    refused: Mapping[str, Sequence[str]]


LENETS = {
    "weights": Declared(
        "weights only, 3 bits",
        WeightLeNet,
        # Nothing is quantized around the products, and the image arrives in 32 bits.
        {"qop": ["E28"], "torch": ["E28"], "dpuv1": ["E11", "E28"], "dpuv2": ["E11", "E28"]},
    ),
    "low": Declared(
        "4-bit activations, 3-bit weights, 8-bit biases",
        LowPrecisionLeNet,
        # The logits are not quantized; images are signed; scales are no powers of two.
        {"qop": ["E28"], "torch": ["E13", "E28"], "dpuv1": ["E14", "E28"], "dpuv2": ["E14", "E28"]},
    ),
    "low_logits": Declared(
        "the same, logits quantized",
        partial(LowPrecisionLeNet, output_quant=Int8ActPerTensorFloat),
        {"torch": ["E13"], "dpuv1": ["E14"], "dpuv2": ["E14"]},
    ),
    "mixed_unsigned": Declared(
        "mixed float-integer, shifted unsigned weights, quantized bias",
        MixedLeNet,
        {"finn": ["E21"], "torch": ["E13"], "dpuv1": ["E14", "E21"], "dpuv2": ["E14", "E21"]},
    ),
    "mixed_signed": Declared(
        "mixed, signed weights, 7-bit activations, float bias",
        partial(MixedLeNet, weight_quant=Int8WeightPerTensorFloat, bias_quant=None, act_bit_width=7),
        {"finn": ["E21"], "qop": ["E22"], "dpuv1": ["E14", "E21"], "dpuv2": ["E14", "E21"]},
    ),
    "fixed": Declared(
        "fixed point",
        FixedPointLeNet,
        {"finn": ["E22"], "qop": ["E22"], "torch": ["E13"]},
    ),
}


# --- the program -----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; the exit status is 0, or 1 after a line that says what is wrong."""
    options = parse(arguments)
    try:
        if missing := first_missing_package():
            raise SystemExit(missing)
        problems = run(options)
    except KeyboardInterrupt:
        problems = [INTERRUPTED]
    except (BrevitasError, ImportError) as error:
        problems = [f"error: {' '.join(str(error).split())}"]
    except OSError as error:
        problems = [f"error: {error.strerror or error}: {error.filename or options.out}"]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=positive, help="epochs of every training (default: 4)")
    parser.add_argument("--samples", type=positive, help="test digits that are run everywhere (default: all 1,000)")
    parser.add_argument("--quick", action="store_true", help="one epoch of 800 digits, 100 test digits")
    parser.add_argument("--out", type=Path, help="folder to write every exported file to, for one image at a time")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and of the order of images (default: 0)")
    # On two busy cores two threads were measured up to ten times slower than one.
    parser.add_argument("--threads", type=positive, default=1, help="threads that compute (default: 1)")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return number


def run(options: argparse.Namespace) -> list[str]:
    """Train, export, compare and print; returns what is not as declared."""
    torch.set_num_threads(options.threads)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    narrator = Narrator()
    digits = chosen(padded(quant_zoo.mnist_digits()), options)
    narrator.say(f"[bold]Digits[/bold]: {digits.source}, padded to 3 x 32 x 32")
    narrator.say(f"        {len(digits.train_labels):,} for training, {len(digits.test_labels):,} for testing\n")
    narrator.say(f"fc1 with 256 inputs, as in older snippets: {wrong_size(digits)}\n")
    float_model = trained(FloatLeNet(), "float", options, digits, narrator)
    models, found = {}, {}
    for name, declared in LENETS.items():
        torch.manual_seed(options.seed)
        models[name] = trained(declared.make(), name, options, digits, narrator, float_model)
        with narrator.phase(f"{name}: every target"):
            found[name] = on_every_target(models[name], digits.test_images, digits.test_labels, declared.refused)
    accuracies = {n: accuracy(m, digits.test_images, digits.test_labels) for n, m in models.items()}
    narrator.console.print(matrix(found, accuracies, accuracy(float_model, digits.test_images, digits.test_labels)))
    explain(found, narrator)
    if options.out:
        write(models, options.out, narrator)
    return [f"{n} on {TARGETS[t][0]}: {p}" for n, row in found.items() for t, c in row.items() for p in c.problems]


def chosen(digits: quant_zoo.Digits, options: argparse.Namespace) -> quant_zoo.Digits:
    """As many digits as the user asked for, evenly spread."""
    train_at = slice(None, None, 5 if options.quick else 1)
    total = len(digits.test_labels)
    wanted = min(total, options.samples or (100 if options.quick else total))
    test_at = torch.arange(wanted) * total // wanted
    return replace(
        digits,
        train_images=digits.train_images[train_at],
        train_labels=digits.train_labels[train_at],
        test_images=digits.test_images[test_at],
        test_labels=digits.test_labels[test_at],
    )


def padded(digits: quant_zoo.Digits) -> quant_zoo.Digits:
    """The digits as 3 x 32 x 32 images with MNIST's usual mean and deviation.

    Not (x - 0.5) / 0.5: that would put each of the 256 greys exactly between two codes of a shifted 8-bit quantizer.
    """

    def pad(images: Tensor) -> Tensor:
        return ((F.pad(images, (2, 2, 2, 2)) - 0.1307) / 0.3081).expand(-1, 3, -1, -1).contiguous()

    return replace(digits, train_images=pad(digits.train_images), test_images=pad(digits.test_images))


def wrong_size(digits: quant_zoo.Digits) -> str:
    """The error of a linear layer whose ``in_features`` are not what reaches it: it has both sizes."""
    model = WeightLeNet()
    model.fc1 = QuantLinear(256, 120)
    try:
        model(digits.test_images[:1])
    except ShapeError as error:
        return str(error)
    raise BrevitasError("a linear layer of 256 inputs took 400")


def trained(
    model: nn.Module,
    name: str,
    options: argparse.Namespace,
    digits: quant_zoo.Digits,
    narrator: Narrator,
    source: nn.Module | None = None,
) -> nn.Module:
    """The model in eval mode, after training from the weights of ``source``."""
    epochs = options.epochs or (1 if options.quick else 4)
    plan = Training(epochs, batch_size=50, learning_rate=0.002)
    if source is not None:
        carry_over(source, model)
        calibrate(model, digits.train_images, Calibration(batch_size=50), seed=options.seed)
    with narrator.phase(f"{name}: train") as step:
        train(model, digits.train_images, digits.train_labels, plan, seed=options.seed, on_step=step)
    return model.eval()


# --- table and files ------------------------------------------------------------------------------------------------


def matrix(found: dict[str, dict[str, Cell]], accuracies: dict[str, float], in_float: float) -> Table:
    """LeNet x target."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    made.add_column(f"LeNet\n[dim]in float {percent(in_float)}")
    made.add_column("trained", justify="right")
    for title, _ in TARGETS.values():
        made.add_column(title, justify="right", no_wrap=True)
    for name, row in found.items():
        cells = ["\n".join(lines(cell)) for cell in row.values()]
        made.add_row(LENETS[name].title, percent(accuracies[name]), *cells)
    return made


def lines(cell: Cell) -> list[str]:
    """A cell as it is printed."""
    if cell.problems:
        return ["[bold red]not as", "[bold red]declared"]
    if cell.codes:
        return ["[dim]refused", *(f"[dim]{' '.join(cell.codes[i : i + 2])}" for i in range(0, len(cell.codes), 2))]
    ties = "tie" if cell.ties == 1 else "ties"
    where = "as QDQ" if cell.accuracy is None else percent(cell.accuracy)
    return [f"{cell.compared:,}", f"{cell.ties:,} {ties}", where]


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def explain(found: dict[str, dict[str, Cell]], narrator: Narrator) -> None:
    """What the numbers and codes of the table mean."""
    narrator.say("Exported: integers compared, each layer on the model's own; how many of them are ties of one step,")
    narrator.say("values so near the middle between two integers that the order of additions decides; and the accuracy")
    narrator.say("in the target's program. Where activations stay in float, the integers are the weights. FINN is held")
    narrator.say("to the integer reference as well, ties included. DPU files run on their hardware alone: integers and")
    narrator.say("attributes are the model's, and its scales as QDQ. Refused: the rules that the model breaks.\n")
    for code in sorted({code for row in found.values() for cell in row.values() for code in cell.codes}):
        narrator.say(f"  {code} {CODES[code]}")


def write(models: dict[str, nn.Module], out: Path, narrator: Narrator) -> None:
    """Every file of the table as its manager writes it, for one image at a time."""
    narrator.say("\n[bold]Written[/bold]")
    for name, model in models.items():
        for target, (_, manager) in TARGETS.items():
            if target not in LENETS[name].refused:
                path = out / f"{name}_{target}.{'pt' if target == 'torch' else 'onnx'}"
                manager.export(model, input_shape=(1, 3, 32, 32), export_path=path)
                narrator.say(f"  {path!s:<40} {path.stat().st_size / 1024:8,.0f} KiB")


if __name__ == "__main__":
    sys.exit(main())
