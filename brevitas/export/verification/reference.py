"""The model's layers evaluated in float64 on its own codes: what each quantizer is given before it rounds.

Between two quantizers lie sums of products of integers times a scale. In float64 they are exact far beyond the width of
a rounding tie, so that the result says on which side of a boundary a value lies, or that it lies on the boundary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from brevitas.export.tracing.record import Record, Recording
from brevitas.export.tracing.watch import Watched, activation_of, float_value
from brevitas.quant_tensor import QuantTensor

__all__ = ["Float64Model", "MagnitudeModel"]


class Float64Model(Watched):
    """A float64 copy of a model in which every quantizer returns what was recorded.

    >>> from brevitas.export.tracing.record import Recorder
    >>> from brevitas.nn import QuantIdentity
    >>> model, x = QuantIdentity(), torch.tensor([0.3])
    >>> before, output = Float64Model(model).run([x], Recorder(model).run([x]))
    >>> before['act_quant', 0].dtype
    torch.float64
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.model.double()

    def run(self, inputs: Sequence[Any], recording: Recording) -> tuple[dict[tuple[str, int], Tensor], Any]:
        """Pre-rounding tensors (real units, float64) by (quantizer, call), and the model's output in float64."""
        self._cursor: Iterator[Record] = iter(recording.records)
        self._recorded = {r.quantizer for r in recording.records}
        self._before: dict[tuple[str, int], Tensor] = {}
        output = self.run_model([_double(x) for x in inputs])
        return self._before, output

    def on_quantizer(
        self, name: str, module: nn.Module, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Keep what is to be rounded, return what was recorded."""
        if name not in self._recorded:
            return original(*args, **kwargs)
        r = next(self._cursor)
        if not r.is_parameter:
            self._before[r.key] = activation_of(module)(float_value(args[0]))
        return r.quant_tensor(torch.float64)

    def on_requantize(
        self, name: str, grid: QuantTensor, value: Tensor, original: Callable[[QuantTensor, Tensor], QuantTensor]
    ) -> QuantTensor:
        """Keep what is to be rounded, return what was recorded."""
        r = next(self._cursor)
        self._before[r.key] = value
        snapped = r.quant_tensor(torch.float64)
        assert isinstance(snapped, QuantTensor)
        return snapped


class MagnitudeModel(Watched):
    """Sums of absolute terms in place of sums: how much cancelled on the way to each quantizer.

    The rounding error of a float32 sum is relative to the sum of its absolute terms, not to the result. Quantizers
    return absolute values, batch norms scale by absolute factors, activation functions (slope at most 1) are left out.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.model.double()
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
                module.forward = functools.partial(_absolute_batch_norm, module)  # type: ignore[method-assign]
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.abs()

    def run(self, inputs: Sequence[Any], recording: Recording) -> dict[tuple[str, int], Tensor]:
        """Magnitudes in real units, float64, by (quantizer, call)."""
        self._cursor: Iterator[Record] = iter(recording.records)
        self._recorded = {r.quantizer for r in recording.records}
        self._found: dict[tuple[str, int], Tensor] = {}
        self.run_model([_absolute(_double(x)) for x in inputs])
        return self._found

    def on_quantizer(
        self, name: str, module: nn.Module, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Keep the magnitude of what is to be rounded, return that of what was recorded."""
        if name not in self._recorded:
            return original(*args, **kwargs)
        r = next(self._cursor)
        if not r.is_parameter:
            self._found[r.key] = float_value(args[0])
        return _absolute(r.quant_tensor(torch.float64))

    def on_requantize(
        self, name: str, grid: QuantTensor, value: Tensor, original: Callable[[QuantTensor, Tensor], QuantTensor]
    ) -> QuantTensor:
        """Keep the magnitude of what is to be rounded, return that of what was recorded."""
        r = next(self._cursor)
        self._found[r.key] = value
        return _absolute(r.quant_tensor(torch.float64))


def _absolute(x: Any) -> Any:
    if isinstance(x, QuantTensor):
        return QuantTensor.unchecked(x.value.abs(), x.scale, x.zero_point, x.bit_width, x.signed, False, x.source)
    return x.abs() if isinstance(x, Tensor) and x.is_floating_point() else x


def _absolute_batch_norm(bn: nn.modules.batchnorm._BatchNorm, x: Any) -> Tensor:
    x = float_value(x)
    assert bn.running_mean is not None and bn.running_var is not None
    shape = (1, -1) + (1,) * (x.ndim - 2)
    factor = torch.rsqrt(bn.running_var + bn.eps) * (1.0 if bn.weight is None else bn.weight)
    shift = factor * bn.running_mean.abs() + (0.0 if bn.bias is None else bn.bias)
    return x * factor.reshape(shape) + shift.reshape(shape)


def _double(x: Any) -> Any:
    if isinstance(x, QuantTensor):
        x = x.cpu()
        scale, zero_point = x.scale.double(), x.zero_point.double()
        value = (torch.round(x.value.double() / scale + zero_point) - zero_point) * scale
        return QuantTensor.unchecked(value, scale, zero_point, x.bit_width.double(), x.signed, False, x.source)
    return x.cpu().double() if isinstance(x, Tensor) and x.is_floating_point() else x
