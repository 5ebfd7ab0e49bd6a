"""The examples of Lightning and Accelerate: they run, alone and on two processes, and what they train has learned."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
FRAMEWORKS = {"lightning": "lightning_training", "accelerate": "accelerate_training"}


@pytest.fixture(params=FRAMEWORKS)
def example(request):
    """The name of an example whose framework is installed, as it has to be where the suite decides over a change."""
    if importlib.util.find_spec(request.param) is None:
        assert "CI" not in os.environ, f"{request.param} is missing: pip install -c constraints.txt -e '.[examples]'"
        pytest.skip(f"{request.param} is not installed: pip install -c constraints.txt -e '.[examples]'")
    return FRAMEWORKS[request.param]


def run(*command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    (line,) = re.findall(r"accuracy .* after (\d+) steps: (\d+\.\d)%", result.stdout)
    return int(line[0]), float(line[1])


def test_a_few_steps_train_a_quantized_network(example):
    steps, accuracy = run(str(EXAMPLES / f"{example}.py"), "--steps", "30")
    assert steps == 30
    assert accuracy > 60.0  # ten classes


@pytest.mark.slow
def test_two_processes_train_one_network(example):
    script = str(EXAMPLES / f"{example}.py")
    if example == "lightning_training":  # which starts its processes itself
        command = [script, "--devices", "2"]
    else:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    steps, accuracy = run(*command, "--steps", "15")
    assert steps == 15 and accuracy > 50.0


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_example_in_this_process_leaves_a_model_that_learns_its_scales(framework, monkeypatch):
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    name = FRAMEWORKS[framework]
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    model, accuracy = module.main(["--steps", "22"])
    assert 0.0 <= accuracy <= 1.0
    proxies = [m for m in model.modules() if hasattr(m, "is_learning") and m.is_quant_enabled]
    assert len(proxies) > 5 and all(proxy.is_learning() for proxy in proxies)
