"""Target ``dpuv2``: the PyXIR dialect of the DPUv2 family, where padding is an operator of its own."""

from brevitas.export.targets.pyxir import dpu_target

__all__ = ["TARGET"]

TARGET = dpu_target("dpuv2", "PyXIR dialect for DPUv2", pads_are_nodes=True)
