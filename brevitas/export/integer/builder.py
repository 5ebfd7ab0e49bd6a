"""Walk the canonical graph and say of each value what it is in integers.

One walk serves three ends: the integer network, the bounds of its accumulators, and the list of everything that has no
integer form. A node that has none is noted, and what depends on it is left out without another word, up to the next
quantizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from brevitas.export import graph as g
from brevitas.export.integer.bounds import Bounds, Geometry
from brevitas.export.integer.network import Border, Input, IntegerNetwork, Output, Step, Tensor
from brevitas.export.integer.values import (
    Array,
    Claim,
    Constant,
    FloatValue,
    Pair,
    Unknown,
    Value,
    Wire,
    aligned,
    compressed,
)
from brevitas.export.targets.common import common_violations
from brevitas.export.violations import Violation, raise_violations

if TYPE_CHECKING:
    import onnx_ir as ir

    from brevitas.export.integer.multiplier import Deviation

__all__ = ["KEY", "Accumulator", "Builder", "Rule", "Unrepresentable"]

KEY = "integer"
INT64_BITS = 62
Rule = Callable[["Builder", "ir.Node", list[Value | None]], Value | Sequence[Value]]


class Unrepresentable(Exception):  # noqa: N818  (never leaves the package: it becomes a violation)
    """A node without an integer form: code, what was found, what is required, and the fix."""

    def __init__(self, code: str, found: str, required: str, fix: str) -> None:
        super().__init__(found)
        self.violation = (code, found, required, fix)


@dataclass(frozen=True, eq=False)
class Accumulator:
    """A sum of products or codes in the graph, with what its bounds were computed from.

    ``weight`` is (M, C, *kernel) with zero points subtracted, or ``None`` where both operands are computed; ``low`` and
    ``high`` (M, C) are the shifted bounds of the inputs that each output channel reads. ``step`` is the operation,
    ``terms`` the greatest number of products or codes in one sum. The claims are those of weight and bias.
    """

    node: ir.Node
    bounds: Bounds
    weight: Array | None
    low: Array
    high: Array
    geometry: Geometry | None
    group: int
    source: Wire
    step: Step
    shape: tuple[int, ...]
    bias: Array | None = None
    terms: int = 0
    claim: Claim | None = None
    bias_claim: Claim | None = None
    other: Wire | None = None


class Builder:
    """State of one walk.

    ``requantize`` is 'thresholds', 'multiplier', or ``None`` for bounds alone. With ``keep_weights=False`` weights are
    let go of as soon as the bounds of their sums are known: nothing can be run then.
    """

    def __init__(self, model: ir.Model, requantize: str | None, keep_weights: bool = True) -> None:
        self.keep_weights = keep_weights
        self.model = model
        self.requantize = requantize
        self.values: dict[int, Value] = {}
        self.inputs: list[Input] = []
        self.border: list[Border] = []
        self.steps: list[Step] = []
        self.outputs: list[Output] = []
        self.tensors: dict[str, Tensor] = {}
        self.accumulators: list[Accumulator] = []
        self.deviations: list[Deviation] = []
        self.violations: list[Violation] = []

    def run(self) -> Builder:
        """Visit inputs, nodes and outputs."""
        from brevitas.export.integer.rules import RULES

        self.violations.extend(common_violations(self.model, KEY))
        self._read_inputs()
        for node in self.model.graph:
            given = [None if v is None else self.value(v) for v in node.inputs]
            rule = RULES.get((node.domain if node.domain != "ai.onnx" else "", node.op_type))
            try:
                made = self._visit(node, rule, given)
            except Unrepresentable as why:
                self.violations.append(_violation(node, *why.violation))
                made = Unknown()
            except Exception:
                if self.requantize is not None:
                    raise
                made = Unknown()  # bounds are wanted of models of any kind, and what is odd has none
            results = [made] * len(node.outputs) if isinstance(made, Value) else list(made)
            for out, result in zip(node.outputs, results, strict=True):
                self.values[id(out)] = result
            if not self.keep_weights:
                self._let_go(node)
        self._read_outputs()
        return self

    def _let_go(self, node: ir.Node) -> None:
        """Forget the weights that ``node`` has read, where nobody else reads them."""
        for value in node.inputs:
            held = None if value is None else self.values.get(id(value))
            if value is not None and isinstance(held, Wire) and held.codes is not None and len(list(value.uses())) == 1:
                del self.values[id(value)]
        if self.accumulators and self.accumulators[-1].node is node:
            step = replace(self.accumulators[-1].step, arrays={})
            self.accumulators[-1] = replace(self.accumulators[-1], weight=None, step=step)
            self.steps[-1] = replace(self.steps[-1], arrays={})

    def network(self) -> IntegerNetwork:
        """The network; raises ExportError with every violation."""
        raise_violations(self.violations)
        used = {name for step in self.steps for name in (*step.inputs, step.output)} | {o.tensor for o in self.outputs}
        used |= {b.output for b in self.border if b.op == "quantize"}
        return IntegerNetwork(
            tuple(self.inputs),
            tuple(self.border),
            tuple(self.steps),
            tuple(self.outputs),
            {name: t for name, t in self.tensors.items() if name in used},
            tuple(self.deviations),
        )

    def _visit(self, node: ir.Node, rule: Rule | None, given: list[Value | None]) -> Value | Sequence[Value]:
        from brevitas.export.integer.rules import elementwise, evaluated

        present = [v for v in given if v is not None]
        is_quantizer = node.domain == g.DOMAIN and node.op_type in g.KINDS
        if node.domain == g.DOMAIN and not is_quantizer:
            return Unknown()  # minifloats, which the rules common to all targets refuse
        if node.op_type == "Shape" and not isinstance(present[0], Unknown):
            return Constant(np.asarray(present[0].shape, np.int64))
        if present and all(isinstance(v, Constant) for v in present) and not is_quantizer:
            return evaluated(node, [v.array if isinstance(v, Constant) else None for v in given])
        if any(isinstance(v, Unknown) for v in present) and not is_quantizer:
            return Unknown()
        for v in present:
            if isinstance(v, Pair) and not is_quantizer and ("", node.op_type) not in elementwise.RULES:
                raise v.reason
        if rule is None:
            raise Unrepresentable(
                "E04",
                f"operator {node.op_type}, which has no exact integer form",
                "convolutions, linear layers, pools, element-wise functions that never turn, and moves of codes",
                "leave it out of the model and compute it on the outputs, or quantize what it computes in another way",
            )
        return rule(self, node, given)

    def value(self, value: ir.Value) -> Value:
        """What a value of the graph is."""
        if id(value) not in self.values:
            held = g.constant(value)
            self.values[id(value)] = Unknown() if held is None else Constant(held)
        return self.values[id(value)]

    def _read_inputs(self) -> None:
        for value, fields in zip(self.model.graph.inputs, g.quant_tensor_records(self.model, g.INPUTS), strict=True):
            name = value.name or f"input_{len(self.inputs)}"
            dims = list(value.shape) if value.shape is not None else []
            batch = dims[0] if dims and self.requantize is not None else 1
            shape = tuple(int(d) if isinstance(d, int) else 1 for d in dims)
            if not dims or (isinstance(batch, int) and batch != 1) or any(not isinstance(d, int) for d in dims[1:]):
                self.violations.append(
                    Violation(
                        "E15",
                        KEY,
                        f"a shape of {tuple(dims)}",
                        "a batch of one sample, or a dynamic batch, in dimension 0, and fixed other dimensions",
                        "give input_shape=(1, ...), or capture the graph so",
                        place=f"model input '{name}'",
                    )
                )
                self.values[id(value)] = Unknown(shape)
                continue
            if fields is None:
                self.inputs.append(Input(name, shape))
                self.values[id(value)] = FloatValue(name, shape)
                continue
            low, high = g.integer_range(int(fields["bit_width"]), bool(fields["signed"]), False)
            scale, zero = (np.asarray(fields[key], np.float32) for key in ("scale", "zero_point"))
            wire = self.wire(name, shape, compressed(aligned(scale, len(shape))), zero, low, high)
            self.inputs.append(Input(name, shape, name, wire.scale, wire.zero))
            self.values[id(value)] = wire

    def _read_outputs(self) -> None:
        for value in self.model.graph.outputs:
            made = self.value(value)
            if isinstance(made, Pair) and isinstance(made.reason, Unrepresentable):
                producer = value.producer()
                assert producer is not None
                self.violations.append(_violation(producer, *made.reason.violation))
            name = value.name or f"output_{len(self.outputs)}"
            if isinstance(made, (FloatValue, Constant)) or (isinstance(made, Wire) and made.is_constant):
                self.violations.append(
                    Violation(
                        "E28",
                        KEY,
                        "values that no quantizer precedes",
                        "an output computed from codes",
                        "quantize the input, for example with QuantIdentity(return_quant_tensor=True) before the "
                        "first layer",
                        place=f"model output '{name}'",
                    )
                )
            elif isinstance(made, Wire):
                self.outputs.append(Output(name, made.tensor, made.scale, made.zero, made.ops))

    def wire(
        self, name: str, shape: tuple[int, ...], scale: Array, zero: Any, low: Any, high: Any, **others: Any
    ) -> Wire:
        """A wire of a new tensor; bounds may be numbers or arrays. A bound beyond int64 has no representation."""
        rank = len(shape)
        scale, zero, low, high = (aligned(np.asarray(a), rank) for a in (scale, zero, low, high))
        extreme = max(abs(int(low.min())), abs(int(high.max()))) if low.size else 0
        if extreme.bit_length() > INT64_BITS:
            raise Unrepresentable(
                "E11", f"integers of {extreme.bit_length() + 1} bits", f"at most {INT64_BITS + 1} bits", "use less bits"
            )
        zero, low, high = (np.asarray(a, np.int64) for a in (zero, low, high))
        if others.get("codes") is None:
            self.tensors[name] = Tensor(name, shape, int(low.min()) if low.size else 0, int(high.max(initial=0)))
            if low.size:
                self.tensors[name] = Tensor(name, shape, int(low.min()), int(high.max()))
        return Wire(name, shape, np.asarray(scale, np.float32), zero, low, high, **others)

    def emit(
        self,
        op: str,
        node: ir.Node,
        inputs: Sequence[str],
        *,
        attributes: Mapping[str, Any] | None = None,
        arrays: Mapping[str, Array | None] | None = None,
        suffix: str = "",
        quantizer: str = "",
    ) -> str:
        """Add a step; returns the name of its tensor, which :meth:`wire` must describe."""
        base = f"{node.name or node.op_type}{suffix}"
        name, n = base, 0
        while name in self.tensors:
            n += 1
            name = f"{base}_{n}"
        kept = {k: v for k, v in (arrays or {}).items() if v is not None and (k not in _ZEROS or v.any())}
        self.steps.append(
            Step(
                op,
                name,
                tuple(inputs),
                name,
                dict(attributes or {}),
                kept,
                g.meta(node, g.LAYER),
                g.meta(node, g.CLASS),
                quantizer,
                int(g.meta(node, g.CALL, "0")) if quantizer else 0,
            )
        )
        return name

    def fold_bias(self, wire: Wire, bias: Array, claim: Claim | None) -> bool:
        """Give the product that made ``wire`` a bias, (M,), if it is the last step and has none."""
        if not self.steps or self.steps[-1].output != wire.tensor or not self.accumulators:
            return False
        step, made = self.steps[-1], self.accumulators[-1]
        if step.op != "matmul" or "bias" in step.arrays or made.bias is not None or made.other is not None:
            return False
        b = made.bounds
        self.steps[-1] = replace(step, arrays={**step.arrays, "bias": bias})
        self.accumulators[-1] = replace(
            made,
            step=self.steps[-1],
            bias=bias,
            bias_claim=claim,
            bounds=Bounds(
                b.least + bias,
                b.most + bias,
                b.partial_least + np.minimum(bias, 0),
                b.partial_most + np.maximum(bias, 0),
                b.where,
            ),
        )
        return True


_ZEROS = ("zero", "zero_y")


def _violation(node: ir.Node, code: str, found: str, required: str, fix: str) -> Violation:
    return Violation(
        code,
        KEY,
        f"{found} (node '{node.name}')",
        required,
        fix,
        layer=g.meta(node, g.LAYER),
        layer_class=g.meta(node, g.CLASS),
        quantizer=g.meta(node, g.QUANTIZER) or None,
    )
