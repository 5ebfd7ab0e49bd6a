"""``verify``: run an exported artifact in its real runtime and compare it with the model, integer by integer.

>>> from brevitas.export import StdONNXManager, verify
>>> report = verify(model, StdONNXManager.export(model, input_t=images), images)           # doctest: +SKIP
>>> report.equal, report.ties, report.diverged                                             # doctest: +SKIP
(1843200, 3, 0)
"""

from brevitas.export.verification.report import Row, VerifyReport
from brevitas.export.verification.run import verify

__all__ = ["Row", "VerifyReport", "verify"]
