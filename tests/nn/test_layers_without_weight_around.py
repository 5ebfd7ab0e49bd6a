"""What people do with layers that have no weight: copy, load, compile, trace, export, set rules, explain."""

import copy
import io
import pickle

import pytest
import torch
import torch._dynamo.testing
from torch import nn

from brevitas.errors import ExportError, SpecError
from brevitas.export import QONNXManager, StdONNXManager, verify
from brevitas.graph import apply_spec, explain, spec_of
from brevitas.nn import (
    ClampQuantAccumulator,
    QuantAdaptiveAvgPool2d,
    QuantAvgPool2d,
    QuantCat,
    QuantConv2d,
    QuantDropout,
    QuantEltwiseAdd,
    QuantHardTanh,
    QuantIdentity,
    QuantMaxPool2d,
    QuantSigmoid,
    QuantTanh,
    QuantUpsample,
    QuantUpsamplingBilinear2d,
    TruncQuantAccumulator,
)
from brevitas.quant import Int8ActPerTensorFloat, RoundTo8bit, TruncTo8bit
from brevitas.quant.base import IntQuant
from brevitas.quant.solver import ClampQuantSolver
from brevitas.quant_tensor import QuantTensor


class Drop(IntQuant, ClampQuantSolver):
    bit_width_to_remove = 2


class Net(nn.Module):
    """Every layer without a weight, and one convolution whose accumulator they cut."""

    def __init__(self, steps=2):
        super().__init__()
        collect = {"collect_stats_steps": steps}
        self.input = QuantIdentity(return_quant_tensor=True, **collect)
        self.conv = QuantConv2d(1, 2, 3, padding=1, bias=False, weight_bit_width=4, return_quant_tensor=True)
        self.trunc = TruncQuantAccumulator(TruncTo8bit)
        self.clamp = ClampQuantAccumulator(Drop)
        self.max_pool = QuantMaxPool2d(2)
        self.up = QuantUpsamplingBilinear2d(scale_factor=2)
        self.nearest = QuantUpsample(scale_factor=1)
        self.tanh = QuantTanh(return_quant_tensor=True, **collect)
        self.sigmoid = QuantSigmoid(return_quant_tensor=True, **collect)
        self.add = QuantEltwiseAdd(return_quant_tensor=True, input_collect_stats_steps=steps,
                                   output_collect_stats_steps=steps)  # fmt: skip
        self.cat = QuantCat(output_quant=None, tie_input_output_quant=True, return_quant_tensor=True,
                            input_collect_stats_steps=steps)  # fmt: skip
        self.avg_pool = QuantAvgPool2d(2)
        self.dropout = QuantDropout(0.0)
        self.head = QuantAdaptiveAvgPool2d(1, trunc_quant=RoundTo8bit, return_quant_tensor=False)
        self.hardtanh = QuantHardTanh(min_val=-1.0, max_val=1.0)

    def forward(self, x):
        x = self.nearest(self.up(self.max_pool(self.clamp(self.trunc(self.conv(self.input(x)))))))
        x = self.cat([self.add(self.tanh(x), self.sigmoid(x)), x])
        return self.hardtanh(self.head(self.dropout(self.avg_pool(x))))


def images(seed=0):
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) - 0.4


def train(model, steps, seed=0):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        model(images(seed + step)).square().mean().backward()
        optimizer.step()
    return model


def through_file(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_file])
def test_copies_are_equal_and_train_alike(steps, copied):
    model = train(Net(), steps)
    twin = copied(model)
    assert twin.cat.input_quant is twin.cat.output_quant
    train(model, 2, seed=5), train(twin, 2, seed=5)
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*initial 1")
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_state_loads_strictly_at_any_moment(steps):
    model = train(Net(), steps)
    for moment in (0, 1, 4):
        target = train(Net(), moment, seed=9)
        target.load_state_dict(model.state_dict())
        assert torch.equal(target.eval()(images(3)), model.eval()(images(3)))
        model.train()


