"""A layer from another: the quantized form of a float layer, the float form of a quantized one, other quantizers."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from brevitas.errors import BrevitasError, QuantConfigError, SpecError
from brevitas.graph.converters import Converter
from brevitas.graph.selectors import Layer
from brevitas.graph.settings import Entry, LayerSettings, RoleSettings
from brevitas.proxy.quant_proxy import QuantProxyFromInjector
from brevitas.quant.model_spec import ROLES
from brevitas.quant.site import is_quantizer
from brevitas.quant.spec import quantizer_from, to_spec
from brevitas.utils.located import did_you_mean
from injector import declarations, override

__all__ = ["Built", "build_float", "build_quantized", "declared_quantizer", "proxy_of"]

#: Directives that a layer gives to its quantizers by itself.
_SUPPLIED = frozenset({"act_impl", "passthrough_act"})
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
_HOOK_FLAGS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")


@dataclasses.dataclass(frozen=True)
class Built:
    """What a layer becomes: another one, or itself with those quantizers of ``module`` that ``changed`` names."""

    layer: Layer
    module: nn.Module
    replaces: bool
    changed: frozenset[str]
    options: Mapping[str, Any]


def proxy_of(module: nn.Module, role: str) -> Any:
    """The proxy of a role of a quantized layer; of a layer whose parts hold several, the first."""
    name = f"{role}_quant"
    own = getattr(module, name, None)
    return own if own is not None else next(m._modules[name] for m in module.modules() if name in m._modules)


def declared_quantizer(proxy: Any) -> type | None:
    """The quantizer of a proxy as it was declared, without what the layer adds; ``None`` for a proxy without one."""
    quantizer = getattr(proxy, "quant_injector", None)
    while quantizer is not None:
        own = {name for name, declaration in declarations(quantizer).items() if declaration.owner is quantizer}
        if not own or not own <= _SUPPLIED or len(quantizer.__bases__) != 1:
            break
        quantizer = quantizer.__bases__[0]
    return quantizer


def build_quantized(
    settings: LayerSettings,
    shared: Mapping[str, nn.Module],
    anew: Collection[str],
    classes: dict[Any, type],
) -> Built:
    """A quantized layer with the parameters of ``settings.layer`` and the quantizers that its settings describe.

    Roles that are not set stay as they are: off in a float layer, the present quantizer in a quantized one. So does a
    quantizer that is set to what it is, with all that it has learned.

    Args:
        settings: the layer and what it gets.
        shared: proxies of layers that were built before, by path, for ``share``.
        anew: roles whose quantizers are made anew even if they are set to what they are.
        classes: quantizer classes made so far; layers of one rule get one class, which is checked once.

    Raises:
        SpecError: with the place of the rule: an option that the layer does not have, a quantizer that is refused.
    """
    layer, converter = settings.layer, settings.layer.converter
    assert converter is not None
    options = _options(settings, converter)
    quantizers: dict[str, Any] = {}
    changed: set[str] = set()
    for role in converter.roles:
        quantizers[role] = None
        if role in settings.roles:
            quantizer = _quantizer(settings.roles[role], role, settings, shared, classes)
            if role in anew or not (layer.is_quantized and _is_present(layer.module, role, quantizer)):
                quantizers[role] = quantizer
                changed.add(role)
    if changed and layer.is_quantized and converter.transfer is not None:
        role = min(changed)
        raise SpecError(
            f"{settings.roles[role].place}: '{role}' of {layer} cannot change: the quantizers belong to the parts "
            "of the layer, with all that they have learned. Apply the rule to the float layer, or build the layer anew"
        )
    new = _construct(
        settings, converter.quantized, converter, {f"{r}_quant": q for r, q in quantizers.items()}, options
    )
    for role in changed:
        proxy = proxy_of(new, role)
        if settings.roles[role].off is None and "share" not in settings.roles[role].keys:
            _locate(proxy, settings.roles[role])
    # A layer may let one quantizer serve two roles: both change then.
    made = [proxy_of(new, role) for role in changed]
    changed |= {role for role in converter.roles if any(proxy_of(new, role) is proxy for proxy in made)}
    return Built(layer, new, not layer.is_quantized, frozenset(changed), options)


def build_float(settings: LayerSettings) -> Built:
    """The layer without quantizers: that of the converter's float class, with the same parameters."""
    layer, converter = settings.layer, settings.layer.converter
    assert converter is not None
    # A class that is its own float form computes in float where all its quantizers are off.
    off = {f"{role}_quant": None for role in converter.roles} if converter.float is converter.quantized else {}
    return Built(layer, _construct(settings, converter.float, converter, off, {}), True, frozenset(), {})


