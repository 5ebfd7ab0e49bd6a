"""verify finds what was changed, and only that; it classifies differences by their cause."""

import copy
import json

import numpy as np
import onnx
import pytest
import torch
from export_networks import Composed, calibrated, images, lenet
from hypothesis import given
from hypothesis import strategies as st

from brevitas.errors import ExportError
from brevitas.export import StdONNXManager, capture, lower, verify
from brevitas.export.tracing.record import Record
from brevitas.export.verification.compare import TIE, Comparison, boundary_distance, compare_activation
from brevitas.export.verification.report import Row, VerifyReport
from brevitas.nn import QuantIdentity, QuantLinear


@pytest.fixture(scope="module")
def model():
    return lenet("IntBias, per channel")


@pytest.fixture(scope="module")
def protos(model):
    graph = capture(model, [torch.zeros(1, 1, 12, 12)], batch_names=["batch"])
    return {target: lower(graph, target) for target in ("qdq", "qonnx")}


@pytest.fixture(params=["qdq", "qonnx"])
def proto(request, protos):
    return copy.deepcopy(protos[request.param])


def differing(report):
    return {row.quantizer for row in report.rows if row.diverged}


def initializer(proto, name):
    return next(i for i in proto.graph.initializer if i.name == name)


def changed(proto, name, function):
    """The proto with one initializer changed."""
    old = initializer(proto, name)
    new = np.asarray(function(onnx.numpy_helper.to_array(old).copy()))
    old.CopyFrom(onnx.numpy_helper.from_array(new, name))
    return proto


def test_every_quantizer_call_and_every_output_is_compared(model, proto):
    report = verify(model, proto, images(20))
    quantizers = [row.quantizer for row in report.rows]
    assert quantizers == [
        *("quant_inp.act_quant", "conv1.weight_quant", "conv1.bias_quant", "relu1.act_quant"),
        *("conv2.weight_quant", "conv2.bias_quant", "relu2.act_quant"),
        *("fc1.weight_quant", "fc1.bias_quant", "relu3.act_quant", "fc2.weight_quant", "fc2.bias_quant", "output"),
    ]
    assert report.ok and report.total == sum(row.total for row in report.rows)
    sizes = {row.quantizer: row.total for row in report.rows}
    assert sizes["quant_inp.act_quant"] == 20 * 144 and sizes["relu1.act_quant"] == 20 * 4 * 144
    assert sizes["conv2.weight_quant"] == 8 * 4 * 9 and sizes["output"] == 200
    assert report.first_divergence is None or report.ties


def test_a_changed_weight_is_found_where_it_is(model, proto):
    name = "conv2.weight_codes" if "qdq" in str(proto.metadata_props) else "conv2.weight"

    def change(array):
        array[0, 0, 0, 0] = -array[0, 0, 0, 0] if array[0, 0, 0, 0] else array.max()
        return array

    report = verify(model, changed(proto, name, change), images(20))
    assert differing(report) == {"conv2.weight_quant", "relu2.act_quant"}
    weight = next(row for row in report.rows if row.quantizer == "conv2.weight_quant")
    assert weight.diverged == 1 and weight.causes == {"different constants": 1}
    assert report.first_divergence is weight and not report.ok


def test_a_changed_scale_spreads_only_end_to_end(model, proto):
    changed(proto, "relu1.act_scale", lambda s: s * np.float32(1.5))
    isolated = verify(model, proto, images(20))
    spread = verify(model, proto, images(20), mode="end_to_end")
    assert "relu1.act_quant" in differing(isolated)
    assert "relu3.act_quant" not in differing(isolated)
    assert "relu3.act_quant" in differing(spread)
    assert spread.first_divergence.quantizer == "relu1.act_quant"


def test_a_changed_bias_is_found(model, proto):
    name = "fc2.bias_codes" if "qdq" in str(proto.metadata_props) else "fc2.bias"
    step = 1 if "codes" in name else np.float32(model.fc2.quant_bias_scale().detach().max())

    def change(array):
        array[3] += step
        return array

    report = verify(model, changed(proto, name, change), images(20))
    assert differing(report) == {"fc2.bias_quant", "output"}
    output = report.rows[-1]
    assert output.diverged == 20 and output.most_steps == pytest.approx(1, abs=0.2) and "half a step" in output.remark