def test_every_parameter_is_trained():
    model = train(Net(), 4)
    # What sigmoid and tanh feed is learned through the addition; everything gets a finite gradient.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_autocast():
    model = train(Net(), 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(images()).float().square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    model = train(Net(), 3).to(dtype).eval()
    y = model(images().to(dtype))
    assert y.dtype == dtype and y.isfinite().all()


@pytest.mark.slow
def test_compiles_as_a_whole_and_trains_like_eager():
    torch._dynamo.reset()
    model = Net(steps=3)
    twin = copy.deepcopy(model)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    train(torch.compile(model, fullgraph=True, backend=counter), 6), train(twin, 6)
    assert counter.frame_count <= 2, "recompiled from step to step"
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key].float(), value.float(), rtol=1e-3, atol=1e-3, msg=key)
    model.eval(), twin.eval()
    model.load_state_dict(twin.state_dict())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    # One code of a pool that rounds the other way is half a step of 1 / 64.
    torch.testing.assert_close(compiled(images(7)), twin(images(7)), rtol=0, atol=0.02)


@pytest.mark.parametrize("training", [True, False])
def test_quant_tensors_leave_compiled_code(training):
    torch._dynamo.reset()
    model = nn.Sequential(QuantIdentity(return_quant_tensor=True), QuantMaxPool2d(2), QuantAvgPool2d(2),
                          ClampQuantAccumulator(Drop))  # fmt: skip
    model(images())
    model.train(training)
    twin = copy.deepcopy(model)
    y, expected = torch.compile(model, fullgraph=True, backend="eager")(images(1)), twin(images(1))
    assert isinstance(y, QuantTensor) and torch.equal(y.value, expected.value) and torch.equal(y.scale, expected.scale)
    assert y.bit_width == expected.bit_width == 6 and y.signed


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
def test_torch_export(strict):
    model = train(Net(), 3).eval()
    program = torch.export.export(model, (images(),), strict=strict)
    assert torch.equal(program.module()(images(3)), model(images(3)))


def test_jit_trace():
    model = train(Net(), 3).eval()
    traced = torch.jit.trace(model, (images(),))
    assert torch.equal(traced(images(3)), model(images(3)))
    assert model.head.kernel_size == (4, 4) and all(type(n) is int for n in model.head.kernel_size)


# Export


class Bench(nn.Module):
    """Layers side by side, behind one quantizer."""

    def __init__(self, **layers):
        super().__init__()
        self.start = QuantIdentity(bit_width=6, return_quant_tensor=True)
        self.layers = nn.ModuleDict(layers)

    def forward(self, x):
        x = self.start(x)
        return tuple(layer(*self.operands(layer, x)) for layer in self.layers.values())

    @staticmethod
    def operands(layer, x):
        return (x, x + x) if isinstance(layer, QuantEltwiseAdd) else ([x, x],) if isinstance(layer, QuantCat) else (x,)


@pytest.mark.parametrize("manager", [QONNXManager, StdONNXManager])
def test_exports_are_exact_on_the_grid(manager):
    torch.manual_seed(0)
    model = Bench(
        sigmoid=QuantSigmoid(bit_width=5),
        tanh=QuantTanh(bit_width=5),
        hardtanh=QuantHardTanh(min_val=-1.0, max_val=1.0, bit_width=4),
        hardtanh_off=QuantHardTanh(None, min_val=-0.7, max_val=0.7),
        max_pool=QuantMaxPool2d(2),
        bilinear=QuantUpsamplingBilinear2d(scale_factor=2),
        average=QuantAvgPool2d(3, 1),
        rounded=QuantAvgPool2d(2, trunc_quant=RoundTo8bit.let(bit_width=5)),
        sums=QuantAvgPool2d(2, trunc_quant=None),
        adaptive=QuantAdaptiveAvgPool2d(2),
        clamp=ClampQuantAccumulator(Drop),
        add=QuantEltwiseAdd(input_bit_width=5, output_bit_width=6),
        cat=QuantCat(None, output_bit_width=4),
        accumulator=nn.Sequential(
            QuantConv2d(2, 3, 3, bias=False, weight_bit_width=4, return_quant_tensor=True),
            TruncQuantAccumulator(TruncTo8bit),
        ),
    )
    x = torch.randn(3, 2, 6, 6)
    model(x)
    report = verify(model.eval(), manager.export(model, input_t=x), x)
    assert report.ok, str(report)
    compared = {row.quantizer for row in report.rows}
    truncated = {f"layers.{name}.trunc_quant" for name in ("average", "rounded", "adaptive", "accumulator.1")}
    assert compared >= truncated | {f"layers.{name}.requantize" for name in ("hardtanh_off", "bilinear")}
    assert compared >= {"layers.clamp.clamp_quant", "layers.add.input_quant", "layers.cat.output_quant"}


