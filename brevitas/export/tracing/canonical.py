"""Turn the exporter's raw graph into the canonical one: names, metadata, constants."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from brevitas.export import graph as g
from brevitas.export.tracing.record import Record
from brevitas.export.tracing.replay import MODEL_ATTRIBUTE, RECORD_ATTRIBUTE
from brevitas.quant_tensor import QuantTensor

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["canonicalize", "flat_outputs"]

_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"


def canonicalize(
    model: ir.Model,
    records: Sequence[Record],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    *,
    root_class: str,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> ir.Model:
    """Name and annotate a traced graph in place (conventions of :mod:`brevitas.export.graph`)."""
    import onnx_ir.passes.common as passes

    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.IdentityEliminationPass()(model)
    _strip_wrapper(model)
    scopes = {id(node): _scope(node, root_class) for node in model.graph}
    _attach_records(model, records)
    for node in model.graph:
        layer, layer_class = scopes[id(node)]
        if g.LAYER not in node.metadata_props:
            node.metadata_props.update({g.LAYER: layer, g.CLASS: layer_class})
    _drop_tracer_metadata(model)
    model.graph.name = root_class
    passes.RemoveUnusedNodesPass()(model)
    _share_weights_of_float_layers(model)
    _separate_outputs(model)
    _name_nodes(model)
    _name_interface(model, input_names, output_names)
    _plain_reshape(model)
    model.metadata_props.update(
        {
            g.FORMAT: g.FORMAT_VERSION,
            g.INPUTS: json.dumps([_quant_tensor_fields(x) for x in inputs]),
            g.OUTPUTS: json.dumps([_quant_tensor_fields(x) for x in outputs]),
        }
    )
    model.producer_name, model.producer_version = "brevitas", None
    return model


def flat_outputs(output: Any) -> list[Any]:
    """Leaves of a model's result in the order of the graph's outputs; QuantTensors stay whole."""
    leaves = pytree.tree_leaves(output, is_leaf=lambda leaf: isinstance(leaf, QuantTensor))
    return [leaf for leaf in leaves if isinstance(leaf, (Tensor, QuantTensor))]


def _quant_tensor_fields(x: Any) -> dict[str, Any] | None:
    if not isinstance(x, QuantTensor):
        return None
    return {
        "scale": x.scale.detach().cpu().tolist(),
        "zero_point": x.zero_point.detach().cpu().tolist(),
        "bit_width": float(x.bit_width),
        "signed": bool(x.signed),
    }


def _strip_wrapper(model: ir.Model) -> None:
    """Initializers are named from the user's model, not from the module that wraps it for tracing."""
    prefix = MODEL_ATTRIBUTE + "."
    taken = set(model.graph.initializers)
    for value in list(model.graph.initializers.values()):
        name = (value.name or "").removeprefix(prefix)
        if name != value.name and name not in taken:
            taken.add(name)
            value.name = name


def _scope(node: ir.Node, root_class: str) -> tuple[str, str]:
    """Layer path and class of a node, from the module path that the exporter records."""
    scopes, classes = node.metadata_props.get(_SCOPES), node.metadata_props.get(_CLASSES)
    if not scopes or not classes:
        return "", root_class
    # [wrapper, model, model.conv1, ..., operation] -> the innermost module
    paths, names = _literal(scopes)[:-1], _literal(classes)[:-1]
    if len(paths) < 2 or len(names) < 2 or paths[1] != MODEL_ATTRIBUTE:
        return "", root_class
    path = paths[-1]
    if path == MODEL_ATTRIBUTE or path.startswith(f"{MODEL_ATTRIBUTE}."):  # torch leaves the wrapper out at times
        path = path.removeprefix(MODEL_ATTRIBUTE).removeprefix(".")
    return path, names[-1].rpartition(".")[2]


def _literal(text: str) -> list[str]:
    import ast

    return list(ast.literal_eval(text))


