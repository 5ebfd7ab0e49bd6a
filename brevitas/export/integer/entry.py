"""``to_integer``: a model, or its canonical graph, as an integer network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from brevitas.export.integer.builder import KEY, Builder
from brevitas.export.integer.network import IntegerNetwork
from brevitas.export.options import read_inputs
from brevitas.export.packages import PIP_COMMAND, require
from brevitas.export.violations import ExportViolationError, Violation, raise_violations
from brevitas.quant_tensor import QuantTensor
from injector import suggest

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["canonical_graph", "to_integer"]

FORMS = ("thresholds", "multiplier")


def to_integer(
    model: nn.Module | ir.Model,
    inputs: Any = None,
    *,
    input_shape: Sequence[int] | None = None,
    requantize: str = "thresholds",
) -> IntegerNetwork:
    """The model as integers: exact accumulators, and thresholds that reproduce its float arithmetic.

    >>> import torch
    >>> from brevitas.nn import QuantIdentity, QuantLinear, QuantReLU
    >>> parts = QuantIdentity(return_quant_tensor=True), QuantLinear(8, 4), QuantReLU(return_quant_tensor=True)
    >>> model = torch.nn.Sequential(*parts)
    >>> x = torch.randn(32, 8)
    >>> net = to_integer(model.eval(), x)
    >>> [layer.step.op for layer in net.layers]
    ['matmul', 'threshold']
    >>> bool((net.run(x).codes['output'] == model(x).int().numpy()).all())
    True

    The reference that exports are held to: each layer that multiplies is evaluated on integers, its sum multiplied once
    by ``float32(s_in * s_w)``, and the model's own float32 operations follow (bias, batch norm, activation function,
    quantizer). A bias on the accumulator grid is added as integers. Which code those operations give is a staircase in
    the accumulator, one for each channel whose constants differ, and its steps are the thresholds.

    Args:
        model: a model (it is copied, in eval mode, and left as it is), or what ``capture`` returned for a batch of one
            or a dynamic batch.
        inputs: a Tensor, a tuple of Tensors, a QuantTensor, or a dict of inputs by name, to take the shapes from; the
            first sample is used.
        input_shape: instead of ``inputs`` the shape of the one float32 input.
        requantize: 'thresholds', exact; or 'multiplier': an int32 multiplier and a shift per channel, rounding as the
            quantizer does (ROUND: to nearest, ties to even). Its differences are counted in ``net.deviations``. Layers
            with sigmoid, tanh, leaky ReLU, truncation or binary codes keep their thresholds.

    Returns:
        An :class:`~brevitas.export.integer.IntegerNetwork`. Each sample is computed alone, so that it takes any batch.

    Raises:
        ExportError: with every node that has no exact integer form (E04, E12, E23), every layer without quantized
            input or weight (E28), more than 16 bits in a requantization (E25), and zero points that are no integers
            (E21), each with the layer's path.
    """
    if requantize not in FORMS:
        near = suggest(str(requantize), FORMS)
        raise ExportViolationError(
            [
                Violation(
                    "E02",
                    KEY,
                    f"requantize={requantize!r}",
                    f"one of {', '.join(map(repr, FORMS))}",
                    f"pass requantize={(near or FORMS)[0]!r}",
                )
            ]
        )
    return Builder(canonical_graph(model, inputs, input_shape, one=True), requantize).run().network()


def canonical_graph(
    model: nn.Module | ir.Model, inputs: Any, input_shape: Sequence[int] | None, one: bool = False
) -> ir.Model:
    """The graph of a model, on ``one`` sample where that is asked for; or the graph that was given."""
    require("onnx", "onnx_ir", "onnxscript", target=KEY, command=PIP_COMMAND)
    if not isinstance(model, nn.Module):
        import onnx_ir as ir

        if not isinstance(model, ir.Model):
            raise TypeError(f"expected a torch.nn.Module or a captured graph, got {type(model).__name__}")
        if inputs is not None or input_shape is not None:
            raise TypeError("a captured graph has its shapes; leave inputs and input_shape out")
        return model
    from brevitas.export.tracing import capture
    from brevitas.export.tracing.keywords import by_position, keyword_violations

    given = _as_tensors(tuple(inputs) if isinstance(inputs, list) else inputs)
    names = list(given) if isinstance(given, Mapping) else None
    found = keyword_violations(model, given, KEY) if isinstance(given, Mapping) else []
    model, given = by_position(model, given)
    read, wrong = read_inputs(KEY, None if input_shape is None else tuple(input_shape), given)
    raise_violations([*found, *wrong])
    graph = capture(model, [_sample(x, slice(0, 1)) for x in read] if one else read, target=KEY, input_names=names)
    if one:  # after the capture, which says what is wrong with a model that does not run
        raise_violations(_mixed_samples(model, read))
    return graph


def _as_tensors(x: Any) -> Any:
    """NumPy arrays as tensors: who runs a network in NumPy has those at hand."""
    if isinstance(x, tuple):
        return tuple(_as_tensors(v) for v in x)
    if isinstance(x, Mapping):
        return {k: _as_tensors(v) for k, v in x.items()}
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


def _sample(x: Any, where: slice) -> Any:
    value = x.value if isinstance(x, QuantTensor) else x
    if not isinstance(value, Tensor) or not value.ndim:
        return x
    return x.set(value=value[where]) if isinstance(x, QuantTensor) else x[where]


def _mixed_samples(model: nn.Module, inputs: Sequence[Any]) -> list[Violation]:
    """A model that gives for the last sample alone something else than in the batch: dimension 0 is no batch."""
    from brevitas.export.tracing.canonical import flat_outputs
    from brevitas.export.tracing.watch import float_value
    from brevitas.graph.copies import private_copy

    sizes = {float_value(x).shape[0] for x in inputs if float_value(x).ndim}
    if len(sizes) != 1 or sizes == {1}:
        return []
    (size,) = sizes
    copy = private_copy(model, share_parameters=True).cpu()
    with torch.no_grad():
        batch, alone = (
            [float_value(y) for y in flat_outputs(copy(*(_sample(x.cpu(), part) for x in inputs)))]
            for part in (slice(None), slice(size - 1, size))
        )
    for whole, last in zip(batch, alone, strict=True):
        if whole.shape == (size, *last.shape[1:]) and last.shape[:1] == (1,):
            # A tie may fall the other way in a batch of another size, which moves few values by little.
            off = (whole[-1:] - last).abs().double().mean()
            if float(off) <= 0.01 * float(whole[-1:].abs().double().mean()) + 1e-6:
                continue
        return [
            Violation(
                "E15",
                KEY,
                f"inputs of {size} samples whose last one gives something else alone",
                "samples along dimension 0 that do not depend on each other",
                "put the batch first (batch_first=True), or give input_shape=(1, ...)",
                layer="",
                layer_class=type(model).__name__,
            )
        ]
    return []