def test_another_clip_is_found():
    net = calibrated(Composed(lambda m, x: m.act(x), act=QuantIdentity(bit_width=4)), (50, 8))
    proto = StdONNXManager.export(net, (50, 8))
    x = torch.randn(50, 8) * 3
    assert verify(net, proto, x).total == verify(net, proto, x).equal
    report = verify(net, changed(proto, "act.act_max", lambda m: (m - 2).astype(m.dtype)), x)
    (row,) = [r for r in report.rows if r.kind == "activation"]
    codes = torch.clamp(torch.round(x / net.act.quant_act_scale()), -8, 7)
    assert row.diverged == int((codes > 5).sum()) and row.most_steps == 2
    assert row.causes == {"clip: codes stop at -8..5, those of the model reach further": row.diverged}


def test_chunks_and_fixed_batches_count_every_sample_once(model, protos):
    whole = verify(model, protos["qdq"], images(23))
    chunked = verify(model, protos["qdq"], images(23), chunk=5)
    fixed = verify(model, StdONNXManager.export(model, (4, 1, 12, 12)), images(23))
    for other in (chunked, fixed):
        assert [row.total for row in other.rows] == [row.total for row in whole.rows]
        assert other.ok


def test_artifacts_are_read_from_files(model, protos, tmp_path):
    onnx.save(protos["qdq"], tmp_path / "m.onnx")
    assert verify(model, tmp_path / "m.onnx", images(3)).ok
    assert verify(model, str(tmp_path / "m.onnx"), images(3)).ok


def test_runtimes(model, protos):
    for runtime in ("onnxruntime", "onnxruntime-optimized", "reference"):
        report = verify(model, protos["qdq"], images(10), runtime=runtime)
        assert report.ok and report.runtime.startswith(runtime)
    assert verify(model, protos["qdq"], images(2)).runtime.startswith("onnxruntime 1")
    assert verify(model, protos["qonnx"], images(2)).runtime.startswith("qonnx 1")


def test_errors_say_what_is_there(model, protos):
    with pytest.raises(ExportError, match="unknown runtime 'onnxrunitme'.*'onnxruntime'"):
        verify(model, protos["qdq"], images(1), runtime="onnxrunitme")
    with pytest.raises(ExportError, match="runtime='qonnx'"):
        verify(model, protos["qonnx"], images(1), runtime="onnxruntime")
    with pytest.raises(ExportError, match=r"unknown mode 'both'.*isolated, end_to_end"):
        verify(model, protos["qdq"], images(1), mode="both")
    with pytest.raises(ExportError, match="1 inputs, 2 were given"):
        verify(model, protos["qdq"], (images(1), images(1)))
    with pytest.raises(ExportError, match=r"another model.*conv1.bias_quant"):
        verify(lenet("float bias"), protos["qdq"], images(1))
    with pytest.raises(TypeError, match="ModelProto or a path"):
        verify(model, 3, images(1))
    bare = onnx.ModelProto()
    bare.CopyFrom(protos["qdq"])
    del bare.metadata_props[:]
    for node in bare.graph.node:
        del node.metadata_props[:]
    with pytest.raises(ExportError, match="no brevitas metadata"):
        verify(model, bare, images(1))


def test_weights_kept_as_floats_are_compared_too(model):
    proto = StdONNXManager.export(model, (4, 1, 12, 12), export_weight_q_node=True)
    report = verify(model, proto, images(4))
    assert report.ok and {"conv1.weight_quant", "fc2.weight_quant"} <= {r.quantizer for r in report.rows}


def test_the_step_of_an_output_is_its_accumulator_s():
    net = Composed(
        lambda m, x: m.fc(m.act(x)), act=QuantIdentity(return_quant_tensor=True), fc=QuantLinear(6, 3, bias=False)
    )
    net = calibrated(net, (8, 6))
    report = verify(net, StdONNXManager.export(net, (8, 6)), torch.randn(8, 6))
    assert report.rows[-1].counted and report.rows[-1].equal == 24
    plain = calibrated(Composed(lambda m, x: torch.sigmoid(m.act(x)), act=QuantIdentity()), (8, 6))
    row = verify(plain, StdONNXManager.export(plain, (8, 6)), torch.randn(8, 6)).rows[-1]
    assert not row.counted and row.max_abs_difference < 1e-6


@given(st.floats(-1000, 1000), st.sampled_from(["ROUND", "FLOOR", "CEIL", "DOWN"]))
def test_boundary_distance_is_to_the_nearest_jump(x, rounding):
    function = {"ROUND": np.rint, "FLOOR": np.floor, "CEIL": np.ceil, "DOWN": np.trunc}[rounding]
    boundary, distance = (float(a[0]) for a in boundary_distance(np.asarray([x]), rounding))
    assert distance == abs(x - boundary)
    assert function(boundary - 1e-6) != function(boundary + 1e-6)  # a jump
    inside = np.linspace(x - distance * 0.999, x + distance * 0.999, 21)
    assert len({float(v) for v in function(inside)}) == 1 or distance < 1e-9


