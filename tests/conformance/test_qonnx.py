"""The QONNX dialect, in both forms, in PyPI's qonnx: its executor and its command-line tools."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from finn_models import LEGAL_LENETS, MODELS, make
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.util.cleanup import cleanup, cleanup_model
from qonnx.util.convert import convert
from qonnx.util.inference_cost import inference_cost
from qonnx.util.to_channels_last import to_channels_last

from brevitas.export import QONNXManager, capture, lower, verify

pytestmark = pytest.mark.slow
# One has a rounding mode that the dialect does not name.
NAMES = [name for name in (*LEGAL_LENETS, *MODELS) if name != "signed relu, hardtanh, rounding modes"]


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_give_the_model_s_integers(name):
    model, inputs = make(name)
    graph = capture(model, inputs)
    for consumer, opset in ((None, None), ("finn", None), ("finn", 13)):
        proto = lower(graph, "qonnx", consumer=consumer, opset_version=opset)
        versions = {i.domain: i.version for i in proto.opset_import}
        assert versions["qonnx.custom_op.general"] == (2 if consumer is None else 1)
        report = verify(model, proto, inputs)
        assert report.diverged == 0 and report.ties <= 1e-3 * report.total, str(report)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A LeNet of 4 bits as a file, its input, and what the model makes of it."""
    model, (x,) = make("W4A4")
    path = tmp_path_factory.mktemp("qonnx") / "lenet.onnx"
    QONNXManager.export(model, input_t=x, export_path=path)
    with torch.no_grad():
        expected = model(x)
    return path, x.numpy(), getattr(expected, "value", expected).numpy()


def close(found, expected):
    """Equal but for what the order of additions leaves in float."""
    return np.allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_cleanup_and_execution(exported, tmp_path):
    path, x, expected = exported
    cleanup(str(path), out_file=str(tmp_path / "clean.onnx"))
    model = ModelWrapper(str(tmp_path / "clean.onnx"))
    (found,) = execute_onnx(model, {model.graph.input[0].name: x}).values()
    assert close(found, expected)


def test_inference_cost_counts_the_products_of_every_layer(exported):
    path, x, _ = exported
    found = inference_cost(str(path), discount_sparsity=False)["total_cost"]
    # Multiplications of conv1, conv2, fc1 and fc2, for each of the six images.
    products = 4 * 9 * 144 + 8 * 4 * 9 * 16 + 32 * 24 + 24 * 10
    assert found["total_macs"] == len(x) * products
    assert found["total_mem_w_bits"] == 4 * (4 * 9 + 8 * 4 * 9 + 32 * 24 + 24 * 10)


def test_conversion_to_qcdq_runs_in_onnxruntime(exported, tmp_path):
    path, x, expected = exported
    cleanup(str(path), out_file=str(tmp_path / "clean.onnx"))
    convert(str(tmp_path / "clean.onnx"), output_style="qcdq", output_file=str(tmp_path / "qcdq.onnx"))
    proto = onnx.load(tmp_path / "qcdq.onnx")
    # Biases of more than 8 bits keep their Quant nodes, which onnxruntime does not know.
    left = {n.op_type for n in proto.graph.node if n.domain}
    if left:
        model = cleanup_model(ModelWrapper(proto))
        (found,) = execute_onnx(model, {model.graph.input[0].name: x}).values()
    else:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: x})
    assert close(found, expected)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {n.op_type for n in proto.graph.node}


def test_conversion_to_channels_last(exported, tmp_path):
    path, x, expected = exported
    cleanup(str(path), out_file=str(tmp_path / "clean.onnx"))
    to_channels_last(str(tmp_path / "clean.onnx"), make_input_channels_last=True, out_file=str(tmp_path / "last.onnx"))
    model = ModelWrapper(str(tmp_path / "last.onnx"))
    (found,) = execute_onnx(model, {model.graph.input[0].name: x.transpose(0, 2, 3, 1)}).values()
    assert close(found, expected)
