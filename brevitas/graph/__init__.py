"""What can be asked of, and done to, a whole model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from brevitas.graph import layer_pairs as _layer_pairs
from brevitas.graph.converters import register_converter
from brevitas.graph.describe import spec_of
from brevitas.graph.explain import explain
from brevitas.graph.rebuild import apply_spec

del _layer_pairs  # imported to register the converters

if TYPE_CHECKING:
    from brevitas.graph.float_state import load_float_state_dict
    from brevitas.graph.model_summary import summary
    from brevitas.graph.scale_flow import check_scales

__all__ = [
    "apply_spec",
    "check_scales",
    "explain",
    "load_float_state_dict",
    "register_converter",
    "spec_of",
    "summary",
]

_LAZY = {
    "check_scales": "brevitas.graph.scale_flow",
    "load_float_state_dict": "brevitas.graph.float_state",
    "summary": "brevitas.graph.model_summary",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'brevitas.graph' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
