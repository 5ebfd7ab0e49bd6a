"""OpenVINO on the CPU, exact.

Otherwise it computes in bfloat16 and quantizes the data of linear layers anew where the CPU can (ACCURACY: neither),
and its products of 8-bit integers saturate where the CPU has no VNNI (NO: float kernels).
"""

import openvino
from exchange import serve

EXACT = {"LP_TRANSFORMS_MODE": "NO", "EXECUTION_MODE_HINT": "ACCURACY"}
core = openvino.Core()


def open_model(path):
    compiled = core.compile_model(core.read_model(path), "CPU", EXACT)
    return lambda feeds: compiled(feeds).values()


serve(open_model)
