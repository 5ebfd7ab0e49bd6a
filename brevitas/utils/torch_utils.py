"""Containers.

>>> import torch
>>> from torch import nn
>>> both = TupleSequential(nn.Identity(), nn.Flatten())
>>> both(torch.zeros(2, 3, 4)).shape
torch.Size([2, 12])
"""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["TupleSequential"]


class TupleSequential(nn.Sequential):
    """A sequence of modules in which a tuple that one returns becomes the arguments of the next.

    >>> import torch
    >>> from torch import nn
    >>> class SumAndDifference(nn.Module):
    ...     def forward(self, a, b):
    ...         return a + b, a - b
    >>> model = TupleSequential(SumAndDifference(), SumAndDifference())
    >>> model(torch.tensor(3.0), torch.tensor(1.0))
    (tensor(6.), tensor(2.))

    Lists and named tuples count as one argument.
    """

    def forward(self, *args: Any) -> Any:  # type: ignore[override]
        """What the last module returns; without modules the argument, or the tuple of several."""
        for module in self:
            out = module(*args)
            args = out if type(out) is tuple else (out,)
        return args if len(args) != 1 else args[0]