@pytest.mark.parametrize("manager", [QONNXManager, StdONNXManager])
def test_a_truncated_zero_point_is_refused_by_name(manager):
    shifted = apply_spec(nn.Sequential(nn.Identity()), "rules: [{act: ShiftedUint8ActPerTensorFloat}]")[0]
    shifted.return_quant_tensor = True
    model = nn.Sequential(shifted, nn.Sequential(QuantAvgPool2d(2)))
    x = torch.rand(1, 1, 4, 4) - 0.3
    model(x)
    with pytest.raises(
        ExportError, match=r"E21 .*QuantAvgPool2d '1.0': found zero point .*trunc_quant; required .*fix"
    ):
        manager.export(model.eval(), input_t=x)


# Rules


def float_net():
    return nn.Sequential(
        nn.Identity(), nn.Hardtanh(-2.0, 2.0), nn.AvgPool2d(2, 1), nn.Tanh(), nn.AdaptiveAvgPool2d((1, 3)),
        nn.Sigmoid(), TruncQuantAccumulator(), ClampQuantAccumulator(),
    )  # fmt: skip


HERE = f"{__name__}:Drop"
RULES = {
    "rules": [
        {"type": "Identity", "act": {"base": "Int8ActPerTensorFloat"}},
        {"type": "Hardtanh", "act": {"base": "Int8ActPerTensorFloatMinMaxInit", "bit_width": 6}},
        {"type": ["Tanh", "Sigmoid"], "act": "Int8ActPerTensorFloat", "input": "Int8ActPerTensorFloat"},
        {"match": "{0,1,3,5}", "layer": {"return_quant_tensor": True}},
        {"type": ["AvgPool2d", "AdaptiveAvgPool2d"], "trunc": "RoundTo8bit"},
        {"match": "4", "trunc": {"bit_width": 6}, "layer": {"cache_kernel_size_stride": False}},
        {"match": "6", "trunc": {"base": "TruncTo8bit", "bit_width": 4}},
        {"match": "7", "clamp": HERE, "layer": {"return_quant_tensor": False}},
    ]
}  # fmt: skip


def test_rules_reach_every_role():
    model = apply_spec(float_net(), RULES)
    assert [type(layer).__name__ for layer in model] == [
        "QuantIdentity", "QuantHardTanh", "QuantAvgPool2d", "QuantTanh", "QuantAdaptiveAvgPool2d", "QuantSigmoid",
        "TruncQuantAccumulator", "ClampQuantAccumulator",
    ]  # fmt: skip
    assert model[1].quant_act_scale().item() == 2 / 32 and model[1].max_val == 2.0
    assert model[2].trunc_quant.rounding_mode == "ROUND" and model[2].stride == 1
    assert model[4].trunc_quant.bit_width().item() == 6 and not model[4].cache_kernel_size_stride
    assert model[3].is_input_quant_enabled and model[6].trunc_quant.bit_width().item() == 4
    x = torch.randn(2, 1, 4, 4)
    model(x)
    y = model.eval()(x)
    assert type(y) is torch.Tensor and y.shape == (2, 1, 1, 3)

    described = spec_of(model)
    assert described["rules"][2] == {"match": "2", "trunc": "RoundTo8bit"}
    assert described["rules"][6] == {"match": "6", "trunc": {"base": "TruncTo8bit", "bit_width": 4}}
    assert described["rules"][7]["clamp"] == HERE and described["rules"][7]["layer"] == {"return_quant_tensor": False}
    again = apply_spec(float_net(), described)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x), y) and spec_of(again) == described

    back = apply_spec(model, "rules: [{keep: float}]")
    assert [type(layer) for layer in back] == [type(layer) for layer in float_net()]
    assert not back[6].is_trunc_quant_enabled and torch.equal(back.train()(x), float_net()(x))


