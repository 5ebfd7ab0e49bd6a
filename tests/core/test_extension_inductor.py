"""torch.compile's default backend on the extensions whose graphs hold what it is easily wrong about.

Bits of floats, 64-bit integers that wrap, float64 inside float32 modules, and searches inside a conditional branch.
"""

import copy

import pytest
import torch
from core_walk import steps_of
from extension_catalogue import CASES

NAMES = (
    "StochasticRoundSte/seed",
    "RescalingIntQuant/weight/learned_round/hard_sigmoid",
    "RescalingIntQuant/weight/mse/channel",
    "RescalingIntQuant/act/mse",
    "LowEndMSE/channel",
    "WeightNormIntQuant",
    "AccumulatorAwareIntQuant/8",
    "AccumulatorAwareIntQuant/zero_center/8",
    "FloatQuant/weight/channel",
    "FloatQuant/wide",
    "GroupwiseFloatQuant/act/mx",
    "GroupwiseRescalingIntQuant/weight/shifted",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_inductor_equals_eager(name):
    case = CASES[name]
    module = case.build()
    compiled_from = copy.deepcopy(module)
    torch._dynamo.reset()
    eager = steps_of(case, module)
    compiled = steps_of(case, compiled_from, torch.compile(compiled_from, fullgraph=True))
    for step, (a, b) in enumerate(zip(eager, compiled, strict=True)):
        for key in a:
            message = f"step {step}, {key}: {b[key]} {a[key]}"
            torch.testing.assert_close(b[key], a[key], rtol=1e-6, atol=1e-6, msg=message)
