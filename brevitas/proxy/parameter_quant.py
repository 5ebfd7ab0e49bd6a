"""Proxies of parameters: weights and biases."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from brevitas.core.quant.weight_norm import AccumulatorAwareIntQuant
from brevitas.errors import QuantConfigError, QuantMetadataError
from brevitas.proxy.quant_proxy import QuantProxyFromInjector, eval_mode
from brevitas.quant.strict import resolve_values
from brevitas.quant_tensor import QuantTensor

__all__ = [
    "BiasQuantProxyFromInjector",
    "BiasQuantProxyProtocol",
    "WeightQuantProxyFromInjector",
    "WeightQuantProxyProtocol",
]


@runtime_checkable
class WeightQuantProxyProtocol(Protocol):
    """What a module must offer to be passed as ``weight_quant``."""

    is_quant_enabled: bool
    is_signed: bool | None
    is_narrow_range: bool | None
    rounding_mode: str | None

    def add_tracked_module(self, module: nn.Module) -> None:
        """Take one more layer whose weight is quantized."""

    def forward(self, x: Tensor) -> Tensor | QuantTensor:
        """Quantize a weight."""


@runtime_checkable
class BiasQuantProxyProtocol(Protocol):
    """What a module must offer to be passed as ``bias_quant``."""

    is_quant_enabled: bool
    requires_input_scale: bool
    requires_input_bit_width: bool

    def add_tracked_module(self, module: nn.Module) -> None:
        """Take one more layer whose bias is quantized."""

    def forward(
        self, x: Tensor, input_scale: Tensor | None = None, input_bit_width: Tensor | None = None
    ) -> Tensor | QuantTensor:
        """Quantize a bias."""


def _with_values(parameter: nn.Parameter) -> Tensor:
    """The parameter, or zeros that take no memory in place of one on the meta device."""
    return (
        torch.zeros((), dtype=parameter.dtype, device="cpu").expand(parameter.shape) if parameter.is_meta else parameter
    )


class _ParameterQuantProxy(QuantProxyFromInjector):
    """A proxy whose statistics run over one parameter of each of its layers."""

    parameter_name: str

    def _tracked_parameters(self) -> list[nn.Parameter]:
        return [p for p in (getattr(m, self.parameter_name, None) for m in self.tracked_module_list) if p is not None]

    def _layer_values(self) -> dict[str, Any]:
        tracked = [_with_values(p) for p in self._tracked_parameters()]
        return {**super()._layer_values(), "tracked_parameter_list": tracked}

    def _resolve(self) -> None:
        super()._resolve()
        self._trackers = self._find_trackers()
        self._followed = self._tracked_parameters()
        if any(p.is_meta for p in self._followed):
            for tracker in self._trackers:
                tracker.set_tracked_parameters(self._followed)

    def restart(self) -> None:
        """Begin anew from the layers' parameters as they are now, in the same objects: nothing is learned yet."""
        stateless = self.tensor_quant is None or not self.tensor_quant.state_dict()
        if stateless or any(p.is_meta for p in self._tracked_parameters()):
            return
        assert self.tensor_quant is not None
        fresh = resolve_values(self.quant_injector, self.site, self._layer_values())["tensor_quant"]
        with torch.no_grad():
            for name, tensor in fresh.state_dict(keep_vars=True).items():
                self.tensor_quant.state_dict(keep_vars=True)[name].copy_(tensor)

    def _find_trackers(self) -> list[Any]:
        if self.tensor_quant is None:
            return []
        return [m for m in self.tensor_quant.modules() if hasattr(type(m), "set_tracked_parameters")]

    def init_scale(self) -> None:  # noqa: D102 - as in the base
        # The parameters may have been replaced since they were tracked.
        for tracker in self._trackers:
            tracker.set_tracked_parameters(self._tracked_parameters())
        super().init_scale()

    def evaluate(self, x: Tensor) -> Tensor | QuantTensor:
        """``x`` quantized as in eval mode, with gradients; nothing is counted or changed. ``x`` itself if off."""
        if self.tensor_quant is None:
            return x
        return self._result(self._evaluate_on(x), False)

    def _evaluate(self) -> Any:
        parameters = self._tracked_parameters()
        if not parameters:
            raise QuantMetadataError(f"{self.site}: the layer has no {self.parameter_name}")
        return self._evaluate_on(parameters[0])

    def _evaluate_on(self, x: Tensor) -> Any:
        raise NotImplementedError

    def _follow_replaced_parameters(self) -> None:
        """A layer's parameter may have been replaced by a new object; shared statistics must see the new one."""
        if len(self.tracked_module_list) < 2 or not self._trackers:
            return
        current = self._tracked_parameters()
        if len(current) == len(self._followed) and all(a is b for a, b in zip(current, self._followed, strict=True)):
            return
        self._followed = current
        for tracker in self._trackers:
            tracker.set_tracked_parameters(current)


