"""A quantized model as an integer network, and the exact bounds of its accumulators.

>>> import torch
>>> from brevitas.export import overflow, to_integer
>>> from brevitas.nn import QuantIdentity, QuantLinear
>>> model = torch.nn.Sequential(QuantIdentity(bit_width=4, return_quant_tensor=True), QuantLinear(2, 1)).eval()
>>> net = to_integer(model, input_shape=(1, 2))
>>> [layer.step.op for layer in net.layers]
['matmul']
"""

from brevitas.export.integer.entry import to_integer
from brevitas.export.integer.multiplier import Deviation
from brevitas.export.integer.network import IntegerNetwork, IntegerResult
from brevitas.export.integer.overflow import OverflowReport, OverflowRow, overflow

__all__ = ["Deviation", "IntegerNetwork", "IntegerResult", "OverflowReport", "OverflowRow", "overflow", "to_integer"]
