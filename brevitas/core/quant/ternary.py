"""Quantization to minus one scale, zero, and plus one scale.

>>> import torch
>>> from brevitas.core.scaling import ConstScaling
>>> TernaryQuant(ConstScaling(1.0), threshold=0.5)(torch.tensor([-2.0, 0.4, 0.6]))[0]
tensor([-1.,  0.,  1.])
"""

from typing import Tuple  # noqa: UP035 - TorchScript reads annotations of this kind

import torch
from torch import Tensor, nn

import brevitas.jit
from brevitas.core._checks import check_module, check_number
from brevitas.core.bit_width import BitWidthConst
from brevitas.core.quant.delay import DelayWrapper
from brevitas.core.utils import StatefulModule, StatelessBuffer
from brevitas.function.ops_ste import ternary_sign_ste

__all__ = ["TernaryQuant"]


class TernaryQuant(StatefulModule):
    """``(abs(x) > threshold * scale) * sign(x) * scale``; gradient ``g * scale`` where the code is not 0.

    Args:
        scaling_impl: scale of an input.
        threshold: half width of the dead zone relative to the scale, in (0, 1).
        quant_delay_steps: training calls that return the input as it is.
    """

    def __init__(self, scaling_impl: nn.Module, threshold: float, quant_delay_steps: int = 0) -> None:
        super().__init__()
        owner = "TernaryQuant"
        self.scaling_impl = check_module(owner, "scaling_impl", scaling_impl)
        self.threshold = check_number(owner, "threshold", threshold, 0.0, 1.0, low_open=True, high_open=True)
        self.bit_width = BitWidthConst(2)
        self.zero_point = StatelessBuffer(torch.tensor(0.0))
        self.delay_wrapper = DelayWrapper(quant_delay_steps)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: UP006
        """Quantized ``x``, scale, zero point 0, bit width 2."""
        scale = self.scaling_impl(x)
        outside = (torch.abs(x) > self.threshold * scale).to(x.dtype)
        y = (outside * ternary_sign_ste(x) * scale).to(x.dtype)
        return self.delay_wrapper(x, y), scale, self.zero_point(), self.bit_width()