def _attach_records(model: ir.Model, records: Sequence[Record]) -> None:
    """Give every quantizer node its own named constants, and the metadata of its record."""
    constants: dict[tuple[str, bytes, tuple[int, ...]], ir.Value] = {}
    nodes = [(n, records[n.attributes.pop(RECORD_ATTRIBUTE).as_int()]) for n in model.graph if n.domain == g.DOMAIN]
    for node, r in nodes:  # frees the names of the unquantized parameters
        for position in range(0 if r.is_parameter else 1, len(node.inputs)):
            node.replace_input_with(position, None)
    for node, r in nodes:
        base = r.quantizer.removesuffix("_quant") if r.role != "snap" else r.quantizer
        for position, (suffix, tensor) in enumerate((("", r.value), *r.constants())):
            if position == 0 and not r.is_parameter:
                continue
            if position and tensor.numel() == 1:
                tensor = tensor.reshape(())
            node.replace_input_with(position, _constant(model, constants, base + suffix, tensor))
        node.metadata_props.update(
            {
                g.LAYER: r.layer,
                g.CLASS: r.layer_class,
                g.QUANTIZER: r.quantizer,
                g.ROLE: r.role,
                g.CALL: str(r.call),
            }
        )
        if not r.collected:
            node.metadata_props[g.COLLECTED] = "0"
        if r.unsupported:
            node.metadata_props[g.UNSUPPORTED] = r.unsupported


def _constant(
    model: ir.Model, made: dict[tuple[str, bytes, tuple[int, ...]], ir.Value], name: str, tensor: Tensor
) -> ir.Value:
    array = np.asarray(tensor.detach().cpu().to(torch.float32).numpy(), order="C")
    key = (name, hashlib.sha256(array.data).digest(), array.shape)
    if key not in made:
        made[key] = add_initializer(model, name, array)
    return made[key]


def add_initializer(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    """Register a constant under ``name``, or under ``name_1``, ... where that is taken by something in use."""
    import onnx_ir as ir

    unique, n = name, 0
    while unique in model.graph.initializers:
        old = model.graph.initializers[unique]
        if not old.uses() and not old.is_graph_output():
            del model.graph.initializers[unique]
            break
        n += 1
        unique = f"{name}_{n}"
    tensor = ir.tensor(array, name=unique)
    value = ir.Value(name=unique, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    model.graph.initializers[unique] = value
    return value


def _drop_tracer_metadata(model: ir.Model) -> None:
    for node in model.graph:
        for key in [k for k in node.metadata_props if k not in g.NODE_KEYS]:
            del node.metadata_props[key]
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None


def _share_weights_of_float_layers(model: ir.Model) -> None:
    """Values that live on torch's parameters become arrays of their own: the file must not follow later training."""
    import onnx_ir as ir

    for value in model.graph.initializers.values():
        if value.const_value is not None and not isinstance(value.const_value, ir.Tensor):
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)


def _separate_outputs(model: ir.Model) -> None:
    """An output that is returned twice, or that is an input or a constant, gets a node of its own."""
    import onnx_ir as ir

    seen: set[int] = set()
    for i, value in enumerate(list(model.graph.outputs)):
        if id(value) not in seen and value.producer() is not None:
            seen.add(id(value))
            continue
        node = ir.Node("", "Identity", [value], outputs=[ir.Value(type=value.type, shape=value.shape)])
        node.metadata_props.update({g.LAYER: "", g.CLASS: model.graph.name or ""})
        model.graph.append(node)
        model.graph.outputs[i] = node.outputs[0]


def _name_nodes(model: ir.Model) -> None:
    per_layer = Counter(n.metadata_props[g.LAYER] for n in model.graph if g.QUANTIZER not in n.metadata_props)
    outputs = {id(v) for v in model.graph.outputs}
    taken: Counter[str] = Counter()
    for node in model.graph:
        layer = node.metadata_props[g.LAYER]
        if g.QUANTIZER in node.metadata_props:
            name = node.metadata_props[g.QUANTIZER]
        elif layer and per_layer[layer] == 1:
            name = layer
        else:
            name = f"{layer}.{node.op_type}" if layer else node.op_type
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name] - 1}"
        for i, value in enumerate(node.outputs):
            if id(value) not in outputs:
                value.name = f"{node.name}.out" if len(node.outputs) == 1 else f"{node.name}.out{i}"


def _name_interface(model: ir.Model, input_names: Sequence[str] | None, output_names: Sequence[str] | None) -> None:
    for values, names, default in (
        (model.graph.inputs, input_names, "input"),
        (model.graph.outputs, output_names, "output"),
    ):
        chosen = (
            list(names) if names else [default] if len(values) == 1 else [f"{default}_{i}" for i in range(len(values))]
        )
        for value, name in zip(values, chosen, strict=True):
            value.name = name


def _plain_reshape(model: ir.Model) -> None:
    """``allowzero`` matters only where the shape holds a 0; without it, older readers take the node."""
    for node in model.graph:
        if node.op_type == "Reshape" and "allowzero" in node.attributes:
            shape = g.constant(node.inputs[1])
            if shape is not None and 0 not in shape:
                del node.attributes["allowzero"]
