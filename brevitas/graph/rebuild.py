"""A model with the quantizers that a spec describes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from brevitas.errors import QuantConfigError, SpecError
from brevitas.graph.building import Built, build_float, build_quantized, proxy_of
from brevitas.graph.selectors import Layers
from brevitas.graph.settings import LayerSettings, settings_of
from brevitas.quant.model_spec import read_model_spec, rules_of
from brevitas.utils.located import SpecLocation
from injector import caller_location

__all__ = ["apply_spec"]

M = TypeVar("M", bound=nn.Module)


def apply_spec(
    model: M,
    spec: Mapping[str, Any] | str | Path,
    *,
    example_inputs: Any = None,
    inplace: bool = False,
    **overrides: Any,
) -> M:
    """The model with its layers quantized as a spec says.

    >>> import torch
    >>> from torch import nn
    >>> from brevitas.graph import apply_spec
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> quantized = apply_spec(model, '''
    ... rules:
    ...   - {type: Linear, weight: {base: Int8WeightPerTensorFloat, bit_width: 4}}
    ...   - {match: '2', weight: {bit_width: 8}}
    ...   - {type: ReLU, act: Uint8ActPerTensorFloat}
    ... ''')
    >>> [type(layer).__name__ for layer in quantized], int(quantized[2].quant_weight_bit_width())
    (['QuantLinear', 'QuantReLU', 'QuantLinear'], 8)

    Args:
        model: any module. Its layers are swapped by ``isinstance``, most derived class first, for the quantized layer
            that is registered for them (:func:`register_converter`). Parameters stay the same objects.
        spec: a dict, YAML text, or the path of a YAML file; see ``docs/specs.md``.
        example_inputs: one input, a tuple of positional inputs, or a dict of named ones; a copy of the model is run on
            them to find the order of calls, for ``where: first`` and ``where: last``.
        inplace: change ``model`` itself instead of a deep copy.
        overrides: directives of every quantizer of a role that a rule gives, such as ``weight_bit_width=4``; they come
            last. ``None`` means not given.

    Returns:
        The copy, or ``model`` itself.

    Raises:
        SpecError: with file, line and column: an illegal spec, a rule that matches nothing or has no effect, a layer
            that cannot be converted, a quantizer that is refused. Nothing is changed then.
        UnknownOptionError: an override without the prefix of a role.
    """
    if not isinstance(model, nn.Module):
        raise QuantConfigError(f"apply_spec: expected a torch.nn.Module, got {model!r}")
    caller = caller_location()
    rules = rules_of(read_model_spec(spec, caller))
    target = model if inplace else copy.deepcopy(model)
    here = SpecLocation(caller.file, caller.line)
    settings = settings_of(Layers(target, example_inputs), rules, overrides, here)
    built = _build(settings)
    _refuse_split_sharing(target, built)
    _place(target, built)
    if inplace and any(made.layer.module is model and made.replaces for made in built):
        raise QuantConfigError(
            f"{here}: a {type(model).__name__} cannot become another layer in place; use inplace=False"
        )
    return _commit(target, built)


def _build(settings: list[LayerSettings]) -> list[Built]:
    """New layers for all that change, those that share a quantizer after the layer that has it."""
    made: list[Built] = []
    shared: dict[str, nn.Module] = {}
    classes: dict[Any, type] = {}
    sharing = any(_shares(each) for each in settings)
    waiting = list(settings)
    while waiting:
        ready = [each for each in waiting if not _awaits(each, waiting)] if sharing else list(waiting)
        if not ready:
            raise SpecError(
                f"{_shares(waiting[0])[0].place}: the quantizers that these rules share wait for each other"
            )
        for each in ready:
            if each.keep is not None:
                if each.layer.is_quantized:
                    made.append(build_float(each))
                continue
            anew = _newly_shared(each, settings) if sharing else ()
            built = build_quantized(each, shared, anew, classes)
            made.append(built)
            for role in each.roles:
                proxy = proxy_of(built.module if role in built.changed else each.layer.module, role)
                shared.update({f"{name}.{role}_quant".removeprefix("."): proxy for name in each.layer.names})
        waiting = [each for each in waiting if each not in ready]
    return made


def _shares(settings: LayerSettings) -> list[Any]:
    return [role.keys["share"] for role in settings.roles.values() if "share" in role.keys]


def _newly_shared(owner: LayerSettings, settings: list[LayerSettings]) -> set[str]:
    """Roles whose quantizer another layer is to share and does not share yet."""
    paths = {f"{name}.{role}_quant".removeprefix("."): role for name in owner.layer.names for role in owner.roles}
    return {
        paths[path]
        for other in settings
        for role, wanted in other.roles.items()
        for path in [wanted.keys["share"].value if "share" in wanted.keys else None]
        if path in paths and not _share_already(owner, paths[path], other, role)
    }


def _share_already(owner: LayerSettings, role: str, other: LayerSettings, other_role: str) -> bool:
    if not (owner.layer.is_quantized and other.layer.is_quantized):
        return False
    return proxy_of(owner.layer.module, role) is proxy_of(other.layer.module, other_role)


def _awaits(settings: LayerSettings, waiting: list[LayerSettings]) -> bool:
    """Whether a quantizer that the layer shares belongs to a layer that is not built yet."""
    pending = {
        f"{name}.{role}_quant".removeprefix(".")
        for other in waiting
        if other is not settings
        for name in other.layer.names
        for role in other.roles
    }
    return any(entry.value in pending for entry in _shares(settings))


def _refuse_split_sharing(model: nn.Module, built: list[Built]) -> None:
    """A quantizer that several layers share must change in all of them."""
    leaving: dict[tuple[nn.Module, nn.Module], Built] = {}
    for made in built:
        if made.layer.is_quantized and made.layer.converter is not None:
            for role in made.layer.converter.roles if made.replaces else made.changed:
                leaving[made.layer.module, proxy_of(made.layer.module, role)] = made
    for (layer, proxy), made in leaving.items():
        parts = set(layer.modules())
        for other in getattr(proxy, "tracked_module_list", ()):
            if other not in parts and (other, proxy) not in leaving:
                name = next((n for n, m in model.named_modules() if m is other), type(other).__name__)
                raise SpecError(
                    f"{made.layer} shares a quantizer with '{name}', and a rule changes it in the first only; give "
                    "both layers the same rule"
                )


def _place(model: nn.Module, built: list[Built]) -> None:
    """Layers without parameters of their own go to the device and dtype of the parameter before them in the model."""
    by_layer = {made.layer.module: made.module for made in built}
    last = next(model.parameters(), None)
    for module in model.modules():
        own = next(module.parameters(recurse=False), None)
        last = own if own is not None else last
        if own is None and last is not None and module in by_layer and last.is_floating_point():
            by_layer[module].to(device=last.device, dtype=last.dtype)


def _commit(model: M, built: list[Built]) -> M:
    """Put what was built in its place. Nothing here can fail."""
    replaced: dict[nn.Module, nn.Module] = {}
    final: dict[nn.Module, nn.Module] = {}
    for made in built:
        final[made.module] = made.module if made.replaces else made.layer.module
        if made.replaces:
            replaced[made.layer.module] = made.module
    for made in built:
        layer = final[made.module]
        for role in made.changed:
            proxy = proxy_of(made.module, role)
            proxy.tracked_module_list = [final.get(each, each) for each in getattr(proxy, "tracked_module_list", ())]
            if not made.replaces:
                setattr(layer, f"{role}_quant", proxy)
        for name, value in made.options.items():
            setattr(layer, name, value)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in replaced:
                parent._modules[name] = replaced[child]
    return replaced.get(model, model)  # type: ignore[return-value]
