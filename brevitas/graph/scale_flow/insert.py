"""One quantizer before every place where branches of different scales are joined.

Only the forwards in which that happens are traced by ``torch.fx``, with their sub-modules as leaves; the rest of the
model may be anything.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from brevitas.errors import QuantConfigError
from brevitas.graph.copies import moved_apart, private_copy, uncompiled
from brevitas.graph.scale_flow.origin import tensors_in
from brevitas.graph.scale_flow.watch import Watch
from brevitas.nn import QuantIdentity
from brevitas.nn.quant_layer import QuantLayerMixin
from brevitas.quant import Int8ActPerTensorFloat, Uint8ActPerTensorFloat
from brevitas.quant.site import is_quantizer
from brevitas.quant_tensor import QuantTensor

__all__ = ["with_shared_quantizers"]

_IDIOM = (
    "write it by hand: shared = QuantIdentity(return_quant_tensor=True) in __init__, and shared(a) + shared(b) in "
    "forward; or use QuantEltwiseAdd or QuantCat"
)
# Sums of sums are mended from the inside out, one level in each round.
_ROUNDS = 32


class _Tracer(fx.Tracer):
    """Traces one forward only: every sub-module is a leaf."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class Rewritten(fx.GraphModule):
    """A graph in place of a module, with everything that the module holds.

    ``torch.fx`` keeps what a graph refers to; here the rest stays too, so that the state dict has the same keys.
    """

    def __init__(self, root: Any, graph: fx.Graph, class_name: str = "GraphModule") -> None:
        super().__init__(root, graph, class_name)
        self.adopt(vars(root))

    def adopt(self, body: dict[str, Any]) -> None:
        """Take over the parts of a module, and its plain attributes."""
        kept = {name: made for name, made in self._modules.items() if name not in body["_modules"]}
        self._modules = {**body["_modules"], **kept}
        for name in ("_parameters", "_buffers"):
            setattr(self, name, dict(body[name]))
        self._non_persistent_buffers_set = set(body["_non_persistent_buffers_set"])
        self.training = body["training"]
        for name, value in body.items():
            if not name.startswith("_"):
                self.__dict__.setdefault(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Rewritten:
        made = super().__deepcopy__(memo)
        assert isinstance(made, Rewritten)
        type(made).__name__ = type(self).__name__
        # What was copied a moment ago is in ``memo``, so nothing is copied twice.
        made.adopt({name: copy.deepcopy(value, memo) for name, value in vars(self).items() if _is_body(name)})
        return made

    def __reduce__(self) -> Any:
        build, (body, imports) = super().__reduce__()
        return _rebuilt, (build, body, imports, type(self).__name__)


def _is_body(name: str) -> bool:
    parts = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")
    return name in parts or not name.startswith("_")


def _rebuilt(build: Callable[..., fx.GraphModule], body: dict[str, Any], imports: str, name: str) -> Rewritten:
    whole = {key: value for key, value in body.items() if _is_body(key)}
    made = build(dict(body), imports)
    made.__dict__.update(whole)
    return Rewritten(made, made.graph, name)


class _Interpreter(fx.Interpreter):
    """Runs a graph and tells the watch which node is running."""

    def __init__(self, module: fx.GraphModule, watch: Watch) -> None:
        super().__init__(module)
        self._watch = watch

    def run_node(self, n: fx.Node) -> Any:
        before, self._watch.node = self._watch.node, n
        try:
            return super().run_node(n)
        finally:
            self._watch.node = before


def with_shared_quantizers(model: nn.Module, example: Any, quant: Any) -> tuple[nn.Module, tuple[str, ...]]:
    """A new model that joins tensors of one quantizer only, and the paths of the quantizers that were inserted.

    Raises:
        QuantConfigError: ``quant`` is no quantizer class, or a forward cannot be traced.
    """
    if quant is not None:
        _check_quantizer(quant)
    made = copy.deepcopy(uncompiled(model))
    inserted: list[str] = []
    for _ in range(_ROUNDS):
        paths = _paths_of_meetings(made, example)
        made = _traced(made, paths, example)
        nodes = _nodes_of_meetings(made, paths, example) if paths else []
        if not nodes:
            break
        inserted += [_insert(made.get_submodule(path), path, node, signed, quant) for path, node, signed in nodes]
    return made, tuple(dict.fromkeys(inserted))


def _check_quantizer(quant: Any) -> None:
    """A class that makes activation quantizers with integer codes, known by trying."""
    try:
        made = QuantIdentity(quant, return_quant_tensor=True) if is_quantizer(quant) else None
    except QuantConfigError as error:
        raise _not_an_act_quantizer(quant) from error
    if made is None or not made.is_act_quant_enabled or made.act_quant.is_minifloat:
        raise _not_an_act_quantizer(quant)


def _not_an_act_quantizer(quant: Any) -> QuantConfigError:
    return QuantConfigError(
        f"check_scales: shared_quant = {quant!r} is not legal: expected an activation quantizer class such as "
        "brevitas.quant.Int8ActPerTensorFloat"
    )


def _watches(model: nn.Module, example: Any, prepare: Callable[[nn.Module, Watch], None] | None = None) -> list[Watch]:
    """A forward as the model is, and one with its numbers moved apart."""
    watches = []
    for seed in (None, 0, 1, 2):
        copied = private_copy(model)
        watch = Watch(copied if seed is None else moved_apart(copied, seed))
        if prepare is not None:
            prepare(copied, watch)
        watch.run(example)
        watches.append(watch)
    return watches


def _paths_of_meetings(model: nn.Module, example: Any) -> list[str]:
    """Modules whose own forward joins tensors of different scales."""
    paths: list[str] = []
    for watch in _watches(model, example):
        for _, finding in watch.findings.values():
            module = model.get_submodule(finding.path)
            # A layer of ours that joins its inputs has quantizers of its own for that: the report says so.
            if finding.kind == "meeting" and finding.path not in paths and not isinstance(module, QuantLayerMixin):
                paths.append(finding.path)
    return paths


def _traced(model: nn.Module, paths: list[str], example: Any) -> nn.Module:
    """The model with graphs in place of the modules at ``paths``; the same numbers come out."""
    made, before = model, copy.deepcopy(model)
    new = [path for path in paths if not isinstance(model.get_submodule(path), fx.GraphModule)]
    for path in new:
        module = made.get_submodule(path)
        where = f"{type(module).__name__} '{path}'" if path else type(module).__name__
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            raise QuantConfigError(f"check_scales(insert=True): {where} has hooks, which a graph would lose; {_IDIOM}")
        made = _replaced(made, module, Rewritten(module, _graph_of(module, where), type(module).__name__))
    if new and not _same_outputs(before, made, example):
        raise QuantConfigError(
            f"check_scales(insert=True): traced by torch.fx, the forward of {', '.join(repr(p) for p in new)} gives "
            f"other outputs; it may ask what kind of tensor it got. Its quantizer cannot be inserted; {_IDIOM}"
        )
    return made


def _graph_of(module: nn.Module, where: str) -> fx.Graph:
    """The graph of one forward, which must be the same in training and in eval."""
    training = module.training
    graphs = []
    try:
        for mode in (not training, training):
            module.training = mode
            graphs.append(_Tracer().trace(module))
    except Exception as error:
        raise QuantConfigError(
            f"check_scales(insert=True): the forward of {where} cannot be traced by torch.fx: "
            f"{type(error).__name__}: {error}. Its quantizer cannot be inserted; {_IDIOM}"
        ) from error
    finally:
        module.training = training
    other, graph = graphs
    if other.python_code("self").src != graph.python_code("self").src:
        raise QuantConfigError(
            f"check_scales(insert=True): the forward of {where} asks for self.training, which a graph would fix. Its "
            f"quantizer cannot be inserted; use modules such as nn.Dropout, or {_IDIOM}"
        )
    return graph


def _replaced(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
    return new if model is old else model


def _same_outputs(a: nn.Module, b: nn.Module, example: Any) -> bool:
    """Whether two models compute the same. Both have scales that disagree, so they are watched, which goes on."""
    results = []
    for model in (a, b):
        watch = Watch(private_copy(model))
        watch.run(example)
        results.append((list(watch.findings), [_plain(x) for x in tensors_in(watch.output)]))
    (left_findings, left), (right_findings, right) = results
    if left_findings != right_findings or len(left) != len(right):
        return False
    return all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


def _plain(x: Any) -> Tensor:
    return x.value if isinstance(x, QuantTensor) else x


def _nodes_of_meetings(model: nn.Module, paths: list[str], example: Any) -> list[tuple[str, fx.Node, bool]]:
    """Path, node and sign of each joining of different scales in the graphs of ``model``, first things first."""
    signs: dict[tuple[str, str], bool] = {}

    def interpret(copied: nn.Module, watch: Watch) -> None:
        for path in paths:
            graph_module = copied.get_submodule(path)
            assert isinstance(graph_module, fx.GraphModule)
            watch.replace_forward(graph_module, _interpreted(graph_module, watch))

    for watch in _watches(model, example, interpret):
        for path, node, signed in watch.meetings:
            if path in paths and node is not None:
                signs[path, node.name] = signs.get((path, node.name), False) or signed
    found = []
    for path in paths:
        module = model.get_submodule(path)
        assert isinstance(module, fx.GraphModule)
        found += [(path, n, signs[path, n.name]) for n in module.graph.nodes if (path, n.name) in signs]
    return found


def _interpreted(module: fx.GraphModule, watch: Watch) -> Callable[..., Any]:
    signature = inspect.signature(module.forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return _Interpreter(module, watch).run(*bound.args)

    return forward


def _insert(owner: Any, path: str, node: fx.Node, signed: bool, quant: Any) -> str:
    """Send every operand of ``node`` through one QuantIdentity; its path."""
    operands = list(node.all_input_nodes)
    # What a quantizer of ours made already, alone or in a sum, has its scale: the others join it.
    ours = {str(each.meta.get("shared_scale")) for each in operands if each.meta.get("shared_scale")}
    name = ours.pop() if len(ours) == 1 else ""
    if not name:
        name = _free_name(owner, f"{node.name}_quant")
        default = Int8ActPerTensorFloat if signed else Uint8ActPerTensorFloat
        owner.add_submodule(name, QuantIdentity(quant or default, return_quant_tensor=True))
        like = next(owner.parameters(), None)
        if like is not None and like.is_floating_point():
            owner.get_submodule(name).to(device=like.device, dtype=like.dtype)
        owner.get_submodule(name).train(owner.training)
    for operand in operands:
        if operand.meta.get("shared_scale") == name:
            continue
        with owner.graph.inserting_before(node):
            through = owner.graph.call_module(name, (operand,))
        through.meta["shared_scale"] = name
        node.replace_input_with(operand, through)
    node.meta["shared_scale"] = name
    owner.graph.lint()
    owner.recompile()
    full = f"{path}.{name}".removeprefix(".")
    return full


def _free_name(owner: nn.Module, wanted: str) -> str:
    name, number = wanted, 1
    while hasattr(owner, name):
        number += 1
        name = f"{wanted}_{number}"
    return name
