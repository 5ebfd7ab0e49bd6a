"""Objects that own state are copied at each resolution, so that two consumers never share it by accident.

>>> import copy
>>> from injector import Injector
>>> remove = register_copy_rule(lambda obj: isinstance(obj, list), copy.copy)
>>> class Shapes(Injector):
...     shape = [1, 2]
>>> Shapes.shape is Shapes.shape
False
>>> remove()
>>> Shapes.shape is Shapes.shape
True
"""

from __future__ import annotations

import copy as _copy
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

__all__ = ["copied", "register_copy_rule"]


class _Rule(NamedTuple):
    applies: Callable[[object], bool]
    copy: Callable[[Any], Any]
    except_names: frozenset[str]


# A tuple that is replaced as a whole: a resolution in another thread sees the old rules or the new, never a mixture.
_rules: tuple[_Rule, ...] = ()


def register_copy_rule(
    rule: Callable[[object], bool],
    copy: Callable[[Any], Any] = _copy.deepcopy,
    *,
    except_names: Collection[str] = (),
) -> Callable[[], None]:
    """Have every declared plain object for which `rule(obj)` holds passed as `copy(obj)`, one copy a resolution.

    Attributes named in `except_names` are passed as they are. The first rule that holds is used. What a `@value`
    returns is not copied: the function decides. Returns a function that removes the rule.
    """
    global _rules
    added = _Rule(rule, copy, frozenset(except_names))
    _rules = (*_rules, added)

    def remove() -> None:
        global _rules
        _rules = tuple(each for each in _rules if each is not added)

    return remove


def copied(name: str, obj: Any) -> Any:
    """`obj` itself, or its copy where a rule asks for one."""
    for rule in _rules:
        if name not in rule.except_names and rule.applies(obj):
            return rule.copy(obj)
    return obj
