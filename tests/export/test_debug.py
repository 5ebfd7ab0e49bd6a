"""Debug hooks: what they record, and the markers that a FINN graph has in the same places."""

import pytest
import torch
from torch import nn

from brevitas.errors import QuantConfigError
from brevitas.export import FINNManager, QONNXManager, enable_debug, verify
from brevitas.nn import QuantConv2d, QuantIdentity, QuantReLU


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(QuantIdentity(return_quant_tensor=True), QuantConv2d(1, 2, 3), QuantReLU(bit_width=4))
    net.train()(torch.randn(4, 1, 5, 5))
    return net.eval()


X = torch.linspace(-1, 1, 25).reshape(1, 1, 5, 5)


def test_values_are_those_of_the_last_eval_forward(model):
    hook = enable_debug(model)
    y = model(X)
    assert set(hook.values) == {f"{i}.{end}" for i in range(3) for end in ("input", "output")}
    assert torch.equal(hook.values["0.input"], X) and torch.equal(hook.values["2.output"], y)
    assert torch.equal(hook.values["1.input"], hook.values["0.output"])
    assert not any(value.requires_grad for value in hook.values.values())
    model.train()(2 * X)
    assert torch.equal(hook.values["0.input"], X), "training forwards are not recorded"
    hook.clear()
    assert not hook.values
    model.eval()(X)
    hook.remove()
    hook.clear()
    model(X)
    assert not hook.values and all(layer.export_debug_name is None for layer in model)


def test_a_fresh_hook_each_call_unless_one_is_given(model):
    first = enable_debug(model, inp=False)
    second = enable_debug(model, out=False)
    assert first is not second
    assert enable_debug(model, hook=first, filter_fn=lambda m: isinstance(m, QuantReLU)) is first
    model(X)
    assert {k for k in second.values if k.endswith(".output")} == set()
    assert {"2.input", "0.output"} <= set(first.values) and "0.input" not in first.values


def test_finn_graphs_are_marked(model):
    from qonnx.core.onnx_exec import execute_onnx

    hook = enable_debug(model, filter_fn=lambda m: not isinstance(m, QuantIdentity))
    proto = FINNManager.export(model, input_t=X)
    markers = {a.s.decode(): n for n in proto.graph.node if n.op_type == "DebugMarker" for a in n.attribute}
    assert set(markers) == {"1.input", "1.output", "2.input", "2.output"}
    assert all(n.domain == "finn.custom_op.general" for n in markers.values())
    assert verify(model, proto, X).ok
    model(X)
    from qonnx.core.modelwrapper import ModelWrapper

    wrapped = ModelWrapper(proto)
    found = execute_onnx(wrapped, {"input": X.numpy()}, return_full_exec_context=True)
    step = float(model[1].quant_weight_scale() * model[0].quant_act_scale())
    for name in ("1.output", "2.output"):
        seen = torch.from_numpy(found[markers[name].output[0]])
        assert torch.allclose(seen, hook.values[name], atol=step / 4), name
    hook.remove()
    assert "DebugMarker" not in [n.op_type for n in FINNManager.export(model, input_t=X).graph.node]
    assert "DebugMarker" not in [n.op_type for n in QONNXManager.export(model, input_t=X).graph.node]


def test_mistakes(model):
    with pytest.raises(QuantConfigError, match="filter_fn matches no quantized layer of Sequential; it has QuantId"):
        enable_debug(model, filter_fn=lambda m: False)
    with pytest.raises(QuantConfigError, match="leave nothing to record"):
        enable_debug(model, inp=False, out=False)
    assert all(layer.export_debug_name is None for layer in model)
    assert not any(layer._forward_hooks for layer in model)
