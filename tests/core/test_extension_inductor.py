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


@pytest.mark.slow
def test_networks_with_other_constants_compile_in_one_process():
    """A compiler makes symbols of floats that differ between models; bounds and percentiles stay constants."""
    from brevitas.nn import QuantIdentity
    from brevitas.quant import Int8ActPerTensorFloat, ShiftedUint8ActPerTensorFloat, Uint8ActPerTensorFixedPoint

    x = torch.randn(64, 4)
    networks = [
        (Int8ActPerTensorFloat, {}),
        (Uint8ActPerTensorFixedPoint, {}),
        (Int8ActPerTensorFloat, {"scaling_min_val": 1e-3}),
        (ShiftedUint8ActPerTensorFloat, {"low_percentile_q": 1.0, "high_percentile_q": 98.0}),
        (ShiftedUint8ActPerTensorFloat, {"low_percentile_q": 5.0, "high_percentile_q": 90.0}),
    ]
    for preset, options in networks:
        plain, other = (QuantIdentity(preset, collect_stats_steps=2, **options) for _ in range(2))
        compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
        for _ in range(4):
            assert torch.equal(plain(x), compiled(x)), (preset, options)
