"""Multi-head attention between quantizers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brevitas.errors import QuantConfigError
from brevitas.nn.attach import Slot, attach_quantizers
from brevitas.nn.attention_core import AttentionBody, QuantScaledDotProductAttention
from brevitas.nn.quant_linear import QuantLinear
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat, Int32Bias, Uint8ActPerTensorFloat

__all__ = ["QuantMultiheadAttention", "QuantScaledDotProductAttention"]

_SEPARATE = ("q_proj", "k_proj", "v_proj")
_AROUND = {"act_impl": None, "passthrough_act": True}


class QuantMultiheadAttention(AttentionBody, nn.MultiheadAttention):
    """Multi-head attention with quantized projections and a quantized core.

    >>> import torch
    >>> from brevitas.nn import QuantMultiheadAttention
    >>> attention = QuantMultiheadAttention(8, num_heads=2, batch_first=True, in_proj_weight_bit_width=4)
    >>> x = torch.randn(3, 5, 8)
    >>> out, weights = attention(x, x, x)
    >>> out.shape, weights.shape
    (torch.Size([3, 5, 8]), torch.Size([3, 5, 5]))

    The projections are ``QuantLinear`` layers: ``in_proj``, which makes query, key and value of one input (or
    ``q_proj``, ``k_proj``, ``v_proj`` with ``packed_in_proj=False``), and ``out_proj``. Between them works what
    :class:`QuantScaledDotProductAttention` describes, for each head: the query times 1/sqrt(head_dim) is quantized by
    ``q_scaled_quant``, and so on. ``bias_k``, ``bias_v`` and zeros are appended before the quantizers of key and value.

    A checkpoint of ``torch.nn.MultiheadAttention`` loads: ``in_proj_weight`` and ``in_proj_bias``, or
    ``{q,k,v}_proj_weight``, become the parameters of the projections. So does this layer take the place of
    ``self_attn`` in torch's encoder layers; in decoder layers, whose ``multihead_attn`` has another key than query, it
    needs ``packed_in_proj=False``. With all quantizers ``None`` it equals torch's layer, but for query positions that a
    mask blocks throughout: they attend to nothing here, where torch gives NaN.

    Args:
        embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype: as for
            ``torch.nn.MultiheadAttention``.
        packed_in_proj: one projection with one input quantizer; query, key and value must then be one tensor.
        in_proj_input_quant, in_proj_weight_quant, in_proj_bias_quant: quantizers of the input projection; of each of
            the three with ``packed_in_proj=False``.
        softmax_input_quant, attn_output_weights_quant, q_scaled_quant, k_transposed_quant, v_quant: quantizers of the
            core, on (N, num_heads, ...) tensors.
        out_proj_input_quant, out_proj_weight_quant, out_proj_bias_quant, out_proj_output_quant: quantizers of the
            output projection.
        return_quant_tensor: return the output, not the weights, as a ``QuantTensor``.
        **kwargs: directives with the name of a quantizer as prefix: ``in_proj_weight_bit_width``, ``v_bit_width``.

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal; sizes that do not fit.
    """

    in_proj: QuantLinear
    q_proj: QuantLinear
    k_proj: QuantLinear
    v_proj: QuantLinear
    out_proj: QuantLinear  # type: ignore[assignment]

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        packed_in_proj: bool = True,
        in_proj_input_quant: Any = Int8ActPerTensorFloat,
        in_proj_weight_quant: Any = Int8WeightPerTensorFloat,
        in_proj_bias_quant: Any = Int32Bias,
        softmax_input_quant: Any = None,
        attn_output_weights_quant: Any = Uint8ActPerTensorFloat,
        q_scaled_quant: Any = Int8ActPerTensorFloat,
        k_transposed_quant: Any = Int8ActPerTensorFloat,
        v_quant: Any = Int8ActPerTensorFloat,
        out_proj_input_quant: Any = Int8ActPerTensorFloat,
        out_proj_weight_quant: Any = Int8WeightPerTensorFloat,
        out_proj_bias_quant: Any = Int32Bias,
        out_proj_output_quant: Any = None,
        return_quant_tensor: bool = False,
        **kwargs: Any,
    ) -> None:
        # Not torch's constructor: it would make the parameters that the projections have.
        nn.Module.__init__(self)
        self.embed_dim, self.num_heads, self.dropout = embed_dim, num_heads, dropout
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.batch_first, self.add_zero_attn, self.packed_in_proj = batch_first, add_zero_attn, packed_in_proj
        self._check_arguments()
        self.head_dim = embed_dim // num_heads
        # torch's encoder layers take their fast path, which knows of no quantizers, only where this is True.
        self._qkv_same_embed_dim = False
        self._build_projections(bias, add_bias_kv, {"device": device, "dtype": dtype})
        self._init_layer(return_quant_tensor)
        slots = [
            *self._projection_slots("in_proj", in_proj_weight_quant, in_proj_bias_quant, in_proj_input_quant),
            *self._core_slots(
                softmax_input_quant=softmax_input_quant,
                attn_output_weights_quant=attn_output_weights_quant,
                q_scaled_quant=q_scaled_quant,
                k_transposed_quant=k_transposed_quant,
                v_quant=v_quant,
            ),
            *self._projection_slots("out_proj", out_proj_weight_quant, out_proj_bias_quant, out_proj_input_quant),
            Slot(
                "out_proj_output_quant",
                "act",
                out_proj_output_quant,
                "out_proj_output_",
                _AROUND,
                self.out_proj,
                "output_quant",
            ),
        ]
        attach_quantizers(self, slots, kwargs)
        self.to(device=device, dtype=dtype)

    def _check_arguments(self) -> None:
        name = type(self).__name__
        if self.embed_dim <= 0 or self.num_heads <= 0 or self.embed_dim % self.num_heads:
            raise QuantConfigError(
                f"{name}: embed_dim = {self.embed_dim!r} and num_heads = {self.num_heads!r} are not legal: expected "
                "positive numbers, embed_dim a multiple of num_heads"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise QuantConfigError(
                f"{name}: dropout = {self.dropout!r} is not legal: expected a number from 0 to below 1"
            )
        if self.packed_in_proj and not self.kdim == self.vdim == self.embed_dim:
            raise QuantConfigError(
                f"{name}: kdim = {self.kdim} and vdim = {self.vdim} differ from embed_dim = {self.embed_dim}, so key "
                "and value are other tensors than the query; set packed_in_proj=False"
            )

    def _build_projections(self, bias: bool, add_bias_kv: bool, factory: dict[str, Any]) -> None:
        off = {"weight_quant": None, "bias": bias, **factory}
        size = self.embed_dim
        out_proj = QuantLinear(size, size, **off)
        # torch draws no values that it overwrites, and one seed is to give both layers the same parameters.
        with torch.random.fork_rng(devices=_cuda(out_proj.weight)):
            if self.packed_in_proj:
                self.in_proj = QuantLinear(size, 3 * size, **off)
            else:
                self.q_proj = QuantLinear(size, size, **off)
                self.k_proj = QuantLinear(self.kdim, size, **off)
                self.v_proj = QuantLinear(self.vdim, size, **off)
        self.out_proj = out_proj
        self.bias_k = nn.Parameter(torch.empty((1, 1, size), **factory)) if add_bias_kv else None
        self.bias_v = nn.Parameter(torch.empty((1, 1, size), **factory)) if add_bias_kv else None
        self._reset_parameters()

    def _in_projections(self) -> list[QuantLinear]:
        return [self.in_proj] if self.packed_in_proj else [self.q_proj, self.k_proj, self.v_proj]

    def _projection_slots(self, name: str, weight: Any, bias: Any, input: Any) -> list[Slot]:
        layers = self._in_projections() if name == "in_proj" else [self.out_proj]
        return [
            slot
            for layer in layers
            for slot in (
                Slot(f"{name}_weight_quant", "weight", weight, f"{name}_weight_", {}, layer, "weight_quant"),
                Slot(f"{name}_bias_quant", "bias", bias, f"{name}_bias_", {}, layer, "bias_quant"),
                Slot(f"{name}_input_quant", "act", input, f"{name}_input_", _AROUND, layer, "input_quant"),
            )
        ]

    def _reset_parameters(self) -> None:
        """Values as torch draws them, in the same order."""
        layers = self._in_projections()
        if self.kdim == self.vdim == self.embed_dim:
            # torch packs the three projections whenever it can, and the packed shape decides the range.
            packed = layers[0].weight.new_empty((3 * self.embed_dim, self.embed_dim))
            nn.init.xavier_uniform_(packed)
            with torch.no_grad():
                for layer, rows in zip(layers, packed.chunk(len(layers)), strict=True):
                    layer.weight.copy_(rows)
        else:
            for layer in layers:
                nn.init.xavier_uniform_(layer.weight)
        for layer in (*layers, self.out_proj):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        for row in (self.bias_k, self.bias_v):
            if row is not None:
                nn.init.xavier_normal_(row)

    def extra_repr(self) -> str:
        """Sizes and layout."""
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, packed_in_proj={self.packed_in_proj}"

    @property
    def return_quant_tensor(self) -> bool | None:
        """Whether the output is a ``QuantTensor``: what ``out_proj`` returns."""
        return self.out_proj.return_quant_tensor

    @return_quant_tensor.setter
    def return_quant_tensor(self, value: bool | None) -> None:
        self.out_proj.return_quant_tensor = value

    # --- What torch's layers ask an attention layer for ---------------------------------------------------------------

    @property
    def in_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """Weight of the packed projection, (3 * embed_dim, embed_dim); ``None`` if there are three."""
        return self.in_proj.weight if self.packed_in_proj else None

    @property
    def in_proj_bias(self) -> Tensor | None:  # type: ignore[override]
        """Bias of the packed projection, (3 * embed_dim,); ``None`` if there are three, or without biases."""
        return self.in_proj.bias if self.packed_in_proj else None

    def forward(  # type: ignore[override]
        self,
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Any, Tensor | None]:
        """The output, and the quantized attention weights as a plain tensor or ``None``.

        Args:
            query: (L, N, E), (N, L, E) with ``batch_first``, or (L, E); ``Tensor`` or ``QuantTensor``.
            key: the same with (S, kdim).
            value: the same with (S, vdim).
            key_padding_mask: (N, S) or (S,); ``True`` where a key is ignored, or a float that is added to the scores.
            need_weights: return the weights.
            attn_mask: (L, S) or (N * num_heads, L, S); ``True`` where a place is blocked, or added to the scores.
            average_attn_weights: weights averaged over the heads, (N, L, S), instead of (N, num_heads, L, S).
            is_causal: says of ``attn_mask`` that it is causal; the mask is needed, and used, all the same.

        Raises:
            QuantConfigError: a packed projection and different tensors; shapes that do not fit; nested tensors.
            QuantMetadataError: a quantizer, or ``return_quant_tensor=True``, needs metadata that are not there.
        """
        self._cache_input(query)
        masks = self._checked_masks(query, key, value, key_padding_mask, attn_mask, is_causal)
        q, *sources = (self._to_heads(x) for x in self._project(query, key, value))
        if self.bias_k is not None and self.bias_v is not None:
            rows = (row.view(self.num_heads, 1, self.head_dim) for row in (self.bias_k, self.bias_v))
            sources = [
                torch.cat([x, row.expand(*x.shape[:-2], 1, self.head_dim)], -2)
                for x, row in zip(sources, rows, strict=True)
            ]
            masks = [F.pad(mask, (0, 1)) for mask in masks]
        if self.add_zero_attn:
            sources = [F.pad(x, (0, 0, 0, 1)) for x in sources]
            masks = [F.pad(mask, (0, 1)) for mask in masks]
        dropout_p = self.dropout if self.training else 0.0
        k, v = sources
        out, weights = self._attend(q, k, v, masks, dropout_p, math.sqrt(1.0 / self.head_dim))
        out = self.pack_output(self.out_proj(self._from_heads(out)))
        if not need_weights:
            return out, None
        return out, weights.mean(-3) if average_attn_weights else weights

    def _project(self, query: Any, key: Any, value: Any) -> list[Any]:
        """Query, key and value of all heads, each (..., embed_dim)."""
        if not self.packed_in_proj:
            return [self.q_proj(query), self.k_proj(key), self.v_proj(value)]
        if query is not key or key is not value:
            raise self._wrong_input(
                "a packed projection has one input, and query, key and value are not the same tensor; set "
                "packed_in_proj=False, or pass the very same object three times"
            )
        return list(self.in_proj(query).chunk(3, -1))

    def _to_heads(self, x: Any) -> Any:
        """(N, num_heads, S, head_dim); without N for an input without batch."""
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        return x.permute(1, 2, 0, 3) if x.dim() == 4 and not self.batch_first else x.transpose(-3, -2)

    def _from_heads(self, x: Any) -> Any:
        x = x.permute(2, 0, 1, 3) if x.dim() == 4 and not self.batch_first else x.transpose(-3, -2)
        return x.flatten(-2)

    def _checked_masks(
        self,
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        is_causal: bool,
    ) -> list[Tensor]:
        """The masks, each broadcastable to (N, num_heads, L, S)."""
        self._check_inputs(query, key, value)
        sequence = -2 if self.batch_first or query.dim() == 2 else 0
        length, sources = query.shape[sequence], key.shape[sequence]
        batch = () if query.dim() == 2 else (query.shape[0 if self.batch_first else 1],)
        masks = []
        if attn_mask is not None:
            rows = math.prod(batch) * self.num_heads
            self._check_mask("attn_mask", attn_mask, (length, sources), (rows, length, sources))
            is_apart = batch and attn_mask.dim() == 3
            masks.append(attn_mask.unflatten(0, (*batch, self.num_heads)) if is_apart else attn_mask)
        elif is_causal:
            raise self._wrong_input(
                "is_causal=True says that attn_mask is causal, and there is none; pass for example "
                "torch.nn.Transformer.generate_square_subsequent_mask(length)"
            )
        if key_padding_mask is not None:
            self._check_mask("key_padding_mask", key_padding_mask, (*batch, sources))
            masks.append(key_padding_mask[:, None, None, :] if batch else key_padding_mask)
        return masks

    def _check_inputs(self, query: Any, key: Any, value: Any) -> None:
        if any(isinstance(x, Tensor) and x.is_nested for x in (query, key, value)):
            raise self._wrong_input(
                "nested tensors are not supported; pass a padded tensor and key_padding_mask. A torch.nn."
                "TransformerEncoder makes them: build it with enable_nested_tensor=False, or set use_nested_tensor = "
                "False on it"
            )
        expected = {"query": self.embed_dim, "key": self.kdim, "value": self.vdim}
        for (name, size), x in zip(expected.items(), (query, key, value), strict=True):
            if x.dim() not in (2, 3) or x.dim() != query.dim() or x.shape[-1] != size:
                raise self._wrong_input(
                    f"{name} has shape {tuple(x.shape)}; expected 3 dims, or 2 without a batch, as many as the query "
                    f"has, the last of size {size}"
                )
        batch = 0 if self.batch_first else 1
        if key.shape[:-1] != value.shape[:-1] or (query.dim() == 3 and query.shape[batch] != key.shape[batch]):
            raise self._wrong_input(
                f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)} do not fit: key "
                f"and value need one length, and all one batch size (batch_first={self.batch_first})"
            )

    def _check_mask(self, name: str, mask: Tensor, *shapes: tuple[int, ...]) -> None:
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise self._wrong_input(f"{name} is {mask.dtype}; expected bool, or floating point to add to the scores")
        if tuple(mask.shape) not in shapes:
            expected = " or ".join(map(str, shapes))
            raise self._wrong_input(f"{name} has shape {tuple(mask.shape)}; expected {expected}")

    # --- Checkpoints of torch.nn.MultiheadAttention -------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # load_state_dict hands each module a dict of its own, so the caller's keeps its names.
        self._rename_float_keys(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _rename_float_keys(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Give the keys of torch's layer the names that the projections have."""
        for kind in ("weight", "bias"):
            if self.packed_in_proj:
                targets = [f"{prefix}in_proj.{kind}"]
            else:
                targets = [f"{prefix}{name}.{kind}" for name in _SEPARATE]
                for name in _SEPARATE:
                    _rename(state_dict, f"{prefix}{name}_{kind}", [f"{prefix}{name}.{kind}"])
            _rename(state_dict, f"{prefix}in_proj_{kind}", targets)