def _locate(proxy: Any, role: RoleSettings) -> None:
    """Let messages about a quantizer, and ``explain``, name the rule that decided it."""
    if isinstance(proxy, QuantProxyFromInjector):
        proxy.site = dataclasses.replace(proxy.site, location=role.place)


def _quantizer(
    role_settings: RoleSettings,
    role: str,
    settings: LayerSettings,
    shared: Mapping[str, nn.Module],
    classes: dict[Any, type],
) -> Any:
    layer, converter, place = settings.layer, settings.layer.converter, role_settings.place
    assert converter is not None
    if role_settings.off is not None:
        return None
    if "share" in role_settings.keys:
        path = role_settings.keys["share"].value
        if path not in shared:
            raise SpecError(
                f"{place}: '{role}' of {layer}: there is no quantizer '{path}' that a rule "
                f"makes{did_you_mean(path, shared)}"
            )
        return shared[path]
    default = converter.roles[role]
    if layer.is_quantized and proxy_of(layer.module, role).is_quant_enabled:
        default = declared_quantizer(proxy_of(layer.module, role))
    mapping = role_settings.mapping
    if "base" not in mapping and not is_quantizer(default):
        raise SpecError(
            f"{place}: '{role}' of {layer} needs 'base', the name of a preset or package.module:Class: without it, "
            f"{converter.quantized.__name__} has none for '{role}'"
        )
    # Data are told apart by their text, objects of keyword arguments by themselves.
    words = tuple(
        (name, repr(entry.value) if entry.rule else id(entry.value), entry.place)
        for name, entry in role_settings.keys.items()
    )
    key = (ROLES[role], default, words)
    if key not in classes:
        classes[key] = _class_of(role_settings, ROLES[role], default if is_quantizer(default) else None)
    return classes[key]


def _class_of(role_settings: RoleSettings, role: str, default: type | None) -> type:
    quantizer = quantizer_from(role_settings.mapping, role_settings.place, role, default)
    keywords = role_settings.keywords
    if not keywords:
        return quantizer
    objects = {name: entry.value for name, entry in keywords.items()}
    return override(quantizer, objects, {name: entry.place for name, entry in keywords.items()})


def _is_present(module: nn.Module, role: str, quantizer: Any) -> bool:
    """Whether a layer has this quantizer already."""
    proxy = proxy_of(module, role)
    if isinstance(quantizer, nn.Module):
        return proxy is quantizer
    if quantizer is None or not proxy.is_quant_enabled:
        return quantizer is None and not proxy.is_quant_enabled
    present = declared_quantizer(proxy)
    try:
        return present is not None and to_spec(present) == to_spec(quantizer)
    except QuantConfigError:
        return present is quantizer


def _options(settings: LayerSettings, converter: Converter) -> dict[str, Any]:
    """What the layer has now, or has by default, with what rules say about it."""
    layer, known = settings.layer, converter.settings
    options = (
        {name: getattr(layer.module, name, default) for name, default in known.items()} if layer.is_quantized else {}
    )
    for name, entry in settings.options.items():
        if name not in known:
            raise SpecError(
                f"{entry.place}: 'layer' has the unknown key '{name}' for {layer}{did_you_mean(name, known)}"
            )
        _check_option(name, entry, known[name])
        fixed = getattr(converter.quantized, "construction_options", ())
        if layer.is_quantized and name in fixed and entry.value != options[name]:
            raise SpecError(
                f"{entry.place}: '{name}' of {layer} is {options[name]!r}; it is fixed when the layer is made"
            )
        options[name] = entry.value
    return options


def _check_option(name: str, entry: Entry, default: Any) -> None:
    if isinstance(default, bool) and not isinstance(entry.value, bool):
        raise SpecError(f"{entry.place}: '{name}' is {entry.value!r}; expected true or false")
    if isinstance(default, str) and not isinstance(entry.value, str):
        raise SpecError(f"{entry.place}: '{name}' is {entry.value!r}; expected a text such as {default}")


def _construct(
    settings: LayerSettings,
    cls: type[nn.Module],
    converter: Converter,
    quantizers: Mapping[str, Any],
    options: Mapping[str, Any],
) -> nn.Module:
    """An instance of ``cls`` that has the parameters, hooks, mode and further attributes of the present layer."""
    source = settings.layer.module
    _refuse_what_would_be_lost(settings)
    try:
        arguments = converter.arguments(source)
    except QuantConfigError as error:
        raise _refused(settings, error) from error
    _refuse_contradictions(settings, arguments)
    weight = getattr(source, "weight", None)
    if weight is None and converter.transfer is not None:
        weight = next(source.parameters(), None)
    if weight is not None:
        arguments |= {k: getattr(weight, k) for k in ("device", "dtype") if converter.takes(cls, k)}
    arguments |= {name: value for name, value in options.items() if name not in arguments}
    try:
        # The values that the constructor draws are replaced below; the caller's generator must not notice.
        devices = [weight.device] if weight is not None and weight.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            # What only the quantized class takes, such as a number of projections, has no meaning for the other.
            taken = {k: v for k, v in arguments.items() if cls is converter.quantized or k not in converter.settings}
            new = cls(**taken, **quantizers)
            own = set(vars(new)) if cls is converter.quantized else set(vars(converter.quantized(**arguments)))
    except (BrevitasError, TypeError, ValueError) as error:
        raise _refused(settings, error) from error
    _take_parameters(settings, new)
    _take_attributes(source, new, own)
    new.train(source.training)
    return new


