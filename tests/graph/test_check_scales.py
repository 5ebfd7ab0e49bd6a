"""check_scales finds every place where a scale is lost, and leaves the model alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import brevitas
import brevitas.nn as qnn
from brevitas.errors import QuantConfigError, QuantMetadataError
from brevitas.graph import check_scales
from brevitas.graph.scale_flow import Finding, ScaleReport
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import (
    Int8ActPerTensorFixedPoint,
    Int8ActPerTensorFloat,
    Int8Bias,
    Int8WeightPerTensorFloat,
    Int32Bias,
    ShiftedUint8ActPerTensorFloat,
    TruncTo8bit,
    Uint8ActPerTensorFloat,
)
from brevitas.quant_tensor import QuantTensor

IMAGE = torch.linspace(-1, 1, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)


def quantized(preset=Int8ActPerTensorFloat, **options):
    return QuantIdentity(preset, return_quant_tensor=True, **options)


class Forward(nn.Module):
    """A model whose forward is written where it is used: ``run(model, x)``."""

    def __init__(self, run, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = run

    def forward(self, x):
        return self.run(self, x)


def found(model, example=IMAGE):
    return [(f.kind, f.path) for f in check_scales(model, example)]


def only(model, example=IMAGE):
    report = check_scales(model, example)
    assert len(report) == 1, str(report)
    return report.findings[0]


# --- What is found ---------------------------------------------------------------------------------------------------


class EverythingWrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.input = QuantIdentity()
        self.conv = QuantConv2d(3, 3, 1, bias_quant=Int8Bias, return_quant_tensor=True)
        self.left, self.right = quantized(), quantized()
        self.channels = quantized(scaling_per_output_channel=True, per_channel_broadcastable_shape=(1, 3, 1, 1))
        self.mixer = QuantConv2d(3, 3, 1, bias=False, return_quant_tensor=True)
        self.float_bias = QuantLinear(3, 3, return_quant_tensor=True)
        self.last = QuantLinear(3, 2, bias=False, return_quant_tensor=True)

    def forward(self, x):
        x = self.conv(self.input(x))
        x = self.left(x) + self.right(x)
        x = self.mixer(self.channels(x))
        x = self.float_bias(self.left(x).mean((2, 3)))
        return self.last(torch.sigmoid(x) * 2)


def test_all_findings_at_once_in_the_order_of_the_forward():
    report = check_scales(EverythingWrong(), IMAGE)
    assert (
        str(report)
        == """\
Scales of EverythingWrong: 6 findings.
1. QuantConv2d 'conv': Int8Bias needs the input scale, and the input is a plain Tensor
   from QuantIdentity 'input' (return_quant_tensor=False)
   fix: set return_quant_tensor=True on 'input'
2. EverythingWrong: add joins tensors whose scales, 0.0078125 and 0.0078125, agree only by accident
   from 'left.act_quant' and 'right.act_quant'
   fix: send all of them through one QuantIdentity(return_quant_tensor=True), as check_scales(insert=True) does
3. QuantConv2d 'mixer': a per-tensor input scale is needed, and the input has one of shape (1, 3, 1, 1): products of \
different scales cannot be added as integers
   from 'channels.act_quant'
   fix: set scaling_per_output_channel=False on the quantizer of the input; or re-quantize it with input_quant= on \
'mixer'
4. QuantLinear 'float_bias': return_quant_tensor=True needs the input scale, and the input is a plain Tensor
   from torch.Tensor.mean in EverythingWrong, which does not keep a scale
   fix: quantize the result of torch.Tensor.mean, for example with QuantIdentity(return_quant_tensor=True)
5. QuantLinear 'float_bias': return_quant_tensor=True needs a bias on the accumulator grid, and the bias is in float
   from torch.Tensor.mean in EverythingWrong, which does not keep a scale
   fix: set bias_quant=Int8Bias, Int16Bias or Int32Bias; or set output_quant= on 'float_bias'; or set \
