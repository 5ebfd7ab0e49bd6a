"""The whole road on real digits: train in float, quantize, train quantized, export, run elsewhere, compare.

    python examples/lenet_digits.py          # or: make demo
    python examples/lenet_digits.py --quick  # one epoch everywhere, 200 test digits: a look at the road

1. A small LeNet is trained in float on 4,000 MNIST digits.
2. For W8A8, W4A4 and W2A2 its weights are rounded, activation ranges are calibrated, and it is trained again,
   quantized.
3. W8A8 and W4A4 are exported to standard ONNX (QDQ) and to QONNX, run in onnxruntime and in qonnx on every test
   digit, and compared with the model integer by integer.
4. The ONNX files and report.html are written to demo_out/.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

PACKAGES = (
    *("torch", "numpy", "yaml", "dependencies", "brevitas", "quant_zoo"),
    *("rich", "jinja2", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "qonnx"),
)
REMEDY = "run `make demo`, or: pip install -c constraints.txt -e '.[demo]'"
INTERRUPTED = "interrupted: nothing was written"


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

import numpy as np
import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn

import quant_zoo
from brevitas.errors import BrevitasError
from brevitas.export import QONNXManager, StdONNXManager, VerifyReport, verify
from quant_zoo.console import Narrator
from quant_zoo.report import (
    ExportResult,
    Misread,
    NetworkResult,
    Results,
    VerifiedLayer,
    accuracy_chart,
    activation_results,
    float_size_bits,
    layer_results,
    quantized_size_bits,
    report_page,
    standalone,
    total_of,
)
from quant_zoo.training import accuracy, calibrate, carry_over, train

PRECISIONS = (8, 4, 2)
EXPORTED = (8, 4)
QONNX_BATCH = 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; the exit status is 0, or 1 after one line that says what is wrong and what to do."""
    options = parse(arguments)
    try:
        if missing := first_missing_package():
            raise SystemExit(missing)
        run(options)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
    except (BrevitasError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename or options.out}", file=sys.stderr)
    else:
        return 0
    return 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder for the files (default: demo_out)")
    parser.add_argument("--epochs", type=positive, help="epochs of every training (default: as the recipe says)")
    parser.add_argument("--quick", action="store_true", help="one epoch, 200 test digits")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and of the order of images (default: 0)")
    # On two busy cores two threads were measured up to ten times slower than one.
    parser.add_argument("--threads", type=positive, default=1, help="threads that compute (default: 1)")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return number


def run(options: argparse.Namespace) -> None:
    started = time.perf_counter()
    torch.set_num_threads(options.threads)
    narrator = Narrator()
    with staged(options.out) as stage:
        digits = quant_zoo.mnist_digits()
        if options.quick:
            kept = slice(None, None, 5)
            digits = replace(digits, test_images=digits.test_images[kept], test_labels=digits.test_labels[kept])
        narrator.say(f"[bold]Digits[/bold]: {digits.source}")
        narrator.say(f"        {len(digits.train_labels):,} for training, {len(digits.test_labels):,} for testing\n")
        narrator.say("[bold]Training[/bold]")
        float_model, float_network = train_float(options, digits, narrator)
        models, networks = {}, []
        for bits in PRECISIONS:
            models[bits], network = quantize_and_train(options, digits, float_model, bits, narrator)
            networks.append(network)
        narrator.console.print(accuracy_table([float_network, *networks]))

        narrator.say("[bold]Exporting, running and comparing[/bold]")
        exports = []
        for manager in (StdONNXManager, QONNXManager):
            for bits in EXPORTED:
                label = f"W{bits}A{bits}"
                kind = "QDQ" if manager is StdONNXManager else "QONNX"
                with narrator.phase(f"{label} as {kind}"):
                    exports.append(export_and_compare(models[bits], label, kind, digits, stage))
        narrator.console.print(runtime_table(exports))
        narrator.console.print(comparison_table(exports))
        narrator.say("A tie: a value so near the middle between two integers that the order of additions decides.\n")

        narrowest = models[PRECISIONS[-1]]
        results = Results(
            float_network=float_network,
            networks=networks,
            exports=exports,
            misread=misread(narrowest, digits),
            misread_by=networks[-1].label,
            test_digits=len(digits.test_labels),
            train_digits=len(digits.train_labels),
            source=digits.source,
            facts=facts(options, digits, time.perf_counter() - started),
        )
        epochs = schedule(options)["quantized"].epochs
        (stage / "report.html").write_text(report_page(results, epochs), encoding="utf-8")
        (stage / "accuracy.svg").write_text(standalone(accuracy_chart(results)), encoding="utf-8")
        written = publish(stage, options.out)
    narrator.say("[bold]Written[/bold]")
    for path, size in written:
        narrator.say(f"  {str(path):<34} {size / 1024:8,.0f} KiB")
    narrator.say(f"\nOpen {options.out / 'report.html'} in a browser. {time.perf_counter() - started:.0f} s in all.")


