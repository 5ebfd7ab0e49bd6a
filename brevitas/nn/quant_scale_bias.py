"""A scale and a bias per channel, and the batch norms that load into them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from brevitas.core.utils import at_least_float32
from brevitas.errors import QuantConfigError
from brevitas.nn.utils import mul_add_from_bn
from brevitas.nn.weight_layer import QuantWeightBiasInputOutputLayer
from brevitas.quant import Int8WeightPerTensorFloat

__all__ = ["BatchNorm1dToQuantScaleBias", "BatchNorm2dToQuantScaleBias", "QuantScaleBias", "ScaleBias"]

IMAGES = (1, -1, 1, 1)


class ScaleBias(nn.Module):
    """Each channel times a weight, plus a bias: ``y = x * w + b``.

    >>> import torch
    >>> from brevitas.nn import ScaleBias
    >>> layer = ScaleBias(2, bias=True, runtime_shape=(1, -1))
    >>> layer.weight.data.copy_(torch.tensor([2.0, 3.0])), layer(torch.ones(1, 2)).tolist()
    (tensor([2., 3.]), [[2.0, 3.0]])

    Args:
        num_features: number of channels, C.
        bias: whether there is a bias.
        runtime_shape: shape that weight and bias, each (C,), are viewed in: 1 everywhere and -1 for the channels.
            ``None``: the channels are dim 1, whatever the rank of the input.

    Starts as the identity, with weights 1 and biases 0.

    Raises:
        QuantConfigError: another ``runtime_shape``.
    """

    def __init__(
        self,
        num_features: int,
        bias: bool,
        runtime_shape: tuple[int, ...] | None = IMAGES,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if runtime_shape is not None and sorted(runtime_shape) != [-1] + [1] * (len(runtime_shape) - 1):
            raise QuantConfigError(
                f"{type(self).__name__}: runtime_shape = {runtime_shape!r} is not legal: expected 1 everywhere and -1 "
                "for the channels, such as (1, -1, 1, 1), or None"
            )
        self.num_features = num_features
        self.runtime_shape = runtime_shape
        self.weight = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The identity: weights 1, biases 0."""
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def channel_shape(self, x: Tensor) -> tuple[int, ...]:
        """Shape in which weight and bias broadcast over ``x``."""
        return self.runtime_shape or (1, -1) + (1,) * (x.ndim - 2)

    def forward(self, input: Any) -> Any:
        """``input`` times the weight plus the bias of each channel."""
        return self._scaled(input, self.weight, self.bias)

    def _scaled(self, x: Any, weight: Tensor, bias: Tensor | None) -> Any:
        shape = self.channel_shape(x)
        out = x * weight.view(shape)
        return out if bias is None else out + bias.view(shape)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.num_features}, bias={self.bias is not None}, runtime_shape={self.runtime_shape}"


