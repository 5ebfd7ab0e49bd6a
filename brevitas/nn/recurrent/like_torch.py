"""What code that knows torch's recurrent layers finds on the quantized ones, whose parameters lie gate by gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from brevitas.errors import QuantConfigError
from brevitas.nn.recurrent.torch_layout import refuse_what_would_be_lost, split, torch_names, torch_parameters
from brevitas.proxy import BiasQuantProxyFromInjector, WeightQuantProxyFromInjector

__all__ = ["LikeTorch", "let_compilers_in"]


class LikeTorch:
    """Base of the recurrent layers: parameters in torch's layout, and the attributes that torch keeps beside them."""

    hidden_size: int
    # What torch keeps in step with flat parameters; empty here.
    _flat_weights_names: list[Any]
    _flat_weights: list[Any]
    _flat_weight_refs: list[Any]
    _all_weights: list[Any]

    def _release_flat_parameters(self) -> dict[str, Tensor]:
        """The parameters that torch's constructor has made and drawn, which the layer does not hold any more."""
        assert isinstance(self, nn.Module)
        flat = {name: self._parameters.pop(name) for name in torch_names(self)}
        self._flat_weights_names, self._flat_weights, self._flat_weight_refs, self._all_weights = [], [], [], []
        return flat  # type: ignore[return-value]

    def _take(self, entries: Mapping[str, Tensor]) -> None:
        """Copy entries of a state dict into the parameters that this layer has; where several are one, the first."""
        parameters = dict(self.named_parameters(remove_duplicate=False))  # type: ignore[attr-defined]
        done: set[int] = set()
        with torch.no_grad():
            for name, tensor in entries.items():
                parameter = parameters.get(name)
                if parameter is not None and id(parameter) not in done:
                    done.add(id(parameter))
                    parameter.copy_(tensor)

    def reset_parameters(self) -> None:
        """Draw weights and biases anew, uniform in ±1/sqrt(hidden_size)."""
        assert isinstance(self, nn.Module)
        bound = self.hidden_size**-0.5
        for name, parameter in self.named_parameters():
            # torch's constructor calls this before there are gates; quantizers have no weights or biases.
            if "_quant." not in name:
                nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Do nothing: there is no flat copy of the weights to renew."""

    def torch_parameters(self) -> dict[str, Tensor]:
        """Weights and biases, detached, by torch's names and in its layout; ``bias_hh`` is 0 where there is one bias.

        >>> from torch import nn
        >>> from brevitas.nn import QuantGRU
        >>> nn.GRU(4, 3).load_state_dict(QuantGRU(4, 3).torch_parameters())
        <All keys matched successfully>

        Raises:
            QuantConfigError: torch's layer cannot express coupled gates.
        """
        return torch_parameters(self)

    def take_torch_parameters(self, parameters: Mapping[str, Tensor]) -> None:
        """Copy weights and biases from torch's layout, and let quantizers start from them.

        Raises:
            QuantConfigError: a parameter is missing or unknown, its rows are not those of the gates, or would be lost.
                Nothing is changed then.
        """
        assert isinstance(self, nn.Module)
        names = torch_names(self)
        odd = sorted({*names} ^ {*parameters})
        if odd:
            what = "is missing" if odd[0] in names else "is no parameter of the layer"
            raise QuantConfigError(f"{type(self).__name__}: '{odd[0]}' {what}; expected {', '.join(names)}")
        entries, _ = split(self, parameters)
        refuse_what_would_be_lost(self, entries)
        self._take(entries)
        for proxy in self.modules():
            if isinstance(proxy, WeightQuantProxyFromInjector | BiasQuantProxyFromInjector):
                proxy.init_tensor_quant()

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """Weights and biases of each cell, gate by gate."""
        return [
            [p for name, p in cell.named_parameters() if "_quant." not in name] for cell in getattr(self, "layers", ())
        ]

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__setstate__(self, state)  # type: ignore[arg-type]
        let_compilers_in()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: Any,
        strict: Any,
        missing: Any,
        unexpected: Any,
        errors: Any,
    ) -> None:
        """As torch's, and from a checkpoint of the ``torch.nn`` layer; the dict is the loader's own copy."""
        flat = {name: state_dict[prefix + name] for name in torch_names(self) if prefix + name in state_dict}
        try:
            entries, used = split(self, flat)
            refuse_what_would_be_lost(self, entries)
        except QuantConfigError as error:
            errors.append(f"{prefix.removesuffix('.') or type(self).__name__}: {error}")
            entries, used = {}, list(flat)
        for name in used:
            del state_dict[prefix + name]
        state_dict.update({prefix + name: tensor for name, tensor in entries.items()})
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)  # type: ignore[misc]


def let_compilers_in() -> None:
    """Let TorchDynamo trace the forward.

    It refuses every instance of torch's recurrent layers, whose own forward is one opaque operator, unless it is told
    otherwise. Ours is made of ordinary operators.
    """
    import torch._dynamo.config as dynamo

    dynamo.allow_rnn = True
