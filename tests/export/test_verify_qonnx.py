"""``verify`` with runtime qonnx: what the reader needs done, and kinds of quantizers that only it runs."""

import warnings

import numpy as np
import pytest
import torch
from canonical_graphs import Builder, lowered
from export_networks import Composed, calibrated

from brevitas import quant
from brevitas.errors import ExportError
from brevitas.export import FINNManager, QONNXManager, verify
from brevitas.export.targets.finn import TARGET as FINN
from brevitas.export.targets.qonnx import TARGET
from brevitas.export.verification.compare import Comparison, compare_activation
from brevitas.export.verification.runtimes import open_session
from brevitas.nn import QuantIdentity, QuantLinear


def doubled(m, x):
    y = m.act(x)
    return m.out(y + y)


@pytest.mark.parametrize("manager", [QONNXManager, FINNManager])
def test_a_tensor_that_is_both_inputs_of_a_node(manager):
    torch.manual_seed(0)
    model = Composed(doubled, act=QuantIdentity(return_quant_tensor=True), out=QuantIdentity(bit_width=4))
    calibrated(model, (8, 6))
    x = torch.randn(8, 6)
    proto = manager.export(model, input_t=x)
    (add,) = (n for n in proto.graph.node if n.op_type == "Add" and n.input[0] == n.input[1])
    assert add.input[0] == add.input[1]  # the file is not changed, the copy that is run is
    for mode in ("isolated", "end_to_end"):
        report = verify(model, proto, x, mode=mode)
        assert report.diverged == report.ties == 0 and report.total == 96, str(report)


def test_a_tensor_that_is_three_inputs_of_a_node():
    b = Builder()
    x = b.quant("x", "a.act", (2, 3), 0.5)
    b.node("Concat", [x, x, x], "y", (2, 9), axis=1)
    x = np.float32([[0.5, 1.0, 1.5], [-0.5, 0.0, 9.0]])
    found = open_session("qonnx", lowered(b.model({"x": (2, 3)}, ["y"]), TARGET))({"x": x})["y"]
    assert np.array_equal(found, np.concatenate([x] * 3, 1))


def test_reading_the_finn_dialect_is_silent():
    b = Builder()
    proto = lowered(b.model({"x": (2, 3)}, [b.quant("x", "a.act", (2, 3), 0.5)]), FINN)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_session("qonnx", proto)({"x": np.zeros((2, 3), np.float32)})


@pytest.mark.parametrize("runtime", ["onnxruntime", "reference"])
def test_other_runtimes_have_no_thresholds(runtime):
    b = Builder()
    proto = lowered(b.model({"x": (2, 3)}, [b.quant("x", "a.act", (2, 3), 0.5)]), FINN)
    with pytest.raises(ExportError, match=f"'{runtime}' has no MultiThreshold operator; use runtime='qonnx'"):
        open_session(runtime, proto)


def record_of(quantizer, x):
    from brevitas.export.tracing.record import Recorder

    return Recorder(quantizer.eval()).run([x]).records[0]


def test_binary_codes_differ_by_one_step_and_only_at_zero():
    r = record_of(QuantIdentity(quant.SignedBinaryActPerTensorConst), torch.tensor([[1.0, 1.0, 0.0, 1.0]]))
    ours = r.codes().numpy()
    assert ours.tolist() == [[1, 1, 1, 1]]
    theirs = np.array([[1, -1, -1, -1]])
    exact = np.array([[1.0, 0.5, 0.0, 1e-9]])
    found = Comparison()
    compare_activation(found, r, ours, theirs, exact, lambda: np.ones((1, 4)))
    # Half a scale away is no tie; 0 is one, and so is what a sum of size 1 leaves.
    assert (found.equal, found.ties, found.diverged, found.most_steps) == (1, 2, 1, 1.0)


def test_a_float_output_of_the_finn_dialect_is_counted_on_its_accumulator_grid():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        QuantIdentity(return_quant_tensor=True), QuantLinear(6, 3, bias_quant=quant.Int8Bias, weight_bit_width=4)
    )
    calibrated(model, (8, 6))
    x = torch.randn(8, 6)
    output = verify(model, FINNManager.export(model, input_t=x), x).rows[-1]
    assert output.kind == "output" and output.counted and output.equal == output.total == 24
