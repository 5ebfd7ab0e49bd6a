"""Converters of the layers with a weight."""

from __future__ import annotations

from typing import Any

from torch import nn

from brevitas.graph.converters import register_converter
from brevitas.nn import (
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantConvTranspose3d,
    QuantEmbedding,
    QuantLinear,
    QuantScaleBias,
    ScaleBias,
)


def _geometry(layer: Any) -> dict[str, Any]:
    """What convolutions and transposed ones have in common."""
    return {
        "in_channels": layer.in_channels,
        "out_channels": layer.out_channels,
        "kernel_size": layer.kernel_size,
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
        "bias": layer.bias is not None,
        "padding_mode": layer.padding_mode,
    }


@register_converter(nn.Conv1d, QuantConv1d)
@register_converter(nn.Conv2d, QuantConv2d)
@register_converter(nn.Conv3d, QuantConv3d)
def _conv(layer: Any) -> dict[str, Any]:
    same = getattr(layer, "padding_type", "standard") == "same"
    return _geometry(layer) | ({"padding": "same"} if same else {})


@register_converter(nn.ConvTranspose1d, QuantConvTranspose1d)
@register_converter(nn.ConvTranspose2d, QuantConvTranspose2d)
@register_converter(nn.ConvTranspose3d, QuantConvTranspose3d)
def _conv_transpose(layer: Any) -> dict[str, Any]:
    return _geometry(layer) | {"output_padding": layer.output_padding}


@register_converter(nn.Linear, QuantLinear)
def _linear(layer: Any) -> dict[str, Any]:
    return {"in_features": layer.in_features, "out_features": layer.out_features, "bias": layer.bias is not None}


@register_converter(nn.Embedding, QuantEmbedding)
def _embedding(layer: Any) -> dict[str, Any]:
    return {
        "num_embeddings": layer.num_embeddings,
        "embedding_dim": layer.embedding_dim,
        "padding_idx": layer.padding_idx,
        "max_norm": layer.max_norm,
        "norm_type": layer.norm_type,
        "scale_grad_by_freq": layer.scale_grad_by_freq,
        "sparse": layer.sparse,
    }


@register_converter(ScaleBias, QuantScaleBias)
def _scale_bias(layer: Any) -> dict[str, Any]:
    return {
        "num_features": layer.num_features,
        "bias": layer.bias is not None,
        "runtime_shape": layer.runtime_shape,
    }