def _refused(settings: LayerSettings, error: Exception) -> SpecError:
    """The error of a constructor, at the place of the rule that asked for it."""
    text = str(error)
    role = next((r for r in settings.roles if f" {r}_quant=" in text or f", {r}_quant" in text), None)
    place = settings.roles[role].place if role else settings.last.location if settings.last else None
    return SpecError(f"{place}: {settings.layer}: {text}")


def _refuse_contradictions(settings: LayerSettings, arguments: Mapping[str, Any]) -> None:
    """What is an argument of the layer too has one value: a directive such as ``min_val``, an option of the layer."""
    for name, entry in settings.options.items():
        if name in arguments and entry.value != arguments[name]:
            raise SpecError(
                f"{entry.place}: '{name}' of 'layer' is {entry.value!r}, and {settings.layer} needs {arguments[name]!r}"
            )
    for role, wanted in settings.roles.items():
        for name, entry in wanted.keys.items():
            if ROLES[role] == role and role != "weight" and name in arguments and entry.value != arguments[name]:
                raise SpecError(
                    f"{entry.place}: '{name}' of '{role}' is {entry.value!r}, and {settings.layer} has {name} = "
                    f"{arguments[name]!r}; leave it out, or change the layer"
                )


def _refuse_what_would_be_lost(settings: LayerSettings) -> None:
    source, converter = settings.layer.module, settings.layer.converter
    children = [name for name, child in source.named_children() if not isinstance(child, QuantProxyFromInjector)]
    if converter is not None and converter.transfer is not None:
        children = [] if settings.layer.is_quantized else [name for name in children if name not in converter.parts]
    place = settings.last.location if settings.last else None
    if hasattr(source, "parametrizations"):
        raise SpecError(
            f"{place}: {settings.layer} is parametrized, which a layer of another class would lose; call "
            "torch.nn.utils.parametrize.remove_parametrizations first, or keep the layer in float"
        )
    if children:
        raise SpecError(
            f"{place}: {settings.layer} holds further modules ({', '.join(children)}), which would be lost; add its "
            "quantized form with brevitas.graph.register_converter, or keep the layer in float"
        )


def _take_parameters(settings: LayerSettings, new: nn.Module) -> None:
    source, converter = settings.layer.module, settings.layer.converter
    if converter is not None and converter.transfer is not None:
        try:
            converter.transfer(source, new)
        except QuantConfigError as error:
            raise _refused(settings, error) from error
        return
    for store in ("_parameters", "_buffers"):
        theirs, ours = getattr(source, store), getattr(new, store)
        lost = [name for name, tensor in theirs.items() if tensor is not None and name not in ours]
        missing = [name for name, tensor in ours.items() if tensor is not None and theirs.get(name) is None]
        if lost or missing:
            what = f"'{(lost or missing)[0]}', which {'would be lost' if lost else 'it does not have'}"
            place = settings.last.location if settings.last else None
            raise SpecError(f"{place}: {settings.layer} cannot become a {type(new).__name__}: {what}")
        # The same objects: optimizers keep their parameters, and tied layers stay tied.
        ours.update(theirs)
    for proxy in new.children():
        name = getattr(proxy, "parameter_name", None)
        if name is None or not isinstance(proxy, QuantProxyFromInjector):
            continue
        if len(proxy.tracked_module_list) > 1:
            # Statistics of a shared quantizer run over the parameters that it was resolved with.
            proxy.init_tensor_quant()
            continue
        tracked = [p for p in (getattr(m, name, None) for m in proxy.tracked_module_list) if p is not None]
        for part in proxy.modules():
            if hasattr(type(part), "set_tracked_parameters"):
                part.set_tracked_parameters(tracked)  # type: ignore[operator]


def _take_attributes(source: nn.Module, new: nn.Module, own: set[str]) -> None:
    """Hooks, and what a user has set on a layer: attributes that its class does not have by itself."""
    for name in (*_HOOKS, *_HOOK_FLAGS):
        getattr(new, name).update(getattr(source, name))
    for name, value in vars(source).items():
        if not name.startswith("_") and name not in own:
            new.__dict__[name] = value