def _projection_quantizer(side: str, part: str) -> property:
    """A property that gives the quantizer of a part of a projection, by the name that the constructor has for it."""

    def get(self: QuantMultiheadAttention) -> Any:
        layer = self.out_proj if side == "out" else self._in_projections()[0]
        return getattr(layer, f"{part}_quant")

    three = "; that of ``q_proj`` with ``packed_in_proj=False``" if side == "in" else ""
    return property(get, doc=f"Quantizer of the {side}put projection's {part}{three}.")


for _side, _part in itertools.product(("in", "out"), ("weight", "bias", "input")):
    setattr(QuantMultiheadAttention, f"{_side}_proj_{_part}_quant", _projection_quantizer(_side, _part))
QuantMultiheadAttention.out_proj_output_quant = _projection_quantizer("out", "output")  # type: ignore[attr-defined]


def _rename(state_dict: dict[str, Any], old: str, new: list[str]) -> None:
    """Move the tensor ``old``, cut into equal rows, to the keys ``new`` where none of them is there."""
    tensor = state_dict.get(old)
    if tensor is None or any(key in state_dict for key in new) or tensor.shape[0] % len(new):
        return
    del state_dict[old]
    state_dict.update(zip(new, tensor.chunk(len(new)), strict=True))


def _cuda(weight: Tensor) -> list[torch.device]:
    return [weight.device] if weight.device.type == "cuda" else []
