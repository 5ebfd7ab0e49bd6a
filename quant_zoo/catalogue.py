"""Models by name.

>>> import quant_zoo
>>> quant_zoo.list("le*")
['lenet']
>>> model = quant_zoo.load("lenet", weight_bit_width=2, act_bit_width=2)
>>> float_twin = quant_zoo.load_float("lenet")
"""

from __future__ import annotations

import fnmatch
from importlib.resources import as_file, files
from typing import Any

from torch import nn

from brevitas.errors import QuantConfigError, UnknownOptionError
from brevitas.quant import from_spec
from brevitas.utils.located import did_you_mean
from brevitas.utils.references import load_reference
from injector import suggest
from quant_zoo.recipe_format import ROLES, Recipe, read_recipe

__all__ = ["UnknownModelError", "list_models", "load", "load_float", "quantizers", "recipe"]

SUFFIX = ".yaml"


class UnknownModelError(QuantConfigError, KeyError):
    """No model of the zoo has that name."""

    def __str__(self) -> str:
        # KeyError would print the representation of the message, quotes and all.
        return str(self.args[0])


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that match a shell pattern, sorted."""
    names = (entry.name for entry in files("quant_zoo").joinpath("recipes").iterdir())
    models = sorted(name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))
    return fnmatch.filter(models, pattern)


def recipe(name: str) -> Recipe:
    """The recipe of a model.

    Raises:
        UnknownModelError: no such model; the message names the nearest ones.
    """
    known = list_models()
    if name not in known:
        raise UnknownModelError(f"no model '{name}' in quant_zoo{did_you_mean(name, known)}")
    with as_file(files("quant_zoo").joinpath("recipes", name + SUFFIX)) as path:
        return read_recipe(path)


def load(name: str, **overrides: Any) -> nn.Module:
    """A quantized model, untrained, as its recipe describes it.

    Args:
        name: one of ``quant_zoo.list()``.
        overrides: directives of its quantizers, prefixed by the role: ``weight_bit_width=2``, ``act_bit_width=2``,
            ``weight_scaling_per_output_channel=False``. ``None`` means: as the recipe says.

    Raises:
        UnknownModelError: no such model.
        UnknownOptionError: an override without the prefix of a role, or a directive that does not exist.
        QuantConfigError: an illegal value.
    """
    chosen = recipe(name)
    model_class = load_reference(chosen.architecture.quantized)
    built = {f"{role}_quant": quantizer for role, quantizer in quantizers(chosen, **overrides).items()}
    return model_class(**built, **chosen.architecture.arguments)


def load_float(name: str) -> nn.Module:
    """The float twin: plain ``torch.nn``, its parameters named as in the quantized model.

    Raises:
        UnknownModelError: no such model.
    """
    architecture = recipe(name).architecture
    return load_reference(architecture.float)(**architecture.arguments)


def quantizers(chosen: Recipe, **overrides: Any) -> dict[str, type]:
    """The quantizer class of each role of a recipe, with ``overrides`` as in :func:`load`."""
    changes: dict[str, dict[str, Any]] = {role: {} for role in ROLES}
    for option, value in overrides.items():
        role, separator, directive = option.partition("_")
        if role not in changes or not separator:
            prefixes = [f"{each}_" for each in ROLES]
            classes = [from_spec(quantizer) for quantizer in chosen.quantizers.values()]
            # The prefix may be misspelt, or missing.
            known = [name for name in (directive, option) if any(name in quantizer for quantizer in classes)]
            near = suggest(option, [f"{prefix}{name}" for prefix in prefixes for name in known])
            hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
            raise UnknownOptionError(
                f"quant_zoo model '{chosen.name}': option '{option}' starts with none of {', '.join(prefixes)}{hint}"
            )
        if value is not None:
            changes[role][directive] = value
    found = {}
    for role, declared in chosen.quantizers.items():
        quantizer = from_spec(declared)
        found[role] = quantizer.let(**changes[role]) if changes[role] else quantizer
    return found
