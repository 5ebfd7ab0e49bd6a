"""Widths of the gates' sums: what the extreme codes reach fits, and one bit less would not do."""

import itertools
import math

import pytest
import torch

from brevitas.nn import QuantGRU, QuantLSTM, QuantRNN
from brevitas.quant import Int8Bias, ShiftedUint8ActPerTensorFloat, Uint8ActPerTensorFloat
from brevitas.quant_tensor import QuantTensor


def sums_of(layer, x, state):
    """The sums that reach the accumulator quantizers in one step from ``state``, by gate."""
    seen = {}
    handles = [
        module.register_forward_pre_hook(lambda m, given, name=name: seen.setdefault(name, []).append(given[0]))
        for name, module in layer.named_modules()
        if name.endswith("gate_acc_quant")
    ]
    layer(x, state)
    for handle in handles:
        handle.remove()
    return {name.split(".")[2]: calls for name, calls in seen.items()}


def needed_bits(codes):
    low, high = int(codes.min()), int(codes.max())
    return max(math.ceil(math.log2(max(-low, high + 1))), 0) + 1


def extreme(cls, features, hidden, bits, bias, signed=True):
    """A layer whose input and state have few codes; see :func:`fill` for the weights."""
    quantizers = {} if signed else {"io_quant": Uint8ActPerTensorFloat}
    layer = cls(
        features,
        hidden,
        bias=bias,
        bias_quant=Int8Bias if bias else None,
        weight_bit_width=bits,
        io_bit_width=bits,
        **quantizers,
        dtype=torch.float64,
    )
    return layer.eval()


def fill(layer, weight, bias):
    with torch.no_grad():
        for parameters in layer.all_weights:
            for p in parameters:
                p.fill_(weight if p.ndim == 2 else bias)


@pytest.mark.filterwarnings("ignore:.*evaluated before it has seen any data")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize(("features", "hidden"), [(1, 1), (5, 3), (8, 8)])
@pytest.mark.parametrize("cls", [QuantRNN, QuantLSTM, QuantGRU])
def test_sufficient_and_minimal_within_one_bit(cls, features, hidden, bits, signed, bias):
    layer = extreme(cls, features, hidden, bits, bias, signed)
    x = torch.full((1, 2, features), 1e6).double() * torch.tensor([[[-1.0], [1.0]]]).double()
    h = torch.full((1, 2, hidden), 1e6).double() * torch.tensor([[[-1.0], [1.0]]]).double()
    reached, widths = {}, {}
    for weight, bias_value in itertools.product((-1.0, 1.0), (-1e6, 1e6)):
        fill(layer, weight, bias_value)
        sums = sums_of(layer, x, (h, h) if cls is QuantLSTM else h)
        assert len(sums) == len(layer.layers[0].gates())
        for gate, calls in sums.items():
            held = [each for each in calls if isinstance(each, QuantTensor)]
            assert len(held) == (2 if gate == "new_gate" else 1)  # the input's, and the state's apart
            for position, total in enumerate(held):
                assert total.is_valid and total.signed and not total.zero_point.any()
                reached.setdefault((gate, position), []).append((total.value / total.scale).round())
                widths[gate, position] = int(total.bit_width)
    for which, width in widths.items():
        needed = needed_bits(torch.cat([codes.flatten() for codes in reached[which]]))
        assert needed <= width <= needed + 1
    assert max(widths.values()) == max(int(g.accumulator_bit_width()) for g in layer.layers[0].gates())


@pytest.mark.filterwarnings("ignore:.*evaluated before it has seen any data")
def test_by_hand():
    layer = QuantRNN(5, 3, bias=False, bias_quant=None).eval()
    layer(torch.randn(1, 2, 5))
    # 8 products of -128 * 127 each: 130,048 in magnitude, and 2^17 is 131,072.
    assert int(layer.layers[0].gate.accumulator_bit_width()) == 18
    layer = QuantGRU(5, 3, bias=False, bias_quant=None).eval()
    layer(torch.randn(1, 2, 5))
    # The new gate adds 5 products and 3 apart: 81,280 needs 18 bits with the sign.
    assert int(layer.layers[0].new_gate.accumulator_bit_width()) == 18


@pytest.mark.filterwarnings("ignore:.*evaluated before it has seen any data")
def test_a_shifted_input_counts_twice_its_range():
    layer = QuantRNN(5, 3, io_quant=ShiftedUint8ActPerTensorFloat, bias_quant=None, bias=False).eval()
    layer(torch.randn(1, 2, 5))
    # 8 products of at most 255 * 127 in magnitude, either sign: 259,080 < 2^18.
    assert int(layer.layers[0].gate.accumulator_bit_width()) == 19
