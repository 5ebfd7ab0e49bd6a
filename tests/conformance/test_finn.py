"""The FINN dialect, executed by the qonnx package: its integers are the model's, ties included."""

import numpy as np
import onnx
import pytest
import torch
from export_networks import initializers
from finn_models import LEGAL_LENETS, MODELS, fixed_point, make, qt

from brevitas.export import FINNManager, verify
from brevitas.export.integer import to_integer
from brevitas.export.lowering.thresholds import thresholds
from brevitas.export.verification.runtimes import open_session
from brevitas.nn import QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import Int8Bias, ShiftedUint8ActPerTensorFloat

pytestmark = pytest.mark.slow


def run(proto, *inputs):
    names = [v.name for v in proto.graph.input]
    return open_session("qonnx", proto)({n: np.asarray(x, np.float32) for n, x in zip(names, inputs, strict=True)})


@pytest.mark.parametrize("name", [*LEGAL_LENETS, *MODELS])
def test_every_integer_is_the_model_s(name):
    model, inputs = make(name)
    proto = FINNManager.export(model, input_t=inputs)
    report = verify(model, proto, inputs)
    assert report.runtime.startswith("qonnx") and report.total > 0
    assert report.diverged == 0, str(report)
    assert report.ties <= 1e-3 * report.total, str(report)
    assert verify(model, proto, inputs, mode="end_to_end").diverged <= report.ties


@pytest.mark.parametrize("name", ["IntBias, per channel", "Int8Bias", "W4A4", "W2A2", "one dimension", "max pool"])
def test_integer_layers_equal_the_integer_reference(name):
    model, inputs = make(name)
    codes = to_integer(model, inputs).run(*inputs).values["output"]
    assert np.array_equal(run(FINNManager.export(model, input_t=inputs), *inputs)["output"], codes)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_ties_fall_as_in_the_model(bits):
    torch.manual_seed(bits)
    model = fixed_point(bits)
    x = torch.randn(400, 12)
    model.train()(x)
    model.eval()
    scale = model[0].quant_act_scale()
    x = torch.cat([x, torch.randint(-(2**bits), 2**bits, (400, 12)) * scale / 2])  # halves of steps
    with torch.no_grad():
        first = model[1](model[0](x))
        first = getattr(first, "value", first)
        steps = first / model[2].quant_act_scale()
        assert int((steps - steps.floor() == 0.5).sum()) > 20  # ties of a layer's own
        expected = model(x).value.numpy()
    proto = FINNManager.export(model, input_t=x)
    assert np.array_equal(run(proto, x)["output"], expected)
    assert np.array_equal(to_integer(model, x).run(x).values["output"], expected)


@pytest.mark.parametrize("act", [QuantIdentity, QuantReLU])
def test_each_code_begins_at_its_threshold_in_the_reader_too(act):
    torch.manual_seed(0)
    layer = act(bit_width=4, return_quant_tensor=True)
    layer.train()(torch.randn(100, 7))
    layer.eval()
    low, high = (0, 15) if act is QuantReLU else (-8, 7)
    limits = thresholds(layer.quant_act_scale().detach().numpy(), low, high, "ROUND").reshape(-1)
    near = [np.nextafter(limits, np.float32(end)) for end in (-np.inf, np.inf)]
    x = np.concatenate([limits, *near, np.float32([0.0, -0.0])])[:, None]
    found = run(FINNManager.export(layer, x.shape), x)["output"]
    assert np.array_equal(found, layer(torch.from_numpy(x)).value.detach().numpy())
    steps = np.rint(found / layer.quant_act_scale().detach().numpy()).reshape(-1)
    assert steps[:15].tolist() == list(range(low + 1, high + 1)) and steps[15:30].tolist() == list(range(low, high))


@pytest.mark.parametrize("preset", [None, ShiftedUint8ActPerTensorFloat])
def test_a_quant_tensor_as_input(preset):
    torch.manual_seed(3)
    quantize = qt(bit_width=5) if preset is None else qt(preset)
    quantize.train()(torch.randn(50, 6) + 1)
    x = quantize.eval()(torch.randn(50, 6) + 1)
    model = torch.nn.Sequential(QuantLinear(6, 4, bias_quant=Int8Bias), qt(bit_width=4))
    model.train()(x)
    model.eval()
    proto = FINNManager.export(model, input_t=x)
    types = {a.tensor_name: a.quant_parameter_tensor_names[0].value for a in proto.graph.quantization_annotation}
    assert types["input"] == ("INT5" if preset is None else "UINT8")
    assert [n.op_type for n in proto.graph.node] == [
        *([] if preset is None else ["Sub"]),
        *("MatMul", "Add", "Mul", "MultiThreshold", "Add", "Mul"),
    ]
    assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    report = verify(model, proto, x)
    assert report.diverged == 0 and report.ties == 0, str(report)
    assert np.array_equal(run(proto, x.int().numpy())["output"], model(x).value.detach().numpy())


def test_the_values_of_a_quant_tensor_input_are_scaled_in_front_of_what_reads_values():
    torch.manual_seed(3)
    x = qt(bit_width=5).eval()(torch.randn(5, 6))
    model = torch.nn.Sequential(torch.nn.Sigmoid(), qt(bit_width=4))
    model.train()(x.value)
    model.eval()
    proto = FINNManager.export(model, input_t=x)
    assert [n.op_type for n in proto.graph.node] == ["Mul", "Sigmoid", "MultiThreshold", "Add", "Mul"]
    assert initializers(proto)["input_scale"].reshape(()) == x.scale.reshape(()).numpy()
    assert verify(model, proto, x).diverged == 0


@pytest.mark.parametrize("name", ["W4A4", "binary", "average pools, signed", "residual, depthwise, batch norm"])
def test_annotated_ranges_hold(name):
    """What the reader computes for each annotated tensor lies in the datatype that is announced."""
    from qonnx.core.datatype import DataType

    model, inputs = make(name)
    proto = FINNManager.export(model, input_t=inputs)
    types = {
        a.tensor_name: DataType[a.quant_parameter_tensor_names[0].value] for a in proto.graph.quantization_annotation
    }
    assert len(types) > 4
    present = {o.name for o in proto.graph.output}
    observed = onnx.ModelProto.FromString(proto.SerializeToString())
    observed.graph.output.extend(v for v in proto.graph.value_info if v.name in types and v.name not in present)
    constants = initializers(proto)
    for name in [n for n in types if n in constants]:
        observed.graph.output.remove(next(o for o in observed.graph.output if o.name == name))
    found = {**run(observed, *(x * 3 for x in inputs)), **constants}
    for name, datatype in types.items():
        assert np.array_equal(found[name], np.rint(found[name])), name
        assert all(datatype.allowed(v) for v in np.unique(found[name])), (name, datatype)


def test_a_dynamic_batch():
    model, inputs = make("W4A4")
    proto = FINNManager.export(model, (1, 1, 12, 12), dynamic_axes={"input": {0: "batch"}})
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert verify(model, proto, inputs).diverged == 0
