"""Train neural networks at low precision in PyTorch and put them on real hardware.

>>> import torch, brevitas.nn as qnn
>>> from brevitas.quant import Int8WeightPerTensorFloat
>>> class W3(Int8WeightPerTensorFloat):
...     bit_width = 3
>>> layer = qnn.QuantLinear(8, 4, weight_quant=W3)
>>> layer(torch.randn(2, 8)).shape
torch.Size([2, 4])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import injector

if not hasattr(injector, "resolve_many"):
    raise ImportError(
        f"brevitas needs its own package 'injector', and Python finds another one at {injector.__file__}: "
        "run `pip uninstall injector`, then install brevitas again"
    )

import torch  # noqa: E402

from brevitas import config  # noqa: E402
from brevitas._version import __version__  # noqa: E402

if TYPE_CHECKING:
    from brevitas.graph import apply_spec, spec_of, summary
    from brevitas.graph.explain import explain
    from brevitas.quant import diff, from_spec, to_spec

__all__ = [
    "NATIVE_STE_BACKEND_LOADED",
    "__version__",
    "apply_spec",
    "config",
    "diff",
    "explain",
    "from_spec",
    "spec_of",
    "summary",
    "to_spec",
    "torch_version",
]

#: The version of torch, comparable: ``brevitas.torch_version >= '2.13'``.
torch_version = torch.torch_version.TorchVersion(torch.__version__)

#: Whether a native back end computes the straight-through estimators.
NATIVE_STE_BACKEND_LOADED = False

_LAZY = {
    "apply_spec": "brevitas.graph",
    "diff": "brevitas.quant",
    "explain": "brevitas.graph",
    "from_spec": "brevitas.quant",
    "spec_of": "brevitas.graph",
    "summary": "brevitas.graph",
    "to_spec": "brevitas.quant",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'brevitas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
