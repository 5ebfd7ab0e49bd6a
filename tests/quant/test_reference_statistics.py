"""Statistics, their domains and affine rescaling, of weights and activations, against spec/core.md in float64."""

import pytest
import torch
from reference_arithmetic import (
    STATISTICS,
    at_least,
    bound_of,
    codes_of,
    int_threshold,
    magnitude,
    rounded,
    stored,
    threshold_of,
)
from reference_weights import assert_near, assert_quantized, away_from_jumps, gradients, layout, weight_layer

from brevitas.nn import QuantIdentity

DTYPES = [torch.float64, torch.float32]
ZERO = torch.zeros((), dtype=torch.float64)
FLOAT, CHANNEL = "Int8WeightPerTensorFloat", "Int8WeightPerChannelFloat"


def bits_of(bits):
    return torch.tensor(float(bits), dtype=torch.float64)


PLAIN = ["MAX", "AVE", "MEAN_SIGMA_STD", "MEAN_LEARN_SIGMA_STD", "PERCENTILE", "MIN_MAX", "PERCENTILE_INTERVAL"]
GRANULARITIES = [(statistic, per) for statistic in PLAIN for per in ("tensor", "channel")] + [("MAX_AVE", "tensor")]
SIGMA = 1.7


def statistic_options(statistic):
    if "SIGMA" in statistic:
        return {"sigma": SIGMA}
    return {
        "PERCENTILE": {"percentile_q": 90.0},
        "PERCENTILE_INTERVAL": {"percentile_q": 90.0, "low_percentile_q": 10.0},
    }.get(statistic, {})


def statistic_of(name, rows, sigma):
    if "SIGMA" in name:
        return STATISTICS["MEAN_SIGMA_STD"](rows, sigma)
    if name == "PERCENTILE":
        return STATISTICS[name](rows, 90.0)
    if name == "PERCENTILE_INTERVAL":
        return STATISTICS[name](rows, 10.0, 90.0)
    return STATISTICS[name](rows)


def domain_threshold(stat, restriction, affine=None, rounding=None):
    """spec/core.md 7.1, with the affine rescaling between the stored domain and the restriction."""
    if affine is None:
        return threshold_of(stat, restriction, rounding)
    u = stored(stat, restriction) * affine[0] + affine[1]
    if restriction == "FP":
        u = magnitude(u)
    else:
        u = 2.0 ** (rounded(u, rounding or "CEIL") if restriction == "POWER_OF_TWO" else u)
    return at_least(u, bound_of(restriction))


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("restriction", ["FP", "LOG_FP", "POWER_OF_TWO"])
@pytest.mark.parametrize(("statistic", "per"), GRANULARITIES)
def test_statistic_of_a_weight(statistic, per, restriction, affine):
    b = bits_of(4)
    shape = (3, 2, 3, 3)
    count = 3 if per == "channel" else 1
    factors = torch.linspace(0.8, 1.3, count).float().double(), torch.linspace(-0.2, 0.11, count).float().double()

    def numbers(w, sigma, leaves):
        view = "channel" if statistic == "MAX_AVE" else per
        stat = statistic_of(statistic, layout(w, view)[0], sigma)
        t = domain_threshold(stat, restriction, leaves)
        s = layout(w, per)[1](t) / int_threshold(b, True, True, restriction)
        q = codes_of(w, s, ZERO, b, True, True, passing=not affine)
        return q * s, s, ZERO, q

    sigma0 = torch.full((count,), SIGMA).double()
    weight = away_from_jumps(lambda w: numbers(w, sigma0, factors if affine else None), shape)
    for dtype in DTYPES:
        layer = weight_layer(
            CHANNEL if per == "channel" else FLOAT,
            weight,
            dtype,
            bit_width=4,
            scaling_stats_op=statistic,
            scaling_impl_type="AFFINE_STATS" if affine else "STATS",
            restrict_scaling_type=restriction,
            **statistic_options(statistic),
        )
        parameters = dict(layer.weight_quant.named_parameters())
        w, leaves, learned = weight.clone().requires_grad_(), [], []
        sigma = sigma0.clone().requires_grad_()
        if statistic == "MEAN_LEARN_SIGMA_STD":
            learned.append(next(v for k, v in parameters.items() if k.endswith("stats_impl.sigma")))
            leaves.append(sigma)
        if affine:
            for key, factor in zip(("affine_weight", "affine_bias"), factors, strict=True):
                learned.append(next(v for k, v in parameters.items() if k.endswith(f"affine_rescaling.{key}")))
                leaves.append(factor.clone().requires_grad_())
                with torch.no_grad():
                    learned[-1].copy_(factor.reshape(learned[-1].shape))
        assert len(parameters) == len(learned)
        for training in (True, False):
            expected = numbers(w, sigma, leaves[-2:] if affine else None)
            qt = layer.train(training).weight_quant(layer.weight)
            assert_quantized(qt, expected, 4, dtype, True)
            found, wanted = (
                gradients((qt.value, qt.scale), w, [layer.weight, *learned]),
                gradients(expected[:2], w, [w, *leaves]),
            )
            for g, g_wanted in zip(found, wanted, strict=True):
                assert_near(g.reshape(g_wanted.shape), g_wanted, dtype, "gradient", 1e-12, 50.0)


