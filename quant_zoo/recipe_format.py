"""Recipes: one YAML file a model, with its architecture, its quantizers and its training schedule.

    >>> from quant_zoo import recipe
    >>> lenet = recipe("lenet")
    >>> lenet.quantizers["act"]["base"], lenet.schedule["quantized"].epochs
    ('Uint8ActPerTensorFloat', 8)

A recipe is checked whole when it is read: unknown keys, wrong types and missing parts are errors that name the file,
the line and the nearest legal name. ``quant_zoo.load`` builds a model from nothing but its recipe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brevitas.errors import SpecError
from brevitas.quant import from_spec
from brevitas.utils.located import LocatedMapping, did_you_mean, read_yaml
from quant_zoo.data import DATASETS

__all__ = ["Architecture", "Calibration", "Recipe", "RecipeError", "Training", "read_recipe"]

ROLES = ("input", "weight", "bias", "act")
VERSION = 1


class RecipeError(SpecError):
    """A recipe file says something that has no meaning; the message starts with file, line and column."""


@dataclass(frozen=True)
class Architecture:
    """Import references ``package.module:Class`` of the float and the quantized network, and their common arguments."""

    float: str
    quantized: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Training:
    """One training run: Adam, cross-entropy, a learning rate that rises for ``warm_up`` of all steps, then falls to 0.

    ``shift``: each batch is moved by up to so many pixels, so that the network does not learn positions by heart.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    warm_up: float = 0.2
    shift: int = 0


@dataclass(frozen=True)
class Calibration:
    """One pass over the training images in which activation statistics are collected and no weight changes."""

    batch_size: int


PHASES: dict[str, type] = {"float": Training, "calibration": Calibration, "quantized": Training}


@dataclass(frozen=True)
class Recipe:
    """What a recipe file says. Each of ``quantizers`` is a spec that ``brevitas.quant.from_spec`` reads."""

    name: str
    summary: str
    dataset: str
    architecture: Architecture
    quantizers: Mapping[str, Mapping[str, Any]]
    schedule: Mapping[str, Any]


def read_recipe(path: Path) -> Recipe:
    """Read and check the recipe at ``path``; its name is the file's.

    Raises:
        RecipeError: one line with file, line and column, what is wrong and what is legal.
    """
    try:
        document = read_yaml(path)
        return _recipe(path.stem, document)
    except RecipeError:
        raise
    except SpecError as error:
        raise RecipeError(str(error)) from error


def _recipe(name: str, document: LocatedMapping) -> Recipe:
    fields = _section(document, {"version": int, "summary": str, "dataset": str, **dict.fromkeys(SECTIONS, dict)})
    if fields["version"] != VERSION:
        raise RecipeError(f"{document.where('version')}: version {fields['version']}, this library reads {VERSION}")
    if fields["dataset"] not in DATASETS:
        raise RecipeError(
            f"{document.where('dataset')}: unknown dataset '{fields['dataset']}'"
            f"{did_you_mean(fields['dataset'], DATASETS)}"
        )
    quantizers = _section(fields["quantizers"], dict.fromkeys(ROLES, dict))
    for quantizer in quantizers.values():
        from_spec(quantizer)
    phases = _section(fields["schedule"], dict.fromkeys(PHASES, dict))
    return Recipe(
        name=name,
        summary=fields["summary"],
        dataset=fields["dataset"],
        architecture=_build(Architecture, fields["architecture"]),
        quantizers=quantizers,
        schedule={name: _checked_phase(_build(PHASES[name], phase), phase) for name, phase in phases.items()},
    )


SECTIONS = ("architecture", "quantizers", "schedule")
TYPES = {"int": int, "float": float, "str": str, "Mapping[str, Any]": dict}


def _build(cls: type, section: LocatedMapping) -> Any:
    """An instance of a dataclass from a section that has exactly its fields."""
    fields = dataclasses.fields(cls)
    types = {field.name: TYPES[str(field.type)] for field in fields}
    optional = [field.name for field in fields if field.default is not dataclasses.MISSING]
    return cls(**_section(section, types, optional))


def _section(section: LocatedMapping, types: Mapping[str, type], optional: Iterable[str] = ()) -> dict[str, Any]:
    for key in section:
        if key not in types:
            raise RecipeError(f"{section.where(key)}: unknown key '{key}'{did_you_mean(key, types)}")
    missing = [key for key in types if key not in section and key not in optional]
    if missing:
        raise RecipeError(f"{section.where()}: missing {', '.join(missing)}")
    for key, value in section.items():
        expected = types[key]
        accepted = (int, float) if expected is float else expected
        # A YAML bool is an int in Python, and never a number that a recipe means.
        if not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool):
            raise RecipeError(f"{section.where(key)}: '{key}' is {value!r}, expected {_kind(expected)}")
    return dict(section)


def _checked_phase(phase: Any, section: LocatedMapping) -> Any:
    for key, value in dataclasses.asdict(phase).items():
        allowed_zero = key in ("warm_up", "shift")
        if value < 0 or (value == 0 and not allowed_zero):
            legal = "0 or more" if allowed_zero else "more than 0"
            raise RecipeError(f"{section.where(key)}: '{key}' is {value}, expected {legal}")
        if key == "warm_up" and value >= 1:
            raise RecipeError(f"{section.where(key)}: 'warm_up' is {value}, expected a fraction of all steps below 1")
    return phase


def _kind(expected: type) -> str:
    return {int: "an integer", float: "a number", str: "a text", dict: "a mapping"}[expected]
