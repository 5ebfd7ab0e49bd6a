"""Functions as modules, so that a declaration can name them.

>>> import torch
>>> RoundSte()(torch.tensor([0.5, 1.5]))
tensor([0., 2.])
>>> OverOutputChannelView(permute_dims=(1, 0, 2, 3))(torch.zeros(3, 8, 5, 5)).shape
torch.Size([8, 75])
"""

from typing import Optional, Tuple  # noqa: UP035 - TorchScript reads annotations of this kind

import torch
from torch import Tensor

import brevitas.jit
from brevitas.core._checks import check_number, check_permutation
from brevitas.errors import QuantConfigError
from brevitas.function import shape
from brevitas.function.ops import tensor_clamp
from brevitas.function.ops_ste import (
    ceil_ste,
    floor_ste,
    round_ste,
    round_to_zero_ste,
    scalar_clamp_min_ste,
    tensor_clamp_ste,
)

__all__ = [
    "CeilSte",
    "ClampMin",
    "FloorSte",
    "Identity",
    "InplaceLogTwo",
    "InplaceNoOp",
    "InplaceTensorClampSte",
    "LogTwo",
    "OverBatchOverOutputChannelView",
    "OverBatchOverTensorView",
    "OverOutputChannelView",
    "OverTensorView",
    "PowerOfTwo",
    "RoundSte",
    "RoundToZeroSte",
    "ScalarClamp",
    "ScalarClampMinSte",
    "StatsInputViewShapeImpl",
    "TensorClamp",
    "TensorClampSte",
]


class Identity(brevitas.jit.ScriptModule):
    """``x``."""

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``x``."""
        return x


class InplaceNoOp(brevitas.jit.ScriptModule):
    """Changes nothing, returns nothing."""

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> None:
        """Nothing."""
        return None


class PowerOfTwo(brevitas.jit.ScriptModule):
    """``2^x``, exact for integers."""

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Gradient ``g * ln(2) * 2^x``."""
        return torch.exp2(x)


def _log2(x: Tensor) -> Tensor:
    # Mantissa and exponent apart, so that a power of two maps to an integer whatever the library's logarithm does.
    mantissa, exponent = torch.frexp(x)
    return torch.log2(mantissa) + exponent


class LogTwo(brevitas.jit.ScriptModule):
    """``log2 x``, exact for powers of two."""

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Gradient ``g / (x * ln(2))``."""
        return _log2(x)


class InplaceLogTwo(brevitas.jit.ScriptModule):
    """``log2 x`` written into ``x`` outside autograd."""

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> None:
        """Nothing."""
        with torch.no_grad():
            x.copy_(_log2(x))


class RoundSte(brevitas.jit.ScriptModule):
    """Round half to even, straight through."""

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Rounded ``x``."""
        return round_ste(x)


class CeilSte(brevitas.jit.ScriptModule):
    """Round up, straight through."""

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Rounded ``x``."""
        return ceil_ste(x)


class FloorSte(brevitas.jit.ScriptModule):
    """Round down, straight through."""

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Rounded ``x``."""
        return floor_ste(x)


class RoundToZeroSte(brevitas.jit.ScriptModule):
    """Round toward zero, straight through."""

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Rounded ``x``."""
        return round_to_zero_ste(x)


class ScalarClampMinSte(brevitas.jit.ScriptModule):
    """Clamp from below, straight through."""

    def __init__(self, min_val: float) -> None:
        super().__init__()
        self.min_val = check_number("ScalarClampMinSte", "min_val", min_val)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``max(x, min_val)``."""
        return scalar_clamp_min_ste(x, self.min_val)


