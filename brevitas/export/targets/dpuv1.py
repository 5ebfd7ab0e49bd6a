"""Target ``dpuv1``: the PyXIR dialect of the DPUv1 family."""

from brevitas.export.targets.pyxir import dpu_target

__all__ = ["TARGET"]

TARGET = dpu_target("dpuv1", "PyXIR dialect for DPUv1", pads_are_nodes=False)
