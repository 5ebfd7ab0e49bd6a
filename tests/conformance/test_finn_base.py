"""The FINN dialect under finn-base, FINN's own earlier package: the same numbers as the model, bit for bit."""

import numpy as np
import onnx
import pytest
import torch
from environments import environment, run
from finn_models import LEGAL_LENETS, MODELS, make

from brevitas.export import FINNManager
from brevitas.export.verification.runtimes import open_session

pytestmark = pytest.mark.slow
NAMES = [*LEGAL_LENETS, *MODELS]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Every model exported, and what finn-base makes of all of them in one process."""
    python = environment("finn-base")
    folder = tmp_path_factory.mktemp("finn")
    protos = {}
    for i, name in enumerate(NAMES):
        model, inputs = make(name)
        proto = FINNManager.export(model, input_t=inputs, export_path=folder / f"{i}.onnx")
        feeds = {v.name: x.numpy() for v, x in zip(proto.graph.input, inputs, strict=True)}
        np.savez(folder / f"{i}.in.npz", **feeds)
        with torch.no_grad():
            outputs = model(*inputs)
        protos[name] = proto, feeds, outputs if isinstance(outputs, tuple) else (outputs,)
    run(python, "run_finn_base.py", [folder])
    return folder, protos


@pytest.mark.parametrize("name", NAMES)
def test_finn_base_computes_what_qonnx_computes(executed, name):
    folder, protos = executed
    proto, feeds, outputs = protos[name]
    i = NAMES.index(name)
    found = np.load(folder / f"{i}.out.npz")
    inferred = np.load(folder / f"{i}.inferred.npz")
    expected = open_session("qonnx", proto)(feeds)
    assert set(found) == set(expected) == {o.name for o in proto.graph.output}
    for output, ours in zip(proto.graph.output, outputs, strict=True):
        assert np.array_equal(found[output.name], expected[output.name])
        assert np.array_equal(inferred[output.name], expected[output.name])
        ours = getattr(ours, "value", ours).numpy()
        assert np.allclose(found[output.name], ours, rtol=1e-4, atol=1e-4 * np.abs(ours).max() + 1e-6)


def test_the_file_is_of_an_opset_that_finn_base_knows(executed):
    folder, _ = executed
    for path in folder.glob("*.onnx"):
        proto = onnx.load(path)
        assert {i.domain: i.version for i in proto.opset_import} == {"": 13, "finn.custom_op.general": 1}
        assert proto.ir_version <= 7