def test_explain_knows_truncation_and_clamping():
    model = apply_spec(float_net(), RULES)
    text = str(explain(model, "4.trunc_quant"))
    assert "TruncIntQuant" in text and "bit_width = 6" in text
    assert "bit_width_to_remove = 2" in str(explain(model[7].clamp_quant))


def test_overrides_and_sharing():
    model = apply_spec(float_net(), RULES, trunc_bit_width=5)
    assert [layer.trunc_quant.bit_width().item() for layer in (model[2], model[4], model[6])] == [5.0, 5.0, 5.0]
    shared = apply_spec(nn.Sequential(nn.AvgPool2d(2), nn.AvgPool2d(3)), {"rules": [
        {"match": "0", "trunc": "TruncTo8bit"}, {"match": "1", "trunc": {"share": "0.trunc_quant"}},
    ]})  # fmt: skip
    assert shared[0].trunc_quant is shared[1].trunc_quant


def test_following_is_a_setting():
    model = apply_spec(nn.Sequential(nn.AvgPool2d(2)), {"rules": [
        {"match": "0", "trunc": "TruncTo8bit", "layer": {"return_quant_tensor": None}},
    ]})  # fmt: skip
    assert model[0].return_quant_tensor is None and "layer" not in spec_of(model)["rules"][0]
    with pytest.raises(SpecError, match="'return_quant_tensor' is None; expected true or false"):
        apply_spec(nn.Sequential(nn.ReLU()), {"rules": [
            {"match": "0", "act": "Uint8ActPerTensorFloat", "layer": {"return_quant_tensor": None}},
        ]})  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "rule", "message"),
    [
        (nn.AvgPool2d(2, padding=1), {"trunc": "TruncTo8bit"}, "AvgPool2d '0': it has padding = 1, .*nn.ZeroPad2d"),
        (nn.AvgPool2d(2, ceil_mode=True), {"trunc": "TruncTo8bit"}, "ceil_mode = True"),
        (nn.AvgPool2d(2, divisor_override=3), {"trunc": "TruncTo8bit"}, "divisor_override = 3"),
        (nn.ReLU6(), {"act": "Int8ActPerTensorFloatMinMaxInit"}, "limits are 0.0 and 6.0.*symmetric"),
        (nn.Hardtanh(), {"act": "Int8ActPerTensorFloat"}, "m.._val.*no effect"),
        (
            nn.Hardtanh(),
            {"act": {"base": "Int8ActPerTensorFloatMinMaxInit", "max_val": 3.0}},
            "'max_val' of 'act' is 3.0, and Hardtanh '0' has max_val = 1.0; leave it out",
        ),
        (nn.AvgPool2d(2), {"act": "Int8ActPerTensorFloat"}, "has a quantizer 'act': AvgPool2d '0'; they have trunc"),
        (nn.AvgPool2d(2), {"trunc": "Int8ActPerTensorFloat"}, "trunc"),
        (TruncQuantAccumulator(), {"trunc": {"bit_width": 4}}, "needs 'base'"),
    ],
)
def test_rules_that_would_change_what_a_layer_computes(layer, rule, message):
    model = nn.Sequential(layer)
    with pytest.raises(SpecError, match=message):
        apply_spec(model, {"rules": [{"match": "0", **rule}]})
    assert model[0] is layer


def test_the_int8_rules_reach_sigmoid_and_tanh():
    model = apply_spec(nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 2), nn.Tanh()), "preset: int8")
    assert model[1].is_quant_act_signed is False and model[3].is_quant_act_signed is True
    assert isinstance(model[1], QuantSigmoid) and model[3].act_quant.quant_injector.mro()[1] is Int8ActPerTensorFloat
