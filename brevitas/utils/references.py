"""Objects by name: ``package.module:Class``, as data refer to what only code can define.

>>> from brevitas.core.stats import AbsMax
>>> reference(AbsMax)
'brevitas.core.stats.stats_op:AbsMax'
>>> load_reference('brevitas.core.stats:AbsMax') is AbsMax
True

Reading a reference imports its module, and so runs its code: read data with references from sources that you trust.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

from brevitas.errors import QuantConfigError
from brevitas.utils.located import did_you_mean
from injector.pickling import load_declared

__all__ = ["is_reference", "load_reference", "reference"]

_NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_REFERENCE = re.compile(rf"{_NAME}:{_NAME}")


def is_reference(text: object) -> bool:
    """Whether a value has the form of a reference.

    >>> is_reference('torch:float16'), is_reference('cuda:0'), is_reference('plain')
    (True, False, False)
    """
    return isinstance(text, str) and _REFERENCE.fullmatch(text) is not None


def reference(obj: Any) -> str | None:
    """The reference by which another process finds ``obj``; ``None`` where there is none.

    What a script or a function defines has none: another program that reads the data does not run that script.
    """
    module, qualname = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    if not module or not qualname or module == "__main__" or "<" in qualname:
        return None
    try:
        found = load_declared(module, qualname)
    except (ImportError, AttributeError):
        return None
    return f"{module}:{qualname}" if found is obj else None


def load_reference(text: str) -> Any:
    """The object that a reference names; in the body of an injector the declaration, which is not built.

    Raises:
        QuantConfigError: no such module or name; the message has the nearest names.
    """
    if not is_reference(text):
        raise QuantConfigError(f"'{text}' is no reference; expected package.module:Name")
    module, _, qualname = text.partition(":")
    try:
        return load_declared(module, qualname)
    except ImportError as error:
        raise QuantConfigError(f"'{text}' cannot be imported: {error}") from error
    except AttributeError as error:
        names = [n for n in dir(importlib.import_module(module)) if not n.startswith("_")]
        hint = did_you_mean(qualname, names) if "." not in qualname else ""
        short = hint if hint.startswith("; did") else ""
        raise QuantConfigError(f"'{text}' cannot be imported: '{module}' has no '{qualname}'{short}") from error
