"""The spec of a model that has quantizers."""

from __future__ import annotations

from typing import Any

from torch import nn

from brevitas.errors import QuantConfigError
from brevitas.graph.building import declared_quantizer, proxy_of
from brevitas.graph.converters import Converter, converter_of, overridden_method
from brevitas.proxy.quant_proxy import QuantProxyFromInjector
from brevitas.quant.site import is_explicit
from brevitas.quant.spec import to_spec
from brevitas.quant.spec_version import VERSION
from injector import declarations

__all__ = ["spec_of"]


def spec_of(model: nn.Module) -> dict[str, Any]:
    """What :func:`apply_spec` needs to make the same model from the same layers in float.

    >>> from torch import nn
    >>> from brevitas.graph import spec_of
    >>> from brevitas.nn import QuantLinear
    >>> spec_of(nn.Sequential(QuantLinear(4, 2, weight_bit_width=3), nn.Sigmoid()))
    {'version': 1, 'rules': [{'match': '0', 'weight': {'base': 'Int8WeightPerTensorFloat', 'bit_width': 3}}]}

    Returns:
        Plain data with one rule a quantized layer, in the order of the model. Roles that are off are left out. A
        quantizer that two layers share is written where it first occurs; the others refer to it by ``share``.

    The rebuilt model has the same ``state_dict`` keys, and equal outputs once that is loaded: weights, and what was
    learned or collected, are no part of the spec.

    Raises:
        QuantConfigError: a layer whose class has no converter, or a quantizer that cannot be data; the layer is named.
    """
    if not isinstance(model, nn.Module):
        raise QuantConfigError(f"spec_of: expected a torch.nn.Module, got {model!r}")
    rules: list[dict[str, Any]] = []
    owners: dict[nn.Module, str] = {}
    done: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in done):
            continue
        converter = converter_of(module)
        if converter is not None and isinstance(module, converter.quantized):
            rules.append(_rule(name, module, converter, owners))
            if not name:
                break
            done.append(f"{name}.")
        elif any(isinstance(child, QuantProxyFromInjector) for child in module.children()):
            raise QuantConfigError(
                f"spec_of: there is no converter for {type(module).__name__} '{name}'; add one with "
                "brevitas.graph.register_converter"
            )
    return {"version": VERSION, "rules": rules}


def _rule(name: str, module: nn.Module, converter: Converter, owners: dict[nn.Module, str]) -> dict[str, Any]:
    where = f"{type(module).__name__} '{name}'"
    method = overridden_method(module)
    if method is not None:
        raise QuantConfigError(
            f"spec_of: {where} overrides '{method}' of {converter.quantized.__name__}, so the spec would not describe "
            "it; add a converter for its class with brevitas.graph.register_converter"
        )
    rule: dict[str, Any] = {"match": name}
    for role in converter.roles:
        proxy = proxy_of(module, role)
        if not proxy.is_quant_enabled:
            continue
        if proxy in owners and getattr(module, "tie_input_output_quant", False):
            continue  # the option says that one quantizer serves two roles
        if proxy in owners:
            rule[role] = {"share": owners[proxy]}
            continue
        owners[proxy] = f"{name}.{role}_quant".removeprefix(".")
        quantizer = declared_quantizer(proxy)
        if quantizer is None:
            raise QuantConfigError(
                f"spec_of: the {role}_quant of {where} is a {type(proxy).__name__}, which has no quantizer class to "
                "describe"
            )
        try:
            spec = to_spec(quantizer)
        except QuantConfigError as error:
            raise QuantConfigError(f"spec_of: {role}_quant of {where}: {error}") from error
        spec = _without_unread(spec, quantizer, proxy)
        rule[role] = spec["base"] if len(spec) == 1 and isinstance(spec["base"], str) else spec
    options = {n: getattr(module, n) for n, default in converter.settings.items() if getattr(module, n) != default}
    if options:
        rule["layer"] = options
    if len(rule) == 1:
        rule[next(iter(converter.roles))] = None
    return rule


def _without_unread(spec: dict[str, Any], quantizer: type, proxy: Any) -> dict[str, Any]:
    """Without what a mixin declares and nothing reads: written out, it would be refused for having no effect."""
    table = declarations(quantizer)
    lenient = [name for name in spec if name in table and not is_explicit(table[name])]
    if not lenient:
        return spec
    read = proxy.resolution().records
    return {name: value for name, value in spec.items() if name not in lenient or name in read}
