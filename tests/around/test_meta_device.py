"""Models built on the meta device, which come into being with ``to_empty`` or ``load_state_dict(assign=True)``."""

import copy

import pytest
import torch
from torch import nn
from trained_network import Network, Sequence, images, network, sequence, train

from brevitas.nn import QuantIdentity, QuantLinear
from brevitas.proxy import ClampQuantProxyFromInjector, TruncQuantProxyFromInjector
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat
from brevitas.quant.registry import presets
from injector import declarations


class Holder(nn.Module):
    """A preset in a layer of its role, called with what it needs."""

    def __init__(self, preset):
        super().__init__()
        role = declarations(preset)["_role"].obj
        name = preset.__name__
        options = {}
        if name.startswith(("FpOCP", "FpFNUZ")):
            options |= {"bit_width": 6, "exponent_bit_width": 3, "mantissa_bit_width": 2}
        if "MaxInit" in name:
            options |= {"max_val": 1.0} | ({"min_val": -1.0} if "MinMax" in name else {})
        if "2d" in name:
            options |= {"per_channel_broadcastable_shape": (1, 3, 1, 1)}
        quantizer = preset.let(**options)
        self.first = QuantIdentity(return_quant_tensor=True)
        if role == "weight":
            self.layer = QuantLinear(40, 3, weight_quant=quantizer)
        elif role == "bias":
            self.layer = QuantLinear(40, 3, bias_quant=quantizer)
        elif role in ("trunc", "clamp"):
            proxy = TruncQuantProxyFromInjector if role == "trunc" else ClampQuantProxyFromInjector
            self.layer = proxy(nn.Module(), quantizer)
        else:
            self.layer = (
                QuantIdentity(quantizer, collect_stats_steps=2) if takes_steps(preset) else QuantIdentity(quantizer)
            )
        self.shape = (2, 3, 4, 40) if "2d" in name else (4, 40)

    def forward(self, x):
        y = self.layer(self.first(x))
        return getattr(y, "value", y)


def takes_steps(preset):
    scaling = declarations(preset).get("scaling_impl_type")
    return scaling is not None and str(scaling.obj) == "PARAMETER_FROM_STATS"


def on_meta(build):
    with torch.device("meta"):
        model = build()
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    return model


@pytest.mark.parametrize("preset", list(presets().values()), ids=lambda p: p.__name__)
def test_every_preset_comes_back_from_meta(preset):
    torch.manual_seed(0)
    trained = Holder(preset)
    x = torch.randn(trained.shape)
    for _ in range(3):
        trained(x)
    trained.eval()
    state = copy.deepcopy(trained.state_dict())
    expected = trained(x)

    emptied = on_meta(lambda: Holder(preset)).to_empty(device="cpu")
    emptied.load_state_dict(state)
    assigned = on_meta(lambda: Holder(preset))
    assigned.load_state_dict(state, assign=True)
    for twin in (emptied, assigned):
        assert torch.equal(twin.eval()(x), expected)
        assert not any(t.is_meta for t in (*twin.parameters(), *twin.buffers()))
        assert {k: (v.dtype, v.shape) for k, v in twin.named_buffers()} == {
            k: (v.dtype, v.shape) for k, v in trained.named_buffers()
        }


@pytest.mark.parametrize(("build", "layers"), [(network, Network), (sequence, Sequence)])
def test_a_network_trains_on_as_the_one_that_was_saved(build, layers):
    source = train(build(), 2)
    state = copy.deepcopy(source.state_dict())
    train(source, 4, seed=9)
    emptied = on_meta(layers).to_empty(device="cpu")
    emptied.load_state_dict(state)
    assigned = on_meta(layers)
    assigned.load_state_dict(copy.deepcopy(state), assign=True)
    for twin in (emptied, assigned):
        train(twin, 4, seed=9)
        for key, value in source.state_dict().items():
            assert torch.equal(twin.state_dict()[key], value), key


def test_quantizers_need_no_checkpoint():
    torch.manual_seed(0)
    expected = network()
    model = on_meta(Network).to_empty(device="cpu")
    weights = {k: v for k, v in expected.state_dict().items() if k.split(".")[-1] in ("weight", "bias")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing and not unexpected
    assert torch.equal(model(images()), expected(images()))
    train(model, 4), train(expected, 4)
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_the_device_argument_is_the_device_context():
    layer = QuantLinear(4, 2, weight_scaling_impl_type="parameter_from_stats", device="meta")
    act = QuantIdentity(device="meta")
    for module in (layer, act):
        assert all(t.is_meta for t in (*module.parameters(), *module.buffers()))
        module.to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]])), layer.bias.zero_()
    assert layer.quant_weight_scale().item() == pytest.approx(2 / 127)
    assert layer.quant_weight_bit_width().item() == 8.0
    assert torch.equal(layer(torch.ones(1, 4)), layer.quant_weight().value.sum(1)[None])
    assert act(torch.tensor([128.0])).item() == 127.0


def test_dtype_after_meta_is_the_one_asked_for():
    layer = on_meta(lambda: QuantIdentity(Int8ActPerTensorFloat)).to(torch.float64).to_empty(device="cpu")
    scaling = layer.act_quant.tensor_quant.scaling_impl
    assert scaling.value.dtype == scaling.running_stats.dtype == torch.float64
    assert scaling.value.item() == scaling.running_stats.item() == 1.0 and not scaling.initialised


def test_sharing_and_copying_on_meta():
    def build():
        first = QuantLinear(4, 4, weight_scaling_impl_type="parameter_from_stats")
        return nn.Sequential(first, QuantLinear(4, 4, weight_quant=first.weight_quant))

    late = on_meta(build)
    late.append(QuantLinear(4, 4, weight_quant=late[0].weight_quant, device="meta"))  # shared outside the context
    twin = copy.deepcopy(late)
    for model in (late, twin):
        model.to_empty(device="cpu")
        with torch.no_grad():
            for index, layer in enumerate(model):
                layer.weight.fill_(1.0 + index), layer.bias.zero_()
        assert model[0].quant_weight_scale().item() == pytest.approx(3 / 127)
    there_and_back = QuantLinear(4, 2, weight_quant=Int8WeightPerTensorFloat)
    scale = there_and_back.quant_weight_scale()
    weight = there_and_back.weight.detach().clone()
    there_and_back.to("meta").to_empty(device="cpu")
    with torch.no_grad():
        there_and_back.weight.copy_(weight)
    assert torch.equal(there_and_back.quant_weight_scale(), scale)
