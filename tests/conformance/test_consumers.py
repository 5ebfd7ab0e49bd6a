"""QDQ files in every program that reads them: the model's integers, layer by layer, and the outputs of the whole file.

Each program has an environment of its own (``requirements/``), made when it is first needed. What one of them does not
read is stated here with what it says, so that a release that reads it is noticed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from consumer_models import NETWORKS, images_of, trained
from environments import WHOLE, environment
from workers import Reader, as_runtime

from brevitas.export import StdONNXManager, verify

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Consumer:
    """A reader: its environment, its script, and what it does not read, with what it says then.

    ``heavy``: too large for ``make test``. ``coarse``: networks that it computes with fewer bits than float32 has.
    """

    environment: str
    options: dict[str, str] = field(default_factory=dict)
    heavy: bool = False
    refuses: dict[str, str] = field(default_factory=dict)
    coarse: tuple[str, ...] = ()


INT4, INT2 = "W4A4 in int4", "W2A2 in int2"
CONSUMERS = {
    "openvino": Consumer("openvino", coarse=("16 bits",), refuses={INT2: "Unsupported type"}),
    "tract": Consumer(
        "tract",
        refuses={
            "16 bits": "tensor is I16, accessed as I32",
            INT4: "Unknown DatumType Int4",
            INT2: "unknown ONNX TensorProto.DataType",
        },
    ),
    "onnxsim": Consumer("simplifiers", {"tool": "onnxsim"}),
    "onnxslim": Consumer("simplifiers", {"tool": "onnxslim"}),
    "tvm": Consumer("tvm", refuses={INT4: "size mismatch", INT2: "size mismatch"}),
    "iree": Consumer(
        "iree",
        heavy=True,
        refuses={
            "16 bits": "failed to legalize.*onnx.QuantizeLinear",
            INT4: "failed to legalize.*onnx.DequantizeLinear",
            INT2: "iree-import-onnx",
        },
    ),
}


@pytest.fixture(scope="module", params=CONSUMERS)
def reader(request):
    consumer = CONSUMERS[request.param]
    python = environment(consumer.environment, heavy=consumer.heavy)
    with Reader(python, f"run_{consumer.environment}.py", **consumer.options) as started:
        yield request.param, started


@pytest.fixture(scope="module")
def exported():
    """Model, inputs and file of each network: one export serves every reader."""
    made = {}

    def get(name):
        if name not in made:
            model, x = trained(name), images_of(name)
            made[name] = model, x, StdONNXManager.export(model, input_t=x, **NETWORKS[name].options)
        return made[name]

    return get


#: What ``make test`` gives each reader; ``make conformance`` gives it every network.
EVERYDAY = ("W8A8", "W4A4", "residual")


@pytest.mark.parametrize("network", NETWORKS if WHOLE else EVERYDAY)
def test_the_integers_of_every_layer_and_the_whole_file(reader, exported, network):
    name, started = reader
    consumer = CONSUMERS[name]
    model, x, proto = exported(network)
    if network in consumer.refuses:
        with pytest.raises(RuntimeError, match=f"(?s){consumer.refuses[network]}"):
            started.open(proto)({"input": x.numpy()})
        return
    with as_runtime(name, started) as runtime:
        report = verify(model, proto, x, runtime=runtime)
    assert report.total > 4000
    if network in consumer.coarse:
        # It scales to the whole range of the stored type in float32: 16 bits leave 8 for what is rounded off.
        assert report.equal >= 0.999 * report.total and all(row.most_steps <= 1 for row in report.rows if row.counted)
        return
    assert report.diverged == 0, str(report)
    assert report.ties <= 1e-3 * report.total, str(report)
    (found,) = started.open(proto)({"input": x.numpy()}).values()
    with torch.no_grad():
        expected = model(x)
    expected = getattr(expected, "value", expected).numpy()
    if NETWORKS[network].exact:
        assert report.ties == 0 and np.array_equal(found, expected), str(report)
    else:
        # Without a tie in a sample, its results differ in the rounding of the last layer's sums alone.
        moved = np.abs(found - expected) > 1e-5 * np.abs(expected).max()
        assert moved.reshape(len(x), -1).any(1).sum() <= report.ties


@pytest.mark.parametrize("network", NETWORKS)
def test_onnx_s_own_evaluator(exported, network):
    """onnx.reference, of the project's own environment: the standard, executed."""
    model, x, proto = exported(network)
    report = verify(model, proto, x, runtime="reference")
    assert report.diverged == 0 and report.ties <= 1e-3 * report.total, str(report)
