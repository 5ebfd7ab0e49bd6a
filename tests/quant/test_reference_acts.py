"""Integer activations of every preset and bit width, in every phase: numbers and gradients against float64."""

import pytest
import torch
from reference_acts import ReferenceAct
from reference_arithmetic import (
    codes_of,
    int_threshold,
    learned_threshold,
    margin,
    restart_margin,
    stored,
    threshold_of,
)
from reference_table import ACTS, MX_ACTS, RANGE_ACTS
from reference_weights import assert_near, assert_quantized, away_from_jumps, draw, gradients, layout, mixed_loss

from brevitas.nn import QuantIdentity, QuantReLU
from brevitas.quant import registry

DTYPES = [torch.float64, torch.float32]
COLLECTED = 2


def script(batches):
    """The calls of one life: (training?, batch)."""
    a, b, c, d = batches
    return [(True, a), (False, d), (True, b), (False, d), (True, c), (False, d), ("move", None), (True, d), (False, c)]


def run_reference(preset, bits, batches):
    """One list entry a call: (expected numbers, gradients of them, gradients of the learned)."""
    act = ReferenceAct(preset, bits, COLLECTED)
    found = []
    for training, batch in script(batches):
        if training == "move":
            act.move()
            found.append([v.detach().clone() for v in act.leaves()])
            continue
        x = batch.clone().requires_grad_()
        expected = act.train(x) if training else act.evaluate(x)
        leaves = [] if act.value is None else act.leaves()
        found.append((expected, gradients(expected[:3], x, [x, *leaves])))
    return found


def batches_for(preset, bits):
    shape = (2, 9) if preset.search else (3, 8)
    for start in range(60):
        batches = [draw(100 * start + i, shape) for i in range(4)]
        restart_margin()
        run_reference(preset, bits, batches)
        if margin() > 1e-4:
            return batches
    raise AssertionError("all draws near a tie")


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", ACTS)
def test_activation(name, bits):
    preset = ACTS[name]
    b = torch.tensor(float(bits), dtype=torch.float64)
    batches = batches_for(preset, b)
    wanted = run_reference(preset, b, batches)
    for dtype in DTYPES:
        layer = QuantIdentity(
            registry.preset(name), bit_width=bits, collect_stats_steps=COLLECTED, return_quant_tensor=True
        ).to(dtype)
        quantizer = layer.act_quant.tensor_quant
        learned = [quantizer.scaling_impl.value] + ([quantizer.zero_point_impl.value] if preset.shifted else [])
        for (training, batch), expected in zip(script(batches), wanted, strict=True):
            if training == "move":
                with torch.no_grad():
                    for parameter, leaf in zip(learned, expected, strict=True):
                        parameter.copy_(leaf)
                continue
            layer.train(training)
            x = batch.to(dtype).requires_grad_()
            qt = layer(x)
            numbers, (g_wanted, *learned_wanted) = expected
            assert_quantized(qt, numbers, bits, dtype, preset.signed)
            g, *learned_found = torch.autograd.grad(
                mixed_loss((qt.value, qt.scale, qt.zero_point), batch), [x, *learned], allow_unused=True
            )
            assert_near(g, g_wanted, dtype, f"gradient of the input, training={training}", 1e-12, 5.0)
            if learned_wanted:
                for found, parameter_wanted in zip(learned_found, learned_wanted, strict=True):
                    assert_near(found, parameter_wanted, dtype, "gradient of the learned", 1e-12, 100.0)
            elif training:
                assert all(z is not None and not z.any() for z in learned_found), "an exact zero while collecting"


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", RANGE_ACTS)
def test_activation_of_a_declared_range(name, bits):
    preset = RANGE_ACTS[name]
    options = {"min_val": -1.2 if preset.signed else 0.0, "max_val": 0.9}
    initial = torch.tensor([max(-options["min_val"], options["max_val"])], dtype=torch.float64)
    b = torch.tensor(float(bits), dtype=torch.float64)
    learns = preset.scaling == "RANGE"

    def numbers(x, leaf):
        t = learned_threshold(leaf, preset.restriction).reshape(())
        s = t / int_threshold(b, preset.signed, preset.narrow, preset.restriction)
        q = codes_of(x, s, torch.zeros(()).double(), b, preset.signed, preset.narrow)
        return q * s, s, torch.zeros(()).double(), q

    start = stored(initial, preset.restriction)
    batch = away_from_jumps(lambda x: [numbers(x, start - shift) for shift in (0.0, 0.4, 3.0)], (4, 9))
    for dtype in DTYPES:
        layer = QuantIdentity(registry.preset(name), bit_width=bits, return_quant_tensor=True, **options).to(dtype)
        assert [p.numel() for p in layer.parameters()] == [1] * learns
        for shift in (0.0, 0.4, 3.0) if learns else (0.0,):
            leaf = (start - shift).requires_grad_()
            for training in (True, False):
                layer.train(training)
                with torch.no_grad():
                    for parameter in layer.parameters():
                        parameter.copy_(leaf if shift else parameter)
                x, x64 = batch.to(dtype).requires_grad_(), batch.clone().requires_grad_()
                expected, qt = numbers(x64, leaf), layer(x)
                assert_quantized(qt, expected, bits, dtype, preset.signed)
                found = gradients((qt.value, qt.scale), batch, [x, *layer.parameters()])
                wanted = gradients(expected[:2], batch, [x64, leaf][: 1 + learns])
                for g, g_wanted in zip(found, wanted, strict=True):
                    assert_near(g, g_wanted, dtype, "gradient", 1e-12, 50.0)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", MX_ACTS)
