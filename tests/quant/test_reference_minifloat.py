"""Minifloats of every preset and format: every code, numbers and gradients against spec/core.md 11.4 in float64."""

import numpy as np
import pytest
import torch
from reference_arithmetic import learned_threshold, margin, restart_margin, threshold_of
from reference_minifloat import nearest, quantized, searched, wide_draw
from reference_table import MINIFLOATS, MX_FLOATS, WIDTHS, Format
from reference_weights import assert_near, gradients, layout, weight_layer

from brevitas.nn import QuantIdentity
from brevitas.quant import registry

DTYPES = [torch.float64, torch.float32]
CASES = [(name, widths) for name, (*_, formats) in MINIFLOATS.items() for widths in formats]
WEIGHT_CASES = [case for case in CASES if MINIFLOATS[case[0]][0] == "weight"]
ACT_CASES = [case for case in CASES if MINIFLOATS[case[0]][0] == "act"]
LARGEST = {
    # spec/quantizers.md 11.2, and the OCP specification of microscaling formats for the small ones
    ("", 4, 3): 480, ("", 5, 2): 114688, ("OCP", 4, 3): 448, ("OCP", 5, 2): 57344, ("FNUZ", 4, 3): 240,
    ("FNUZ", 5, 2): 57344, ("OCP", 3, 2): 28, ("OCP", 2, 3): 7.5, ("OCP", 2, 1): 6,
}  # fmt: skip
TORCH_DTYPES = {
    ("OCP", 4, 3): torch.float8_e4m3fn,
    ("OCP", 5, 2): torch.float8_e5m2,
    ("FNUZ", 4, 3): torch.float8_e4m3fnuz,
    ("FNUZ", 5, 2): torch.float8_e5m2fnuz,
}


def generic(name, widths):
    """The directives that a preset without widths needs."""
    if name.startswith("Fp8"):
        return {}
    return {"bit_width": 1 + sum(widths), "exponent_bit_width": widths[0], "mantissa_bit_width": widths[1]}


def fitting(compute, form, shape):
    """Numbers from below the smallest to above the largest of the format, away from ties."""
    largest = float(torch.log2(form.numbers()[-1]))
    for seed in range(80):
        x = wide_draw(seed, shape, 1 - form.bias - form.mantissa - 1, largest + 0.6)
        restart_margin()
        compute(x)
        if margin() > 1e-4:
            return x
    raise AssertionError("all draws near a tie")


def check(result, given, x, expected, form, dtype, leaves=(), learned=()):
    y, scale, zero_point, e, m, bias, saturating, infinities, nans = result
    value, s = expected
    assert y.dtype == dtype
    assert_near(scale, s, dtype, "scale")
    assert_near(y, value, dtype, "value")
    code = nearest(y.detach().double() / s, form)  # a number of the format, up to the noise of the division
    assert_near(y / s, code, dtype, "number")
    assert (zero_point.item(), e.item(), m.item(), bias.item()) == (0, form.exponent, form.mantissa, form.bias)
    assert saturating is True and tuple(infinities) == form.infinities and tuple(nans) == form.nans
    found, wanted = gradients((y, scale), x, [given, *learned]), gradients((value, s), x, [x, *leaves])
    for g, g_wanted in zip(found, wanted, strict=True):
        assert_near(g.reshape(g_wanted.shape), g_wanted, dtype, "gradient", 1e-12, 50.0)


