"""QuantTensors drawn from their integer codes, and what must hold of one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from brevitas.quant_tensor import QuantTensor, Source


def code_bounds(bit_width: int, signed: bool) -> tuple[int, int]:
    if signed and bit_width == 1:
        return -1, 1
    return (-(2 ** (bit_width - 1)), 2 ** (bit_width - 1) - 1) if signed else (0, 2**bit_width - 1)


@dataclass
class Grid:
    """A QuantTensor with the integer codes and the zero point that it was made of."""

    qt: QuantTensor
    codes: Tensor
    zero_point: Tensor


def make(
    codes: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | float = 0.0,
    bit_width: float = 8,
    signed: bool = True,
    dtype: torch.dtype = torch.float32,
    source: Source | None = None,
) -> QuantTensor:
    """The QuantTensor of integer codes: value = (q - z) * s."""
    scale = torch.as_tensor(scale, dtype=dtype)
    zero_point = torch.as_tensor(zero_point, dtype=dtype)
    value = (codes.to(dtype) - zero_point) * scale
    return QuantTensor(value, scale, zero_point, torch.tensor(float(bit_width)), signed, source=source)


def random_codes(seed: int, shape: tuple[int, ...], bit_width: int, signed: bool) -> Tensor:
    """Random codes, the smallest and largest among them."""
    lo, hi = code_bounds(bit_width, signed)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(lo, hi + 1, shape, generator=generator)
    if signed and bit_width == 1:
        codes = torch.where(codes == 0, 1, codes)
    flat = codes.view(-1)
    if flat.numel() > 1:
        flat[0], flat[-1] = hi, lo
    return codes


seeds = st.integers(0, 2**31 - 1)
scales = st.one_of(st.floats(1e-6, 1e3), st.integers(-12, 6).map(lambda exponent: 2.0**exponent))


@st.composite
def grids(
    draw: st.DrawFn,
    shape: tuple[int, ...] = (2, 4, 4, 4),
    channel_dims: tuple[int | None, ...] = (None, 1),
    widths: tuple[int, int] = (1, 10),
    shifted: bool | None = None,
    dtype: torch.dtype = torch.float32,
) -> Grid:
    """A grid with one scale, or one a channel, signed or unsigned, with or without a zero point."""
    bit_width, signed = draw(st.integers(*widths)), draw(st.booleans())
    bipolar = signed and bit_width == 1
    lo, hi = code_bounds(bit_width, signed)
    with_zero_point = (draw(st.booleans()) if shifted is None else shifted) and not bipolar
    dim = draw(st.sampled_from(channel_dims))
    metadata_shape = tuple(size if axis == dim else 1 for axis, size in enumerate(shape)) if dim is not None else ()
    count = shape[dim] if dim is not None else 1

    def drawn(values: st.SearchStrategy) -> Tensor:
        return torch.tensor(draw(st.lists(values, min_size=count, max_size=count)), dtype=dtype).reshape(metadata_shape)

    scale = drawn(scales)
    zero_point = drawn(st.integers(lo, hi)) if with_zero_point else torch.zeros((), dtype=dtype)
    codes = random_codes(draw(seeds), shape, bit_width, signed)
    return Grid(make(codes, scale, zero_point, bit_width, signed, dtype), codes, zero_point)


def assert_on_grid(qt: QuantTensor) -> None:
    """Every value is (q - z) * s bit for bit, with q in range."""
    assert isinstance(qt, QuantTensor)
    assert qt.is_valid
    assert qt.scale.dim() <= qt.dim() and qt.zero_point.dim() <= qt.dim()
    codes = qt.int(float_datatype=True)
    assert torch.equal(qt.value, (codes - qt.zero_point) * qt.scale)