@pytest.mark.parametrize("scaling", ["STATS", "PARAMETER_FROM_STATS"])
@pytest.mark.parametrize("restriction", ["FP", "LOG_FP", "POWER_OF_TWO"])
@pytest.mark.parametrize(("statistic", "per"), GRANULARITIES)
def test_statistic_of_an_activation(statistic, per, restriction, scaling):
    """Training: the batch; eval: the running estimate (momentum 0.1); learned after two calls."""
    b, shape = bits_of(4), (2, 3, 2, 3)
    channels = {"scaling_stats_permute_dims": (1, 0, 2, 3)} if statistic == "MAX_AVE" else {}
    if per == "channel":
        channels = {"scaling_per_output_channel": True, "per_channel_broadcastable_shape": (1, 3, 1, 1)}
    count = 3 if per == "channel" else 1
    sigma0 = torch.full((count,), SIGMA).double()

    def batch_statistic(x, sigma):
        view = "channel" if statistic == "MAX_AVE" else per
        return statistic_of(statistic, layout(x, view, channel_dim=1)[0], sigma).reshape(-1)

    def numbers(x, stat):
        s = layout(x, per, channel_dim=1)[1](threshold_of(stat, restriction)) / int_threshold(
            b, True, False, restriction
        )
        q = codes_of(x, s, ZERO, b, True, False)
        return q * s, s, ZERO, q

    def everything(x):
        batches = [x, x.flip(0) * 1.5 + 0.1]
        stats = [batch_statistic(v, sigma0).detach() for v in batches]
        estimates = [stats[0], 0.9 * stats[0] + 0.1 * stats[1]]
        for v in batches:
            numbers(v, batch_statistic(v, sigma0))
            for estimate in estimates:
                numbers(v, estimate)
        return batches, estimates

    first = away_from_jumps(everything, shape)
    batches, estimates = everything(first)
    for dtype in DTYPES:
        layer = QuantIdentity(
            bit_width=4,
            scaling_stats_op=statistic,
            scaling_impl_type=scaling,
            restrict_scaling_type=restriction,
            return_quant_tensor=True,
            **({"collect_stats_steps": 2} if scaling != "STATS" else {}),
            **statistic_options(statistic),
            **channels,
        ).to(dtype)
        sigma_parameter = [v for k, v in layer.named_parameters() if k.endswith("sigma")]
        assert len(sigma_parameter) == (statistic == "MEAN_LEARN_SIGMA_STD")
        for batch, estimate in zip(batches, estimates, strict=True):
            sigma = sigma0.clone().requires_grad_()
            x64, x = batch.clone().requires_grad_(), batch.to(dtype).requires_grad_()
            expected, qt = numbers(x64, batch_statistic(x64, sigma)), layer.train()(x)
            assert_quantized(qt, expected, 4, dtype, True)
            found = gradients((qt.value, qt.scale), batch, [x, *sigma_parameter])
            wanted = gradients(expected[:2], batch, [x64, *[sigma] * len(sigma_parameter)])
            for g, g_wanted in zip(found, wanted, strict=True):
                assert_near(g.reshape(g_wanted.shape), g_wanted, dtype, "gradient", 1e-12, 50.0)
            x64, x = batch.clone().requires_grad_(), batch.to(dtype).requires_grad_()
            expected, qt = numbers(x64, estimate), layer.eval()(x)
            assert_quantized(qt, expected, 4, dtype, True)
            (g,), (g_wanted,) = gradients((qt.value,), batch, [x]), gradients(expected[:1], batch, [x64])
            assert_near(g, g_wanted, dtype, "gradient in eval")
        if scaling != "STATS":
            assert_quantized(layer.train()(batches[1].to(dtype)), numbers(batches[1], estimates[1]), 4, dtype, True)
