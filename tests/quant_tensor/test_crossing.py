"""QuantTensors inside compiled, exported, traced and checkpointed code."""

import copy
import io
import warnings

import pytest
import torch
from grids import make
from network import Network, Quantizer, outputs
from torch import nn
from torch.utils.checkpoint import checkpoint

from brevitas.errors import QuantMetadataError
from brevitas.quant_tensor import QuantTensor, Source, dropped_by


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batch(size=2):
    return torch.randn(size, 4, 8, 8)


def gradients(network, result):
    network.zero_grad()
    (result[0].sum() + result[1] + result[2].value.sum()).backward()
    return [parameter.grad.clone() for parameter in network.parameters()]


def assert_equal(left, right):
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "dynamic", "training"), [("eager", False, False), ("eager", True, True), ("aot_eager", True, True)]
)
def test_compile(backend, dynamic, training):
    network = Network().train(training)
    compiled = torch.compile(network, fullgraph=True, backend=backend, dynamic=dynamic)
    for size in (2, 3):
        x = batch(size)
        result, expected = compiled(x), network(x)
        assert_equal(outputs(result), outputs(expected))
        assert result[2].source == expected[2].source and result[2].training == training
        for a, b in zip(gradients(network, compiled(x)), gradients(network, network(x)), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_compile_with_inductor():
    network = Network()
    x = batch()
    compiled = torch.compile(network, fullgraph=True)
    torch.testing.assert_close(outputs(compiled(x)), outputs(network(x)))


def test_compiled_functions_take_and_return_quant_tensors():
    source = Source.new("q", shifted=False)
    qt = make(torch.tensor([[1, -2, 3]]), 0.5, source=source)

    @torch.compile(fullgraph=True, backend="eager")
    def function(x, parts):
        return (x.relu() + parts["a"]).view(-1), {"kept": x}

    result, kept = function(qt, {"a": qt})
    assert result.int().tolist() == [2, -2, 6] and result.bit_width.item() == 9
    assert kept["kept"].source == source


def test_construction_is_checked_while_compiling():
    @torch.compile(backend="eager")
    def build(x, scale):
        return QuantTensor(x, scale, 0, 8, True)

    assert build(torch.ones(2, 3), torch.ones(3)).scale.shape == (3,)
    with pytest.raises(QuantMetadataError, match="does not broadcast"):
        build(torch.ones(2, 3), torch.ones(2))


class Adding(nn.Module):
    """Adds tensors of two quantizers."""

    def __init__(self, left, right):
        super().__init__()
        self.left, self.right = Quantizer(left, name="left"), Quantizer(right, name="right")

    def forward(self, x):
        return (self.left(x) + self.right(x)).value


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_code_asserts_the_common_scale(backend):
    adding = Adding(0.5, 0.5)
    compiled = torch.compile(adding, fullgraph=True, backend=backend)
    x = torch.ones(3)
    assert torch.equal(compiled(x), adding(x))
    adding.right.scale.data.fill_(0.25)
    with pytest.raises(RuntimeError, match="add: the operands have different scales, from left and from right"):
        compiled(x)


@pytest.mark.slow
def test_compiled_kernels_assert_the_common_scale():
    adding = Adding(0.5, 0.5)
    compiled = torch.compile(adding, fullgraph=True)
    with torch.no_grad():
        compiled(torch.ones(3))
        adding.right.scale.data.fill_(0.25)
        with pytest.raises(RuntimeError, match="add: the operands have different scales, from left and from right"):
            compiled(torch.ones(3))


@pytest.mark.parametrize("strict", [True, False])
def test_exported_code_asserts_the_common_scale(strict):
    adding = Adding(0.5, 0.5).eval()
    exported = torch.export.export(adding, (torch.ones(3),), strict=strict).module()
    assert torch.equal(exported(torch.ones(3)), adding(torch.ones(3)))
    exported.get_parameter("right.scale").data.fill_(0.25)
    with pytest.raises(RuntimeError, match="add: the operands have different scales, from left and from right"):
        exported(torch.ones(3))


def test_operands_of_one_quantizer_need_no_assertion():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.quantizer = Quantizer(0.5)

        def forward(self, x):
            return (self.quantizer(x) + self.quantizer(-x)).value

    exported = torch.export.export(Shared().eval(), (torch.ones(3),))
    assert not [node for node in exported.graph.nodes if "_assert_async" in str(node.target)]


def test_unknown_zero_points_count_as_shifted_while_compiling():
    qt = make(torch.tensor([1]), 0.5)
    compiled = torch.compile(lambda x: x * x, fullgraph=True, backend="eager")(qt)
    assert compiled.bit_width.item() == 18 and (qt * qt).bit_width.item() == 16
    known = qt.set(source=Source.derived("quantizer", shifted=False))
    assert torch.compile(lambda x: x * x, fullgraph=True, backend="eager")(known).bit_width.item() == 16


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
def test_export(strict):
    network = Network().eval()
    x = batch()
    batch_dim = torch.export.Dim("batch", min=2)
    exported = torch.export.export(network, (x,), strict=strict, dynamic_shapes={"x": {0: batch_dim}})
    for size in (2, 5):
        x = batch(size)
        assert_equal(outputs(exported.module()(x)), outputs(network(x)))
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()(x)
    assert_equal(outputs(loaded), outputs(network(x)))
    assert loaded[2].source.name == network(x)[2].source.name


class PlainOutputs(nn.Module):
    """The network without the QuantTensor, which neither a trace nor ONNX can return."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)[:2]


def test_trace_without_a_warning():
    network = PlainOutputs(Network().eval())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        traced = torch.jit.trace(network, (batch(),))
    x = batch()
    assert_equal(traced(x), network(x))


def test_tracing_compares_scales():
    with pytest.raises(QuantMetadataError, match="different scales"):
        torch.jit.trace(Adding(0.5, 0.25), (torch.ones(3),))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_export():
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = PlainOutputs(Network().eval())
    program = torch.onnx.export(
        network, (batch(),), dynamo=True, dynamic_shapes={"x": {0: torch.export.Dim("batch", min=2)}}, verbose=False
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    x = batch(3)
    logits, metadata = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = network(x)
    torch.testing.assert_close(torch.from_numpy(logits), expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.tensor(metadata), expected[1], rtol=1e-4, atol=1e-4)


def test_checkpoint():
    network = Network()
    x = batch().requires_grad_()
    expected = gradients(network, network(x)), x.grad.clone()
    x.grad = None
    result = checkpoint(network, x, use_reentrant=False)
    assert_equal(gradients(network, result), expected[0])
    assert torch.equal(x.grad, expected[1])


def test_checkpoint_of_a_function_of_quant_tensors():
    value = torch.tensor([0.5, -1.0], requires_grad=True)
    qt = QuantTensor(value, 0.5, 0, 4, True, source=Source.new("q"))
    result = checkpoint(lambda a, b: torch.relu(a) + b, qt, qt, use_reentrant=False)
    assert isinstance(result, QuantTensor)
    result.value.sum().backward()
    assert value.grad.tolist() == [2.0, 1.0]


def test_copied_and_functional_modules():
    network = Network().eval()
    x = batch()
    expected = outputs(network(x))
    assert_equal(outputs(copy.deepcopy(network)(x)), expected)
    assert_equal(outputs(torch.func.functional_call(network, dict(network.named_parameters()), (x,))), expected)


def test_inference_mode():
    network = Network().eval()
    x = batch()
    expected = outputs(network(x))
    with torch.inference_mode():
        assert_equal(outputs(network(x)), expected)


def test_autocast_keeps_the_metadata():
    qt = make(torch.ones(4, 4), 0.5, source=Source.new("q", shifted=False))
    with torch.autocast("cpu", torch.bfloat16):
        product = qt @ qt
    assert product.dtype == torch.bfloat16 and product.scale.dtype == torch.float32
    assert product.value[0, 0].item() == 1.0 and product.bit_width.item() == (qt @ qt).bit_width.item()
    assert product.is_valid


def test_no_memory_of_functions_while_compiling():
    compiled = torch.compile(torch.sigmoid, fullgraph=True, backend="eager")
    assert dropped_by(compiled(make(torch.ones(2), 0.5))) is None
