"""Check the scales of a model before it is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from brevitas.errors import QuantConfigError
from brevitas.graph.copies import moved_apart, private_copy, uncompiled
from brevitas.graph.scale_flow.report import Finding, ScaleReport
from brevitas.graph.scale_flow.watch import Watch

__all__ = ["check_scales", "findings_of"]

# Forwards with the numbers moved apart. A scale restricted to powers of two may agree with another by chance in one.
_PROBES = 3


def check_scales(model: nn.Module, example: Any, *, insert: bool = False, shared_quant: Any = None) -> ScaleReport:
    """Everything about scales that would stop ``model``, or go wrong in it later, found in one go.

    >>> import torch
    >>> from torch import nn
    >>> from brevitas.graph import check_scales
    >>> from brevitas.nn import QuantIdentity, QuantLinear, QuantReLU
    >>> from brevitas.quant import Int8Bias
    >>> model = nn.Sequential(QuantReLU(), nn.Flatten(), QuantLinear(8, 2, bias_quant=Int8Bias))
    >>> print(check_scales(model, torch.rand(3, 2, 4)))
    Scales of Sequential: 1 finding.
    1. QuantLinear '2': Int8Bias needs the input scale, and the input is a plain Tensor
       from QuantReLU '0' (return_quant_tensor=False)
       fix: set return_quant_tensor=True on '0'

    Copies of the model are run in eval mode; after an error the forward goes on as if it had been mended. Branches that
    are joined must have one scale by construction: two quantizers that only start with equal numbers are found too.
    For that, the learned and collected numbers of some copies are moved apart.

    Args:
        model: any module. It is not touched.
        example: one input (a Tensor or a ``QuantTensor``), a tuple of positional inputs, or a dict of named ones.
        insert: also make a new model, ``report.model``, in which tensors of different scales go through one new
            ``QuantIdentity`` before they are joined. The findings are then those of the new model.
        shared_quant: activation quantizer class of that ``QuantIdentity``. By default ``Uint8ActPerTensorFloat`` where
            all tensors that are joined are unsigned, else ``Int8ActPerTensorFloat``.

    Returns:
        A report, true if there are findings. Nothing is found where nothing needs a scale: a network of plain tensors
        is right as it is.

    Raises:
        QuantConfigError: an argument of another type; or ``insert=True``, and the forward in which tensors are joined
            cannot be traced by ``torch.fx``.
    """
    if not isinstance(model, nn.Module):
        raise QuantConfigError(f"check_scales: expected a torch.nn.Module, got {model!r}")
    if not isinstance(insert, bool):
        raise QuantConfigError(f"check_scales: insert = {insert!r} is not legal: expected True or False")
    if shared_quant is not None and not insert:
        raise QuantConfigError("check_scales: shared_quant has no effect without insert=True")
    name = type(uncompiled(model)).__name__
    if not insert:
        return ScaleReport(findings_of(model, example), name)
    from brevitas.graph.scale_flow.insert import with_shared_quantizers

    made, inserted = with_shared_quantizers(model, example, shared_quant)
    return ScaleReport(findings_of(made, example), name, made, inserted)


def findings_of(model: nn.Module, example: Any) -> tuple[Finding, ...]:
    """The findings of all probes, in the order of the forward."""
    now = Watch(private_copy(model))
    now.run(example)
    found = dict(now.findings)
    for seed in range(_PROBES):
        apart = Watch(moved_apart(private_copy(model), seed))
        apart.run(example)
        for key, (moment, finding) in apart.findings.items():
            if key in found or finding.kind != "meeting":
                continue
            scales = now.scales.get(key)
            if scales is not None:
                what = f"{finding.function} joins tensors whose scales, {scales}, agree only by accident"
                finding = replace(finding, problem=what)
            found[key] = moment, finding
    return tuple(finding for _, finding in sorted(found.values(), key=lambda each: each[0]))
