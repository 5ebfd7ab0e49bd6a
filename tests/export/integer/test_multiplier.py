"""Multiplier and shift: the deviations that are reported are those of every integer, one by one."""

import numpy as np
import pytest
from canonical_graphs import Builder
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_graphs import ROUND, ConvNet

from brevitas.errors import ExportError
from brevitas.export import to_integer
from brevitas.export.integer.kernels import multiplied


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), rounding=st.sampled_from([r for r in ROUND if r != "DPU"]), per_channel=st.booleans()
)
def test_deviations_are_counted(seed, rounding, per_channel):
    made = ConvNet(np.random.default_rng(seed), rounding=rounding, per_channel=per_channel, bits=6, out_zero=3)
    exact, fixed = (to_integer(made.graph(), requantize=form) for form in ("thresholds", "multiplier"))
    (deviation,) = fixed.deviations
    a, t = fixed.layer("second_quant").step, exact.layer("second_quant").step
    acc = exact.tensors[t.inputs[0]]
    low, high = made.range
    values = different = 0
    bounds = [[None, None] for _ in a.arrays["multiplier"]]
    least, most = extremes(made)
    for channel, row in enumerate(np.broadcast_to(a.arrays["rows"].reshape(-1), (made.outputs,))):
        for end, pick, value in ((0, min, least[channel]), (1, max, most[channel])):
            old = bounds[row][end]
            bounds[row][end] = value if old is None else pick(old, value)
    assert acc.low == least.min() and acc.high == most.max()
    for row, (first, last) in enumerate(bounds):
        integers = np.arange(first, last + 1)
        ours = low + np.searchsorted(t.arrays["thresholds"][row], integers, side="right")
        fields = [int(a.arrays[k][row]) for k in ("multiplier", "shift", "offset")]
        theirs = np.clip(multiplied(integers, *fields, rounding), low, high)
        values += len(integers)
        different += int((ours != theirs).sum())
        assert abs(fields[0]) < 2**31 and np.abs(ours - theirs).max() <= deviation.most
    assert (deviation.values, deviation.different) == (values, different)
    assert deviation.share == different / values and f"{different} of {values}" in str(deviation)
    assert different <= 2 + values // 200  # ties alone
    x = np.random.default_rng(seed).integers(low, high + 1, (4, made.channels, *made.size))
    assert np.abs(fixed.run(x).codes["second.out"] - made.codes(x)).max() <= 1


def extremes(made):
    """Per channel, by the sums of a convolution of ones: every tap's best, over the positions of the output."""
    low, high = made.range
    pos, neg = np.maximum(made.weight, 0), np.minimum(made.weight, 0)
    shape = (1, made.channels, *made.size)
    ends = []
    for a, c in ((low, high), (high, low)):
        sums = 0
        for part, code in ((pos, a), (neg, c)):
            copy = ConvNet.__new__(ConvNet)
            copy.__dict__ = {**made.__dict__, "weight": part, "zero": 0}
            sums = sums + copy.accumulators(np.full(shape, code))
        ends.append(sums)
    axes = (0, *range(2, ends[0].ndim))
    return ends[0].min(axes), ends[1].max(axes)


def test_ties_go_to_even_and_clamps_hold():
    b = Builder()
    q = b.quant("input", "first", (1, 1), 0.25, 6)
    y = b.node("MatMul", [q, b.weight("w", [[1]], 1.0)], "y", (1, 1))
    relu = b.node("Relu", [y], "r", (1, 1))
    graph = b.model({"input": (1, 1)}, [b.quant(relu, "second", (1, 1), 0.5, 3)])
    net = to_integer(graph, requantize="multiplier")
    x = np.arange(-32, 32).reshape(-1, 1)
    assert net.layer("second_quant").step.op == "multiplier"
    expected = np.clip(np.rint(np.maximum(x, 0) / 2), -4, 3)
    assert np.array_equal(net.run(x).codes["second.out"], expected)
    assert net.deviations[0].different == 0 and net.deviations[0].values == 64


def test_what_is_no_straight_line_keeps_its_thresholds():
    b = Builder()
    q = b.quant("input", "first", (1, 1), 0.05, 8)
    y = b.node("MatMul", [q, b.weight("w", [[1]], 1.0)], "y", (1, 1))
    graph = b.model({"input": (1, 1)}, [b.quant(b.node("Sigmoid", [y], "s", (1, 1)), "second", (1, 1), 0.01, 8)])
    net = to_integer(graph, requantize="multiplier")
    assert net.layer("second_quant").step.op == "threshold" and net.deviations == ()


def test_another_form_is_refused():
    made = ConvNet(np.random.default_rng(0))
    with pytest.raises(ExportError, match=r"E02 .*requantize='treshold'.*'thresholds', 'multiplier'.*'thresholds'"):
        to_integer(made.graph(), requantize="treshold")