return_quant_tensor=False on 'float_bias'
6. QuantLinear 'last': return_quant_tensor=True needs the input scale, and the input is a plain Tensor
   from torch.Tensor.mul in EverythingWrong, which does not keep a scale
   fix: quantize the result of torch.Tensor.mul, for example with QuantIdentity(return_quant_tensor=True)"""
    )


@pytest.mark.parametrize(
    ("between", "producer", "fix"),
    [
        (
            lambda x: F.max_pool2d(x, 2),
            "QuantReLU 'relu' (return_quant_tensor=False)",
            "set return_quant_tensor=True on",
        ),
        (lambda x: F.avg_pool2d(x, 2), "torch.nn.functional.avg_pool2d in Forward", "quantize the result of torch.nn"),
        (lambda x: 2 * F.avg_pool2d(x, 2) - 1, "torch.Tensor.sub in Forward", "quantize the result of"),
        (lambda x: F.relu(x).transpose(0, 1).mT, "QuantReLU 'relu'", "set return_quant_tensor=True on 'relu'"),
        (lambda x: torch.ones_like(x), "torch.ones_like in Forward", "quantize the result of"),
        (lambda x: torch.ones(2, 3), "outside quantized layers", "set input_quant= on 'fc'"),
    ],
)
def test_the_producer_of_a_plain_tensor(between, producer, fix):
    model = Forward(
        lambda self, x: self.fc(between(self.relu(x)).flatten(1)[:, :3]),
        relu=QuantReLU(),
        fc=QuantLinear(3, 2, bias_quant=Int32Bias),
    )
    finding = only(model)
    assert finding.kind == "bias" and finding.path == "fc" and finding.layer == "QuantLinear"
    assert len(finding.producers) == 1 and producer in finding.producers[0]
    assert fix in finding.fix


@pytest.mark.parametrize(
    ("before", "producer", "fix"),
    [
        (
            lambda: [QuantReLU(), qnn.QuantMaxPool2d(2), qnn.QuantUpsample(scale_factor=2, mode="bilinear")],
            "QuantReLU '0' (return_quant_tensor=False)",
            "set return_quant_tensor=True on '0'",
        ),
        (
            lambda: [quantized(), QuantConv2d(3, 3, 1, bias=False)],
            "QuantConv2d '1' (return_quant_tensor=False)",
            "set return_quant_tensor=True on '1'",
        ),
        (
            lambda: [quantized(), QuantConv2d(3, 3, 1)],
            "QuantConv2d '1' (its output is not quantized)",
            "set output_quant= and return_quant_tensor=True on '1'",
        ),
        (
            lambda: [QuantReLU(act_quant=None)],
            "QuantReLU '0' (its output is not quantized)",
            "set act_quant= and return_quant_tensor=True on '0'",
        ),
        (
            lambda: [qnn.QuantLinear(4, 4), qnn.QuantEltwiseAdd()],
            "QuantEltwiseAdd '1' (return_quant_tensor=False)",
            "set return_quant_tensor=True on '1'",
        ),
    ],
)
def test_the_layer_that_returned_a_plain_tensor(before, producer, fix):
    class Sequence(nn.Sequential):
        def forward(self, x):
            for layer in self:
                x = layer(x, x) if isinstance(layer, qnn.QuantEltwiseAdd) else layer(x)
            return x

    finding = only(Sequence(*before(), QuantLinear(4, 2, bias_quant=Int8Bias)))
    assert (finding.producers, finding.fix) == ((producer,), fix)


def test_the_value_of_a_quant_tensor_handed_on():
    model = Forward(lambda self, x: self.fc(self.q(x).value), q=quantized(), fc=QuantLinear(4, 2, bias_quant=Int8Bias))
    finding = only(model)
    assert finding.producers == ("QuantIdentity 'q'",) and "not its plain .value" in finding.fix


def test_a_sum_with_a_plain_branch():
    model = Forward(
        lambda self, x: self.fc(self.q(x) + self.plain(x)),
        q=quantized(),
        plain=QuantLinear(4, 4),
        fc=QuantLinear(4, 2, bias_quant=Int8Bias),
    )
    finding = only(model)
    expected = "add in Forward with a plain Tensor from QuantLinear 'plain' (its output is not quantized)"
    assert finding.producers == (expected,)
    assert finding.fix == "set output_quant= and return_quant_tensor=True on 'plain'"


def test_branches_of_different_signs_and_zero_points():
    joined = Forward(
        lambda self, x: torch.cat([self.a(x), self.b(x)]),
        a=quantized(),
        b=quantized(Uint8ActPerTensorFloat, min_val=0.0, max_val=1.0, scaling_impl_type="const"),
    )
    assert "cat joins tensors of different signs" in only(joined).problem
    shifted = Forward(
        lambda self, x: torch.cat([self.a(x), self.b(x)]),
        a=quantized(ShiftedUint8ActPerTensorFloat),
        b=quantized(ShiftedUint8ActPerTensorFloat),
    )
    assert only(shifted).kind == "meeting"


@pytest.mark.parametrize("preset", [Int8ActPerTensorFloat, Int8ActPerTensorFixedPoint])
def test_scales_that_agree_by_accident(preset):
    model = Forward(lambda self, x: self.a(x) - self.b(x), a=quantized(preset), b=quantized(preset))
    finding = only(model)
    assert finding.function == "sub" and finding.producers == ("'a.act_quant'", "'b.act_quant'")
    assert "agree only by accident" in finding.problem
    for _ in range(40):  # trained on different data, they do differ, and the words change
        model.a(IMAGE), model.b(5 * IMAGE)
    assert "different scales" in only(model).problem


def test_scales_that_agree_by_construction_are_left_in_peace():
    shared, constant = quantized(), {"scaling_impl_type": "const", "min_val": -1.0, "max_val": 1.0}
    weight = QuantLinear(4, 4, bias=False, return_quant_tensor=True)
    models = [
        Forward(lambda self, x: self.q(x) + self.q(2 * x) + self.q(x), q=shared),
        Forward(lambda self, x: self.a(x) + self.b(x), a=quantized(**constant), b=quantized(**constant)),
        # One input scale and one weight quantizer: one accumulator scale.
        Forward(
            lambda self, x: self.w(self.q(x)) + self.u(self.q(2 * x)),
            q=quantized(),
            w=weight,
            u=QuantLinear(4, 4, bias=False, weight_quant=weight.weight_quant, return_quant_tensor=True),
        ),
    ]
    for model in models:
        report = check_scales(model, IMAGE)
        assert not report, str(report)


def test_nothing_is_needed_where_no_scale_is_used():
    model = nn.Sequential(QuantConv2d(3, 2, 1), nn.Sigmoid(), QuantReLU(), nn.Flatten(), nn.Linear(32, 2))
    report = check_scales(model, IMAGE)
    assert not report and len(report) == 0 and str(report) == "Scales of Sequential: nothing to mend."
    report.raise_if_any()


def test_a_reshape_that_merges_channels_and_the_forward_goes_on():
    channels = quantized(scaling_per_output_channel=True, per_channel_broadcastable_shape=(1, 3, 1, 1))
    model = Forward(
        lambda self, x: self.fc(torch.sigmoid(torch.flatten(self.q(x), 1))),
        q=channels,
        fc=QuantLinear(48, 2, bias_quant=Int8Bias),
    )
    first, second = check_scales(model, IMAGE)
    assert (first.kind, first.function, first.producers) == ("function", "flatten", ("'q.act_quant'",))
    assert "merges dim 1" in first.problem and first.fix.startswith("keep that dim apart")
    assert second.kind == "bias"


def test_weights_that_need_the_input():
    from brevitas.quant import Int8AccumulatorAwareWeightQuant

    model = nn.Sequential(nn.Flatten(), QuantLinear(48, 2, weight_quant=Int8AccumulatorAwareWeightQuant))
    finding = only(model)
    assert (finding.kind, finding.path) == ("weight", "1") and "needs the bit width of the input" in finding.problem


def test_a_bias_without_quantized_weights_and_an_activation_without_quantizer():
    model = Forward(
        lambda self, x: self.fc(self.q(x)),
        q=quantized(),
        fc=QuantLinear(4, 2, weight_quant=None, bias_quant=Int8Bias),
    )
    finding = only(model)
    assert finding.kind == "bias" and "weight_quant is off" in finding.problem and "set weight_quant=" in finding.fix
    model = nn.Sequential(QuantReLU(act_quant=None, return_quant_tensor=True))
    finding = only(model)
    assert finding.kind == "output" and "act_quant is off" in finding.problem


SEQUENCE = torch.linspace(-1, 1, 5 * 3 * 8).reshape(5, 3, 8)


@pytest.mark.parametrize(
    ("layer", "example"),
    [
        (lambda: qnn.QuantRNN(8, 6), SEQUENCE),
        (lambda: qnn.QuantLSTM(8, 6, bidirectional=True, return_quant_tensor=True), SEQUENCE),
        (lambda: qnn.QuantGRU(8, 6), SEQUENCE),
        (lambda: qnn.QuantMultiheadAttention(8, 2, packed_in_proj=False), (SEQUENCE, SEQUENCE, SEQUENCE)),
        (lambda: Forward(lambda self, x: self.add(self.a(x), self.b(x)), add=qnn.QuantEltwiseAdd(), **two()), IMAGE),
        (
            lambda: nn.Sequential(quantized(), qnn.QuantAvgPool2d(2), qnn.QuantConv2d(3, 2, 1, bias_quant=Int8Bias)),
            IMAGE,
        ),
        (
            lambda: nn.Sequential(
                quantized(),
                qnn.QuantUpsample(scale_factor=2, mode="bilinear"),
                qnn.QuantMaxPool2d(2),
                qnn.QuantDropout(0.5),
                QuantConv2d(3, 2, 1, bias_quant=Int8Bias),
            ),
            IMAGE,
        ),
    ],
)
def test_layers_that_bring_what_they_need(layer, example):
    report = check_scales(layer(), example)
    assert not report, str(report)


def two():
    return {"a": quantized(), "b": quantized()}


@pytest.mark.parametrize(
    ("layer", "kind", "fix"),
    [
        (
            lambda: qnn.TruncQuantAccumulator(TruncTo8bit),
            "metadata",
            "put a QuantIdentity(return_quant_tensor=True) before",
        ),
        (lambda: qnn.QuantAvgPool2d(2), "metadata", "put a QuantIdentity(return_quant_tensor=True) before '0'"),
        (lambda: qnn.BatchNorm2dToQuantScaleBias(3, bias_quant=Int8Bias), "bias", "set input_quant= on '0'"),
        (lambda: qnn.HadamardClassifier(4, 2, return_quant_tensor=True), "output", "'0'"),
    ],
)
def test_layers_that_need_a_scale(layer, kind, fix):
    finding = only(nn.Sequential(layer()))
    assert (finding.kind, finding.path) == (kind, "0") and fix in finding.fix


def test_operands_that_meet_in_a_layer_without_input_quantizer():
    add = qnn.QuantEltwiseAdd(input_quant=None, return_quant_tensor=True)
    model = Forward(lambda self, x: self.add(self.a(x), self.b(x)), add=add, **two())
    finding = only(model)
    assert finding.where == "QuantEltwiseAdd 'add'" and finding.kind == "meeting"
    assert finding.fix == "give an input_quant= to 'add', which all of them go through"
    report = check_scales(model, IMAGE, insert=True)  # the layer has a quantizer for that: nothing is inserted
    assert report.inserted == () and list(report) == [finding]


def test_a_loop_has_one_finding_for_each_producer():
    def run(self, x):
        for _ in range(5):
            x = self.fc(torch.tanh(x))
        return x

    first, again = check_scales(Forward(run, fc=QuantLinear(4, 4, bias_quant=Int8Bias)), IMAGE)
    assert first.producers == ("outside quantized layers",) and "torch.tanh" in again.producers[0]


def test_what_cannot_go_on_is_the_last_finding():
    def run(self, x):
        x = self.fc(x)
        raise QuantMetadataError("the code of a user")

    model = nn.Sequential(nn.Identity(), Forward(run, fc=QuantLinear(4, 4, bias_quant=Int8Bias)))
    first, second = check_scales(model, IMAGE)
    assert (first.kind, first.path) == ("bias", "1.fc")
    assert (second.kind, second.path) == ("stopped", "1") and "the code of a user" in second.problem


# --- Inputs, outputs, and what stays as it is ------------------------------------------------------------------------


def test_one_input_a_tuple_a_dict_and_a_quant_tensor():
    def run(self, x, scale=1.0):
        return self.fc(x if isinstance(x, QuantTensor) else x * scale)

    class Model(Forward):
        def forward(self, x, factor=1.0):
            return self.run(self, x, factor)

    model = Model(run, fc=QuantLinear(4, 2, bias_quant=Int8Bias))
    for example in (IMAGE, (IMAGE,), [IMAGE, 2.0], {"x": IMAGE, "factor": 2.0}):
        assert found(model, example) == [("bias", "fc")]
    assert found(model, QuantTensor(torch.ones(1, 4), 1.0, 0.0, 8, True)) == []


def test_report_of_one_finding():
    model = nn.Sequential(QuantLinear(4, 2, bias_quant=Int8Bias))
    report = check_scales(model, IMAGE)
    assert isinstance(report, ScaleReport) and report and [*report] == list(report.findings)
    assert report.model is None and report.inserted == ()
    assert report.findings[0] == Finding(
        "bias",
        "0",
        "QuantLinear",
        "",
        "Int8Bias needs the input scale, and the input is a plain Tensor",
        ("outside quantized layers",),
        "set input_quant= on '0'; or use Int8BiasPerTensorFloatInternalScaling",
    )
    with pytest.raises(QuantMetadataError) as caught:
        report.raise_if_any()
    assert str(caught.value) == str(report)


def test_the_model_the_input_and_the_process_are_untouched():
    model = EverythingWrong()
    model.conv.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    attributes = [set(vars(m)) for m in model.modules()]
    dispatcher = QuantTensor.__torch_function__
    image, seed = IMAGE.clone(), torch.get_rng_state()
    check_scales(model, image)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert QuantTensor.__torch_function__ == dispatcher
    assert torch.equal(image, IMAGE) and torch.equal(torch.get_rng_state(), seed)
    with pytest.raises(QuantMetadataError):
        model(IMAGE)


def test_the_process_is_untouched_by_a_model_that_fails():
    def run(self, x):
        raise ZeroDivisionError("of the user")

    dispatcher = QuantTensor.__torch_function__
    with pytest.raises(ZeroDivisionError, match="of the user"):
        check_scales(Forward(run), IMAGE)
    assert QuantTensor.__torch_function__ == dispatcher


def test_parameters_that_do_not_exist_yet():
    model = nn.Sequential(nn.LazyLinear(4), QuantLinear(4, 2, bias_quant=Int8Bias))
    finding = only(model)
    assert finding.kind == "bias" and isinstance(model[0], nn.LazyLinear)
    assert brevitas.summary(model).parameters == 10


def test_in_place_operations_do_not_reach_the_example():
    image = IMAGE.clone()
    check_scales(Forward(lambda self, x: self.q(x.mul_(3)), q=quantized()), image)
    assert torch.equal(image, IMAGE)


@pytest.mark.slow
def test_a_compiled_model():
    model = nn.Sequential(torch.compile(nn.Sequential(QuantLinear(4, 2, bias_quant=Int8Bias)), backend="eager"))
    finding = only(torch.compile(model, backend="eager"))
    assert finding.kind == "bias"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 3, "example": IMAGE}, "check_scales: expected a torch.nn.Module, got 3"),
        (
            {"model": nn.ReLU(), "example": IMAGE, "insert": "yes"},
            "insert = 'yes' is not legal: expected True or False",
        ),
        (
            {"model": nn.ReLU(), "example": IMAGE, "shared_quant": Int8ActPerTensorFloat},
            "no effect without insert=True",
        ),
        (
            {"model": nn.ReLU(), "example": IMAGE, "insert": True, "shared_quant": nn.ReLU},
            "shared_quant = .*ReLU.* is not legal: expected an activation quantizer class",
        ),
        (
            {"model": nn.ReLU(), "example": IMAGE, "insert": True, "shared_quant": Int8WeightPerTensorFloat},
            "Int8WeightPerTensorFloat.* is not legal: expected an activation quantizer class",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(QuantConfigError, match=message):
        check_scales(**arguments)
