"""Averages of bit widths, weighted by what each bit costs: memory of weights, of activations, or operations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from brevitas.core.utils import at_least_float32
from brevitas.errors import QuantConfigError, QuantMetadataError
from brevitas.nn import QuantConv2d, QuantLinear
from brevitas.quant_tensor import QuantTensor
from brevitas.utils.quant_utils import has_learned_activation_bit_width, has_learned_weight_bit_width
from brevitas.utils.recording import Recording

__all__ = [
    "MEGA",
    "ActivationBitWidthWeightedBySize",
    "BitWidthWeighted",
    "QuantLayerOutputBitWidthWeightedByOps",
    "WeightBitWidthWeightedBySize",
]

#: Unit in which operations are counted.
MEGA = 1e6


@dataclass(frozen=True)
class _Seen:
    """One use of a bit width."""

    name: str
    width: Tensor
    size: float
    without_gradient: bool


class BitWidthWeighted(ABC):
    """Base of the losses on bit widths: forward hooks collect widths and sizes, ``retrieve`` gives their average.

    A subclass says which modules it watches and what a use of one weighs. Create the loss once, before the model is
    compiled; call :meth:`zero_accumulated_values` before each step. Every forward in between adds its uses, so the
    average over the micro-batches of gradient accumulation is that of one batch.

    A forward that ``torch.utils.checkpoint`` repeats in the backward is not counted again. The older form of
    checkpoints (``use_reentrant=True``) runs its first forward without gradients, and :meth:`retrieve` says so.
    Uses without gradients, such as those by which recurrent layers collect statistics, do not count beside others of
    the same quantizer.
    Under ``DistributedDataParallel`` the gradients of the widths are reduced as those of any parameter; give the loss
    the model or its wrapper. Copies of the model (``deepcopy``, pickle) are not watched.

    Args:
        model: any module; quantizers that are put into it later are not seen.

    Raises:
        QuantConfigError: ``model`` is no module, or has nothing to watch.
    """

    #: What the loss looks for, and how to get it, for the error where there is none.
    _wanted: str

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise QuantConfigError(f"{type(self).__name__}: expected a torch.nn.Module, got {model!r}")
        modules = {name: module for name, module in model.named_modules() if self._watches(module)}
        if not modules:
            raise QuantConfigError(f"{type(self).__name__}: {type(model).__name__} has no {self._wanted}")
        self._seen: list[_Seen] = []
        self._recording = Recording(modules, self._keep)

    @abstractmethod
    def _watches(self, module: nn.Module) -> bool:
        """Whether the outputs of a module carry a width that counts."""

    @abstractmethod
    def _size(self, module: nn.Module, output: QuantTensor) -> float:
        """What the width of one output is weighted with."""

    def _keep(self, name: str, module: nn.Module, output: Any) -> None:
        if isinstance(output, QuantTensor):
            without = module.training and not torch.is_grad_enabled()
            self._seen.append(_Seen(name, output.bit_width, self._size(module, output), without))

    def retrieve(self, as_average: bool = True) -> Tensor | list[Tensor]:
        """The average width in bits, weighted by size; its gradient goes to the learned widths.

        Args:
            as_average: the scalar sum(size * width) / sum(size); ``False``: the list of size * width / sum(size), one
                summand for each use, in the order of the uses.

        Raises:
            QuantMetadataError: no forward since the last :meth:`zero_accumulated_values`; or one in training that was
                run without gradients, while gradients are wanted now.
        """
        if torch.is_grad_enabled():
            self._refuse_without_gradient()
        weighted, total = self._weighted()
        return torch.stack(weighted).sum() / total if as_average else [each / total for each in weighted]

    def _counted(self) -> list[_Seen]:
        learning = {seen.name for seen in self._seen if not seen.without_gradient}
        return [seen for seen in self._seen if not (seen.without_gradient and seen.name in learning)]

    def _weighted(self) -> tuple[list[Tensor], float]:
        """size * width of each use, and the sum of the sizes."""
        counted = self._counted()
        if not counted:
            raise QuantMetadataError(
                f"{type(self).__name__}: nothing was accumulated; run a forward of the model before this, and after "
                "zero_accumulated_values()"
            )
        device = counted[0].width.device
        return [at_least_float32(seen.width.to(device)) * seen.size for seen in counted], sum(s.size for s in counted)

    def _refuse_without_gradient(self) -> None:
        found = next((seen for seen in self._counted() if seen.without_gradient), None)
        if found is not None:
            raise QuantMetadataError(
                f"{type(self).__name__}: the width of '{found.name}' was seen in a forward without gradients, under "
                "torch.no_grad or in torch.utils.checkpoint(use_reentrant=True), so the loss would not reach it; use "
                "use_reentrant=False, or call zero_accumulated_values() after forwards that do not train"
            )

    def zero_accumulated_values(self) -> None:
        """Forget what was accumulated. Call it before the forward of each step."""
        self._seen.clear()

    def log(self) -> Tensor:
        """The average width, detached.

        Raises:
            QuantMetadataError: no forward since the last :meth:`zero_accumulated_values`.
        """
        with torch.no_grad():
            weighted, total = self._weighted()
            return torch.stack(weighted).sum() / total

    def remove(self) -> None:
        """Remove the hooks from the model; what was accumulated stays."""
        self._recording.remove()


class WeightBitWidthWeightedBySize(BitWidthWeighted):
    """Average learned bit width of weights, weighted by the number of weights: proportional to the model's size.

    >>> import torch
    >>> from torch import nn
    >>> from brevitas.loss import WeightBitWidthWeightedBySize
    >>> from brevitas.nn import QuantLinear
    >>> learned = {"weight_bit_width_impl_type": "parameter"}
    >>> model = nn.Sequential(
    ...     QuantLinear(4, 3, weight_bit_width=8, **learned), QuantLinear(3, 2, weight_bit_width=2, **learned)
    ... )
    >>> bits = WeightBitWidthWeightedBySize(model)
    >>> _ = model(torch.randn(5, 4))
    >>> bits.retrieve()  # (12 * 8 + 6 * 2) / 18
    tensor(6., grad_fn=<DivBackward0>)

    A weight that is used twice in one forward counts twice.
    """

    _wanted = (
        "weight quantizer with a learned bit width; set weight_bit_width_impl_type='parameter' on at least one layer"
    )

    def _watches(self, module: nn.Module) -> bool:
        return has_learned_weight_bit_width(module)

    def _size(self, module: nn.Module, output: QuantTensor) -> float:
        return output.value.numel()


class ActivationBitWidthWeightedBySize(BitWidthWeighted):
    """Average learned bit width of activations, weighted by their elements: proportional to their traffic.

    >>> import torch
    >>> from torch import nn
    >>> from brevitas.loss import ActivationBitWidthWeightedBySize
    >>> from brevitas.nn import QuantReLU
    >>> model = nn.Sequential(QuantReLU(bit_width_impl_type="parameter", bit_width=4), nn.Linear(8, 2))
    >>> bits = ActivationBitWidthWeightedBySize(model)
    >>> _ = model(torch.randn(5, 8))
    >>> bits.log()
    tensor(4.)

    Each call of a quantizer counts, each time step of a recurrent layer too. The size of the batch is a factor of all
    sizes and makes no difference. Quantizers of inputs and outputs are activations too.
    """

    _wanted = (
        "activation quantizer with a learned bit width; set bit_width_impl_type='parameter' on at least one activation "
        "layer, or the same with input_ or output_ on a layer with weights"
    )

    def _watches(self, module: nn.Module) -> bool:
        return has_learned_activation_bit_width(module)

    def _size(self, module: nn.Module, output: QuantTensor) -> float:
        return output.value.numel()


class QuantLayerOutputBitWidthWeightedByOps(BitWidthWeighted):
    """Average bit width of layer outputs, which are accumulators, weighted by millions of operations.

    >>> import torch
    >>> from torch import nn
    >>> from brevitas.loss import QuantLayerOutputBitWidthWeightedByOps
    >>> from brevitas.nn import QuantIdentity, QuantLinear
    >>> model = nn.Sequential(
    ...     QuantIdentity(return_quant_tensor=True, bit_width=4),
    ...     QuantLinear(10, 5, bias=False, weight_bit_width_impl_type="parameter", weight_bit_width=4,
    ...                 return_quant_tensor=True),
    ... )
    >>> bits = QuantLayerOutputBitWidthWeightedByOps(model)
    >>> _ = model(torch.randn(3, 10))
    >>> bits.retrieve()  # 10 products of 4 signed bits times [-7, 7] reach 560
    tensor(11., grad_fn=<DivBackward0>)

    The width of an accumulator grows with those of input and weight, to which its gradient goes.

    Args:
        model: any module.
        layer_types: layers of these classes count if they return a ``QuantTensor`` (``return_quant_tensor=True``);
            they need ``per_elem_ops``.
    """

    def __init__(self, model: nn.Module, layer_types: tuple[type[nn.Module], ...] = (QuantConv2d, QuantLinear)) -> None:
        for cls in layer_types:
            if not hasattr(cls, "per_elem_ops"):
                raise QuantConfigError(
                    f"{type(self).__name__}: {getattr(cls, '__name__', cls)} in layer_types has no per_elem_ops, the "
                    "operations of one output element; expected classes of layers with weights"
                )
        self._layer_types = tuple(layer_types)
        names = ", ".join(cls.__name__ for cls in layer_types)
        self._wanted = f"layer of the types {names} that returns a QuantTensor; set return_quant_tensor=True on them"
        super().__init__(model)

    def _watches(self, module: nn.Module) -> bool:
        return isinstance(module, self._layer_types) and bool(getattr(module, "return_quant_tensor", False))

    def _size(self, module: Any, output: QuantTensor) -> float:
        return output.value.numel() * module.per_elem_ops / MEGA
