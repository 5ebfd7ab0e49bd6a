"""A classifier with a fixed matrix of plus and minus one."""

from __future__ import annotations

from math import ceil, log2, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brevitas.core.utils import at_least_float32
from brevitas.errors import QuantConfigError
from brevitas.nn.quant_layer import QuantLayerMixin
from brevitas.quant_tensor import QuantTensor, Source, accumulator_bit_width

__all__ = ["HadamardClassifier"]

#: Added to the norm of a sample.
EPSILON = 1e-8


def sylvester(size: int, device: Any = None, dtype: torch.dtype | None = None) -> Tensor:
    """The Hadamard matrix of ``size``, a power of two, by Sylvester's doubling.

    >>> sylvester(4).int().tolist()
    [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    """
    matrix = torch.ones(1, 1, device=device, dtype=dtype)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


class HadamardClassifier(QuantLayerMixin, nn.Module):
    """Scores of classes from a fixed Hadamard matrix: nothing to learn but one scale.

    >>> import torch
    >>> from brevitas.nn import HadamardClassifier
    >>> layer = HadamardClassifier(8, 5)
    >>> layer(torch.randn(2, 8)).shape, list(layer.state_dict())
    (torch.Size([2, 5]), ['scale'])

    Args:
        in_channels: features of a sample.
        out_channels: number of classes.
        fixed_scale: do not learn ``scale``, which starts at 1 / sqrt(out_channels).
        return_quant_tensor: return a ``QuantTensor``; needs one as input.

    Input (..., in_channels), output (..., out_channels): ``-scale * H x / (|x| + 1e-8)``, where |x| is the Euclidean
    norm of each sample and H the first ``out_channels`` rows and ``in_channels`` columns of the Sylvester matrix of the
    next power of two. The scale of a ``QuantTensor`` is that of the input times \\|scale\\| / \\|x\\|, one for each
    sample. From Hoffer, Hubara and Soudry, "Fix your classifier: the marginal value of training the last weight layer",
    2018.

    Raises:
        QuantConfigError: a number of channels that is no positive integer.
    """

    matrix: Tensor
    scale: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        fixed_scale: bool = False,
        return_quant_tensor: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
                raise QuantConfigError(
                    f"HadamardClassifier: {name} = {channels!r} is not legal: expected a positive integer"
                )
        self._init_layer(return_quant_tensor)
        self.in_channels, self.out_channels, self.fixed_scale = in_channels, out_channels, fixed_scale
        # One element and no scalar, since FSDP2 takes none.
        scale = torch.empty(1, device=device, dtype=dtype)
        if fixed_scale:
            self.register_buffer("scale", scale)
        else:
            self.scale = nn.Parameter(scale)
        empty = torch.empty(out_channels, in_channels, device=device, dtype=dtype)
        self.register_buffer("matrix", empty, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The initial scale, and the matrix."""
        nn.init.constant_(self.scale, 1 / sqrt(self.out_channels))
        size = 2 ** ceil(log2(max(self.in_channels, self.out_channels)))
        matrix = sylvester(size, self.matrix.device, self.matrix.dtype)
        self.matrix.copy_(matrix[: self.out_channels, : self.in_channels])

    @property
    def weights_per_output(self) -> int:
        """Number of matrix elements that feed one output element: ``in_channels``."""
        return self.in_channels

    @property
    def per_elem_ops(self) -> int:
        """Operations for one output element: a multiplication and an addition for each element of the matrix."""
        return 2 * self.in_channels

    def forward(self, input: Any) -> Any:
        """Scores of the samples in ``input``.

        Raises:
            QuantMetadataError: ``return_quant_tensor=True``, and the input is no ``QuantTensor`` with one scale.
        """
        self._cache_input(input)
        x = input.value if isinstance(input, QuantTensor) else input
        wide = at_least_float32(x)  # float16 has no such epsilon
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) + EPSILON
        out = -self.scale * F.linear((wide / norm).to(x.dtype), self.matrix)
        return self.pack_output(self._with_metadata(out, input, norm) if self.return_quant_tensor else out)

    def _with_metadata(self, out: Tensor, x: Tensor | QuantTensor, norm: Tensor) -> QuantTensor:
        """``out`` on the grid of the sums of codes."""
        fix = "set return_quant_tensor=False here"
        if not isinstance(x, QuantTensor):
            raise self.metadata_error("return_quant_tensor=True needs the input scale", x, fix)
        if x.scale.numel() > 1:
            raise self.metadata_error(
                "return_quant_tensor=True needs a per-tensor input scale, and the input has one of shape "
                f"{tuple(x.scale.shape)}: codes of different scales cannot be added as integers",
                None,
                "set scaling_per_output_channel=False on the quantizer of the input",
                fix,
            )
        scale = at_least_float32(x.scale).reshape(()) * self.scale.abs() / norm
        width = accumulator_bit_width(
            x.bit_width,
            2,
            self.in_channels,
            input_signed=x.signed,
            weight_signed=True,
            weight_narrow_range=True,
            input_shifted=x.is_shifted,
        )
        zero_point = torch.zeros((), dtype=scale.dtype, device=scale.device)
        source = Source.derived(type(self).__name__, fan_in=self.in_channels, shifted=False)
        return QuantTensor.unchecked(out, scale, zero_point, width, True, self.training, source)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.in_channels}, {self.out_channels}, fixed_scale={self.fixed_scale}"
