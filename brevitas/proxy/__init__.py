"""Proxies: the hinge between a layer and the quantizer that it was given.

A proxy holds the declaration, resolves it against its layer, and hands out quantized tensors with their metadata.
"""

from brevitas.proxy.accumulator_quant import (
    AccQuantProxyProtocol,
    ClampQuantProxyFromInjector,
    TruncQuantProxyFromInjector,
)
from brevitas.proxy.parameter_quant import (
    BiasQuantProxyFromInjector,
    BiasQuantProxyProtocol,
    WeightQuantProxyFromInjector,
    WeightQuantProxyProtocol,
)
from brevitas.proxy.runtime_quant import ActQuantProxyFromInjector, ActQuantProxyProtocol

__all__ = [
    "AccQuantProxyProtocol",
    "ActQuantProxyFromInjector",
    "ActQuantProxyProtocol",
    "BiasQuantProxyFromInjector",
    "BiasQuantProxyProtocol",
    "ClampQuantProxyFromInjector",
    "TruncQuantProxyFromInjector",
    "WeightQuantProxyFromInjector",
    "WeightQuantProxyProtocol",
]