@pytest.mark.parametrize(("name", "widths"), WEIGHT_CASES)
def test_minifloat_weight(name, widths):
    _, per, search, family, _ = MINIFLOATS[name]
    form = Format(*widths, family)
    largest = form.numbers()[-1]

    def scale_of(w, leaf=None):
        if per is None:
            return torch.ones(()).double()
        rows, spread = layout(w, per)
        if leaf is not None:
            return spread(learned_threshold(leaf) / largest)
        t = searched(rows, form, largest, "FP") if search else rows.abs().max(dim=1).values
        return spread(threshold_of(t) / largest)

    def compute(w):
        s = scale_of(w)
        quantized(w, s, form)
        quantized(w, 0.7 * s, form)

    weight = fitting(compute, form, (3, 2, 2, 3) if per == "channel" else (4, 9))
    for dtype in DTYPES:
        layer = weight_layer(name, weight, dtype, **generic(name, widths))
        quantizer = layer.weight_quant.tensor_quant
        if not search:
            for training in (True, False):
                w = weight.clone().requires_grad_()
                s = scale_of(w)
                check(quantizer.train(training)(layer.weight), layer.weight, w, (quantized(w, s, form), s), form, dtype)
            assert torch.equal(layer.quant_weight(), quantizer(layer.weight)[0])
            continue
        value = quantizer.scaling_impl.value
        leaf = (scale_of(weight).reshape(-1) * largest).requires_grad_()
        for _ in range(2):
            w = weight.clone().requires_grad_()
            s = scale_of(w, leaf)
            check(quantizer(layer.weight), layer.weight, w, (quantized(w, s, form), s), form, dtype, [leaf], [value])
            with torch.no_grad():
                leaf.mul_(0.7)
                value.copy_(leaf.reshape(value.shape))


@pytest.mark.parametrize(("name", "widths"), ACT_CASES)
def test_minifloat_activation(name, widths):
    _, per, search, family, _ = MINIFLOATS[name]
    form = Format(*widths, family)
    largest = form.numbers()[-1]

    def statistic(x):
        rows = layout(x, per, channel_dim=1)[0]
        return searched(rows, form, largest, "FP") if search else rows.abs().max(dim=1).values

    def numbers(x, t):
        if per is None:
            return quantized(x, torch.ones(()).double(), form), torch.ones(()).double()
        s = layout(x, per, channel_dim=1)[1](t / largest)
        return quantized(x, s, form), s

    def life(x):
        """(training, input, threshold): one collecting call, eval, learned, eval after a step."""
        if per is None:
            return [(True, x, None), (False, x, None)]
        first = threshold_of(statistic(x).detach())
        leaf = first.clone().requires_grad_()
        later = (0.62 * first).requires_grad_()
        return [(True, x, "batch"), (False, x, first), (True, x, leaf), (True, x, later), (False, x, later)]

    def compute(x):
        for _, batch, t in life(x):
            numbers(batch, threshold_of(statistic(x)) if isinstance(t, str) else t)

    shape = (2, 3, 2, 3) if per == "channel" else (4, 9)
    batch = fitting(compute, form, shape)
    options = generic(name, widths) | ({"collect_stats_steps": 1} if per else {})
    if per == "channel":
        options["per_channel_broadcastable_shape"] = (1, 3, 1, 1)
    for dtype in DTYPES:
        layer = QuantIdentity(registry.preset(name), **options).to(dtype)
        quantizer = layer.act_quant.tensor_quant
        for training, x64, t in life(batch):
            x64, x = x64.clone().requires_grad_(), x64.to(dtype).requires_grad_()
            learned, leaves = [], []
            if t is not None and not isinstance(t, str) and t.requires_grad:
                learned, leaves = [quantizer.scaling_impl.value], [t]
                with torch.no_grad():
                    if bool(quantizer.scaling_impl.initialised):
                        learned[0].copy_(t.reshape(learned[0].shape))
            threshold = threshold_of(statistic(x64)) if isinstance(t, str) else t
            expected = numbers(x64, threshold)
            check(quantizer.train(training)(x), x, x64, expected, form, dtype, leaves, learned)
        assert torch.equal(layer.eval()(x), quantizer(x)[0])


