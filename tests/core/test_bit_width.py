"""Bit widths."""

import pytest
import torch

from brevitas.core.bit_width import (
    BitWidthConst,
    BitWidthParameter,
    BitWidthStatefulConst,
    MsbClampBitWidth,
    RemoveBitwidthParameter,
)
from brevitas.errors import QuantConfigError


def test_constants():
    assert BitWidthConst(8)().item() == 8.0 and not BitWidthConst(8).state_dict()
    stateful = BitWidthStatefulConst(8)
    stateful.load_state_dict({"bit_width": torch.tensor(4.0)})
    assert stateful().item() == 4.0


def test_learned_width_rounds_straight_through():
    width = BitWidthParameter(5)
    assert width().item() == 5.0 and width().shape == () and width.bit_width_offset.tolist() == [3.0]
    with torch.no_grad():
        width.bit_width_offset.fill_(-2.6)
    value = width()
    value.backward()
    assert value.item() == 5.0 and width.bit_width_offset.grad.tolist() == [-1.0]
    with torch.no_grad():
        width.bit_width_offset.zero_()
    assert width().item() == 2.0  # never below the minimum
    assert BitWidthParameter(8, min_bit_width=6).bit_width_offset.tolist() == [2.0]


@pytest.mark.parametrize("n", [0, 1, 3, 6])
def test_removed_bits(n):
    removed = RemoveBitwidthParameter(n)
    coefficient = 1.0 / n if n else 10.0
    assert removed.bit_width_coeff.item() == pytest.approx(coefficient)
    assert removed().item() == pytest.approx(1.0 / (1e-6 + coefficient))
    removed().backward()
    assert removed.bit_width_coeff.grad.item() == pytest.approx(-1.0 / (1e-6 + coefficient) ** 2)


@pytest.mark.parametrize(("given", "removed", "left"), [(8.0, 3, 5.0), (4.0, 3, 2.0), (40.0, 1, 32.0)])
def test_msb_clamp(given, removed, left):
    b = torch.tensor(given, requires_grad=True)
    value = MsbClampBitWidth(BitWidthConst(removed))(b)
    value.backward()
    assert value.item() == left and b.grad.item() == 1.0


def test_msb_clamp_never_returns_fractions():
    impl = RemoveBitwidthParameter(3)
    with torch.no_grad():
        impl.bit_width_coeff.fill_(0.4)  # 2.5 bits
    assert MsbClampBitWidth(impl)(torch.tensor(8.0)).item() in (5.0, 6.0)
    assert MsbClampBitWidth(BitWidthConst(3), 4, 6)(torch.tensor(12.0)).item() == 6.0


def test_pretrained_values_can_be_overridden():
    trained = BitWidthParameter(7).state_dict()
    kept = BitWidthParameter(4, override_pretrained_bit_width=True)
    kept.load_state_dict(trained)
    assert kept().item() == 4.0
    kept.load_state_dict({})  # the key is not needed either
    loaded = BitWidthParameter(4)
    loaded.load_state_dict({"bit_width_offset": torch.tensor(5.0)})  # written as a scalar
    assert loaded().item() == 7.0
    assert "bit_width_offset" in trained
    removed = RemoveBitwidthParameter(3, override_pretrained_bit_width=True)
    removed.load_state_dict(RemoveBitwidthParameter(5).state_dict())
    assert removed().item() == pytest.approx(3.0, rel=1e-4)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: BitWidthConst(8.0), "bit_width=8.0"),
        (lambda: BitWidthConst(True), "bit_width=True"),
        (lambda: BitWidthConst(0), "bit_width=0.*1 to 32"),
        (lambda: BitWidthConst(33), "bit_width=33"),
        (lambda: BitWidthParameter(3, min_bit_width=4), "bit_width=3.*min_bit_width=4"),
        (lambda: BitWidthParameter(3, min_bit_width=1), "min_bit_width=1"),
        (lambda: RemoveBitwidthParameter(-1), "bit_width_to_remove=-1"),
        (lambda: MsbClampBitWidth(BitWidthConst(1), 5, 4), "min_overall_bit_width=5.*max_overall_bit_width=4"),
        (lambda: BitWidthParameter(4, override_pretrained_bit_width="no"), "override_pretrained_bit_width='no'"),
    ],
)
def test_illegal_arguments_are_named(build, named):
    with pytest.raises(QuantConfigError, match=named):
        build()
