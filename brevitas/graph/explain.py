"""Where every value of a quantizer comes from."""

from __future__ import annotations

from typing import Any

from torch import nn

import injector
from brevitas.errors import QuantConfigError
from brevitas.graph.explanation import Explanation, Part, part_of_proxy, part_of_quantizer
from brevitas.proxy.quant_proxy import QuantProxyFromInjector
from brevitas.quant.site import is_quantizer

__all__ = ["Explanation", "explain"]


def explain(subject: Any, path: str | None = None) -> Explanation:
    """Text with one line a value: what it is, the class, file and line that set it, what it overrode, who reads it.

    >>> from brevitas.nn import QuantLinear
    >>> why = explain(QuantLinear(4, 2, weight_bit_width=3).weight_quant)
    >>> print(why)
    QuantLinear (...), weight_quant=Int8WeightPerTensorFloat
    ...

    The text has other forms: ``why.tree()`` for a terminal, ``why.svg()`` and ``why.html()``.

    Args:
        subject: a proxy (``layer.weight_quant``), a quantizer class, or a model.
        path: with a model, the qualified name of a proxy in it, for example ``'conv1.weight_quant'``; or of a layer,
            for all its quantizers.

    A quantizer class alone is not resolved, since what it resolves to depends on the layer: its declarations are
    listed.

    Raises:
        QuantConfigError: ``subject`` is none of these, or the model has nothing at ``path``.
    """
    if path is not None:
        subject = _at(subject, path)
    if isinstance(subject, QuantProxyFromInjector):
        return Explanation([part_of_proxy(subject)])
    if is_quantizer(subject):
        return Explanation([part_of_quantizer(subject)])
    if isinstance(subject, nn.Module):
        parts = list(_parts(subject))
        if parts:
            return Explanation(parts)
    raise QuantConfigError(
        f"explain({subject!r}): expected a proxy such as layer.weight_quant, a quantizer class, or a model with "
        "quantized layers"
    )


def _parts(model: nn.Module) -> list[Part]:
    return [part_of_proxy(m, name) for name, m in model.named_modules() if isinstance(m, QuantProxyFromInjector)]


def _at(model: nn.Module, path: str) -> nn.Module:
    modules = dict(model.named_modules())
    if path not in modules:
        near = injector.suggest(path, [n for n in modules if n])
        raise QuantConfigError(
            f"explain: the model has no module '{path}'" + (f"; nearest: {', '.join(near)}" if near else "")
        )
    return modules[path]
