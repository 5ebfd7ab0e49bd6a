"""The one family of errors that brevitas raises.

    >>> from brevitas.errors import BrevitasError, QuantConfigError
    >>> issubclass(QuantConfigError, BrevitasError)
    True

Catch :class:`BrevitasError` to catch everything the library refuses on purpose. Each class also derives from the
builtin that a caller who does not know the library would expect.
"""

from injector import DependencyError

__all__ = [
    "BrevitasError",
    "ExportError",
    "MissingPackageError",
    "QuantConfigError",
    "QuantMetadataError",
    "ShapeError",
    "SpecError",
    "StateDictError",
    "UnknownOptionError",
]


class BrevitasError(Exception):
    """Base of every error that brevitas raises on purpose."""


class QuantConfigError(BrevitasError, DependencyError, ValueError):
    """A quantizer or layer was declared in a way that has no meaning."""


class UnknownOptionError(QuantConfigError, TypeError):
    """A keyword or attribute that nothing reads."""


class SpecError(QuantConfigError):
    """Something written as data (a quantizer, a model, a recipe) has no meaning; the message starts with its place."""


class QuantMetadataError(BrevitasError, RuntimeError):
    """A scale, zero point or bit width is needed at run time and is not there, or two do not agree."""


class ShapeError(BrevitasError, RuntimeError):
    """An input does not have the size that a layer was built for."""


class ExportError(BrevitasError, RuntimeError):
    """A model cannot be exported; the message lists every violation."""


class StateDictError(BrevitasError, RuntimeError):
    """A state dict does not fit the model; nothing was loaded."""


class MissingPackageError(BrevitasError, ImportError):
    """An optional package is needed; the message says how to install it."""
