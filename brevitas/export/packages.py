"""Optional packages, imported at the moment they are needed, with one clear line when one is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from brevitas.export.violations import MissingExportPackageError, Violation

__all__ = ["PIP_COMMAND", "require"]

PIP_COMMAND = "pip install onnx onnx_ir onnxscript"


def require(*names: str, target: str, command: str | None = None, place: str = "export") -> list[ModuleType]:
    """Import ``names`` or raise E06 naming the command that installs what is missing.

    >>> require('json', target='qdq')[0].__name__
    'json'
    """
    modules, missing = [], []
    for name in names:
        try:
            modules.append(importlib.import_module(name))
        except ImportError as error:
            missing.append((name, str(error)))
    if missing:
        packages = [name.partition(".")[0] for name, _ in missing]
        raise MissingExportPackageError(
            [
                Violation(
                    "E06",
                    target,
                    found="; ".join(f"package '{name}' cannot be imported ({why})" for name, why in missing),
                    required=f"package{'s' if len(packages) > 1 else ''} {', '.join(packages)}",
                    place=place,
                    fix=command or f"pip install {' '.join(dict.fromkeys(packages))}",
                )
            ]
        )
    return modules
