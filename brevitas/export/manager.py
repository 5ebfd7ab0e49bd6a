"""Managers: ``Manager.export(model, ...)`` for each target, and ``check`` for all of them.

>>> from brevitas.export import StdONNXManager
>>> from brevitas.nn import QuantLinear
>>> proto = StdONNXManager.export(QuantLinear(4, 2), input_shape=(1, 4), export_path='layer.onnx')
>>> [node.op_type for node in proto.graph.node]
['DequantizeLinear', 'Gemm']
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from brevitas.export import graph as g
from brevitas.export.options import ExportOptions, read_inputs, read_options
from brevitas.export.packages import PIP_COMMAND, require
from brevitas.export.targets import Target, get_target, list_targets
from brevitas.export.tracing.keywords import by_position, keyword_violations
from brevitas.export.violations import ExportViolationError, Violation, raise_violations

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = [
    "DPUv1Manager",
    "DPUv2Manager",
    "FINNManager",
    "ONNXManager",
    "PyXIRManager",
    "QONNXManager",
    "StdONNXManager",
    "StdQCDQONNXManager",
    "StdQOpONNXManager",
    "check",
    "examine",
    "lower",
    "writable",
    "write_atomically",
]


#: Bytes from which on a constant is left out of what onnx's checker is given.
_LARGE = 1 << 16


def check(
    module: nn.Module, target: str, input_shape: tuple[int, ...] | None = None, input_t: Any = None, **options: Any
) -> list[Violation]:
    """Every rule of a target that a model breaks, before or after training; nothing is written.

    >>> from brevitas.nn import QuantIdentity
    >>> model = nn.Sequential(QuantIdentity(float_to_int_impl_type='floor'))
    >>> for violation in check(model, 'qdq', input_shape=(1, 4)):
    ...     print(violation)
    E27 [qdq] QuantIdentity '0': found rounding FLOOR in act_quant; required ROUND (half to even); fix: ...
    W30 [qdq] QuantIdentity '0': found runtime statistics that were never collected ...

    The managers call the same function; what the file is free of and its readers may do (W32) is said here alone.
    ``options`` are the keywords of the manager's ``export``. Returns warnings alone, or an empty list, for a model that
    exports. Raises ExportError where ``target`` is unknown or a package is missing.
    """
    from brevitas.export.targets.saturation import saturation_warnings

    graph, found, _ = examine(module, get_target(target), input_shape, input_t, options)
    return found if graph is None else [*found, *saturation_warnings(graph, target)]


def lower(graph: ir.Model, target: str, **options: Any) -> onnx.ModelProto:
    """Lower a captured graph to a target: one capture serves several.

    >>> import torch
    >>> from brevitas.export import capture
    >>> from brevitas.nn import QuantLinear
    >>> graph = capture(QuantLinear(4, 2), [torch.zeros(1, 4)])
    >>> [lower(graph, target).graph.node[0].op_type for target in ('qdq', 'qonnx')]
    ['DequantizeLinear', 'Quant']

    ``graph`` is not changed. ``options`` are ``opset_version``, ``keep_initializers_as_inputs`` and the target's own.
    Raises ExportError with every violation.
    """
    chosen = get_target(target)
    read, found = read_options(chosen, options, len(graph.graph.inputs))
    found.extend(
        Violation("E02", target, f"keyword {name!r}", "keywords of lower", f"pass {name} to capture")
        for name in ("input_names", "output_names", "dynamic_axes", "do_constant_folding", "verbose")
        if name in options
    )
    raise_violations(found or _violations(graph, chosen, read))
    return _lower(graph.clone(), chosen, read)


def examine(
    module: nn.Module, target: Target, input_shape: Any, input_t: Any, keywords: Mapping[str, Any]
) -> tuple[ir.Model | None, list[Violation], ExportOptions]:
    """Capture and check: the canonical graph (``None`` where none could be made), violations, options."""
    from brevitas.export.tracing import capture

    if not isinstance(module, nn.Module):
        raise TypeError(f"expected a torch.nn.Module to export, got {type(module).__name__}")
    names = list(input_t) if isinstance(input_t, Mapping) else None
    wrong_names = keyword_violations(module, input_t, target.key) if isinstance(input_t, Mapping) else []
    module, input_t = by_position(module, input_t)
    inputs, found = read_inputs(target.key, input_shape, input_t)
    if names is not None:
        keywords = {"input_names": names, **keywords}
    options, wrong = read_options(target, keywords, max(len(inputs), 1))
    found.extend([*wrong_names, *wrong])
    if found:
        return None, found, options
    require("onnx", "onnx_ir", "onnxscript", target=target.key, command=PIP_COMMAND)
    try:
        graph = capture(
            module,
            inputs,
            target=target.key,
            input_names=options.input_names,
            output_names=options.output_names,
            batch_names=options.batch_names(len(inputs)),
            optimize=options.do_constant_folding,
            verbose=options.verbose,
        )
    except ExportViolationError as error:
        return None, list(error.violations), options
    return graph, _violations(graph, target, options), options


def _violations(graph: ir.Model, target: Target, options: ExportOptions) -> list[Violation]:
    from brevitas.export.lowering.opset import opset_violations

    found = target.check(graph, options.for_target())
    found.extend(opset_violations(graph, _opset(graph, target, options), target.key, target.least_opset))
    if any(not v.is_warning for v in found):
        found = _with_alternatives(graph, target, found)
    return sorted(found, key=lambda v: v.is_warning)


def _opset(graph: ir.Model, target: Target, options: ExportOptions) -> int:
    if options.opset_version is not None:
        return options.opset_version
    default = target.default_opset
    return default(graph, options.for_target()) if callable(default) else default


def _with_alternatives(graph: ir.Model, target: Target, found: list[Violation]) -> list[Violation]:
    """Name the targets that take what this one refuses."""
    from dataclasses import replace

    clean: dict[str, set[tuple[str | None, str | None]]] = {}
    for key in list_targets():
        other = get_target(key)
        if key != target.key:
            refused = other.check(graph, {"opset_version": None, **other.options})
            clean[key] = {(v.layer, v.quantizer) for v in refused if not v.is_warning}
    named = []
    for v in found:
        able = [key for key, refused in clean.items() if v.layer is not None and (v.layer, v.quantizer) not in refused]
        if v.is_warning or not able or v.code == "E05" or any(f"'{key}'" in v.fix for key in able):
            named.append(v)
        else:
            named.append(replace(v, fix=f"{v.fix}, or use target {' or '.join(map(repr, able))}"))
    return named


class ONNXManager:
    """Base of the managers that write ONNX; ``target`` is the key of the target each one serves."""

    target: ClassVar[str]
    target_name: ClassVar[str]

    @classmethod
    def _target_key(cls, keywords: dict[str, Any]) -> str:
        return cls.target

    @classmethod
    def export(
        cls,
        module: nn.Module,
        input_shape: tuple[int, ...] | None = None,
        export_path: str | os.PathLike[str] | None = None,
        input_t: Any = None,
        **kwargs: Any,
    ) -> onnx.ModelProto:
        """Export a model in eval mode and leave it exactly as it was found.

        >>> from brevitas.nn import QuantLinear
        >>> proto = QONNXManager.export(QuantLinear(4, 2), input_shape=(1, 4))
        >>> [(node.name, node.op_type) for node in proto.graph.node]
        [('weight_quant', 'Quant'), ('Gemm', 'Gemm')]

        Args:
            module: the model; it is copied, on the CPU, and never changed.
            input_shape: shape of the one float32 input; shapes come from a forward on zeros.
            export_path: file to write, atomically and after every check; ``None`` writes nothing.
            input_t: instead of ``input_shape`` a Tensor, a tuple of Tensors, a QuantTensor, or a dict of inputs by
                name, which become the names of the graph's inputs.
            kwargs: ``opset_version``, ``input_names``, ``output_names``, ``dynamic_axes`` (dimension 0 of inputs, as
                ``{'input': {0: 'batch'}}``), ``do_constant_folding``, ``keep_initializers_as_inputs``, ``verbose``,
                ``enable_onnx_checker`` (accepted for older code; the checker always runs), and the target's own.

        Returns:
            The ``onnx.ModelProto``, equal to the file.

        Raises:
            ExportError: with every violation, one line each; nothing is written then.
            OSError: ``export_path`` cannot be written; where its folder is missing, before anything is computed.

        Exports of several threads take turns. While one runs, other threads must not run forwards of torch modules:
        torch's exporter, which traces the copy, redirects every module call of the process.
        """
        path = None if export_path is None else writable(Path(export_path))
        target = get_target(cls._target_key(kwargs))
        graph, found, options = examine(module, target, input_shape, input_t, kwargs)
        raise_violations(found)
        assert graph is not None
        proto = _lower(graph, target, options)
        if path is not None:
            write_atomically(path, proto.SerializeToString())
        return proto


def _lower(graph: ir.Model, target: Target, options: ExportOptions) -> onnx.ModelProto:
    import onnx
    import onnx_ir as ir

    from brevitas.export.integer.overflow import accumulator_notes, annotate
    from brevitas.export.lowering.opset import set_opset

    opset = _opset(graph, target, options)
    notes = accumulator_notes(graph)
    lowered = target.lower(graph, options.for_target())
    annotate(lowered, notes)
    set_opset(lowered, opset)
    lowered.metadata_props[g.TARGET] = target.key
    if options.keep_initializers_as_inputs:
        lowered.graph.inputs.extend(lowered.graph.initializers.values())
    proto = ir.to_proto(lowered)
    assert isinstance(proto, onnx.ModelProto)
    onnx.checker.check_model(_without_weights(proto), full_check=True)
    return proto


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inputs in the place of large constants, whose values the checker would copy and not look at."""
    import onnx

    light = onnx.ModelProto(ir_version=proto.ir_version)
    light.opset_import.extend(proto.opset_import)
    light.functions.extend(proto.functions)
    light.graph.name = proto.graph.name
    for name in ("node", "input", "output", "value_info", "quantization_annotation"):
        getattr(light.graph, name).extend(getattr(proto.graph, name))
    given = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if len(tensor.raw_data) < _LARGE:
            light.graph.initializer.append(tensor)
        elif tensor.name not in given:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light