class ScalarClamp(brevitas.jit.ScriptModule):
    """Clamp between two numbers; no gradient outside."""

    def __init__(self, min_val: float, max_val: float) -> None:
        super().__init__()
        self.min_val = check_number("ScalarClamp", "min_val", min_val)
        self.max_val = check_number("ScalarClamp", "max_val", max_val)
        if self.min_val > self.max_val:
            raise QuantConfigError(f"ScalarClamp: min_val={min_val} is above max_val={max_val}.")

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``min(max(x, min_val), max_val)``."""
        return torch.clamp(x, self.min_val, self.max_val)


class ClampMin(brevitas.jit.ScriptModule):
    """Clamp from below; no gradient below."""

    def __init__(self, min_val: float) -> None:
        super().__init__()
        self.min_val = check_number("ClampMin", "min_val", min_val)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``max(x, min_val)``."""
        return torch.clamp_min(x, self.min_val)


class TensorClamp(brevitas.jit.ScriptModule):
    """Clamp between tensors, with the gradient of a clamp."""

    @brevitas.jit.script_method
    def forward(self, x: Tensor, min_val: Tensor, max_val: Tensor) -> Tensor:
        """``max(min(x, max_val), min_val)``."""
        return tensor_clamp(x, min_val, max_val)


class TensorClampSte(brevitas.jit.ScriptModule):
    """Clamp between tensors, straight through."""

    @brevitas.jit.script_method
    def forward(self, x: Tensor, min_val: Tensor, max_val: Tensor) -> Tensor:
        """``max(min(x, max_val), min_val)``."""
        return tensor_clamp_ste(x, min_val, max_val)


class InplaceTensorClampSte(brevitas.jit.ScriptModule):
    """As :class:`TensorClampSte`; in training it also writes the clamped values into ``x``, outside autograd."""

    @brevitas.jit.script_method
    def forward(self, x: Tensor, min_val: Tensor, max_val: Tensor) -> Tensor:
        """``max(min(x, max_val), min_val)``."""
        y = tensor_clamp_ste(x, min_val, max_val)
        if self.training:
            with torch.no_grad():
                x.copy_(y)
        return y


class OverTensorView(brevitas.jit.ScriptModule):
    """All values on one row."""

    @brevitas.jit.script_method
    def shape(self, x: Tensor) -> int:
        """``-1``."""
        return shape.over_tensor(x)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``x`` of shape (n,)."""
        return x.reshape(self.shape(x))


class OverOutputChannelView(brevitas.jit.ScriptModule):
    """A row per output channel, which ``permute_dims`` first moves to the front."""

    def __init__(self, permute_dims: Optional[Tuple[int, ...]] = None) -> None:  # noqa: UP006, UP045
        super().__init__()
        self.permute_dims = check_permutation("OverOutputChannelView", "permute_dims", permute_dims)

    @brevitas.jit.script_method
    def shape(self, x: Tensor) -> Tuple[int, int]:  # noqa: UP006
        """``(channels, -1)`` of an ``x`` whose channels are in front."""
        return shape.over_output_channels(x)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``x`` of shape (channels, n)."""
        if self.permute_dims is not None:
            x = x.permute(self.permute_dims)
        return x.reshape(self.shape(x))


class OverBatchOverTensorView(brevitas.jit.ScriptModule):
    """A row per sample."""

    @brevitas.jit.script_method
    def shape(self, x: Tensor) -> Tuple[int, int]:  # noqa: UP006
        """``(batch, -1)``."""
        return shape.over_batch_over_tensor(x)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``x`` of shape (batch, n)."""
        return x.reshape(self.shape(x))


class OverBatchOverOutputChannelView(brevitas.jit.ScriptModule):
    """A row per sample and channel."""

    @brevitas.jit.script_method
    def shape(self, x: Tensor) -> Tuple[int, int, int]:  # noqa: UP006
        """``(batch, channels, -1)``."""
        return shape.over_batch_over_output_channels(x)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """``x`` of shape (batch, channels, n)."""
        return x.reshape(self.shape(x))


class StatsInputViewShapeImpl:
    """Namespace of the views, for declarations."""

    OVER_TENSOR = OverTensorView
    OVER_OUTPUT_CHANNELS = OverOutputChannelView
    OVER_BATCH_OVER_TENSOR = OverBatchOverTensorView
    OVER_BATCH_OVER_OUTPUT_CHANNELS = OverBatchOverOutputChannelView
