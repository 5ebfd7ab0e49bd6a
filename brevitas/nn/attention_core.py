"""Attention between quantizers: the body that the attention layers share, and the layer of it alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brevitas.errors import QuantConfigError
from brevitas.nn.attach import Slot, attach_quantizers
from brevitas.nn.introspection import enabled_property, narrow_property, quantity_getter, signed_property
from brevitas.nn.quant_layer import QuantLayerMixin
from brevitas.quant import Int8ActPerTensorFloat, Uint8ActPerTensorFloat
from brevitas.quant_tensor import QuantTensor
from brevitas.utils.module_path import describe_module

__all__ = ["AttentionBody", "QuantScaledDotProductAttention"]

#: Mask values that count as -inf where scores are quantized: models write -1e4 or the dtype's minimum for "never".
_BLOCKED_FROM = -1e4


class AttentionBody(QuantLayerMixin):
    """Body of the attention layers: softmax(q @ k + mask) @ v, with a quantizer at each operand and result."""

    # Set by the slots below.
    softmax_input_quant: Any
    attn_output_weights_quant: Any
    q_scaled_quant: Any
    k_transposed_quant: Any
    v_quant: Any

    @staticmethod
    def _core_slots(**quantizers: Any) -> list[Slot]:
        """One slot for each quantizer, given as ``v_quant=``; its keywords start with ``v_``."""
        around = {"act_impl": None, "passthrough_act": True}
        return [Slot(name, "act", quant, name.removesuffix("quant"), around) for name, quant in quantizers.items()]

    def _attend(
        self,
        query: Tensor | QuantTensor,
        key: Tensor | QuantTensor,
        value: Tensor | QuantTensor,
        masks: Iterable[Tensor],
        dropout_p: float,
        scale: float,
    ) -> tuple[Tensor | QuantTensor, Tensor]:
        """Attention, and its weights as a plain tensor.

        Args:
            query: (..., L, E).
            key: (..., S, E).
            value: (..., S, Ev).
            masks: each broadcastable to (..., L, S); boolean with ``True`` where the weight is to be 0, or added to the
                scores.
            dropout_p: probability that a weight is dropped.
            scale: factor of the query.
        """
        # Functions, since torch.compile cannot follow the operators between quantized tensors.
        scaled = self.q_scaled_quant(torch.mul(query, scale))  # type: ignore[arg-type]
        transposed = self.k_transposed_quant(key.transpose(-2, -1))
        scores = _value(torch.matmul(scaled, transposed))
        weights = self._weights(scores, *self._merged(masks, scores.dtype))
        if dropout_p > 0.0:
            weights = F.dropout(weights, dropout_p)
        quant_weights = self.attn_output_weights_quant(weights)
        return torch.matmul(quant_weights, self.v_quant(value)), _value(quant_weights)

    def _merged(self, masks: Iterable[Tensor], dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """Where weights are to be 0, and what is added to the other scores, in ``dtype``; ``None`` for nothing."""
        lowest = _BLOCKED_FROM if self.softmax_input_quant.is_quant_enabled else -math.inf
        blocked: Tensor | None = None
        added: Tensor | None = None
        for mask in masks:
            here = mask
            if mask.dtype != torch.bool:
                given = mask.to(dtype)
                here = given <= lowest
                finite = given.masked_fill(here, 0.0)
                added = finite if added is None else added + finite
            blocked = here if blocked is None else blocked | here
        return blocked, added

    def _weights(self, scores: Tensor, blocked: Tensor | None, added: Tensor | None) -> Tensor:
        """Softmax of the quantized scores; 0 where blocked, in a row without any open place too."""
        if added is not None:
            scores = scores + added
        if blocked is None:
            return torch.softmax(_value(self.softmax_input_quant(scores)), -1)
        if self.softmax_input_quant.is_quant_enabled:
            # A blocked score must not reach the statistics, where -inf would be the range from then on.
            scores = _value(self.softmax_input_quant(scores.masked_fill(blocked, 0.0)))
        # Rows without an open place keep finite scores, whose softmax has no NaN to hand back.
        closed = blocked.all(-1, keepdim=True)
        weights = torch.softmax(scores.masked_fill(blocked & ~closed, -math.inf), -1)
        return weights.masked_fill(closed, 0.0)

    def _wrong_input(self, text: str) -> QuantConfigError:
        assert isinstance(self, nn.Module)
        return QuantConfigError(f"{describe_module(self)}: {text}")


for _part in ("softmax_input", "attn_output_weights", "q_scaled", "k_transposed", "v"):
    setattr(AttentionBody, f"is_{_part}_quant_enabled", enabled_property(_part))
    setattr(AttentionBody, f"is_quant_{_part}_signed", signed_property(_part))
    setattr(AttentionBody, f"is_quant_{_part}_narrow_range", narrow_property(_part))
    for _quantity in ("scale", "zero_point", "bit_width"):
        setattr(AttentionBody, f"quant_{_part}_{_quantity}", quantity_getter(_part, _quantity))


class QuantScaledDotProductAttention(AttentionBody, nn.Module):
    """``torch.nn.functional.scaled_dot_product_attention`` between quantizers, as a layer.

    >>> import torch
    >>> from brevitas.nn import QuantScaledDotProductAttention
    >>> attention = QuantScaledDotProductAttention(q_scaled_bit_width=4, return_quant_tensor=True)
    >>> out = attention(torch.randn(2, 5, 8), torch.randn(2, 6, 8), torch.randn(2, 6, 3))
    >>> out.shape, out.signed
    (torch.Size([2, 5, 3]), True)

    The query is scaled, then quantized; scores, with the mask added, are quantized on request, and the weights that
    their softmax gives, after dropout; the output is the product of weights and values. It lies on a grid if both have
    one per tensor: scale s_weights * s_v, zero point 0, width for S products.

    Blocked places (``-inf`` or ``False`` in the mask; with ``softmax_input_quant`` also -1e4 and below) count as score
    0 for the statistics of ``softmax_input_quant`` and get the weight 0 exactly. So do all places of a row that is
    blocked throughout, which gives output 0 there and no gradient.

    Args:
        softmax_input_quant: quantizer of the scores: a class, a proxy to share, or ``None``.
        attn_output_weights_quant: quantizer of the weights, which lie between 0 and 1 (1/(1-p) after dropout).
        q_scaled_quant: quantizer of the scaled query, (..., L, E).
        k_transposed_quant: quantizer of the transposed key, (..., E, S).
        v_quant: quantizer of the value, (..., S, Ev).
        return_quant_tensor: return a ``QuantTensor``.
        **kwargs: directives with the prefixes ``softmax_input_``, ``attn_output_weights_``, ``q_scaled_``,
            ``k_transposed_``, ``v_``.

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal.
    """

    def __init__(
        self,
        softmax_input_quant: Any = None,
        attn_output_weights_quant: Any = Uint8ActPerTensorFloat,
        q_scaled_quant: Any = Int8ActPerTensorFloat,
        k_transposed_quant: Any = Int8ActPerTensorFloat,
        v_quant: Any = Int8ActPerTensorFloat,
        return_quant_tensor: bool = False,
        **kwargs: Any,
    ) -> None:
        nn.Module.__init__(self)
        self._init_layer(return_quant_tensor)
        slots = self._core_slots(
            softmax_input_quant=softmax_input_quant,
            attn_output_weights_quant=attn_output_weights_quant,
            q_scaled_quant=q_scaled_quant,
            k_transposed_quant=k_transposed_quant,
            v_quant=v_quant,
        )
        attach_quantizers(self, slots, kwargs)

    def forward(
        self,
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Any:
        """Attention, (..., L, Ev).

        Args:
            query: (..., L, E), ``Tensor`` or ``QuantTensor``.
            key: (..., S, E).
            value: (..., S, Ev).
            attn_mask: broadcastable to (..., L, S); boolean with ``True`` where a place takes part, or added to the
                scores.
            dropout_p: probability that a weight is dropped, in train and eval mode alike, as in torch.
            is_causal: a place takes part in its own and later rows only; not together with ``attn_mask``.
            scale: factor of the query; 1/sqrt(E) if ``None``.

        Raises:
            QuantConfigError: shapes that do not fit, or a mask together with ``is_causal``.
            QuantMetadataError: ``return_quant_tensor=True``, and the weights or values have no grid per tensor.
        """
        self._cache_input(query)
        self._check_shapes(query, key, value)
        if not 0.0 <= dropout_p < 1.0:
            raise self._wrong_input(f"dropout_p = {dropout_p!r} is not legal: expected a number from 0 to below 1")
        masks = []
        if is_causal:
            if attn_mask is not None:
                raise self._wrong_input("is_causal=True and attn_mask= exclude each other; merge them into attn_mask")
            ones = torch.ones(
                query.shape[-2],
                key.shape[-2],
                dtype=torch.bool,
                device=query.value.device if isinstance(query, QuantTensor) else query.device,
            )
            masks.append(~ones.tril())
        elif attn_mask is not None:
            masks.append(~attn_mask if attn_mask.dtype == torch.bool else attn_mask)
        factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
        out, _ = self._attend(query, key, value, masks, dropout_p, factor)
        if self.return_quant_tensor and not isinstance(out, QuantTensor):
            raise self.metadata_error(
                "return_quant_tensor=True needs attention weights and values with one scale each, and "
                f"{self._without_grid()}",
                None,
                "set attn_output_weights_quant= and v_quant= to integer quantizers with one scale per tensor",
                "set return_quant_tensor=False here",
            )
        return self.pack_output(out)

    def _without_grid(self) -> str:
        off = [name for name in ("attn_output_weights_quant", "v_quant") if not getattr(self, name).is_quant_enabled]
        return f"{off[0]} is off" if off else "those of attn_output_weights_quant or v_quant have no such grid"

    def _check_shapes(self, query: Any, key: Any, value: Any) -> None:
        if min(query.dim(), key.dim(), value.dim()) < 2:
            raise self._wrong_input(
                f"query, key and value need at least 2 dims, and have {query.dim()}, {key.dim()} and {value.dim()}"
            )
        if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
            raise self._wrong_input(
                f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)} do not fit: query "
                "and key need the same last dim, key and value the same length"
            )


def _value(x: Tensor | QuantTensor) -> Tensor:
    return x.value if isinstance(x, QuantTensor) else x
