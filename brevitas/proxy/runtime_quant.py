"""Proxies of values that exist only while the network runs: activations, layer inputs and outputs."""

from __future__ import annotations

import inspect
import warnings
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from brevitas.proxy.accumulator_quant import ClampQuantProxyFromInjector, TruncQuantProxyFromInjector
from brevitas.proxy.quant_proxy import QuantProxyFromInjector, eval_mode
from brevitas.quant_tensor import QuantTensor
from brevitas.utils.module_path import find_module

__all__ = [
    "ActQuantProxyFromInjector",
    "ActQuantProxyProtocol",
    "ClampQuantProxyFromInjector",
    "FusedActivationQuantProxy",
    "TruncQuantProxyFromInjector",
]


@runtime_checkable
class ActQuantProxyProtocol(Protocol):
    """What a module must offer to be passed as ``act_quant``, ``input_quant`` or ``output_quant``."""

    is_quant_enabled: bool
    is_signed: bool | None
    is_narrow_range: bool | None
    rounding_mode: str | None

    def forward(self, x: Tensor | QuantTensor) -> Tensor | QuantTensor:
        """Apply the activation, then quantize."""


class FusedActivationQuantProxy(nn.Module):
    """An activation function followed by its quantizer."""

    def __init__(self, activation_impl: nn.Module | None, tensor_quant: nn.Module | None) -> None:
        super().__init__()
        self.activation_impl = activation_impl
        self.tensor_quant = tensor_quant

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(value, scale, zero point, bit width) of the activated input."""
        if self.activation_impl is not None:
            x = self.activation_impl(x)
        return self.tensor_quant(x)  # type: ignore[misc]


class ActQuantProxyFromInjector(QuantProxyFromInjector):
    """Applies an activation and quantizes its output.

    >>> import torch
    >>> from brevitas.nn import QuantReLU
    >>> relu = QuantReLU(bit_width=4)
    >>> relu.act_quant(torch.tensor([-1.0, 0.5])).signed
    False
    """

    role = "act"

    def add_tracked_module(self, module: nn.Module | None) -> None:
        """Share this quantizer, and its statistics, with one more layer.

        Raises:
            QuantConfigError: ``module`` is ``None``.
        """
        # An activation quantizer depends on no parameter of its layers, so there is nothing to resolve again.
        self._track(module)

    def _install(self, tensor_quant: nn.Module | None, values: dict[str, Any]) -> None:
        activation: Any = values.get("act_impl")
        if inspect.isclass(activation):
            activation = activation()
        self.passthrough_act = bool(values.get("passthrough_act", False))
        self.fused_activation_quant_proxy = FusedActivationQuantProxy(activation, tensor_quant)
        self._warned = False

    def _resolved_module(self) -> Any:
        return self.fused_activation_quant_proxy.tensor_quant

    @property
    def tensor_quant(self) -> nn.Module | None:
        """The resolved quantizer."""
        return self.fused_activation_quant_proxy.tensor_quant

    @tensor_quant.setter
    def tensor_quant(self, quantizer: nn.Module | None) -> None:
        self.fused_activation_quant_proxy.tensor_quant = quantizer

    def forward(self, x: Tensor | QuantTensor) -> Tensor | QuantTensor:
        """The activated input, quantized; metadata of a ``QuantTensor`` input are used only where quantization is off.

        Args:
            x: any shape; float32, float64, bfloat16 or float16.
        """
        fused = self.fused_activation_quant_proxy
        if fused.tensor_quant is None:
            return self._without_quantizer(x)
        if not self.training and not self._warned:
            self._warn_if_never_calibrated()
        self._check_learned_if_sharded()
        value = x.value if isinstance(x, QuantTensor) else x
        return self._result(fused(value), self.training)

    def _without_quantizer(self, x: Tensor | QuantTensor) -> Tensor | QuantTensor:
        activation = self.fused_activation_quant_proxy.activation_impl
        if isinstance(x, QuantTensor) and not self.passthrough_act:
            x = x.value
        return x if activation is None else activation(x)

    def never_calibrated(self) -> bool:
        """Whether statistics are to be collected and none have been, so that the threshold is the initial 1."""
        quantizer = self.fused_activation_quant_proxy.tensor_quant
        if quantizer is None:
            return False
        flags = [
            (bool(m._buffers["initialised"]), int(m._buffers["counter"]))  # type: ignore[arg-type]
            for m in quantizer.modules()
            if "counter" in m._buffers and "initialised" in m._buffers
        ]
        return bool(flags) and all(not initialised and counter == 0 for initialised, counter in flags)

    def _warn_if_never_calibrated(self) -> None:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return
        self._warned = True
        if not self.never_calibrated():
            return
        found = find_module(lambda m: any(child is self for child in m.children()))
        where = f"{type(found[1]).__name__} '{found[0]}'" if found and found[0] else self.site.layer
        warnings.warn(
            f"{where}: {self.site.argument} ({self.quant_injector.__name__}) is evaluated before it has seen any data "
            "in training "
            "mode; its threshold is the initial 1. Train or calibrate first.",
            UserWarning,
            stacklevel=3,
        )

    def _evaluate(self) -> Any:
        quantizer = self._resolved_module()
        assert quantizer is not None
        with eval_mode(quantizer):
            return quantizer(self._probe())
