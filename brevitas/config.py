"""Settings read once from the environment; each may be changed afterwards as an attribute of this module.

    >>> import brevitas.config as config
    >>> config.read_flag("BREVITAS_JIT", {"BREVITAS_JIT": "yes"})
    True

===============================  ====================  =====================================================
Environment variable             Attribute             Effect
===============================  ====================  =====================================================
``BREVITAS_JIT``                 JIT_ENABLED           run the core modules through TorchScript
``BREVITAS_VERBOSE``             VERBOSE               log scripting
``BREVITAS_IGNORE_MISSING_KEYS`` IGNORE_MISSING_KEYS   forgive missing keys that quantizers own
===============================  ====================  =====================================================
"""

import os
from collections.abc import Mapping

from brevitas.errors import QuantConfigError

__all__ = ["IGNORE_MISSING_KEYS", "JIT_ENABLED", "VERBOSE", "read_flag"]

_TRUE = ("1", "true", "t", "yes", "y", "on")
_FALSE = ("0", "false", "f", "no", "n", "off")


def read_flag(name: str, environ: Mapping[str, str] | None = None) -> bool:
    """Value of the boolean environment variable ``name``; ``False`` where it is not set.

    Raises:
        QuantConfigError: the text is none of 1/0, true/false, t/f, yes/no, y/n, on/off (any case).
    """
    text = (os.environ if environ is None else environ).get(name, "0")
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise QuantConfigError(
        f"Environment variable {name}={text!r} is not a truth value. "
        f"Expected one of {', '.join(_TRUE + _FALSE)} (any case)."
    )


# PYTORCH_JIT=0 switches TorchScript itself off, and modules cannot be scripted then.
JIT_ENABLED = read_flag("BREVITAS_JIT") and read_flag(
    "PYTORCH_JIT", {"PYTORCH_JIT": os.environ.get("PYTORCH_JIT", "1")}
)
VERBOSE = read_flag("BREVITAS_VERBOSE")
IGNORE_MISSING_KEYS = read_flag("BREVITAS_IGNORE_MISSING_KEYS")