class WeightQuantProxyFromInjector(_ParameterQuantProxy):
    """Quantizes the weight of a layer, or of the layers that share it.

    >>> import torch
    >>> from brevitas.nn import QuantLinear
    >>> layer = QuantLinear(4, 2, weight_bit_width=4)
    >>> layer.weight_quant(layer.weight).bit_width
    tensor(4.)

    Resolves to ``tensor_quant: (weight) -> (value, scale, zero point, bit width)``, or to nothing if off.
    """

    role = "weight"
    parameter_name = "weight"

    def _install(self, tensor_quant: nn.Module | None, values: dict[str, Any]) -> None:
        super()._install(tensor_quant, values)
        #: Whether the quantizer bounds the weight by what the layer's input can be.
        self.requires_quant_input = isinstance(tensor_quant, AccumulatorAwareIntQuant)
        self._input: tuple[Tensor, bool] | None = None

    def forward(self, x: Tensor, quant_input: Tensor | QuantTensor | None = None) -> Tensor | QuantTensor:
        """The quantized weight, in the weight's shape and dtype; the weight itself if quantization is off.

        Args:
            x: weight.
            quant_input: input of the layer, whose bit width and sign accumulator-aware quantizers need.

        Raises:
            QuantMetadataError: an accumulator-aware quantizer, and the input is no ``QuantTensor``.
        """
        if self.tensor_quant is None:
            return x
        self._check_learned_if_sharded()
        self._follow_replaced_parameters()
        if not self.requires_quant_input:
            return self._result(self.tensor_quant(x), self.training)
        if not isinstance(quant_input, QuantTensor):
            raise QuantMetadataError(
                f"{self.site}: {self.quant_injector.__name__} bounds the weight by the bit width and sign of the "
                "input, and the input is a plain Tensor; set input_quant= on the layer, or return_quant_tensor=True on "
                "the one before"
            )
        width, signed = quant_input.bit_width, quant_input.signed
        if not self.training and not torch.compiler.is_compiling():
            self._input = (width.detach(), signed)
        return self._result(self.tensor_quant(x, width, signed), self.training)

    def _evaluate_on(self, x: Tensor) -> Any:
        assert self.tensor_quant is not None
        self._follow_replaced_parameters()
        if self.requires_quant_input and self._input is None:
            raise QuantMetadataError(
                f"{self.site}: {self.quant_injector.__name__} depends on the input's bit width, and no input has been "
                "seen; run one forward in eval mode first"
            )
        with eval_mode(self.tensor_quant):
            return self.tensor_quant(x, *(self._input if self.requires_quant_input and self._input else ()))


def _torch_layer(module: nn.Module) -> type:
    """The layer of ``torch.nn`` that a layer is a kind of."""
    return next(base for base in type(module).__mro__ if base.__module__.startswith("torch.nn."))


