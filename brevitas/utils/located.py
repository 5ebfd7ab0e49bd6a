"""Plain data that know where each of their keys was written: YAML with file, line and column, Python with a key path.

>>> document = read_text("epochs: 3\\nlearning_rate: 1e-3\\n", "a.yaml")
>>> document["learning_rate"], document.where("learning_rate")
(0.001, 'a.yaml:2:1')

Every error of this module is a :class:`SpecError` whose message starts with the place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from brevitas.errors import SpecError
from injector import SourceLocation, suggest

__all__ = [
    "LocatedList",
    "LocatedMapping",
    "SpecLocation",
    "as_located",
    "did_you_mean",
    "path_of",
    "read_text",
    "read_yaml",
]


@dataclass(frozen=True, slots=True)
class SpecLocation(SourceLocation):
    """A place in a document: line and column of a text, or the line of the program; and what stands there.

    >>> print(SpecLocation("a.yaml", 3, 5), SpecLocation("train.py", 12, key="rules[0].weight"))
    a.yaml:3:5 train.py:12, rules[0].weight
    """

    column: int = 0
    key: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.column else f"{self.file}:{self.line}"
        return f"{place}, {self.key}" if self.key else place


class LocatedMapping(dict[str, Any]):
    """A mapping and the place of each of its keys."""

    def __init__(self, location: SpecLocation) -> None:
        super().__init__()
        self.location = location
        self.places: dict[Hashable, SpecLocation] = {}

    def place(self, key: Hashable | None = None) -> SpecLocation:
        """The place of ``key``, or of the mapping itself."""
        return self.places.get(key, self.location)

    def where(self, key: Hashable | None = None) -> str:
        """The place of ``key``, or of the mapping itself, as text."""
        return str(self.place(key))

    def put(self, key: str, value: Any, place: SpecLocation) -> None:
        """Set a key together with its place."""
        self[key] = value
        self.places[key] = place


class LocatedList(list[Any]):
    """A list and the place of each of its items."""

    def __init__(self, location: SpecLocation) -> None:
        super().__init__()
        self.location = location
        self.places: list[SpecLocation] = []

    def add(self, item: Any, place: SpecLocation) -> None:
        """Append an item together with its place."""
        self.append(item)
        self.places.append(place)


class _Loader(yaml.SafeLoader):
    """Safe loader whose mappings and lists remember places. Numbers as in YAML 1.2: ``1e-3`` is one."""

    file = "<text>"

    def locate(self, mark: yaml.Mark) -> SpecLocation:
        return SpecLocation(self.file, mark.line + 1, mark.column + 1)


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> LocatedMapping:
    mapping = LocatedMapping(loader.locate(node.start_mark))
    for key_node, value_node in node.value:
        place = loader.locate(key_node.start_mark)
        if key_node.tag == "tag:yaml.org,2002:merge":
            raise SpecError(f"{place}: merge keys ('<<') are not supported; write the keys out")
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise SpecError(f"{place}: the key {key!r} is not a text; write it in quotes")
        if key in mapping:
            raise SpecError(f"{place}: the key '{key}' is here twice; first at {mapping.where(key)}")
        mapping.put(key, loader.construct_object(value_node, deep=True), place)
    return mapping


def _construct_list(loader: _Loader, node: yaml.SequenceNode) -> LocatedList:
    items = LocatedList(loader.locate(node.start_mark))
    for item in node.value:
        items.add(loader.construct_object(item, deep=True), loader.locate(item.start_mark))
    return items


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_SEQUENCE_TAG, _construct_list)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def read_text(text: str, file: str) -> Any:
    """The data of a YAML text, read by the safe loader: no Python objects.

    Args:
        text: one YAML document.
        file: the name by which error messages call it.

    Raises:
        SpecError: the text is not YAML, repeats a key, has a key that is no text, or is empty.
    """
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        raise SpecError(f"{file}: this is not text: {error.reason} at character {error.position}") from error
    loader.file = file
    try:
        document = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        where = str(loader.locate(error.problem_mark)) if error.problem_mark else file
        raise SpecError(f"{where}: {error.problem}") from error
    finally:
        loader.dispose()
    if document is None:
        raise SpecError(f"{file}:1:1: expected a mapping, found nothing")
    return document


def read_yaml(path: Path) -> LocatedMapping:
    """The mapping that the file at ``path`` holds.

    Raises:
        SpecError: as :func:`read_text`; the file cannot be read; the document is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: {_reason(error, path)}") from error
    document = read_text(text, str(path))
    if not isinstance(document, LocatedMapping):
        raise SpecError(f"{path}:1:1: expected a mapping, found {_kind(document)}")
    return document


def path_of(spec: object) -> Path | None:
    """The path that ``spec`` is: a ``Path``, or a text that ends like the name of a YAML file; ``None`` for data.

    >>> path_of("nets/lenet.yaml"), path_of("base: IntBias")
    (PosixPath('nets/lenet.yaml'), None)
    """
    if isinstance(spec, str) and "\n" not in spec and spec.endswith((".yaml", ".yml")):
        return Path(spec)
    return Path(spec) if isinstance(spec, os.PathLike) else None


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, FileNotFoundError):
        near = suggest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else []
        return "there is no such file" + (f"; nearest: {', '.join(near)}" if near else "")
    return str(error)


def _kind(document: object) -> str:
    return "list" if isinstance(document, list) else type(document).__name__


def as_located(data: Any, location: SourceLocation, key: str = "") -> Any:
    """Python data with places: the line ``location`` of the program and the path of keys inside ``data``.

    Mappings and lists are copied. What is located already stays as it is.

    >>> spec = as_located({"rules": [{"keep": "float"}]}, SourceLocation("train.py", 12))
    >>> spec["rules"][0].where("keep")
    'train.py:12, rules[0].keep'

    Raises:
        SpecError: a key that is no text.
    """
    if isinstance(data, LocatedMapping | LocatedList):
        return data
    here = SpecLocation(location.file, location.line, key=key)
    if isinstance(data, Mapping):
        mapping = LocatedMapping(here)
        for name, value in data.items():
            if not isinstance(name, str):
                raise SpecError(f"{here}: the key {name!r} is not a text")
            path = f"{key}.{name}" if key else name
            mapping.put(name, as_located(value, location, path), SpecLocation(location.file, location.line, key=path))
        return mapping
    if isinstance(data, list | tuple):
        items = LocatedList(here)
        for index, value in enumerate(data):
            path = f"{key}[{index}]"
            items.add(as_located(value, location, path), SpecLocation(location.file, location.line, key=path))
        return items
    return data


def did_you_mean(name: object, candidates: Iterable[str], known: str = "known") -> str:
    """The end of a message: the nearest candidates, or all of them where none is near.

    >>> did_you_mean("weigth", ["weight", "act"]), did_you_mean("zzz", ["weight", "act"])
    ("; did you mean 'weight'?", '; known: weight, act')
    """
    candidates = list(candidates)
    near = suggest(str(name), candidates)
    if near:
        return f"; did you mean {' or '.join(repr(n) for n in near)}?"
    return f"; {known}: {', '.join(candidates)}" if candidates else ""
