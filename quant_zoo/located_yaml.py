"""YAML as plain data whose mappings know where each of their keys was written.

>>> from pathlib import Path; from tempfile import TemporaryDirectory
>>> with TemporaryDirectory() as folder:
...     path = Path(folder) / "a.yaml"
...     _ = path.write_text("epochs: 3\\nlearning_rate: 0.1\\n")
...     document = read_yaml(path)
>>> document["epochs"], document.where("learning_rate").endswith("a.yaml:2:1")
(3, True)
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

__all__ = ["LocatedMapping", "YamlError", "read_yaml"]


class YamlError(ValueError):
    """The text is not YAML, or not a mapping, or repeats a key; the message starts with file, line and column."""


class LocatedMapping(dict[str, Any]):
    """A mapping and the place of each of its keys."""

    def __init__(self, file: str, place: tuple[int, int]) -> None:
        super().__init__()
        self.file = file
        self.place = place
        self.places: dict[Hashable, tuple[int, int]] = {}

    def where(self, key: Hashable | None = None) -> str:
        """``file:line:column`` of ``key``, or of the mapping itself."""
        line, column = self.places.get(key, self.place)
        return f"{self.file}:{line}:{column}"


def read_yaml(path: Path) -> LocatedMapping:
    """The mapping that the file holds, read by the safe loader: plain data only, no Python objects.

    Raises:
        YamlError: as the class says.
    """
    file = str(path)

    class Loader(yaml.SafeLoader):
        """Safe loader whose mappings remember places; a class of its own, because constructors are class state."""

    def construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> LocatedMapping:
        mapping = LocatedMapping(file, _place(node.start_mark))
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise YamlError(f"{_at(file, key_node.start_mark)}: the key {key!r} is not a text")
            if key in mapping:
                raise YamlError(f"{_at(file, key_node.start_mark)}: the key '{key}' is here twice")
            mapping.places[key] = _place(key_node.start_mark)
            mapping[key] = loader.construct_object(value_node, deep=True)
        return mapping

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, construct_mapping)
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506 - derived from SafeLoader
    except yaml.MarkedYAMLError as error:
        where = _at(file, error.problem_mark) if error.problem_mark else file
        raise YamlError(f"{where}: {error.problem}") from error
    if not isinstance(document, LocatedMapping):
        raise YamlError(f"{file}:1:1: expected a mapping, found {type(document).__name__}")
    return document


def _place(mark: yaml.Mark) -> tuple[int, int]:
    return mark.line + 1, mark.column + 1


def _at(file: str, mark: yaml.Mark) -> str:
    line, column = _place(mark)
    return f"{file}:{line}:{column}"