class QuantScaleBias(QuantWeightBiasInputOutputLayer, ScaleBias):
    """:class:`ScaleBias` with quantized weight, and on request bias, input and output.

    >>> import torch
    >>> from brevitas.nn import QuantScaleBias
    >>> layer = QuantScaleBias(8, bias=False, weight_bit_width=4)
    >>> layer(torch.randn(1, 8, 5, 5)).shape, layer.weights_per_output
    (torch.Size([1, 8, 5, 5]), 1)

    Args:
        num_features, bias, runtime_shape, device, dtype: as for :class:`ScaleBias`.
        weight_quant, bias_quant, input_quant, output_quant: quantizer class, proxy of another layer to share, or
            ``None``.
        return_quant_tensor: return a ``QuantTensor``.
        **kwargs: directives with the prefixes ``weight_``, ``bias_``, ``input_``, ``output_``.

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal.
    """

    weights_per_output = 1
    channelwise_separable = True

    def __init__(
        self,
        num_features: int,
        bias: bool,
        runtime_shape: tuple[int, ...] | None = IMAGES,
        weight_quant: Any = Int8WeightPerTensorFloat,
        bias_quant: Any = None,
        input_quant: Any = None,
        output_quant: Any = None,
        return_quant_tensor: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        ScaleBias.__init__(self, num_features, bias, runtime_shape, device=device, dtype=dtype)
        if runtime_shape is not None:
            self._channel_dim = runtime_shape.index(-1) - len(runtime_shape)
        self._init_quantizers(weight_quant, bias_quant, input_quant, output_quant, return_quant_tensor, kwargs)

    @property
    def out_channels(self) -> int:  # type: ignore[override]
        """Number of channels: ``num_features``."""
        return self.num_features

    def inner_forward_impl(self, x: Tensor, quant_weight: Tensor, quant_bias: Tensor | None) -> Tensor:
        """The product and the sum on quantized values."""
        return self._scaled(x, quant_weight, quant_bias)


class _BatchNormToQuantScaleBias(QuantScaleBias):
    """A scale-bias that takes the parameters of a batch norm; a subclass gives the ranks of its inputs."""

    _ranks: tuple[int, ...]
    _shapes: str

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        weight_quant: Any = Int8WeightPerTensorFloat,
        bias_quant: Any = None,
        input_quant: Any = None,
        output_quant: Any = None,
        return_quant_tensor: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_features,
            True,
            None,
            weight_quant,
            bias_quant,
            input_quant,
            output_quant,
            return_quant_tensor,
            device,
            dtype,
            **kwargs,
        )
        self.eps = eps

    def channel_shape(self, x: Tensor) -> tuple[int, ...]:
        """Shape in which weight and bias broadcast over ``x``.

        Raises:
            QuantConfigError: ``x`` has another rank than the batch norm takes.
        """
        if x.ndim not in self._ranks:
            raise QuantConfigError(
                f"{type(self).__name__}: an input of shape {tuple(x.shape)}; expected {self._shapes}"
            )
        return super().channel_shape(x)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.num_features}, eps={self.eps}"

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own: dict[str, Any] = {
            name: state_dict.get(prefix + name) for name in ("running_mean", "running_var", "weight", "bias")
        }
        found = dict(state_dict)
        if own["running_mean"] is not None or own["running_var"] is not None:
            problem = self._problem(own)
            if problem:
                # Half a batch norm must not be taken for the scale and bias of this layer.
                error_msgs.append(f"'{prefix.removesuffix('.')}' ({type(self).__name__}): {problem}")
                return
            found |= {prefix + name: tensor for name, tensor in self._folded(**own).items()}
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                found.pop(prefix + name, None)
        super()._load_from_state_dict(  # type: ignore[misc]
            found, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _problem(self, own: Mapping[str, Tensor | None]) -> str:
        """Why this is no state of a batch norm of ``num_features`` channels; empty if it is one."""
        affine = own["weight"] is not None or own["bias"] is not None
        for name in ("running_mean", "running_var", *(("weight", "bias") if affine else ())):
            tensor = own[name]
            if tensor is None:
                return f"the state of a batch norm without '{name}'"
            if tuple(tensor.shape) != (self.num_features,):
                return f"'{name}' of shape {tuple(tensor.shape)}; expected ({self.num_features},)"
        return ""

    def _folded(
        self, running_mean: Tensor, running_var: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> dict[str, Tensor]:
        """Weight and bias by which the batch norm acts in eval mode."""
        gamma, beta = (None if t is None else at_least_float32(t) for t in (weight, bias))
        with torch.no_grad():
            factor, summand = mul_add_from_bn(
                at_least_float32(running_mean), at_least_float32(running_var), self.eps, gamma, beta
            )
        return {"weight": factor.to(running_mean.dtype), "bias": summand.to(running_mean.dtype)}


class BatchNorm1dToQuantScaleBias(_BatchNormToQuantScaleBias):
    """A :class:`QuantScaleBias` that loads the state of a ``torch.nn.BatchNorm1d``.

    >>> import torch
    >>> from brevitas.nn import BatchNorm1dToQuantScaleBias
    >>> layer = BatchNorm1dToQuantScaleBias(3)
    >>> layer.load_state_dict(torch.nn.BatchNorm1d(3).state_dict())
    <All keys matched successfully>
    >>> layer(torch.ones(2, 3)).shape, layer(torch.ones(2, 3, 5)).shape
    (torch.Size([2, 3]), torch.Size([2, 3, 5]))

    Args: as for :class:`BatchNorm2dToQuantScaleBias`.

    Input (N, C) or (N, C, L).
    """

    _ranks, _shapes = (2, 3), "(N, C) or (N, C, L)"


class BatchNorm2dToQuantScaleBias(_BatchNormToQuantScaleBias):
    """A :class:`QuantScaleBias` that loads the state of a ``torch.nn.BatchNorm2d``.

    >>> import torch
    >>> from brevitas.nn import BatchNorm2dToQuantScaleBias
    >>> bn, x = torch.nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5)
    >>> y = bn(x)                                                       # collects mean and variance
    >>> layer = BatchNorm2dToQuantScaleBias(3, weight_quant=None)
    >>> layer.load_state_dict(bn.state_dict())
    <All keys matched successfully>
    >>> bool(torch.allclose(layer(x), bn.eval()(x), atol=1e-6))
    True

    Args:
        num_features: number of channels, C.
        eps: as the batch norm has it; added to the variance that is loaded.
        weight_quant, bias_quant, input_quant, output_quant: quantizer class, proxy of another layer to share, or
            ``None``.
        return_quant_tensor: return a ``QuantTensor``.
        **kwargs: directives with the prefixes ``weight_``, ``bias_``, ``input_``, ``output_``.

    Input (N, C, H, W). ``load_state_dict`` takes a state of the layer's own, or one of a batch norm: then the weight is
    gamma / sqrt(var + eps) and the bias beta - mean * weight, and the caller's dict stays as it is. No statistics are
    collected in training; weight and bias are learned.

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal.
    """

    _ranks, _shapes = (4,), "(N, C, H, W)"
