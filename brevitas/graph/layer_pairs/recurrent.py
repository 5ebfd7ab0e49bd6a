"""Converters of the recurrent layers, whose parameters are laid out gate by gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from brevitas.graph.converters import register_converter
from brevitas.nn import QuantGRU, QuantLSTM, QuantRNN
from brevitas.nn.recurrent import QuantRecurrentLayer

_STRUCTURE = ("num_layers", "bias", "batch_first", "bidirectional", "dropout")


def _transfer(source: Any, new: Any) -> None:
    """Copy the parameters of one layout into the other; frozen ones stay frozen."""
    if isinstance(new, QuantRecurrentLayer):
        parameters = source.torch_parameters() if isinstance(source, QuantRecurrentLayer) else source.named_parameters()
        new.take_torch_parameters(dict(parameters))
    else:
        with torch.no_grad():
            for name, tensor in source.torch_parameters().items():
                getattr(new, name).copy_(tensor)
    if not any(parameter.requires_grad for parameter in _weights(source)):
        for parameter in _weights(new):
            parameter.requires_grad_(False)


def _weights(layer: Any) -> list[nn.Parameter]:
    return [parameter for weights in layer.all_weights for parameter in weights]


def _arguments(layer: Any) -> dict[str, Any]:
    first = next(layer.parameters())
    return {
        "input_size": layer.input_size,
        "hidden_size": layer.hidden_size,
        **{name: getattr(layer, name) for name in _STRUCTURE},
        "device": first.device,
        "dtype": first.dtype,
    }


@register_converter(nn.RNN, QuantRNN, transfer=_transfer, structure=(*_STRUCTURE, "nonlinearity"))
def _rnn(layer: Any) -> dict[str, Any]:
    return {**_arguments(layer), "nonlinearity": layer.nonlinearity}


@register_converter(nn.LSTM, QuantLSTM, transfer=_transfer, structure=(*_STRUCTURE, "proj_size"))
def _lstm(layer: Any) -> dict[str, Any]:
    return {**_arguments(layer), "proj_size": layer.proj_size}


@register_converter(nn.GRU, QuantGRU, transfer=_transfer, structure=_STRUCTURE)
def _gru(layer: Any) -> dict[str, Any]:
    return _arguments(layer)
