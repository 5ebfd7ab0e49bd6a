"""Canonical graphs written by hand, so that lowerings are tested without tracing a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from brevitas.export import graph as g
from brevitas.export.lowering.opset import set_opset


class Builder:
    """Collects nodes and constants, then makes the model."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.shapes: dict[str, Sequence[int]] = {}

    def constant(self, name: str, array: Any, dtype: Any = np.float32) -> str:
        self.constants[name] = np.asarray(array, dtype)
        return name

    def node(self, op_type: str, inputs: Sequence[str], output: str, shape: Sequence[int], **attributes: Any) -> str:
        node = helper.make_node(op_type, list(inputs), [output], name=output, **attributes)
        _set_metadata(node, {g.LAYER: output, g.CLASS: op_type})
        self.nodes.append(node)
        self.shapes[output] = shape
        return output

    def quant(
        self,
        x: str,
        name: str,
        shape: Sequence[int],
        scale: Any,
        bits: int = 8,
        signed: bool = True,
        narrow: bool = False,
        zero_point: Any = 0.0,
        rounding: str = "ROUND",
        role: str = "act",
        **metadata: str,
    ) -> str:
        grid = [
            self.constant(f"{name}_{field}", value)
            for field, value in (("scale", scale), ("zero_point", zero_point), ("bit_width", bits))
        ]
        node = helper.make_node(
            "Quant",
            [x, *grid],
            [f"{name}.out"],
            name=f"{name}_quant",
            domain=g.DOMAIN,
            signed=int(signed),
            narrow=int(narrow),
            rounding_mode=rounding,
        )
        layer, _, _ = name.rpartition(".")
        _set_metadata(
            node,
            {g.LAYER: layer, g.CLASS: "Layer", g.QUANTIZER: f"{name}_quant", g.ROLE: role, g.CALL: "0", **metadata},
        )
        self.nodes.append(node)
        self.shapes[f"{name}.out"] = shape
        return f"{name}.out"

    def bipolar(self, x: str, name: str, shape: Sequence[int], scale: Any, role: str = "act") -> str:
        return self._quantizer("BipolarQuant", [x, self.constant(f"{name}_scale", scale)], name, shape, role, {})

    def trunc(
        self,
        x: str,
        name: str,
        shape: Sequence[int],
        scale: float,
        bits: int,
        removed: int,
        out_bits: int,
        signed: bool = False,
        rounding: str = "FLOOR",
        narrow: bool = False,
    ) -> str:
        grid = (
            *(("in_scale", scale), ("zero_point", 0.0), ("in_bit_width", bits)),
            *(("scale", scale * 2**removed), ("bit_width", out_bits)),
        )
        inputs = [x, *(self.constant(f"{name}_{field}", value) for field, value in grid)]
        attributes = {"signed": int(signed), "narrow": int(narrow), "rounding_mode": rounding}
        return self._quantizer("Trunc", inputs, name, shape, "trunc", attributes)

    def _quantizer(
        self,
        op_type: str,
        inputs: Sequence[str],
        name: str,
        shape: Sequence[int],
        role: str,
        attributes: dict[str, Any],
    ) -> str:
        node = helper.make_node(
            op_type, list(inputs), [f"{name}.out"], name=f"{name}_quant", domain=g.DOMAIN, **attributes
        )
        layer, _, _ = name.rpartition(".")
        entries = {g.LAYER: layer, g.CLASS: "Layer", g.QUANTIZER: f"{name}_quant", g.ROLE: role, g.CALL: "0"}
        _set_metadata(node, entries)
        self.nodes.append(node)
        self.shapes[f"{name}.out"] = shape
        return f"{name}.out"

    def weight(self, name: str, codes: Any, scale: Any, bits: int = 8, zero_point: Any = 0.0, **kwargs: Any) -> str:
        codes = np.asarray(codes)
        values = ((codes - np.asarray(zero_point)) * np.asarray(scale)).astype(np.float32)
        self.constant(name, values)
        role = kwargs.pop("role", "weight")
        return self.quant(name, name, codes.shape, scale, bits, zero_point=zero_point, role=role, **kwargs)

    def model(self, inputs: dict[str, Sequence[int]], outputs: Sequence[str], opset: int = 20) -> ir.Model:
        proto = helper.make_model(
            helper.make_graph(
                self.nodes,
                "hand_made",
                [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
                [helper.make_tensor_value_info(n, TensorProto.FLOAT, self.shapes[n]) for n in outputs],
                [numpy_helper.from_array(a, n) for n, a in self.constants.items()],
                value_info=[
                    helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
                    for n, s in self.shapes.items()
                    if n not in outputs
                ],
            ),
            opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(g.DOMAIN, g.DOMAIN_VERSION)],
            ir_version=10,
        )
        return ir.from_proto(proto)


def _set_metadata(node: onnx.NodeProto, entries: dict[str, str]) -> None:
    for key, value in entries.items():
        node.metadata_props.add(key=key, value=value)


def lowered(model: ir.Model, target: Any, opset: int | None = None, **options: Any) -> onnx.ModelProto:
    """Lower a canonical graph that breaks no rule, and check the result."""
    options = {**target.options, **options, "opset_version": opset}
    assert [v for v in target.check(model, options) if not v.is_warning] == []
    default = target.default_opset(model, {}) if callable(target.default_opset) else target.default_opset
    made = target.lower(model, options)
    set_opset(made, opset or default)
    proto = ir.to_proto(made)
    onnx.checker.check_model(proto, full_check=True)
    return proto
