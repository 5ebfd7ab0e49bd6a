"""The injector, with the one rule that torch needs.

>>> from brevitas.inject import ExtendedInjector, value
>>> class Q(ExtendedInjector):
...     bit_width = 4
...     @value
...     def levels(bit_width):
...         return 2 ** bit_width
>>> Q.levels, Q.let(bit_width=3).levels
(16, 8)

A module instance that owns parameters or buffers is copied for each resolution, so that two layers built from one
declaration never share state by accident; ``module`` and ``tracked_parameter_list`` are handed on as they are.
"""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from injector import BaseInjector, DependencyError, ExtendedInjector, Injector, register_copy_rule, this

if TYPE_CHECKING:
    # To a type checker, an attribute declared as a function may be overridden by a plain value, and the reverse.
    def value(function: Callable[..., Any]) -> Any: ...  # noqa: D103
else:
    from injector import value

__all__ = ["BaseInjector", "DependencyError", "ExtendedInjector", "Injector", "this", "value"]


def _owns_state(obj: object) -> bool:
    if not isinstance(obj, nn.Module):
        return False
    return next(obj.parameters(), None) is not None or next(obj.buffers(), None) is not None


register_copy_rule(_owns_state, copy.deepcopy, except_names=("module", "tracked_parameter_list"))
