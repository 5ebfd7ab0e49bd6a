"""Expressions of several operations: the codes are the exact integers, and the width suffices, all the way."""

from dataclasses import dataclass

import torch
from grids import code_bounds, make, random_codes, scales, seeds
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from brevitas.quant_tensor import QuantTensor, Source

LIMIT = 2**20
SHAPE = (4, 4)


@dataclass
class Exact:
    """A QuantTensor beside the integers that it stands for: codes minus zero point, in int64."""

    qt: QuantTensor
    steps: torch.Tensor
    zero_point: int
    power: int  # the scale is that of the leaves to this power


def leaf(draw, scale, source):
    bits, signed = draw(st.integers(1, 6)), draw(st.booleans())
    lo, hi = code_bounds(bits, signed)
    zero_point = 0 if (signed and bits == 1) or draw(st.booleans()) else draw(st.integers(lo, hi))
    codes = random_codes(draw(seeds), SHAPE, bits, signed)
    qt = make(codes, scale, float(zero_point), bits, signed, source=source)
    return Exact(qt, codes - zero_point, zero_point, 1)


def combined(draw, a, b):
    """Two results joined by an operation that their scales permit."""
    permitted = ["mul", "matmul"] + (["add", "sub"] * 3 if a.power == b.power else [])
    operation = draw(st.sampled_from(permitted))
    if operation == "add":
        return Exact(a.qt + b.qt, a.steps + b.steps, a.zero_point + b.zero_point, a.power)
    if operation == "sub":
        return Exact(a.qt - b.qt, a.steps - b.steps, a.zero_point - b.zero_point, a.power)
    if operation == "mul":
        return Exact(a.qt * b.qt, a.steps * b.steps, 0, a.power + b.power)
    return Exact(a.qt @ b.qt, a.steps @ b.steps, 0, a.power + b.power)


def changed(draw, a):
    kind = draw(st.sampled_from(["", "", "neg", "abs", "t", "relu", "stack"]))
    if kind == "neg":
        return Exact(-a.qt, -a.steps, -a.zero_point, a.power)
    if kind == "abs":
        return Exact(abs(a.qt), a.steps.abs(), 0, a.power)
    if kind == "t":
        return Exact(a.qt.t(), a.steps.t(), a.zero_point, a.power)
    if kind == "relu":
        return Exact(torch.relu(a.qt), a.steps.clamp(min=0), a.zero_point, a.power)
    if kind == "stack":
        return Exact(torch.stack([a.qt, a.qt])[1], a.steps, a.zero_point, a.power)
    return a


@st.composite
def expressions(draw):
    scale = torch.tensor(draw(scales.filter(lambda s: 1e-4 < s < 1e2)))
    source = None if draw(st.booleans()) else Source.new("a quantizer")
    results = [leaf(draw, scale, source) for _ in range(draw(st.integers(2, 4)))]
    for _ in range(draw(st.integers(1, 5))):
        a, b = draw(st.sampled_from(results)), draw(st.sampled_from(results))
        results.append(changed(draw, combined(draw, a, b)))
        assume(int((results[-1].steps + results[-1].zero_point).abs().max()) < LIMIT and results[-1].power <= 4)
    return results


@settings(max_examples=300)
@given(expressions())
def test_codes_are_exact_and_widths_suffice(results):
    for made in results:
        codes = made.steps + made.zero_point
        assert torch.equal(made.qt.int().long(), codes)
        assert made.qt.zero_point.item() == made.zero_point
        lo, hi = code_bounds(int(made.qt.bit_width), made.qt.signed)
        assert lo <= int(codes.min()) and int(codes.max()) <= hi
