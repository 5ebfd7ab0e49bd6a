"""The learned bit widths of a model, as of its last forward.

>>> import torch
>>> from torch import nn
>>> from brevitas.nn import QuantLinear, QuantReLU
>>> model = nn.Sequential(
...     QuantLinear(4, 8, weight_bit_width_impl_type='parameter', weight_bit_width=5), QuantReLU(), QuantLinear(8, 2)
... )
>>> widths = LogWeightBitWidth(model)
>>> _ = model(torch.randn(3, 4)); widths.log()
{'0.weight_quant': 5.0}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from brevitas.errors import QuantConfigError
from brevitas.utils.quant_utils import has_learned_activation_bit_width, has_learned_weight_bit_width
from brevitas.utils.recording import Recording

__all__ = ["LogActivationBitWidth", "LogBitWidth", "LogWeightBitWidth"]


class LogBitWidth:
    """Base of the loggers: hooks on the quantizers that ``watches`` chooses.

    Args:
        model: any module; quantizers that are put into it later are not seen.

    Raises:
        QuantConfigError: ``model`` is no module, or no bit width in it is learned.
    """

    watches: Callable[[Any], bool]
    what = "bit width"

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise QuantConfigError(f"{type(self).__name__}: expected a torch.nn.Module, got {model!r}")
        modules = {name: module for name, module in model.named_modules() if type(self).watches(module)}
        if not modules:
            raise QuantConfigError(
                f"{type(self).__name__}: no quantizer of {type(model).__name__} has a learned {self.what}; set "
                "bit_width_impl_type='parameter', with the prefix of the quantizer"
            )
        #: Detached width of each quantizer in its last forward, by the quantizer's name.
        self.bit_width_dict: dict[str, Tensor] = {}
        self._recording = Recording(modules, self._keep)

    def _keep(self, name: str, module: nn.Module, output: Any) -> None:
        self.bit_width_dict[name] = output.bit_width.detach()

    def log(self) -> dict[str, float]:
        """The widths as numbers; empty before a forward."""
        return {name: float(width) for name, width in self.bit_width_dict.items()}

    def remove(self) -> None:
        """Remove the hooks; what was seen stays."""
        self._recording.remove()


class LogWeightBitWidth(LogBitWidth):
    """Learned bit widths of weights: ``log()`` gives ``{'layer.weight_quant': width}`` as of the last forward."""

    watches = staticmethod(has_learned_weight_bit_width)
    what = "weight bit width"


class LogActivationBitWidth(LogBitWidth):
    """Learned bit widths of activations, inputs and outputs: ``{'relu.act_quant': width}`` as of the last forward.

    >>> import torch
    >>> from brevitas.nn import QuantReLU
    >>> model = torch.nn.Sequential(QuantReLU(bit_width_impl_type='parameter', bit_width=4))
    >>> widths = LogActivationBitWidth(model)
    >>> _ = model(torch.randn(3)); widths.log()
    {'0.act_quant': 4.0}
    """

    watches = staticmethod(has_learned_activation_bit_width)
    what = "activation bit width"
