"""One forward of a private copy that goes on after every error about scales, and notes them all."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from brevitas.errors import QuantMetadataError
from brevitas.graph.copies import call, is_quantizer, outer_modules
from brevitas.graph.scale_flow.origin import OUTSIDE, Origin, Origins, tensors_in
from brevitas.graph.scale_flow.remedies import REMEDIES
from brevitas.graph.scale_flow.report import Finding
from brevitas.nn.quant_layer import QuantLayerMixin
from brevitas.quant_tensor import QuantTensor, Source
from brevitas.quant_tensor.checks import show
from brevitas.quant_tensor.dispatch import NARY
from brevitas.quant_tensor.operators import TensorOperators

__all__ = ["Watch"]

# Held by whoever replaces QuantTensor's dispatcher, which is process-wide.
_exclusive = threading.RLock()

_Error = tuple[str, Any, tuple[str, ...]]


class Watch:
    """Runs a model, which it changes: pass a private copy. ``run`` may be called once.

    After an error it goes on as if the error had been mended: a plain tensor is given a scale, operands that disagree
    are given the first one's.

    Attributes:
        findings: one for each place, however often the forward passes it, with the moment of the first time.
        scales: for each joining of several QuantTensors their scales, in words.
        node: set by whoever interprets a graph: the node that is running.
        meetings: path, node and sign of each joining of different scales.
        output: what the model returned.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.findings: dict[tuple[str, ...], tuple[int, Finding]] = {}
        self.scales: dict[tuple[str, ...], str] = {}
        self.output: Any = None
        self.node: Any = None
        self.meetings: list[tuple[str, Any, bool]] = []
        self._origins = Origins(self._place)
        self._names = outer_modules(model)
        self._running: list[nn.Module] = [model]
        self._assumed: set[int] = set()
        self._errors: list[_Error] = []
        self._output_wanted: set[nn.Module] = set()
        self._clock = 0
        self._quantizer_of: dict[int, str] = {}
        for module, name in self._names.items():
            if is_quantizer(module):
                source = getattr(module, "source", None)
                if source is not None:
                    self._quantizer_of[source.uid] = name
            elif not isinstance(module, torch.jit.ScriptModule):
                module.forward = functools.partial(self._call, module, module.forward)  # type: ignore[method-assign]
                if isinstance(module, QuantLayerMixin):
                    module.metadata_error = functools.partial(  # type: ignore[method-assign]
                        self._noted_error, module.metadata_error
                    )

    def run(self, example: Any) -> None:
        """One forward without gradients; no random number of the process is used up."""
        with torch.no_grad(), torch.random.fork_rng(), self._dispatching(), self._origins, _eager(self.model):
            try:
                self.output = call(self.model, example)
            except QuantMetadataError as error:
                self._add(
                    Finding(
                        "stopped",
                        self._path(self._running[-1]),
                        type(self._running[-1]).__name__,
                        "",
                        f"the forward cannot go on: {error}",
                        (),
                        "mend what is listed before this, then check again",
                    )
                )

    def replace_forward(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Let ``module`` run ``forward``, and be watched."""
        module.forward = functools.partial(self._call, module, forward)  # type: ignore[method-assign]

    # --- Where we are -----------------------------------------------------------------------------------------------

    def _path(self, module: nn.Module) -> str:
        return self._names.get(module, "")

    def _place(self, module: nn.Module | None = None) -> str:
        """``Block 'layer1'``, by default of the module whose forward is running."""
        module = self._running[-1] if module is None else module
        path = self._path(module)
        return f"{type(module).__name__} '{path}'" if path else type(module).__name__

    def _add(self, finding: Finding) -> None:
        # The problem of a meeting has numbers in it.
        what = finding.function if finding.kind == "meeting" else finding.problem
        key = (finding.path, finding.kind, what, *finding.producers)
        self.findings.setdefault(key, (self._clock, finding))

    def _producer(self, x: Any) -> str:
        """Path of the quantizer of a QuantTensor, else the origin of the tensor."""
        if isinstance(x, QuantTensor) and x.source is not None and x.source.uid in self._quantizer_of:
            return f"'{self._quantizer_of[x.source.uid]}'"
        return self._origins.of(x).text

    # --- Modules ----------------------------------------------------------------------------------------------------

    def _call(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._clock += 1
        self._running.append(module)
        depth = len(self._running)
        if not isinstance(module, QuantLayerMixin):
            out = forward(*args, **kwargs)
        else:
            out = self._layer(module, forward, args, kwargs)
            self._note_output(module, args, out)
        # Not where an exception passes: the last one that runs is where the forward stopped.
        del self._running[depth - 1 :]
        return out

    def _noted_error(
        self, original: Callable[..., QuantMetadataError], missing: str, offending: Any, *fixes: str
    ) -> QuantMetadataError:
        error = original(missing, offending, *fixes)
        self._errors.append((missing, offending, fixes))
        return error

    def _layer(self, module: Any, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of a layer; where it refuses, of the layer with what it needs."""
        depth = len(self._running)
        remedies = iter(REMEDIES)
        seen: set[str] = set()
        while True:
            self._errors.clear()
            try:
                out = forward(*args, **kwargs)
                return self.assumed(out) if module in self._output_wanted else out
            except QuantMetadataError as error:
                del self._running[depth:]
                problem = self._errors[-1] if self._errors else (str(error), None, ())
                if str(error) not in seen:
                    self._add(self._layer_finding(module, problem, args))
                seen.add(str(error))
                remedy = next(remedies, None)
                if remedy is None:
                    raise
                wanted = module.return_quant_tensor
                args, kwargs = remedy(self.assumed, module, problem[1], args, kwargs)
                if wanted and not module.return_quant_tensor:
                    self._output_wanted.add(module)

    def _layer_finding(self, module: Any, problem: _Error, args: tuple[Any, ...]) -> Finding:
        missing, offending, fixes = problem
        bias = getattr(module, "bias_quant", None)
        preset = getattr(getattr(bias, "quant_injector", None), "__name__", None)
        kind: Any = "metadata"
        if preset is not None and missing.startswith(preset):
            kind = "bias"
        elif missing.startswith("return_quant_tensor=True"):
            kind = "output"
        elif offending is not None and "weight_quant" in module._modules:
            kind = "weight"
        fixes = tuple(each.replace(" here", f" on '{self._path(module)}'") for each in fixes)
        producers: tuple[str, ...] = ()
        fix = "; or ".join(fixes) or "give the layer a QuantTensor"
        if isinstance(offending, Tensor):
            origin = self._origins.of(offending)
            producers = (origin.text,)
            fix = origin.fix or fix
            missing += ", and the input is a plain Tensor"
        elif any(isinstance(x, QuantTensor) for x in args):
            producers = tuple(self._producer(x) for x in args if isinstance(x, QuantTensor))
        return Finding(kind, self._path(module), type(module).__name__, "", missing, producers, fix)

    def _note_output(self, module: Any, args: tuple[Any, ...], out: Any) -> None:
        name = self._place(module)
        for each in tensors_in(out):
            if isinstance(each, QuantTensor):
                self._origins.note(each, Origin(name, "hand the QuantTensor itself on, not its plain .value"))
            elif each.is_floating_point():
                self._origins.note(each, self._plain_origin(module, name, args))

    def _plain_origin(self, module: Any, name: str, args: tuple[Any, ...]) -> Origin:
        """Why a layer returned a plain tensor, and what to set."""
        if module.return_quant_tensor is None:  # it follows its input
            return self._origins.of(next(tensors_in(args), None))
        where = f"'{self._path(module)}'" if self._path(module) else "it"
        off = next(
            (part for part in ("act", "output") if getattr(module, f"is_{part}_quant_enabled", None) is False), ""
        )
        if off and not _has_accumulator_scale(module, args):
            fix = f"set {off}_quant= and return_quant_tensor=True on {where}"
            return Origin(f"{name} (its output is not quantized)", fix)
        return Origin(f"{name} (return_quant_tensor=False)", f"set return_quant_tensor=True on {where}")

    # --- What is assumed after an error -----------------------------------------------------------------------------

    def assumed(self, tree: Any) -> Any:
        """Every plain floating-point tensor with a scale that nobody declared."""
        if isinstance(tree, Tensor) and not isinstance(tree, QuantTensor):
            return self._quantized(tree) if tree.is_floating_point() else tree
        if type(tree) in (list, tuple):
            return type(tree)(self.assumed(each) for each in tree)
        return tree

    def _quantized(self, x: Tensor) -> QuantTensor:
        signed = bool((x < 0).any())
        largest = float(x.abs().max()) if x.numel() else 0.0
        scale = x.new_tensor((largest if 0.0 < largest < float("inf") else 1.0) / (127.0 if signed else 255.0))
        source = Source.new("an assumed quantizer", shifted=False)
        self._assumed.add(source.uid)
        made = QuantTensor.unchecked(x, scale, scale.new_zeros(()), scale.new_tensor(8.0), signed, False, source)
        made = made.requantize(x)
        self._origins.note(made, self._origins.of(x))
        return made

    # --- Functions --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _dispatching(self) -> Iterator[None]:
        """While it lasts, what QuantTensors are given to goes through ``_function``, in this thread."""
        with _exclusive:
            original = TensorOperators.__dict__["__torch_function__"]
            thread = threading.get_ident()

            def dispatch(cls: type, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                bound = original.__get__(None, cls)
                if threading.get_ident() != thread:
                    return bound(func, types, args, kwargs)
                return self._function(bound, func, types, args, kwargs or {})

            TensorOperators.__torch_function__ = classmethod(dispatch)  # type: ignore[method-assign, assignment]
            try:
                yield
            finally:
                TensorOperators.__torch_function__ = original  # type: ignore[method-assign]

    def _function(self, dispatch: Callable[..., Any], func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        self._clock += 1
        operands = [x for x in tensors_in([args, kwargs]) if isinstance(x, QuantTensor)]
        joining = len(operands) > 1 and func.__name__ in NARY
        if joining:
            producers = (self._producer(x) for x in operands)
            key = (self._path(self._running[-1]), "meeting", _short(func), *producers)
            self.scales.setdefault(key, _metadata(operands))
        try:
            result = dispatch(func, types, args, kwargs)
        except QuantMetadataError as error:
            if not joining:
                self._add(self._function_finding(func, operands, error))
                return dispatch(func, types, *_replaced(args, kwargs, lambda x: self._quantized(x.value)))
            if not any(x.source is not None and x.source.uid in self._assumed for x in operands):
                self._add(self._meeting(func, operands, error))
                signed = any(x.signed for x in operands)
                self.meetings.append((self._path(self._running[-1]), self.node, signed))
            single = all(x.scale.numel() == 1 and x.zero_point.numel() == 1 for x in operands)
            first = operands[0] if single else self._quantized(operands[0].value)
            result = dispatch(func, types, *_replaced(args, kwargs, lambda x: _on_grid_of(first, x)))
        place = self._place()
        plain = next((x for x in tensors_in([args, kwargs]) if not isinstance(x, QuantTensor)), None)
        for each in tensors_in(result):
            if not isinstance(each, QuantTensor):
                if plain is not None and func.__name__ in NARY:
                    other = self._origins.of(plain)
                    text = f"{_short(func)} in {place} with a plain Tensor from {other.text}"
                    self._origins.note(each, Origin(text, other.fix or "quantize that Tensor too"))
                else:
                    self._origins.dropped(each, func)
            elif len(operands) > 1:
                self._origins.note(each, Origin(f"{_short(func)} in {place}", "hand the QuantTensor itself on"))
            elif self._origins.of(operands[0]) is not OUTSIDE:
                self._origins.note(each, self._origins.of(operands[0]))
        return result

    def _meeting(self, func: Any, operands: list[QuantTensor], error: Exception) -> Finding:
        module = self._running[-1]
        producers = tuple(self._producer(x) for x in operands)
        if "one operand is signed" in str(error):
            what = "signs"
        else:
            what = "zero points" if "different zero points:" in str(error) else "scales"
        problem = f"{_short(func)} joins tensors of different {what}, {_metadata(operands)}"
        fix = "send all of them through one QuantIdentity(return_quant_tensor=True), as check_scales(insert=True) does"
        if isinstance(module, QuantLayerMixin):
            fix = f"give an input_quant= to '{self._path(module)}', which all of them go through"
        return Finding("meeting", self._path(module), type(module).__name__, _short(func), problem, producers, fix)

    def _function_finding(self, func: Any, operands: list[QuantTensor], error: Exception) -> Finding:
        module = self._running[-1]
        problem, _, advice = str(error).partition(". ")
        fix = advice[:1].lower() + advice[1:].rstrip(".") or f"call {_short(func)} on the plain tensor .value"
        producers = tuple(self._producer(x) for x in operands)
        return Finding("function", self._path(module), type(module).__name__, _short(func), problem, producers, fix)


def _has_accumulator_scale(module: Any, args: tuple[Any, ...]) -> bool:
    """Whether a layer with a weight could return the scale of its accumulator."""
    if not getattr(module, "is_weight_quant_enabled", False):
        return False
    scaled = module.is_input_quant_enabled or any(isinstance(x, QuantTensor) for x in args)
    return scaled and (module.bias is None or getattr(module.bias_quant, "requires_input_scale", False))


def _on_grid_of(first: QuantTensor, x: QuantTensor) -> QuantTensor:
    """``x`` as if it had the scale, zero point and sign of ``first``."""
    return QuantTensor.unchecked(
        x.value, first.scale, first.zero_point, x.bit_width, first.signed, x.training, first.source
    )


def _replaced(
    args: Any, kwargs: Any, change: Callable[[QuantTensor], QuantTensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with something in place of every QuantTensor."""

    def walk(tree: Any) -> Any:
        if isinstance(tree, QuantTensor):
            return change(tree)
        if type(tree) in (list, tuple):
            return type(tree)(walk(each) for each in tree)
        return {k: walk(v) for k, v in tree.items()} if type(tree) is dict else tree

    return walk(args), walk(kwargs)


def _metadata(operands: list[QuantTensor]) -> str:
    signs = len({x.signed for x in operands}) > 1
    shifted = any(not x.is_zero_zero_point() for x in operands)
    shown = []
    for x in operands:
        text = show(x.scale)
        text += f" (zero point {show(x.zero_point)})" if shifted else ""
        shown.append(text + ((" signed" if x.signed else " unsigned") if signs else ""))
    return " and ".join(shown)


def _short(func: Any) -> str:
    name = func.__name__
    return {"concat": "cat", "concatenate": "cat", "subtract": "sub"}.get(name, name)


@contextlib.contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Run compiled sub-modules as they are written."""
    if not any(hasattr(module, "_orig_mod") for module in model.modules()):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