@pytest.mark.parametrize("name", MX_FLOATS)
@pytest.mark.parametrize("shape", [(3, 70), (2, 40, 2, 3)])
def test_microscaling_floats(name, shape):
    """Group scale 2^(floor(log2 amax) - 8), of 32 neighbours: input channels of a weight, the last dim of an input."""
    role, search = MX_FLOATS[name]
    form, unit = Format(4, 3, "OCP"), 2.0**8
    dim = 1 if role == "weight" else -1

    def numbers(x, leaf=None):
        rows, spread = layout(x, "group", (dim, 32))
        if leaf is not None:
            t = learned_threshold(leaf, "MX")
        else:
            t = threshold_of(searched(rows, form, unit, "MX") if search else rows.abs().max(dim=1).values, "MX")
        s = spread(t / unit)
        return quantized(x, s, form), s

    x0 = fitting(numbers, form, shape) / 64
    for dtype in DTYPES:
        x64 = x0.clone().requires_grad_()
        leaves, learned = [], []
        if role == "weight":
            layer = weight_layer(name, x0, dtype)
            quantizer, given = layer.weight_quant.tensor_quant, layer.weight
        else:
            layer = QuantIdentity(registry.preset(name)).to(dtype)
            assert not layer.state_dict()
            quantizer, given = layer.act_quant.tensor_quant, x0.to(dtype).requires_grad_()
        if search:
            rows = layout(x0, "group", (dim, 32))[0]
            leaves = [torch.log2(searched(rows, form, unit, "MX").clamp(min=2.0**-33)).requires_grad_()]
            learned = [quantizer.scaling_impl.value]
        for training in (True, False):
            result = quantizer.train(training)(given)
            check(result, given, x64, numbers(x64, *leaves), form, dtype, leaves, learned)


@pytest.mark.parametrize("family", ["", "OCP", "FNUZ"])
@pytest.mark.parametrize("widths", WIDTHS)
def test_every_code_and_what_lies_between(widths, family):
    """Each code reproduces itself, midpoints go to the even code, and anything goes to the nearest number."""
    form = Format(*widths, family)
    numbers = form.numbers()
    if (family, *widths) in LARGEST:
        assert numbers[-1] == LARGEST[family, *widths]
    between = torch.cat([(numbers[1:] + numbers[:-1]) / 2, numbers[:-1] + 0.3 * numbers.diff()])
    below, above = (numbers[1:] + numbers[:-1]) / 2 * (1 - 2**-20), (numbers[1:] + numbers[:-1]) / 2 * (1 + 2**-20)
    x = torch.cat([numbers, between, below, above, numbers[-1:] * 1.01, numbers[-1:] * 1e3])
    x = torch.cat([x, -x])[None]
    # The generic presets take any widths; the plain family is OCP with nothing reserved.
    preset = {"": "FpOCPWeight", "OCP": "FpOCPWeight", "FNUZ": "FpFNUZWeight"}[family]
    options = generic(preset, widths)
    if family == "":
        quantizer = registry.preset(preset).let(inf_values=None, nan_values=None, **options).tensor_quant
    else:
        quantizer = registry.preset(preset).let(**options).tensor_quant
    for dtype in DTYPES:
        assert torch.equal(quantizer.to(dtype)(x.to(dtype))[0].double(), nearest(x, form))
    dtype = TORCH_DTYPES.get((family, *widths))
    if dtype is not None:
        saturated = x.float().clamp(-numbers[-1], numbers[-1])
        assert torch.equal(quantizer.float()(x.float())[0], saturated.to(dtype).float())
        decoded = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype).double()
        finite = decoded[torch.isfinite(decoded)].abs().unique()
        assert torch.equal(finite, numbers), "the codes of the torch dtype are the numbers of the format"


@pytest.mark.parametrize(("widths", "family"), [((4, 3), "OCP"), ((5, 2), "OCP"), ((4, 3), "FNUZ"), ((5, 2), "FNUZ")])
def test_overflow_without_saturation(widths, family):
    form = Format(*widths, family)
    largest = float(form.numbers()[-1])
    quantizer = registry.preset(f"Fp{family}Act").let(saturating=False, **generic("Fp", widths)).tensor_quant
    step = float(form.numbers().diff()[-1])
    x = torch.tensor([largest, largest + 0.49 * step, largest + 0.51 * step, -10 * largest, np.inf, np.nan])
    beyond = np.inf if form.infinities else np.nan
    expected = torch.tensor([largest, largest, beyond, -beyond, beyond, np.nan])
    assert torch.equal(quantizer(x)[0].nan_to_num(-1.0), expected.nan_to_num(-1.0))
