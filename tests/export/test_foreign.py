"""Files made elsewhere: read, run, and compared with what converters and exports make of the same network."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_networks import images, lenet
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from brevitas.errors import ExportError
from brevitas.export import QONNXManager, StdONNXManager, compare_artifacts, read_model
from brevitas.nn import QuantLinear

qonnx_data = pytest.importorskip("qonnx.data")
SHIPPED = Path(next(iter(qonnx_data.__path__))) / "onnx"
QUANTIZED = {  # width and sign of every quantizer, as the files' own documentation tells
    "bsd300x3-espcn/nn_resize/quant_model.onnx": ["u8", "s8", "u4", "s4", "u4", "s4", "u8", "s8", "u8"],
    "bsd300x3-espcn/subpixel/quant_model.onnx": ["s8", "u4", "s4", "u4", "s4", "u4", "s8", "u8"],
    "eltwise_chanlast_testcase.onnx": ["u4"],
}


def numbers(read, seed=0):
    """Integers, which inputs of any datatype take."""
    generator = np.random.default_rng(seed)
    return {name: generator.integers(0, 2, shape).astype(np.float32) for name, shape in read.inputs.items()}


def described(q):
    return f"{'s' if q.low < 0 else 'u'}{(q.high - min(q.low, 0)).bit_length()}"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(str(path.relative_to(SHIPPED)) for path in SHIPPED.rglob("*.onnx")))
def test_every_file_that_qonnx_ships_runs(name):
    read = read_model(SHIPPED / name)
    found = read.run(numbers(read), *(q.tensor for q in read.quantizers if q.parameter is None))
    assert set(found) >= set(read.outputs) and all(np.isfinite(v).all() for v in found.values())
    for q in read.quantizers:
        codes = q.parameter if q.parameter is not None else q.codes(found[q.tensor])
        assert q.low <= codes.min() and codes.max() <= q.high and len(np.unique(codes)) > 1
        values = (codes - q.zero_point) * q.scale
        if q.parameter is None:
            assert np.allclose(values, found[q.tensor], rtol=1e-6)
    if name in QUANTIZED:
        assert [described(q) for q in read.quantizers] == QUANTIZED[name]
        assert read.runtime == "qonnx"


def test_a_shipped_result_is_reproduced():
    folder = SHIPPED / "floatquant_exec"
    (found,) = read_model(folder / "qonnx_act_weight_fp8.onnx").run(np.load(folder / "test_data/input.npy")).values()
    assert np.array_equal(found, np.load(folder / "test_data/output.npy"))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(QUANTIZED)[:2])
def test_what_qonnx_s_converter_writes_has_the_integers_of_its_source(name):
    """A QONNX file and the QDQ file that qonnx makes of it, in qonnx and in onnxruntime."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.qonnx_to_qcdq import QuantToQCDQ
    from qonnx.util.cleanup import cleanup_model

    source = cleanup_model(ModelWrapper(str(SHIPPED / name)))
    first, second = read_model(source.model), read_model(source.transform(QuantToQCDQ()).model)
    assert (first.runtime, second.runtime) == ("qonnx", "onnxruntime")
    converted = {q.tensor: q for q in second.quantizers}
    for p in first.quantizers:
        q = converted[p.tensor]
        assert (p.low, p.high) == (q.low, q.high) and np.allclose(p.scale, q.scale)
    x = np.random.default_rng(0).uniform(0, 1, first.inputs["global_in"]).astype(np.float32)
    report = compare_artifacts(first, second, x)
    assert report.total > 2_000_000 and report.diverged == 0 and report.ties <= 1e-5 * report.total, str(report)
    assert len(report.rows) == len(first.quantizers) + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["IntBias, per channel", "W4A4", "shifted activations"])
def test_two_exports_of_a_model(name):
    model, x = lenet(name), images(20)
    files = [m.export(model, input_t=x) for m in (QONNXManager, StdONNXManager)]
    report = compare_artifacts(*files, x)
    if "shifted" not in name:
        assert report.diverged == 0, str(report)
    assert report.equal >= 0.99 * report.total  # a tie spreads
    assert not [row for row in report.rows if row.kind != "output" and not row.counted]
    weights = {row.quantizer: row for row in report.rows if row.kind == "weight"}
    assert weights["conv1.weight_quant"].equal == 36


def exported(manager=StdONNXManager, seed=0, **options):
    torch.manual_seed(seed)
    return manager.export(nn.Sequential(QuantLinear(4, 3, bias=False)).eval(), (2, 4), **options)


def test_a_changed_weight_is_found():
    first, second = exported(), exported()
    (codes,) = [i for i in second.graph.initializer if i.name.endswith("codes")]
    changed = numpy_helper.to_array(codes).copy()
    changed[1, 2] += 3
    codes.CopyFrom(numpy_helper.from_array(changed, codes.name))
    report = compare_artifacts(first, second, torch.ones(2, 4))
    row = report.first_divergence
    assert (row.diverged, row.most_steps, row.causes) == (1, 3.0, {"different constants": 1})
    assert not report.ok and report.rows[-1].max_abs_difference > 0


def test_another_scale_is_no_equal_code():
    report = compare_artifacts(exported(), exported(seed=1), torch.ones(2, 4))
    assert report.rows[0].causes == {"different scale": 12} and report.rows[0].diverged == 12


