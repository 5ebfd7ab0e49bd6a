"""Quantizers as data: a class is a base and what it declares differently.

>>> from brevitas.quant import Int8WeightPerTensorFloat, from_spec, to_spec
>>> to_spec(Int8WeightPerTensorFloat.let(bit_width=4, scaling_per_output_channel=True))
{'base': 'Int8WeightPerTensorFloat', 'bit_width': 4, 'scaling_per_output_channel': True}
>>> from_spec({'base': 'Int8WeightPerTensorFloat', 'bit_width': 4}).bit_width
4

The data are plain: ``yaml.safe_dump(to_spec(Q))`` writes them, and :func:`from_spec` reads that text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from brevitas.errors import QuantConfigError, SpecError
from brevitas.quant.directives import DIRECTIVES
from brevitas.quant.registry import presets
from brevitas.quant.site import is_quantizer
from brevitas.quant.spec_check import check_names, check_value, role_of
from brevitas.quant.spec_values import decode, encode
from brevitas.quant.spec_version import migrated
from brevitas.utils.located import (
    LocatedList,
    LocatedMapping,
    SpecLocation,
    as_located,
    did_you_mean,
    path_of,
    read_text,
    read_yaml,
)
from brevitas.utils.references import is_reference, load_reference, reference
from injector import Declaration, DependencyError, SourceLocation, caller_location, declarations, override, suggest

__all__ = ["from_spec", "quantizer_from", "same_declaration", "to_spec"]

#: Keys of a quantizer that are no directives.
RESERVED = ("base", "version")


def to_spec(quantizer: type) -> dict[str, Any]:
    """The smallest mapping from which :func:`from_spec` makes a quantizer that resolves to the same values.

    >>> from brevitas.quant import Int8ActPerTensorFloat
    >>> class Act4(Int8ActPerTensorFloat):
    ...     bit_width = 4
    >>> from brevitas.quant import to_spec
    >>> to_spec(Act4.let(signed=False))
    {'base': 'Int8ActPerTensorFloat', 'bit_width': 4, 'signed': False}

    ``base`` is the name of a preset, ``package.module:Class``, or a list of these, left-most first, as in a class
    statement. The other keys are what differs from it; names that a base of the quantizer declares equally are left
    out. A class that another program can import is named, one of a script or a function is written out.

    Args:
        quantizer: a quantizer class. It is not resolved.

    Returns:
        Numbers, booleans, texts, ``None``, lists and mappings only.

    Raises:
        QuantConfigError: no quantizer class, or it declares what cannot be data; the message names that, the class that
            declares it, and file and line.
    """
    if not is_quantizer(quantizer):
        raise QuantConfigError(f"to_spec({quantizer!r}): expected a quantizer class")
    base, differing = min(_described(quantizer), key=lambda found: len(found[1]))
    spec: dict[str, Any] = {"base": base}
    for declaration in sorted(differing, key=_order):
        name = declaration.name
        if name in RESERVED:
            raise QuantConfigError(
                f"{quantizer.__name__}.{name} ({declaration}): the name '{name}' is reserved in specs"
            )
        try:
            spec[name] = to_spec(declaration.obj) if declaration.kind == "injector" else encode(name, declaration.obj)
        except QuantConfigError as error:
            raise QuantConfigError(f"{quantizer.__name__}.{name} (set in {declaration}): {error}") from error
    return spec


def _order(declaration: Declaration) -> tuple[int, str]:
    """The order of the vocabulary, then the alphabet, so that equal quantizers give equal texts."""
    return _PLACES.get(declaration.name, len(_PLACES)), declaration.name


_PLACES = {name: place for place, name in enumerate(DIRECTIVES)}


def _described(quantizer: type) -> Iterator[tuple[Any, list[Declaration]]]:
    """Each way to name a base, with the declarations that it leaves open; better ones of equal length first."""
    named = {cls: name for name, cls in presets().items()}
    ancestors = [cls for cls in quantizer.__mro__ if is_quantizer(cls)]
    names = {cls: named.get(cls) or reference(cls) for cls in ancestors}
    for cls in ancestors:
        if names[cls] is not None:
            yield names[cls], _differing(quantizer, declarations(cls))
    if not any(cls in named for cls in ancestors):
        for cls, name in named.items():
            if declarations(cls).keys() <= declarations(quantizer).keys() and role_of(cls) == role_of(quantizer):
                yield name, _differing(quantizer, declarations(cls))
    for cls in ancestors:
        parents = [base for base in cls.__bases__ if is_quantizer(base)]
        if len(parents) > 1 and all(names[base] for base in parents):
            combined = reduce(lambda left, right: left & right, parents)  # type: ignore[operator]
            yield [names[base] for base in parents], _differing(quantizer, declarations(combined))


def _differing(quantizer: type, table: Mapping[str, Declaration]) -> list[Declaration]:
    return [
        declaration
        for name, declaration in declarations(quantizer).items()
        if name not in table or not same_declaration(declaration, table[name])
    ]


def same_declaration(one: Declaration, other: Declaration) -> bool:
    """Whether two declarations of one name say the same; a member and its name do, in any case."""
    if one.obj is other.obj:
        return True
    if one.kind != other.kind or one.kind in ("class", "class_object"):
        return False
    try:
        if one.kind == "injector":
            return to_spec(one.obj) == to_spec(other.obj)
        # The text tells True from 1, and 1 from 1.0, which are equal in Python.
        return repr(encode(one.name, one.obj)) == repr(encode(other.name, other.obj))
    except QuantConfigError:
        return False


def from_spec(spec: Mapping[str, Any] | str | Path) -> Any:
    """The quantizer class that a spec describes.

    >>> from brevitas.quant import from_spec
    >>> from_spec("base: Int8WeightPerTensorFloat\\nquant_type: int\\nbit_width: 3").bit_width
    3

    Args:
        spec: a mapping with ``base`` and directives, as :func:`to_spec` gives it; the name of a preset or
            ``package.module:Class``; YAML text of one of these; or a path to a YAML file, which must start with
            ``version: 1``.

    Returns:
        The base itself if nothing else is declared, else a subclass of it. Each declaration belongs to the line of the
        file that it stands in, which error messages and ``explain`` name.

    Raises:
        SpecError: with file, line and column: no YAML, an unknown base, a name that no quantizer of this base reads, an
            illegal value, a reference that cannot be imported.
    """
    data, place = _read(spec, caller_location())
    return quantizer_from(data, place)


def _read(spec: Any, caller: SourceLocation) -> tuple[Any, SpecLocation]:
    here = SpecLocation(caller.file, caller.line)
    path = path_of(spec)
    if path is not None:
        document = read_yaml(path)
        return migrated(document, required=True), document.location
    if isinstance(spec, str):
        document = read_text(spec, "<text>")
        if isinstance(document, LocatedMapping):
            return migrated(document), document.location
        return document, here
    document = as_located(spec, caller)
    return (migrated(document) if isinstance(document, LocatedMapping) else document), here


def quantizer_from(data: Any, place: SpecLocation, role: str | None = None, default: type | None = None) -> Any:
    """The quantizer class of located data.

    Args:
        data: the name of a base, or a mapping.
        place: where ``data`` was written.
        role: the role that the quantizer must have, ``None`` for any.
        default: the base where ``data`` names none.

    Raises:
        SpecError: as :func:`from_spec`, and for a quantizer of another role.
    """
    if isinstance(data, str):
        return _base(data, place, role)
    if not isinstance(data, LocatedMapping):
        raise SpecError(f"{place}: expected a quantizer, a preset name or a mapping with 'base', found {data!r}")
    if "base" in data:
        base = _bases(data["base"], data.place("base"), role)
    elif default is not None:
        base = default
    else:
        near = suggest("base", [key for key in data if key not in DIRECTIVES])
        hint = f"; is {near[0]!r} meant to be it?" if near else ""
        raise SpecError(f"{data.where()}: 'base' is missing: the name of a preset or package.module:Class{hint}")
    return _derived(base, data)


def _derived(base: type, data: LocatedMapping) -> type:
    """The subclass of ``base`` that declares the keys of ``data``, each at its place."""
    objects: dict[str, Any] = {}
    for name, value in data.items():
        if name in RESERVED:
            continue
        where = data.place(name)
        nested = isinstance(value, LocatedMapping) and "base" in value
        objects[name] = quantizer_from(value, where) if nested else decode(name, value, where)
        check_value(name, objects[name], where)
    if not objects:
        return base
    places = {name: data.place(name) for name in objects}
    try:
        quantizer = override(base, objects, places)
    except DependencyError as error:
        name = error.path[-1] if error.path and error.path[-1] in places else next(iter(objects))
        raise SpecError(f"{places[name]}: {error}") from error
    check_names(quantizer, base, places)
    return quantizer


def _bases(data: Any, place: SpecLocation, role: str | None) -> type:
    if isinstance(data, list):
        if not data:
            raise SpecError(f"{place}: 'base' is an empty list; give the name of a preset or package.module:Class")
        places = data.places if isinstance(data, LocatedList) else [place] * len(data)
        found: list[Any] = [_base(item, at, None) for item, at in zip(data, places, strict=True)]
        combined: Any = reduce(lambda left, right: left & right, found)
        return _of_role(combined, place, role)
    return _base(data, place, role)


def _base(name: Any, place: SpecLocation, role: str | None) -> type:
    if not isinstance(name, str):
        raise SpecError(f"{place}: 'base' is {name!r}; expected the name of a preset or package.module:Class")
    if is_reference(name):
        try:
            found = load_reference(name)
        except QuantConfigError as error:
            raise SpecError(f"{place}: 'base': {error}") from error
        if not is_quantizer(found):
            raise SpecError(f"{place}: 'base' = '{name}' is no quantizer class but {type(found).__name__} {found!r}")
    else:
        known = presets()
        if name not in known:
            of_role = [n for n, cls in known.items() if role is None or role_of(cls) == role]
            hint = did_you_mean(name, of_role, "presets")
            raise SpecError(f"{place}: there is no preset '{name}'{hint}")
        found = known[name]
    return _of_role(found, place, role)


def _of_role(quantizer: type, place: SpecLocation, role: str | None) -> type:
    actual = role_of(quantizer)
    if role is not None and actual is not None and actual != role:
        raise SpecError(
            f"{place}: '{quantizer.__name__}' is a quantizer of role '{actual}', and one of role '{role}' is needed"
        )
    return quantizer
