"""The canonical graph: which nodes, under which names, with which metadata."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from export_networks import Composed, calibrated, images, lenet
from torch import nn

from brevitas.errors import ExportError
from brevitas.export import capture, get_target, lower
from brevitas.export import graph as g
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import Int8WeightPerChannelFloat, IntBias, ShiftedUint8ActPerTensorFloat
from brevitas.quant_tensor import QuantTensor


def qt(**kwargs):
    return QuantIdentity(return_quant_tensor=True, **kwargs)


def captured(function, shape=(4, 6), count=1, **parts):
    model = calibrated(Composed(function, **parts), *[shape] * count)
    return model, capture(model, [torch.randn(shape) for _ in range(count)])


def operators(graph):
    return [node.op_type for node in graph.graph]


def named(graph):
    return {node.name: node for node in graph.graph}


@pytest.fixture(scope="module")
def net():
    model = lenet("IntBias, per channel")
    return model, capture(model, [images(2)], batch_names=["batch"])


def test_one_node_an_active_quantizer_and_standard_operators_between(net):
    _, graph = net
    assert operators(graph) == [
        *("Quant", "Quant", "Quant", "Conv", "Relu", "Quant", "MaxPool"),
        *("Quant", "Quant", "Conv", "Relu", "Quant", "MaxPool", "Reshape"),
        *("Quant", "Quant", "Gemm", "Relu", "Quant", "Quant", "Quant", "Gemm"),
    ]


def test_names_derive_from_the_layers(net):
    _, graph = net
    nodes = named(graph)
    for name in ("quant_inp.act_quant", "conv1.weight_quant", "conv1.bias_quant", "conv1", "relu2.act_quant", "fc2"):
        assert name in nodes
    constants = graph.graph.initializers
    for name in (
        "conv1.weight",
        "conv1.weight_scale",
        "conv1.weight_bit_width",
        "relu1.act_zero_point",
        "fc1.bias_scale",
    ):
        assert name in constants
    assert [v.name for v in graph.graph.inputs] == ["input"]
    assert [v.name for v in graph.graph.outputs] == ["output"]
    assert all(value.uses() for value in constants.values())


def test_metadata_say_which_layer_a_node_belongs_to(net):
    _, graph = net
    nodes = named(graph)
    conv, quant = nodes["conv1"], nodes["conv1.weight_quant"]
    assert (g.meta(conv, g.LAYER), g.meta(conv, g.CLASS)) == ("conv1", "QuantConv2d")
    assert (g.meta(quant, g.LAYER), g.meta(quant, g.CLASS)) == ("conv1", "QuantConv2d")
    assert (g.meta(quant, g.QUANTIZER), g.meta(quant, g.ROLE), g.meta(quant, g.CALL)) == (
        "conv1.weight_quant",
        "weight",
        "0",
    )
    relu = nodes["relu1.act_quant"]
    assert (g.meta(relu, g.ROLE), g.meta(relu, g.CLASS)) == ("act", "QuantReLU")
    for node in graph.graph:
        assert set(node.metadata_props) <= set(g.NODE_KEYS)
        assert "brevitas_record" not in node.attributes


def test_weights_enter_as_their_quantized_values(net):
    model, graph = net
    q = g.Quantizer.read(named(graph)["conv1.weight_quant"])
    assert np.array_equal(q.codes(), model.conv1.int_weight().numpy())
    assert np.array_equal(g.constant(q.node.inputs[0]), model.conv1.quant_weight().value.detach().numpy())
    assert (q.bit_width, q.signed, q.narrow, q.rounding) == (8.0, True, True, "ROUND")
    assert q.scale.shape == (4, 1, 1, 1) and q.varying_dims == (0,)
    assert np.array_equal(q.scale, model.conv1.quant_weight_scale().detach().numpy())


def test_biases_have_the_scale_of_the_accumulator(net):
    model, graph = net
    q = g.Quantizer.read(named(graph)["conv2.bias_quant"])
    product = model.relu1.quant_act_scale() * model.conv2.quant_weight_scale().flatten()
    assert np.allclose(q.scale, product.detach().numpy(), rtol=1e-6)
    assert q.bit_width == float(model.conv2.quant_bias_bit_width())


def test_scales_with_one_element_are_scalars(net):
    _, graph = net
    q = g.Quantizer.read(named(graph)["relu1.act_quant"])
    assert q.scale.shape == q.zero_point.shape == () and not q.signed and q.range == (0, 255)


def test_the_batch_is_dynamic_under_the_given_name(net):
    _, graph = net
    assert str(graph.graph.inputs[0].shape) == "[batch,1,12,12]"
    assert str(graph.graph.outputs[0].shape) == "[batch,10]"


def test_a_layer_that_is_called_twice_has_one_set_of_constants():
    _, graph = captured(lambda m, x: m.act(m.fc(m.act(m.fc(m.act(x))))), act=qt(), fc=QuantLinear(6, 6, bias=False))
    nodes = [n for n in graph.graph if n.domain == g.DOMAIN]
    assert [(g.meta(n, g.QUANTIZER), g.meta(n, g.CALL)) for n in nodes] == [
        *(("act.act_quant", "0"), ("fc.weight_quant", "0"), ("act.act_quant", "1")),
        *(("fc.weight_quant", "1"), ("act.act_quant", "2")),
    ]
    assert len({id(n.inputs[1]) for n in nodes}) == 2
    assert nodes[1].inputs[0] is nodes[3].inputs[0]
    assert len({n.name for n in graph.graph}) == len(operators(graph))


def test_a_quantizer_that_two_layers_share_has_one_set_of_constants():
    first = QuantLinear(6, 6, bias=False)
    second = QuantLinear(6, 6, bias=False, weight_quant=first.weight_quant)
    _, graph = captured(lambda m, x: m.b(m.act(m.a(m.act(x)))), act=qt(), a=first, b=second)
    weights = [n for n in graph.graph if g.meta(n, g.ROLE) == "weight"]
    assert [g.meta(n, g.QUANTIZER) for n in weights] == ["a.weight_quant"] * 2
    assert weights[0].inputs[1] is weights[1].inputs[1]
    assert not np.array_equal(g.constant(weights[0].inputs[0]), g.constant(weights[1].inputs[0]))


def test_a_shared_quantizer_before_an_addition():
    _, graph = captured(lambda m, x, y: m.act(x) + m.act(y), count=2, act=qt())
    assert operators(graph) == ["Quant", "Quant", "Add"]
    assert [v.name for v in graph.graph.inputs] == ["input_0", "input_1"]


def test_functions_that_snap_to_the_grid_become_clip_and_quant():
    _, graph = captured(lambda m, x: F.relu6(m.act(x).clamp(-0.4, 0.7)), act=qt())
    assert operators(graph) == ["Quant", "Clip", "Quant", "Clip", "Quant"]
    snaps = [n for n in graph.graph if g.meta(n, g.ROLE) == "snap"]
    assert [(g.meta(n, g.QUANTIZER), g.meta(n, g.CALL)) for n in snaps] == [("requantize", "0"), ("requantize", "1")]
    assert all(g.constant(n.inputs[1]) == g.constant(graph.graph[0].inputs[1]) for n in snaps)


def test_quant_tensors_at_the_edges_are_recorded():
    model = calibrated(Composed(lambda m, x: (m.fc(x), m.act(x)), fc=QuantLinear(6, 4, bias=False), act=qt()), (4, 6))
    x = calibrated(qt(act_quant=ShiftedUint8ActPerTensorFloat), (4, 6))(torch.randn(4, 6))
    graph = capture(model, [x])
    (given,) = json.loads(graph.metadata_props[g.INPUTS])
    assert given["signed"] is False and given["bit_width"] == 8.0
    assert np.float32(given["scale"]) == x.scale.item() and given["zero_point"] == x.zero_point.item()
    plain, quantized = json.loads(graph.metadata_props[g.OUTPUTS])
    assert plain is None and np.float32(quantized["scale"]) == model.act.quant_act_scale().item()


def test_layers_without_quantization_and_torch_modules_are_float_operators():
    model = nn.Sequential(
        QuantConv2d(1, 2, 3, weight_quant=None), nn.BatchNorm2d(2), QuantReLU(act_quant=None), nn.Sigmoid()
    )
    graph = capture(model.eval(), [torch.zeros(1, 1, 6, 6)])
    assert not [n for n in graph.graph if n.domain == g.DOMAIN]
    assert operators(graph)[0] == "Conv" and operators(graph)[-2:] == ["Relu", "Sigmoid"]


def test_a_single_layer_is_a_model():
    graph = capture(QuantLinear(3, 2, weight_quant=Int8WeightPerChannelFloat).eval(), [torch.zeros(1, 3)])
    assert set(graph.graph.initializers) >= {"weight", "weight_scale", "bias"}
    assert named(graph)["weight_quant"].metadata_props[g.LAYER] == ""


def test_constants_do_not_depend_on_the_values_of_the_input():
    model = lenet("Int8Bias")
    zeros, digits = (capture(model, [x]) for x in (torch.zeros(2, 1, 12, 12), images(2)))
    first, second = (
        {name: v.const_value.numpy() for name, v in graph.graph.initializers.items()} for graph in (zeros, digits)
    )
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_several_and_nested_outputs_keep_their_order():
    _, graph = captured(lambda m, x: {"a": m.act(x), "b": [x * 2, (m.act(x).value,)]}, act=qt())
    assert [v.name for v in graph.graph.outputs] == ["output_0", "output_1", "output_2"]


def test_an_output_returned_twice_and_an_input_returned_as_it_is():
    _, graph = captured(lambda m, x: (lambda y: (y, y, x))(m.act(x).value), act=qt())
    assert operators(graph) == ["Quant", "Identity", "Identity"]
    assert len({id(v) for v in graph.graph.outputs}) == 3


def test_equal_scales_of_different_quantizers_need_no_assertion_in_the_graph():
    model = Composed(
        lambda m, x, y: m.a(x) + m.b(y),
        a=qt(scaling_impl_type="const", scaling_init=1.0),
        b=qt(scaling_impl_type="const", scaling_init=1.0),
    )
    graph = capture(model.eval(), [torch.randn(2, 3), torch.randn(2, 3)])
    assert operators(graph) == ["Quant", "Quant", "Add"]


def test_a_model_that_cannot_be_traced_is_refused_with_the_first_cause():
    model = calibrated(Composed(lambda m, x: m.act(x) if x.sum() > 0 else x, act=qt()), (2, 2))
    with pytest.raises(ExportError, match=r"E04 .*Composed .*data-dependent.*torch\.where"):
        capture(model, [torch.ones(2, 2)])


def test_a_batch_that_the_model_fixes_is_refused_with_the_remedy():
    model = calibrated(Composed(lambda m, x: m.act(x).view(4, -1), act=qt()), (4, 6))
    with pytest.raises(ExportError, match=r"E04 .*dynamic_axes"):
        capture(model, [torch.ones(4, 6)], batch_names=["batch"])


def test_dead_code_is_not_exported():
    def function(m, x):
        m.unused(x)
        return m.act(x)

    _, graph = captured(function, act=qt(), unused=QuantLinear(6, 6))
    assert operators(graph) == ["Quant"]
    assert not [n for n in graph.graph.initializers if n.startswith("unused")]


def test_a_bias_with_an_accumulator_wide_grid():
    model, graph = captured(lambda m, x: m.fc(m.act(x)), act=qt(), fc=QuantLinear(6, 4, bias_quant=IntBias))
    q = g.Quantizer.read(named(graph)["fc.bias_quant"])
    assert np.array_equal(q.codes(), model.fc.int_bias().numpy())


def test_a_compiled_model_exports_as_the_model_itself():
    model = lenet("float bias")
    graph = capture(torch.compile(model), [images(1)])
    assert "conv1.weight_quant" in named(graph) and graph.graph.name == "LeNet"


class SquareRoot(nn.Module):
    """A quantizer of a user that satisfies the protocol and computes something else than a Quant node."""

    is_quant_enabled = is_signed = True
    is_narrow_range = False
    rounding_mode = "ROUND"

    def forward(self, x):
        codes = torch.round(torch.sign(x) * x.abs().sqrt() / 0.25).clamp(-8, 7)
        return QuantTensor(codes * 0.25, scale=0.25, zero_point=0.0, bit_width=4, signed=True)


def test_a_quantizer_that_computes_something_else_is_marked():
    model = Composed(lambda m, x: m.odd_quant(x).value, odd_quant=SquareRoot()).eval()
    for x in (torch.tensor([[0.1, 0.9, -2.0]]), torch.zeros(1, 3)):
        graph = capture(model, [x])
    (node,) = graph.graph
    assert "another function of its input" in g.meta(node, g.UNSUPPORTED)
    with pytest.raises(ExportError, match="E24 .*another function of its input"):
        lower(graph, "qdq")


def test_a_quantizer_of_a_user_that_is_uniform_exports():
    class Uniform(SquareRoot):
        def forward(self, x):
            return QuantTensor(
                torch.round(x / 0.25).clamp(-8, 7) * 0.25, scale=0.25, zero_point=0.0, bit_width=4, signed=True
            )

    model = Composed(lambda m, x: m.odd_quant(x).value, odd_quant=Uniform()).eval()
    graph = capture(model, [torch.tensor([[0.1, 0.9, -20.0]])])
    assert [v.code for v in get_target("qonnx").check(graph, {})] == []


def test_a_scale_that_depends_on_the_input_is_refused():
    class Dynamic(SquareRoot):
        def forward(self, x):
            scale = x.abs().amax().clamp(min=0.01) / 7
            return QuantTensor(torch.round(x / scale) * scale, scale=scale, zero_point=0.0, bit_width=4, signed=True)

    model = Composed(lambda m, x: m.odd_quant(x).value, odd_quant=Dynamic()).eval()
    with pytest.raises(ExportError, match="E24 .*depends on its input"):
        lower(capture(model, [torch.ones(1, 3)]), "qonnx")