def record_of(scale=0.5, zero_point=0.0, rounding="ROUND"):
    t = torch.tensor
    return Record(
        "l.act_quant", 0, "l", "L", "act", t([0.0]), t([0.0]), t(scale), t(zero_point), t(8.0), True, False, rounding
    )


@pytest.mark.parametrize(
    ("position", "zero_point", "ours", "theirs", "magnitude", "cause"),
    [
        (10.5 + 10.5 * TIE * 0.9, 0, 11, 10, 0, "rounding tie"),
        (10.5 + 10.5 * TIE * 1.1, 0, 11, 10, 0, "off a tie"),
        (10.5, 0, 10, 11, 0, "rounding tie"),
        (10.5, 3, 10, 11, 0, "tie, zero-point parity"),
        (0.5 + 2e-5, 0, 1, 0, 100, "tie, accumulation order"),
        (0.5 + 2e-5, 0, 1, 0, 1, "off a tie"),
        (10.5, 0, 10, 12, 1e9, "off a tie"),
        (10.2, 0, 10, 11, 0, "off a tie"),
    ],
)
def test_causes(position, zero_point, ours, theirs, magnitude, cause):
    # position is in steps, zero point included; magnitude in steps
    r = record_of(zero_point=float(zero_point))
    exact = np.asarray([(position - zero_point) * 0.5])
    c = Comparison()
    compare_activation(c, r, np.asarray([ours]), np.asarray([theirs]), exact, lambda: np.asarray([magnitude * 0.5]))
    assert dict(c.causes) == {cause: 1}
    assert (c.ties, c.diverged) == ((0, 1) if cause == "off a tie" else (1, 0)) and c.equal == 0


def test_other_shapes_diverge_as_a_whole():
    c = Comparison()
    compare_activation(c, record_of(), np.zeros(3, int), np.zeros(4, int), np.zeros(3), lambda: np.zeros(3))
    assert c.diverged == 3 and "(4,)" in next(iter(c.causes))


ROWS = [
    Row("conv1", "QuantConv2d", "conv1.weight_quant", 0, "weight", 9, 9),
    Row("relu1", "QuantReLU", "relu1.act_quant", 1, "activation", 100, 98, 2, 0, 1.0, causes={"rounding tie": 2}),
    Row("relu2", "QuantReLU", "relu2.act_quant", 0, "activation", 50, 49, 0, 1, 3.0, causes={"off a tie": 1}),
    Row("", "", "output", 0, "output", 10, 0, max_abs_difference=0.25, counted=False),
]


def test_counts_of_a_report():
    report = VerifyReport(ROWS, "onnxruntime 1.0")
    assert (report.total, report.equal, report.ties, report.diverged, report.ok) == (159, 156, 2, 1, False)
    assert report.first_divergence is ROWS[2]
    assert VerifyReport(ROWS[:2]).first_divergence is ROWS[1]
    assert VerifyReport(ROWS[:1]).first_divergence is None and VerifyReport(ROWS[:2]).ok


def test_a_report_prints_the_first_divergence_first_and_a_row_a_quantizer(monkeypatch):
    report = VerifyReport(ROWS, "onnxruntime 1.0")
    for text in (str(report), f"{report.summary}\n{report._plain_table()}"):
        lines = text.splitlines()
        assert "159 integers, 156 equal, 2 ties of one step, 1 diverged" in lines[0]
        assert "first divergence: QuantReLU 'relu2'" in lines[1]
        for words in (
            ["conv1", "weight_quant", "9"],
            ["relu1", "call 1", "98", "2 rounding tie"],
            ["output", "-", "0.25"],
        ):
            assert [line for line in lines[2:] if all(w in line for w in words)], words


def test_a_report_as_json_and_html():
    report = VerifyReport(ROWS, "onnxruntime <1.0>")
    read = json.loads(report.to_json())
    assert read["diverged"] == 1 and len(read["rows"]) == 4
    assert read["rows"][1]["causes"] == {"rounding tie": 2} and read["rows"][1]["ties"] == 2
    page = report.to_html()
    assert page.count("<tr") == 5 and 'class="diverged"' in page and "&lt;1.0&gt;" in page and "<1.0>" not in page


def test_what_is_no_artifact_and_no_input_is_named(tmp_path, model, protos):
    path = tmp_path / "notes.onnx"
    path.write_bytes(b"hello")
    with pytest.raises(ExportError, match=r"notes.onnx is no ONNX file"):
        verify(model, path, images(2))
    with pytest.raises(TypeError, match="got ndarray"):
        verify(model, protos["qdq"], np.zeros((2, 1, 12, 12)))