def writable(path: Path) -> Path:
    """``path``, where a file may be made there: what can be known before a long export."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "export_path is a folder; name the file in it", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the folder of export_path does not exist", str(path))
    return path


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is either whole or absent: a temporary file beside it, then a rename."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        # Named as the caller named it, not as the temporary file.
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


class QONNXManager(ONNXManager):
    """QONNX dialect: one ``Quant`` node per active quantizer."""

    target = "qonnx"
    target_name = "brevitas"


class FINNManager(ONNXManager):
    """FINN dialect: MultiThreshold nodes, integer weights, datatypes as annotations."""

    target = "finn"
    target_name = "FINN"


class PyXIRManager(ONNXManager):
    """PyXIR dialect; base of the managers of the DPU families."""


class DPUv1Manager(PyXIRManager):
    """PyXIR dialect for DPUv1: padding is an attribute of convolutions and pools."""

    target = "dpuv1"
    target_name = "PyXIR+DPUv1"


class DPUv2Manager(PyXIRManager):
    """PyXIR dialect for DPUv2: padding is an operator of its own."""

    target = "dpuv2"
    target_name = "PyXIR+DPUv2"


class StdQCDQONNXManager(ONNXManager):
    """Standard ONNX with QuantizeLinear, Clip and DequantizeLinear.

    Takes ``export_weight_q_node=True`` to keep weights as floats followed by a QuantizeLinear, and
    ``sub_byte_types=True`` to store weights of up to 4 bits in the 4-bit and 2-bit integers of opset 21 and 25, which
    onnxruntime reads, and TVM, tract and IREE do not.
    """

    target = "qdq"
    target_name = "StdQCDQONNX"


class StdQOpONNXManager(ONNXManager):
    """Standard ONNX with operators on integers: QLinearConv, QLinearMatMul, MatMulInteger."""

    target = "qop"
    target_name = "StdQOpONNX"


class StdONNXManager(ONNXManager):
    """Standard ONNX; ``export_format='qdq'`` (default) quantizes around float operators, ``'qop'`` has integer ones."""

    target = "qdq"
    target_name = "StdONNX"

    @classmethod
    def _target_key(cls, keywords: dict[str, Any]) -> str:
        form = keywords.pop("export_format", cls.target)
        formats = [key for key in ("qdq", "qop") if key in list_targets()]
        if form not in formats:
            raise ExportViolationError(
                [
                    Violation(
                        "E02",
                        str(form),
                        found=f"export_format={form!r}",
                        required=f"one of {', '.join(map(repr, formats))}",
                        fix=f"pass export_format={formats[0]!r}",
                    )
                ]
            )
        return str(form)
