"""The environment, and the switch between plain and scripted modules."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from brevitas import config
from brevitas.errors import QuantConfigError

ROOT = Path(__file__).parents[2]


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("text", ["1", "true", "T", "Yes", "y", "ON"])
def test_true(text):
    assert config.read_flag("BREVITAS_JIT", {"BREVITAS_JIT": text}) is True


@pytest.mark.parametrize("text", ["0", "False", "f", "NO", "n", "off"])
def test_false(text):
    assert config.read_flag("BREVITAS_JIT", {"BREVITAS_JIT": text}) is False


def test_unset_is_false_and_nonsense_names_the_variable():
    assert config.read_flag("BREVITAS_JIT", {}) is False
    with pytest.raises(QuantConfigError, match="BREVITAS_JIT='maybe'.*yes"):
        config.read_flag("BREVITAS_JIT", {"BREVITAS_JIT": "maybe"})


TRAIN = """
    import copy, json, pickle
    import torch
    import brevitas.jit
    from brevitas.core import bit_width, quant, scaling, stats, zero_point
    from brevitas.core.function_wrapper import OverTensorView

    torch.manual_seed(0)
    module = quant.RescalingIntQuant(
        quant.IntQuant(False, True, quant_delay_steps=1),
        scaling.ParameterFromRuntimeStatsScaling(2, stats.AbsMax(), OverTensorView()),
        scaling.IntScaling(True, False), zero_point.ZeroZeroPoint(), bit_width.BitWidthParameter(4))
    seen = []
    for step in range(6):
        module.train(step != 4)
        if step == 3:
            module = pickle.loads(pickle.dumps(copy.deepcopy(module)))
        x = torch.linspace(-2, 2, 9, requires_grad=True)
        module.zero_grad()
        y, scale, _, _ = module(x)
        (y * y).sum().backward()
        seen.append([y.tolist(), x.grad.tolist(), scale.item(), [p.grad.tolist() for p in module.parameters()]])
        seen.append({k: v.tolist() for k, v in module.state_dict().items()})
    scripted = bool(getattr(module, '_scripts', None))
    print(json.dumps([brevitas.jit.ScriptModule is torch.nn.Module, scripted, seen]))
"""


def test_scripted_modules_give_what_plain_ones_give():
    plain, was_scripted, expected = run(TRAIN, BREVITAS_JIT="0")
    assert plain and not was_scripted
    plain, was_scripted, got = run(TRAIN, BREVITAS_JIT="1")
    assert not plain and was_scripted
    assert got == expected


def test_without_torchscript_the_switch_is_off():
    code = "import json, brevitas.config as c; print(json.dumps(c.JIT_ENABLED))"
    assert run(code, BREVITAS_JIT="1", PYTORCH_JIT="0") is False
    assert run(code, BREVITAS_JIT="1") is True


def test_names_of_the_switch():
    from brevitas.jit import Attribute, ScriptModule, script, script_method

    def double(x):
        return 2 * x

    assert script(double) is double
    assert script_method(double) is double
    assert Attribute(3, int) == 3
    assert isinstance(ScriptModule(), __import__("torch").nn.Module)