def test_a_quantizer_of_one_file_is_a_row_without_numbers():
    model = lenet("W4A4")
    whole = StdONNXManager.export(model, input_t=images(2))
    (weight,) = (n for n in whole.graph.node if n.name == "fc2.weight_quant")
    reduced = onnx.ModelProto.FromString(whole.SerializeToString())
    q = next(q for q in read_model(whole).quantizers if q.tensor == weight.output[0])
    node = next(n for n in reduced.graph.node if n.output[0] == weight.output[0])
    reduced.graph.node.remove(node)
    reduced.graph.initializer.append(
        numpy_helper.from_array((q.parameter * q.scale).astype(np.float32), weight.output[0])
    )
    report = compare_artifacts(whole, reduced, images(2))
    assert report.ok
    (row,) = [row for row in report.rows if not row.counted and row.kind != "output"]
    assert (row.layer, row.causes) == ("fc2", {"in the first file alone": 1})


def quant_file(rounding, signed, narrow, bits, domain="qonnx.custom_op.general", x=None):
    numbers = {"s": np.float32(0.5), "z": np.float32(0), "b": np.float32(bits)}
    held = [numpy_helper.from_array(v, k) for k, v in numbers.items()]
    if x is not None:
        held.append(numpy_helper.from_array(x, "w"))
    node = helper.make_node(
        *("Quant", ["x" if x is None else "w", "s", "z", "b"], ["q"]),
        **{"domain": domain, "rounding_mode": rounding, "signed": signed, "narrow": narrow},
    )
    add = helper.make_node("Add", ["q", "x"], ["y"])
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 64]) for n in ("x", "y")]
    graph = helper.make_graph([node, add], "g", values[:1], values[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16), helper.make_opsetid(domain, 1)])


@pytest.mark.parametrize("domain", ["qonnx.custom_op.general", "onnx.brevitas"])
@pytest.mark.parametrize("rounding", ["ROUND", "CEIL", "FLOOR", "DOWN", "UP", "HALF_UP", "HALF_DOWN"])
@pytest.mark.parametrize(("signed", "narrow", "bits"), [(1, 0, 4), (1, 1, 4), (0, 0, 4), (1, 0, 1)])
def test_constants_are_quantized_as_qonnx_does(domain, rounding, signed, narrow, bits):
    x = (np.arange(64, dtype=np.float32).reshape(1, 64) - 32) / 8  # halves and quarters of steps
    read = read_model(quant_file(rounding, signed, narrow, bits, domain, x))
    (q,) = read.quantizers
    values = read.run(np.zeros((1, 64), np.float32))["y"]
    assert np.array_equal(q.parameter * q.scale, values)
    computed = read_model(quant_file(rounding, signed, narrow, bits, domain))
    (q,) = computed.quantizers
    assert np.array_equal(q.codes(computed.run(x, "q")["q"]), read.quantizers[0].parameter)


def test_scales_along_an_axis():
    """A QDQ file of another tool's making: no metadata, an axis for data, the default one, and 4-bit storage."""
    held = {
        "s": np.array([0.5, 0.25, 1.0], np.float32),
        "z": np.array([0, 10, 20], np.uint8),
        "ws": np.array([0.5, 0.25], np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], axis=1),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["y"]),
    ]
    initializers = [numpy_helper.from_array(v, k) for k, v in held.items()]
    initializers.append(helper.make_tensor("w", TensorProto.INT4, [2, 3, 1, 1], [-8, 7, 1, 2, 3, 4]))
    values = [helper.make_tensor_value_info("x", 1, [1, 3, 2, 2]), helper.make_tensor_value_info("y", 1, None)]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], initializers)
    read = read_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    data, weight = read.quantizers
    assert data.scale.shape == (3, 1, 1) and weight.scale.shape == (2, 1, 1, 1)
    assert (data.low, data.high, weight.low, weight.high) == (0, 255, -8, 7)
    x = np.random.default_rng(0).normal(0, 3, (1, 3, 2, 2)).astype(np.float32)
    found = read.run({"x": x}, "xd")
    codes = np.clip(np.rint(x / data.scale) + held["z"].reshape(3, 1, 1), 0, 255)
    assert np.array_equal(data.codes(found["xd"]), codes)
    real = (codes - held["z"].reshape(3, 1, 1)) * data.scale
    product = np.einsum("nchw,oc->nohw", real, (weight.parameter * weight.scale)[:, :, 0, 0])
    assert np.allclose(found["y"], product, rtol=1e-5, atol=1e-5)


def test_mistakes_say_what_fits(tmp_path):
    read = read_model(exported())
    with pytest.raises(ExportError, match=r"1 inputs \(input\), not 2"):
        read.run((np.ones((2, 4)), np.ones((2, 4))))
    with pytest.raises(ExportError, match="inputs are input; given: x"):
        read.run({"x": np.ones((2, 4))})
    with pytest.raises(ExportError, match="no node of the file computes a tensor 'nothing'"):
        read.run(np.ones((2, 4), np.float32), "nothing")
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ExportError, match="model.onnx is no ONNX file"):
        read_model(tmp_path / "model.onnx")
    with pytest.raises(TypeError, match="ModelProto or a path, got int"):
        read_model(3)
    foreign = exported()
    foreign.graph.node[0].domain = "my.domain"
    with pytest.raises(ExportError, match="no runtime has my.domain::DequantizeLinear"):
        read_model(foreign)
    with pytest.raises(ExportError, match="1 and 0 quantizers no two belong together"):
        compare_artifacts(exported(), StdONNXManager.export(nn.Linear(4, 3), (2, 4)), torch.ones(2, 4))
    with pytest.raises(ExportError, match="1 and 2 inputs"):
        compare_artifacts(exported(), StdONNXManager.export(_Sum(), input_t=(torch.ones(2, 4),) * 2), torch.ones(2, 4))


class _Sum(nn.Module):
    def forward(self, x, y):
        return x + y


def test_files_are_read_from_disk_and_described(tmp_path):
    path = tmp_path / "model.onnx"
    exported(QONNXManager, export_path=path)
    assert repr(read_model(path)).startswith("ReadModel(input [2, 4]; 1 quantizers, runs in qonnx 1")
