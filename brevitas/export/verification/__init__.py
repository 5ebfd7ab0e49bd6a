"""``verify``: run an exported artifact in its real runtime and compare it with the model, integer by integer.

>>> import torch
>>> from brevitas.export import StdONNXManager, verify
>>> from brevitas.nn import QuantLinear
>>> layer = QuantLinear(4, 2)
>>> report = verify(layer, StdONNXManager.export(layer, input_shape=(1, 4)), torch.randn(1, 4))
>>> report.ties, report.diverged
(0, 0)
"""

from brevitas.export.verification.files import compare_artifacts
from brevitas.export.verification.foreign import ReadModel, ReadQuantizer, read_model
from brevitas.export.verification.report import Row, VerifyReport
from brevitas.export.verification.run import verify

__all__ = ["ReadModel", "ReadQuantizer", "Row", "VerifyReport", "compare_artifacts", "read_model", "verify"]