@pytest.mark.parametrize("shape", [(3, 70), (2, 5, 33)])
def test_groups_of_an_activation(name, bits, shape):
    """Scaled anew at each call, in training and eval, along the last dim."""
    b = torch.tensor(float(bits), dtype=torch.float64)

    def numbers(x):
        rows, spread = layout(x, "group", (-1, 32))
        s = spread(threshold_of(rows.abs().max(dim=1).values, "MX") / 2.0 ** (b - 2))
        q = codes_of(x, s, torch.zeros(()).double(), b, True, True)
        return q * s, s, torch.zeros(()).double(), q

    batch = away_from_jumps(numbers, shape)
    for dtype in DTYPES:
        layer = QuantIdentity(registry.preset(name), bit_width=bits, return_quant_tensor=True).to(dtype)
        assert not layer.state_dict()
        for training in (True, False):
            x, x64 = batch.to(dtype).requires_grad_(), batch.clone().requires_grad_()
            expected, qt = numbers(x64), layer.train(training)(x)
            assert_quantized(qt, expected, bits, dtype, True)
            (g,), (g_wanted,) = gradients((qt.value, qt.scale), batch, [x]), gradients(expected[:2], batch, [x64])
            assert_near(g, g_wanted, dtype, "gradient", 1e-12, 5.0)


def test_relu_comes_before_the_quantizer():
    bits, x = torch.tensor(4.0, dtype=torch.float64), draw(3, (5, 8)).requires_grad_()
    expected = ReferenceAct(ACTS["Uint8ActPerTensorFloat"], bits, COLLECTED).train(torch.relu(x))
    layer = QuantReLU(bit_width=4, return_quant_tensor=True).double()
    given = x.detach().clone().requires_grad_()
    qt = layer(given)
    assert_quantized(qt, expected, 4, torch.float64, False)
    (g,), (g_wanted,) = gradients((qt.value,), x, [given]), gradients(expected[:1], x, [x])
    assert_near(g, g_wanted, torch.float64, "gradient")


@pytest.mark.parametrize("momentum", [0.1, 0.5, 1.0, None])
def test_running_estimate(momentum):
    """Exactly N calls count; a momentum of None is the true average."""
    bits, preset = torch.tensor(8.0, dtype=torch.float64), ACTS["Int8ActPerTensorFloat"]
    act = ReferenceAct(preset, bits, 3, momentum)
    layer = QuantIdentity(
        # Declared, since a keyword of None means "not given".
        registry.preset("Int8ActPerTensorFloat").let(scaling_stats_momentum=momentum),
        collect_stats_steps=3,
        return_quant_tensor=True,
    ).double()
    for seed in range(6):
        x = draw(seed, (4, 9))
        assert_quantized(layer.train()(x), act.train(x), 8, torch.float64, True)
        assert_quantized(layer.eval()(x), act.evaluate(x), 8, torch.float64, True)