# --- training -------------------------------------------------------------------------------------------------------


def schedule(options: argparse.Namespace) -> dict:
    """The recipe's schedule, shortened where the user asked for that."""
    plans = dict(quant_zoo.recipe("lenet").schedule)
    epochs = options.epochs or (1 if options.quick else None)
    if epochs:
        plans |= {phase: replace(plans[phase], epochs=epochs) for phase in ("float", "quantized")}
    return plans


def train_float(
    options: argparse.Namespace, digits: quant_zoo.Digits, narrator: Narrator
) -> tuple[nn.Module, NetworkResult]:
    torch.manual_seed(options.seed)
    model = quant_zoo.load_float("lenet")
    with narrator.phase("float") as step:
        plan = schedule(options)["float"]
        train(model, digits.train_images, digits.train_labels, plan, seed=options.seed, on_step=step)
    model.eval()
    trained = accuracy(model, digits.test_images, digits.test_labels)
    return model, NetworkResult("float", "32-bit floating point", trained, float_size_bits(model))


def quantize_and_train(
    options: argparse.Namespace, digits: quant_zoo.Digits, float_model: nn.Module, bits: int, narrator: Narrator
) -> tuple[nn.Module, NetworkResult]:
    """The float network's weights in a quantized network: measured as they are, then trained."""
    plans, label = schedule(options), f"W{bits}A{bits}"
    model = quant_zoo.load("lenet", weight_bit_width=bits, act_bit_width=bits)
    carry_over(float_model, model)
    with narrator.phase(f"{label}: calibrate activations") as step:
        calibrate(model, digits.train_images, plans["calibration"], seed=options.seed, on_step=step)
    rounded = accuracy(model, digits.test_images, digits.test_labels)
    with narrator.phase(f"{label}: train quantized") as step:
        train(model, digits.train_images, digits.train_labels, plans["quantized"], seed=options.seed, on_step=step)
    model.eval()
    return model, NetworkResult(
        label=label,
        description=f"{bits}-bit weights and activations",
        trained=accuracy(model, digits.test_images, digits.test_labels),
        rounded=rounded,
        size_bits=quantized_size_bits(model),
        layers=layer_results(model),
        activations=activation_results(model),
    )


def misread(model: nn.Module, digits: quant_zoo.Digits, most: int = 16) -> list[Misread]:
    """The first test digits that a model gets wrong."""
    with torch.no_grad():
        read = model(digits.test_images).argmax(1)
    wrong = (read != digits.test_labels).nonzero().flatten()[:most].tolist()
    grey = (digits.test_images * 255).round().to(torch.uint8)
    return [Misread(grey[i, 0].tolist(), int(digits.test_labels[i]), int(read[i])) for i in wrong]


# --- export ---------------------------------------------------------------------------------------------------------


def export_and_compare(model: nn.Module, label: str, kind: str, digits: quant_zoo.Digits, folder: Path) -> ExportResult:
    """Export, run on all test digits in the real runtime, and compare every integer with the model's own."""
    path = folder / f"lenet_{label.lower()}_{kind.lower()}.onnx"
    images, labels = digits.test_images, digits.test_labels
    if kind == "QDQ":
        dynamic = {"input": {0: "batch"}, "output": {0: "batch"}}
        StdONNXManager.export(model, input_t=images[:2], export_path=path, dynamic_axes=dynamic)
        logits = run_onnxruntime(path, images)
    else:
        QONNXManager.export(model, input_t=images[:QONNX_BATCH], export_path=path)
        logits = run_qonnx(path, images)
    report = verify(model, path, images, mode="isolated")
    return ExportResult(
        label=label,
        format=kind,
        runtime=report.runtime,
        file=path.name,
        file_bytes=path.stat().st_size,
        accuracy=float((logits.argmax(1) == labels.numpy()).mean()),
        model_accuracy=accuracy(model, images, labels),
        digits=len(labels),
        layers=verified_layers(report),
        constants=total_of("weights and biases", [verified(row) for row in report.rows if is_constant(row)]),
    )


