"""Every preset, at every width: TorchScript and torch.compile give the values and gradients of eager mode."""

import copy
import warnings

import pytest
import torch
from torch import nn

from brevitas.nn import QuantIdentity, QuantLinear
from brevitas.proxy import TruncQuantProxyFromInjector
from brevitas.quant.registry import presets
from injector import declarations

STEPS = 2


def role_of(preset):
    return declarations(preset)["_role"].obj


def declared(preset, name):
    declaration = declarations(preset).get(name)
    return None if declaration is None else declaration.obj


def widths_of(preset):
    """2 to 8 for integers, the format's own where it has one."""
    if "exponent_bit_width_impl" in declarations(preset) or declared(preset, "bit_width") in (None, 1):
        return (None,)
    return tuple(range(2, 9))


def quantizer(preset, width):
    """A fresh ``tensor_quant`` and the arguments that it takes after its input."""
    torch.manual_seed(0)
    options = {} if width is None else {"bit_width": width}
    if preset.__name__.startswith(("FpOCP", "FpFNUZ")):
        options |= {"bit_width": 6, "exponent_bit_width": 3, "mantissa_bit_width": 2}
    role = role_of(preset)
    if role == "weight":
        layer = QuantLinear(40, 3, weight_quant=preset.let(**options))
        bound = layer.weight_quant.requires_quant_input
        extra = (torch.tensor(4.0), True) if bound else ()
        return layer.weight_quant.tensor_quant, extra, layer.weight
    if role == "bias":
        layer = QuantLinear(4, 3, bias_quant=preset.let(**options))
        extra = (torch.tensor(0.01),) if layer.bias_quant.requires_input_scale else ()
        extra += (torch.tensor(12.0),) if layer.bias_quant.requires_input_bit_width else ()
        return layer.bias_quant.tensor_quant, extra, layer.bias
    if role == "trunc":
        trunc = TruncQuantProxyFromInjector(nn.Module(), preset.let(**options))
        return trunc.tensor_quant, (torch.tensor(0.1), torch.tensor(0.0), torch.tensor(12.0), True), torch.randn(40)
    if "MaxInit" in preset.__name__:
        options |= {"max_val": 1.0}
        options |= {"min_val": -1.0} if "MinMax" in preset.__name__ else {}
    if "2d" in preset.__name__:
        options |= {"per_channel_broadcastable_shape": (1, 3, 1, 1)}
    if declared(preset, "scaling_impl_type") == "PARAMETER_FROM_STATS":
        options |= {"collect_stats_steps": STEPS}
    layer = QuantIdentity(preset, **options)
    return layer.act_quant.tensor_quant, (), torch.randn(2, 3, 4, 4)


def steps(run, module, extra, x):
    """Values and gradients of a few training calls, while statistics are collected and after, and of an eval call."""
    found = []
    for step in range(STEPS + 2):
        module.train(step <= STEPS)
        module.zero_grad()
        given = (x.detach() * (1 + step)).requires_grad_()
        out = run(given, *extra)
        out[0].square().sum().backward()
        found += [t.detach().clone() for t in out if isinstance(t, torch.Tensor)]
        found += [given.grad, *(p.grad for p in module.parameters())]
    return found


def enabled():
    for name, preset in presets().items():
        if not name.startswith("None"):
            yield pytest.param(preset, id=name)


@pytest.mark.slow
@pytest.mark.parametrize("preset", enabled())
def test_scripted_equals_eager_bit_for_bit(preset):
    for width in widths_of(preset):
        module, extra, x = quantizer(preset, width)
        twin = copy.deepcopy(module)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scripted = torch.jit.script(twin)
        for mine, theirs in zip(steps(module, module, extra, x), steps(scripted, scripted, extra, x), strict=True):
            assert mine is theirs is None or torch.equal(mine, theirs), width


@pytest.mark.slow
@pytest.mark.parametrize("preset", enabled())
def test_compiled_equals_eager(preset):
    torch._dynamo.reset()
    module, extra, x = quantizer(preset, widths_of(preset)[-1])
    twin = copy.deepcopy(module)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(steps(module, module, extra, x), steps(compiled, twin, extra, x), strict=True):
        if mine is None or theirs is None:
            # Compiled code may give zeros to a parameter that took no part.
            assert all(g is None or not g.any() for g in (mine, theirs))
        else:
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
