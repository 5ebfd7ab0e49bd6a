"""Questions about TorchScript, which ``BREVITAS_JIT=1`` switches on.

>>> import torch
>>> is_scripted(torch.nn.ReLU()), is_scripted(torch.jit.script(torch.nn.ReLU()))
(False, True)
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["is_scripted"]


def is_scripted(obj: Any) -> bool:
    """Whether ``obj`` is a module or function that TorchScript has compiled, by scripting or by tracing.

    The core modules are no such objects even with ``BREVITAS_JIT=1``: they hold their script and stay what they are.
    """
    return isinstance(obj, (torch.jit.ScriptModule, torch.jit.ScriptFunction))