def run_onnxruntime(path: Path, images: Tensor) -> np.ndarray:
    """Logits of the exported file, from onnxruntime."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": images.numpy()})[0]


def run_qonnx(path: Path, images: Tensor) -> np.ndarray:
    """Logits of the exported file, from qonnx, which executes one batch of the exported size at a time."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx

    model = ModelWrapper(str(path))
    batches = images.split(QONNX_BATCH)
    return np.concatenate([execute_onnx(model, {"input": batch.numpy()})["output"] for batch in batches])


def is_constant(row) -> bool:
    return row.kind in ("weight", "bias")


def verified(row) -> VerifiedLayer:
    return VerifiedLayer(row.layer or "logits", row.total, row.equal, row.ties, row.diverged)


def verified_layers(report: VerifyReport) -> list[VerifiedLayer]:
    """What flows between layers, in order of execution."""
    return [verified(row) for row in report.rows if not is_constant(row) and row.counted]


# --- tables ---------------------------------------------------------------------------------------------------------


def table(title: str, *columns: str) -> Table:
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index else "left", no_wrap=True)
    return made


def percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f} %"


def accuracy_table(networks: Sequence[NetworkResult]) -> Table:
    made = table("\nTest accuracy", "network", "rounded", "trained", "size in bits", "of float")
    for n in networks:
        share = percent(n.size_bits / networks[0].size_bits)
        made.add_row(n.label, percent(n.rounded), percent(n.trained), f"{n.size_bits:,}", share)
    return made


def runtime_table(exports: Sequence[ExportResult]) -> Table:
    made = table("\nAccuracy of the exported files", "file", "runtime", "there", "in PyTorch")
    for e in exports:
        made.add_row(e.file, e.runtime, percent(e.accuracy), percent(e.model_accuracy))
    return made


def comparison_table(exports: Sequence[ExportResult]) -> Table:
    """Differences only: a blank would hide a layer that was not compared, so equality is written out."""
    headings = [f"{e.label} {e.format}" for e in exports]
    made = table("\nInteger by integer, each layer on the model's own integers", "layer", "compared", *headings)
    rows = zip(*[[e.constants, *e.layers, e.total] for e in exports], strict=True)
    for row in rows:
        made.add_row(row[0].name, f"{row[0].compared:,}", *map(difference, row))
    return made


def difference(layer: VerifiedLayer) -> str:
    if layer.equal == layer.compared:
        return "all equal"
    ties = "tie" if layer.ties == 1 else "ties"
    return ", ".join(f"{n:,} {what}" for n, what in ((layer.ties, ties), (layer.diverged, "differ")) if n)


# --- files ----------------------------------------------------------------------------------------------------------


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder inside ``out`` for unfinished files, removed at the end; fails at once where nothing can be written."""
    existed = out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=out))
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"cannot write to {out} ({reason}): name another folder with --out") from error
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if not existed and not any(out.iterdir()):
            out.rmdir()


class OutputError(BrevitasError):
    """The output folder cannot be written."""


def publish(stage: Path, out: Path) -> list[tuple[Path, int]]:
    """Move every finished file into place, each in one step."""
    written = []
    for source in sorted(stage.iterdir()):
        target = out / source.name
        os.replace(source, target)
        written.append((target, target.stat().st_size))
    return written


def facts(options: argparse.Namespace, digits: quant_zoo.Digits, seconds: float) -> dict[str, str]:
    return {
        "Digits": digits.source,
        "Made with": f"torch {torch.__version__}, Python {platform.python_version()}, {options.threads} thread(s)",
        "Seed": str(options.seed),
        "Time": f"{seconds:.0f} s for training, export and comparison",
    }


if __name__ == "__main__":
    sys.exit(main())
