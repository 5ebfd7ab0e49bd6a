"""A dependency injector: declare objects as class attributes, read one, and what it needs is found by name.

>>> from injector import Injector, resolve, this, value
>>> class Scaling:
...     def __init__(self, threshold, levels):
...         self.scale = threshold / levels
>>> class Int8(Injector):
...     bit_width = 8
...     threshold = 1.0
...     scaling = Scaling
...     scale = this.scaling.scale
...     @value
...     def levels(bit_width):
...         return 2 ** (bit_width - 1)
>>> Int8.scale
0.0078125
>>> Int8.let(bit_width=4).scale
0.125
>>> list(resolve(Int8, "scale").records)
['threshold', 'bit_width', 'levels', 'scaling', 'scale']

Injectors are classes and never change. A subclass, `let` and `&` combine them; the left-most base wins.
"""

from injector._declarations import this, value
from injector.copy_rules import register_copy_rule
from injector.errors import (
    DependencyError,
    FrozenInjectorError,
    InjectorPicklingError,
    UnknownAttributeError,
    suggest,
)
from injector.injector import Injector, InjectorType, override
from injector.locations import SourceLocation, caller_location
from injector.pickling import register_reducers
from injector.records import Record, Resolution, declarations, explain, readable_names, resolve, resolve_many
from injector.tables import Declaration, is_injector

__version__ = "0.1.0"

register_reducers()

BaseInjector = Injector
ExtendedInjector = Injector

__all__ = [
    "BaseInjector",
    "Declaration",
    "DependencyError",
    "ExtendedInjector",
    "FrozenInjectorError",
    "Injector",
    "InjectorPicklingError",
    "InjectorType",
    "Record",
    "Resolution",
    "SourceLocation",
    "UnknownAttributeError",
    "caller_location",
    "declarations",
    "explain",
    "is_injector",
    "override",
    "readable_names",
    "register_copy_rule",
    "resolve",
    "resolve_many",
    "suggest",
    "this",
    "value",
]