class BiasQuantProxyFromInjector(_ParameterQuantProxy):
    """Quantizes the bias of a layer, on the accumulator's grid or on a grid of its own.

    >>> import torch
    >>> from brevitas.nn import QuantLinear
    >>> from brevitas.quant import Int8Bias
    >>> layer = QuantLinear(4, 2, bias_quant=Int8Bias)
    >>> layer.bias_quant(layer.bias, input_scale=torch.tensor(0.01)).scale
    tensor(0.0100)
    """

    role = "bias"
    parameter_name = "bias"

    def _install(self, tensor_quant: nn.Module | None, values: dict[str, Any]) -> None:
        super()._install(tensor_quant, values)
        enabled = tensor_quant is not None
        self.requires_input_scale = enabled and bool(values.get("requires_input_scale"))
        self.requires_input_bit_width = enabled and bool(values.get("requires_input_bit_width"))
        self._accumulator: tuple[Tensor, Tensor | None] | None = None

    def _track(self, module: nn.Module | None) -> bool:
        first = self.tracked_module_list[0]
        if module is not None and _torch_layer(module) is not _torch_layer(first):
            raise QuantConfigError(
                f"{self.site}: {type(first).__name__} and {type(module).__name__} cannot share a bias quantizer: they "
                "are layers of different types; pass the class to each"
            )
        return super()._track(module)

    def forward(
        self, x: Tensor, input_scale: Tensor | None = None, input_bit_width: Tensor | None = None
    ) -> Tensor | QuantTensor:
        """The quantized bias, of shape (C,); the bias itself if quantization is off.

        Args:
            x: bias, of shape (C,).
            input_scale: scale of the accumulator, of one element or of C, flattened here.
            input_bit_width: width of the accumulator, one element.

        Raises:
            QuantMetadataError: the scale or width that the quantizer needs is not given.
        """
        if self.tensor_quant is None:
            return x
        self._check_learned_if_sharded()
        if not self.requires_input_scale:
            return self._result(self.tensor_quant(x), self.training)
        needed = self._required(input_scale, "input scale")
        needed = needed.reshape(()) if needed.numel() == 1 else needed.reshape(-1)
        width = None
        if self.requires_input_bit_width:
            width = self._required(input_bit_width, "input bit width").reshape(())
        if not self.training and not torch.compiler.is_compiling():
            self._accumulator = (needed.detach(), None if width is None else width.detach())
        arguments = (needed,) if width is None else (needed, width)
        return self._result(self.tensor_quant(x, *arguments), self.training)

    def _required(self, given: Tensor | None, what: str) -> Tensor:
        if given is None:
            raise QuantMetadataError(f"{self.quant_injector.__name__} needs the {what}, and none was given")
        return given

    def evaluate(
        self, x: Tensor, input_scale: Tensor | None = None, input_bit_width: Tensor | None = None
    ) -> Tensor | QuantTensor:
        """``x`` quantized as in eval mode, with gradients; nothing is counted or changed. ``x`` itself if off.

        Args:
            x: bias.
            input_scale, input_bit_width: of the accumulator; those of the last eval forward if not given.
        """
        if self.tensor_quant is None:
            return x
        given = None if input_scale is None else (input_scale, input_bit_width)
        return self._result(self._evaluate_on(x, given), False)

    def _evaluate_on(self, x: Tensor, accumulator: tuple[Tensor, Tensor | None] | None = None) -> Any:
        assert self.tensor_quant is not None
        arguments: tuple[Tensor, ...] = ()
        if self.requires_input_scale:
            accumulator = accumulator or self._accumulator
            if accumulator is None:
                raise QuantMetadataError(
                    f"{self.site}: {self.quant_injector.__name__} takes its scale from the input, and no input has "
                    "been seen; run one forward in eval mode first"
                )
            arguments = tuple(a for a in accumulator if a is not None)
        with eval_mode(self.tensor_quant):
            return self.tensor_quant(x, *arguments)

    def scale(self) -> Tensor | None:
        """Scale of the last eval forward (external scale, ``None`` before any) or from the bias itself."""
        if self.requires_input_scale:
            return self._accumulator[0] if self._accumulator is not None else None
        return super().scale()

    def bit_width(self) -> Tensor | None:
        """Bit width, that of the last eval forward where the layer supplies it (``None`` before any)."""
        if self.requires_input_scale and self._accumulator is None:
            return None
        return super().bit_width()

    def zero_point(self) -> Tensor | None:
        """Zero point; ``None`` where the scale comes from the layer and no eval forward was run."""
        if self.requires_input_scale and self._accumulator is None:
            return None
        return super().zero_point()
