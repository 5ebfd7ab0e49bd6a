"""Truncation and clamping of accumulators."""

import numpy as np
import pytest
import torch
from torch import nn

from brevitas.errors import QuantConfigError, QuantMetadataError
from brevitas.proxy import (
    AccQuantProxyProtocol,
    ActQuantProxyFromInjector,
    ClampQuantProxyFromInjector,
    TruncQuantProxyFromInjector,
)
from brevitas.quant import (
    Int8ActPerTensorFloat,
    NoneClampQuant,
    NoneTruncQuant,
    RoundTo8bit,
    TruncTo8bit,
)
from brevitas.quant.base import IntQuant
from brevitas.quant.solver import ClampQuantSolver
from brevitas.quant_tensor import QuantTensor


class Drop(IntQuant, ClampQuantSolver):
    bit_width_to_remove = 4


def accumulator(bits, signed, scale=0.05):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    codes = torch.linspace(low, high, 401).round()
    return QuantTensor(codes * scale, scale, 0.0, bits, signed), codes.numpy().astype(np.float64)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits_out", range(2, 9))
@pytest.mark.parametrize(("preset", "rounding"), [(TruncTo8bit, np.floor), (RoundTo8bit, np.round)])
def test_truncation_is_its_formula(preset, rounding, bits_out, signed):
    x, codes = accumulator(12, signed)
    trunc = TruncQuantProxyFromInjector(nn.Module(), preset.let(bit_width=bits_out))
    y = trunc(x)
    shift = 2.0 ** (12 - bits_out)
    low, high = (-(2 ** (bits_out - 1)), 2 ** (bits_out - 1) - 1) if signed else (0, 2**bits_out - 1)
    np.testing.assert_array_equal(y.int().numpy(), np.clip(rounding(codes / shift), low, high))
    assert y.scale.item() == pytest.approx(0.05 * shift) and y.bit_width.item() == bits_out and y.signed is signed
    assert y.is_valid and trunc.bit_width().item() == bits_out and trunc.scale() is None


def test_narrow_accumulators_are_not_widened_by_truncation():
    x, codes = accumulator(6, True)
    y = TruncQuantProxyFromInjector(nn.Module(), TruncTo8bit)(x)
    np.testing.assert_array_equal(y.int().numpy(), codes)
    assert y.scale.item() == pytest.approx(0.05)


@pytest.mark.parametrize("remove", [0, 1, 4, 9])
def test_clamping_takes_most_significant_bits(remove):
    x, codes = accumulator(10, True)
    y = ClampQuantProxyFromInjector(nn.Module(), Drop.let(bit_width_to_remove=remove))(x)
    bits = max(10 - remove, 2)
    np.testing.assert_array_equal(y.int().numpy(), np.clip(codes, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    assert y.bit_width.item() == bits and y.scale.item() == pytest.approx(0.05)


def test_learned_number_of_bits_to_remove():
    clamp = ClampQuantProxyFromInjector(nn.Module(), Drop.let(bit_width_impl_type="parameter"))
    x, _ = accumulator(10, True)
    y = clamp(x)
    assert y.bit_width.item() == 6
    y.value.sum().backward()
    assert [n for n, _ in clamp.named_parameters()] == [
        "tensor_quant.msb_clamp_bit_width_impl.bit_width_to_remove_impl.bit_width_coeff"
    ]


@pytest.mark.parametrize(
    ("proxy", "off"), [(TruncQuantProxyFromInjector, NoneTruncQuant), (ClampQuantProxyFromInjector, NoneClampQuant)]
)
def test_off_hands_the_input_on(proxy, off):
    x, _ = accumulator(10, True)
    made = proxy(nn.Module(), off)
    assert made(x) is x and not made.is_quant_enabled and isinstance(made, AccQuantProxyProtocol)


def test_bad_inputs_are_named():
    x, _ = accumulator(10, False)
    with pytest.raises(QuantMetadataError, match="plain Tensor"):
        TruncQuantProxyFromInjector(nn.Module(), TruncTo8bit)(x.value)
    with pytest.raises(QuantMetadataError, match="signed=True.*signed=False"):
        ClampQuantProxyFromInjector(nn.Module(), Drop)(x)
    shifted = QuantTensor(torch.zeros(2), 0.1, 3.0, 8, True)
    with pytest.raises(QuantMetadataError, match="zero point"):
        ClampQuantProxyFromInjector(nn.Module(), Drop)(shifted)
    with pytest.raises(QuantConfigError, match="'bit_width_to_remove' is required"):

        class Nothing(IntQuant, ClampQuantSolver):
            pass

        ClampQuantProxyFromInjector(nn.Module(), Nothing)
    with pytest.raises(QuantConfigError, match="role 'act'.*role 'trunc'"):
        TruncQuantProxyFromInjector(nn.Module(), Int8ActPerTensorFloat)
    with pytest.raises(QuantConfigError, match="BINARY.*truncation shifts integers"):
        TruncQuantProxyFromInjector(nn.Module(), TruncTo8bit.let(quant_type="binary"))


def test_sharing_with_nothing_is_refused():
    proxy = ActQuantProxyFromInjector(nn.Module(), Int8ActPerTensorFloat)
    with pytest.raises(QuantConfigError, match="cannot share a quantizer with None"):
        proxy.add_tracked_module(None)
