"""The version of specs, and the steps that make older ones current.

>>> from brevitas.utils.located import read_text
>>> dict(migrated(read_text("version: 1\\nrules: []", "a.yaml")))
{'version': 1, 'rules': []}
"""

from __future__ import annotations

from collections.abc import Callable

from brevitas.errors import QuantConfigError, SpecError
from brevitas.utils.located import LocatedMapping

__all__ = ["VERSION", "migrated", "register_migration"]

#: The version that this library writes, and reads without migration.
VERSION = 1

Migration = Callable[[LocatedMapping], LocatedMapping]
_migrations: dict[int, Migration] = {}


def register_migration(version: int) -> Callable[[Migration], Migration]:
    """Decorate the step that turns a document of ``version`` into one of the next version.

    The function gets the document, whose keys know their places, and returns it or another one. It need not set
    ``version``.

    Raises:
        QuantConfigError: ``version`` is not older than the current one, or has a step already.
    """
    if not 0 <= version < VERSION:
        raise QuantConfigError(f"register_migration({version}): expected a version from 0 to {VERSION - 1}")
    if version in _migrations:
        raise QuantConfigError(f"register_migration({version}): there is a step from this version already")

    def register(step: Migration) -> Migration:
        _migrations[version] = step
        return step

    return register


def migrated(document: LocatedMapping, *, required: bool = False) -> LocatedMapping:
    """The document in the current version.

    Args:
        document: with the key ``version``; without it, it is taken for current unless ``required``.

    Raises:
        SpecError: no version where one is required, no legal version, a newer one, or an old one without a step.
    """
    if "version" not in document:
        if required:
            raise SpecError(f"{document.where()}: 'version' is missing; a file starts with `version: {VERSION}`")
        return document
    where, version = document.where("version"), document["version"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise SpecError(f"{where}: 'version' is {version!r}; expected {VERSION}")
    if version > VERSION:
        raise SpecError(
            f"{where}: version {version} is newer than version {VERSION}, which this library reads; update it"
        )
    place = document.place("version")
    while version < VERSION:
        step = _migrations.get(version)
        if step is None:
            raise SpecError(
                f"{where}: version {version} is older than {VERSION}, and no migration from it is registered"
            )
        document, version = step(document), version + 1
        document.put("version", version, place)
    return document
