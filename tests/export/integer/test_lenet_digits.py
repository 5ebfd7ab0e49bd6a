"""The zoo's LeNet on real digits: the network equals the model but for ties, the exports, and itself in C."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from integer_graphs import compiled

import quant_zoo
from brevitas.export import IntegerNetwork, capture, lower, overflow, to_integer, verify
from quant_zoo.training import calibrate, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits():
    return quant_zoo.mnist_digits()


@pytest.fixture(scope="module", params=[4, 8], ids=["W4A4", "W8A8"])
def trained(request, digits):
    recipe = quant_zoo.recipe("lenet")
    torch.manual_seed(0)
    model = quant_zoo.load("lenet", weight_bit_width=request.param, act_bit_width=request.param)
    calibrate(model, digits.train_images, recipe.schedule["calibration"])
    train(model, digits.train_images, digits.train_labels, replace(recipe.schedule["quantized"], epochs=1))
    model.eval()
    graph = capture(model, [digits.test_images[:1]], batch_names=["batch"])
    return model, graph, to_integer(graph)


def test_the_network_equals_the_model_but_for_ties(trained, digits):
    model, _, net = trained
    report = verify(model, net, digits.test_images)
    assert report.diverged == 0 and report.ties <= 1e-4 * report.total, report
    assert report.total > 1000 * 12_000
    logits = net.run(digits.test_images).values["output"]
    with torch.no_grad():
        ours = model(digits.test_images).numpy()
    assert (logits.argmax(1) != ours.argmax(1)).sum() <= 1
    assert (logits.argmax(1) == digits.test_labels.numpy()).mean() > 0.8


@pytest.mark.parametrize("target", ["qdq", "qonnx"])
def test_the_network_equals_the_exports_but_for_ties(trained, digits, target):
    model, graph, net = trained
    images = digits.test_images[: 1000 if target == "qdq" else 50]
    proto = lower(graph, target)
    assert verify(model, proto, images).diverged == 0
    ours = net.run(images).values["output"]
    if target == "qdq":
        session = onnxruntime.InferenceSession(proto.SerializeToString())
        (theirs,) = session.run(None, {"input": images.numpy()})
    else:
        from brevitas.export.verification.runtimes import open_session

        theirs = open_session("qonnx", proto)({"input": images.numpy()})["output"]
    step = net.outputs[0].scale.reshape(-1).max()
    # A tie in an early layer moves some accumulators of the last one; elsewhere they are the same integers.
    same = (np.abs(ours - theirs) < step / 2).all(1)
    assert same.mean() > 0.97, same.mean()


def test_c_and_files_give_the_same_integers(trained, digits, tmp_path):
    _, _, net = trained
    images = digits.test_images[:40]
    net.save(tmp_path / "lenet")
    read = IntegerNetwork.load(tmp_path / "lenet")
    codes = net.codes(images)
    first = net.border[0].output
    expected = codes[net.outputs[0].tensor]
    assert np.array_equal(read.run(codes[first]).codes["output"], expected)
    assert np.array_equal(compiled(read, tmp_path, [codes[first]])[0], expected)


def test_the_multiplier_form_differs_at_few_integers(trained, digits):
    _, graph, net = trained
    fixed = to_integer(graph, requantize="multiplier")
    assert len(fixed.deviations) == 3
    for d in fixed.deviations:
        assert d.most <= 1 and d.share < 1e-4, d
    ours, theirs = (n.run(digits.test_images[:200]).codes["output"] for n in (net, fixed))
    assert (ours == theirs).all(1).mean() > 0.98


def test_accumulators_stay_within_their_bounds(trained, digits):
    model, graph, net = trained
    codes = net.codes(digits.test_images[:200])
    for row in overflow(graph):
        assert row.low <= codes[row.name].min() and codes[row.name].max() <= row.high
        assert row.bits <= row.claimed and row.run(*row.greatest_input()).max() == row.high
