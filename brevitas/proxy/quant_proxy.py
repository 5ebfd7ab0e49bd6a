"""What every proxy does: resolve, share, remember, load."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from brevitas import config
from brevitas.core.quant.float import FloatQuant
from brevitas.core.stats import CollectThenLearn, FollowThenLearn
from brevitas.core.utils import drop_stray_keys
from brevitas.core.zero_point import ZeroZeroPoint
from brevitas.errors import QuantConfigError, QuantMetadataError
from brevitas.proxy.description import one_line
from brevitas.quant.site import Site
from brevitas.quant.strict import resolve_quantizer, resolve_values
from brevitas.quant_tensor import QuantTensor, Source
from injector import Resolution

__all__ = ["QuantProxyFromInjector", "eval_mode"]


def _is_shifted(quantizer: nn.Module | None) -> bool:
    """Whether the zero point may be other than 0, known from its module."""
    zero_point = getattr(quantizer, "zero_point_impl", None)
    return zero_point is not None and not isinstance(zero_point, ZeroZeroPoint)


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Evaluate ``module`` as in eval mode, and leave the training flag of each sub-module as it was."""
    training = [m for m in module.modules() if m.training]
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True


MISSING_KEYS_HINT = (
    "Values of quantizers are missing. To load a checkpoint of the float model use "
    "brevitas.graph.load_float_state_dict(model, state_dict), which reports what was matched, initialised and left; or "
    "set the environment variable BREVITAS_IGNORE_MISSING_KEYS=1 (brevitas.config.IGNORE_MISSING_KEYS = True), which "
    "forgives keys that quantizers own."
)


def _after_loading(proxy: nn.Module, incompatible: Any) -> None:
    """Missing keys of this quantizer: forgiven with ``config.IGNORE_MISSING_KEYS``, else the error says what to do."""
    prefix, errors = proxy.__dict__.pop("_loading", (None, None))
    if prefix is None or not any(key.startswith(prefix) for key in incompatible.missing_keys):
        return
    if config.IGNORE_MISSING_KEYS:
        incompatible.missing_keys[:] = [k for k in incompatible.missing_keys if not k.startswith(prefix)]
    elif MISSING_KEYS_HINT not in errors and _loading_is_strict():
        errors.append(MISSING_KEYS_HINT)


def _loading_is_strict() -> bool:
    """Whether the ``load_state_dict`` that is running was called with ``strict=True``, which it tells nobody."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code is not nn.Module.load_state_dict.__code__:
        frame = frame.f_back
    return frame is not None and bool(frame.f_locals.get("strict"))


class QuantProxyFromInjector(nn.Module):
    """Base of all proxies: a declaration, its layers, and the module that it resolves to.

    Args:
        quant_layer: the layer that owns the quantizer.
        quant_injector: the declaration, a class derived from ``ExtendedInjector``.
        site: where the quantizer was written, for error messages.

    Raises:
        QuantConfigError: the declaration has no meaning.
    """

    role: ClassVar[str]
    # Set by torch on the modules whose parameters fully_shard has split.
    _is_fsdp_managed_module: bool = False

    def __init__(self, quant_layer: nn.Module, quant_injector: type, site: Site | None = None) -> None:
        super().__init__()
        self.site = site or Site(type(quant_layer).__name__, f"{self.role}_quant", self.role)
        self.quant_injector = quant_injector
        self.tracked_module_list = [quant_layer]
        self._resolve()
        self.register_load_state_dict_post_hook(_after_loading)

    def _layer_values(self) -> dict[str, Any]:
        """What the layers supply to the declaration."""
        layers = tuple(self.tracked_module_list)
        return {"module": layers[0] if len(layers) == 1 else layers}

    def resolution(self) -> Resolution:
        """Resolve the declaration once more, with the provenance of every value; the proxy is not changed."""
        return resolve_quantizer(self.quant_injector, self.site, self._layer_values())

    def _resolve(self) -> None:
        on_meta = torch.get_default_device().type == "meta"
        # Where a layer is built without values, its quantizers have values nevertheless: see OffMeta.
        with torch.device("cpu") if on_meta else contextlib.nullcontext():
            values = resolve_values(self.quant_injector, self.site, self._layer_values())
            self._install(values["tensor_quant"], values)
        if on_meta and self.is_quant_enabled:
            self._resolved_module().to("meta")
        self._signed: bool | None = values.get("signed")
        self._narrow_range: bool | None = values.get("narrow_range")
        self.source = Source.new(
            f"{self.site.layer}.{self.site.argument}", shifted=_is_shifted(self._resolved_module())
        )

    def _install(self, tensor_quant: nn.Module | None, values: dict[str, Any]) -> None:
        self.tensor_quant = tensor_quant

    def _resolved_module(self) -> Any:
        return self.tensor_quant

    @property
    def is_minifloat(self) -> bool:
        """Whether values are minifloats: they have a scale and widths, and no integer codes."""
        return isinstance(self._resolved_module(), FloatQuant)

    def _result(self, resolved: Any, training: bool) -> Tensor | QuantTensor:
        """What the quantizer returned, as a tensor with its grid; minifloats have none and stay a plain tensor."""
        if len(resolved) != 4:
            return resolved[0]
        y, scale, zero_point, bit_width = resolved
        return QuantTensor.unchecked(y, scale, zero_point, bit_width, bool(self._signed), training, self.source)

    @property
    def is_quant_enabled(self) -> bool:
        """Whether the declaration resolves to a quantizer."""
        return self._resolved_module() is not None

    @property
    def is_signed(self) -> bool | None:
        """Whether codes are signed; ``None`` if the quantizer is off and does not say."""
        return self._signed

    @property
    def is_narrow_range(self) -> bool | None:
        """Whether the range leaves one code out; ``None`` if the quantizer is off and does not say."""
        return self._narrow_range

    @property
    def rounding_mode(self) -> str | None:
        """``'ROUND'``, ``'CEIL'``, ``'FLOOR'``, ``'ROUND_TO_ZERO'``, or another rounding's class; ``None`` if off."""
        quantizer = self._resolved_module()
        rounding = getattr(getattr(quantizer, "int_quant", quantizer), "float_to_int_impl", None)
        if rounding is None:
            return None
        name = type(rounding).__name__
        known = {"RoundSte": "ROUND", "CeilSte": "CEIL", "FloorSte": "FLOOR", "RoundToZeroSte": "ROUND_TO_ZERO"}
        return known.get(name, name)

    def max_uint_value(self, bit_width: Tensor) -> Tensor:
        """Largest unsigned code of ``bit_width`` bits, one less if the range is narrow."""
        top = 2.0**bit_width - 1.0
        return top - 1.0 if self._narrow_range else top

    def init_tensor_quant(self) -> None:
        """Resolve again for the layers as they are now. What was learned or collected stays, in the same objects."""
        old = self._resolved_module()
        self._resolve()
        new = self._resolved_module()
        if old is not None and new is not None:
            _keep_state(old, new)

    def init_scale(self) -> None:
        """Learn scale and zero point from now on, from what was collected or from the weights as they are.

        >>> import torch
        >>> from brevitas.nn import QuantReLU
        >>> relu = QuantReLU()                       # collects for 300 training calls, unless told otherwise
        >>> y = relu(torch.tensor([-1.0, 2.0]))
        >>> relu.act_quant.init_scale()
        >>> y = relu(torch.tensor([100.0])); y.item()
        2.0

        Without effect on what has collected nothing yet, and on what is learned already.
        """
        for phased in self._phased():
            if isinstance(phased, CollectThenLearn):
                phased.finish_collecting()
            else:
                phased.finish_following()

    def is_learning(self) -> bool:
        """Whether nothing waits for statistics any more: what can be learned is learned, or nothing is."""
        return all(bool(phased.initialised) for phased in self._phased())

    def _phased(self) -> list[CollectThenLearn | FollowThenLearn]:
        quantizer = self._resolved_module()
        modules = [] if quantizer is None else quantizer.modules()
        return [m for m in modules if isinstance(m, (CollectThenLearn, FollowThenLearn))]

    def _check_learned_if_sharded(self) -> None:
        """Statistics are written into parameters, and what is written into a gathered copy of shards is lost."""
        if not (self._is_fsdp_managed_module and self.training) or torch.compiler.is_compiling():
            return
        if self.is_learning():
            return
        raise QuantMetadataError(
            f"{self.site}: {self.quant_injector.__name__} still takes its scale from statistics, and its parameters "
            "are sharded by FSDP, where such a scale cannot be stored; finish before fully_shard, after some training "
            "calls: brevitas.nn.utils.init_scales(model)"
        )

    def add_tracked_module(self, module: nn.Module | None) -> None:
        """Share this quantizer with one more layer.

        Raises:
            QuantConfigError: ``module`` is ``None``, or the layers cannot share one scale; nothing is changed then.
        """
        if self._track(module):
            try:
                self.init_tensor_quant()
            except Exception:
                self.tracked_module_list = self.tracked_module_list[:-1]
                raise

    def _track(self, module: nn.Module | None) -> bool:
        """Note that ``module`` uses this quantizer; whether that is new."""
        if module is None:
            raise QuantConfigError(f"{self.site}: cannot share a quantizer with None; pass the layer that is to use it")
        if any(m is module for m in self.tracked_module_list):
            return False
        self.tracked_module_list = [*self.tracked_module_list, module]
        return True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        drop_stray_keys(state_dict, prefix)
        self.__dict__["_loading"] = prefix, args[-1]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _probe(self) -> Tensor:
        """A tensor on the quantizer's device, to evaluate it on."""
        module = self._resolved_module()
        assert module is not None
        state = next(itertools.chain(module.parameters(), module.buffers()), None)
        if state is None or not state.is_floating_point():
            return torch.zeros(1, device=None if state is None else state.device)
        return torch.zeros(1, device=state.device, dtype=state.dtype)

    def _evaluate(self) -> Any:
        """(value, scale, zero point, bit width, ...) as in eval mode; nothing is counted or changed."""
        raise NotImplementedError

    def scale(self) -> Tensor | None:
        """Scale as in eval mode, with its gradient; ``None`` if off."""
        return self._evaluate()[1] if self.is_quant_enabled else None

    def zero_point(self) -> Tensor | None:
        """Zero point as in eval mode, with its gradient; ``None`` if off."""
        return self._evaluate()[2] if self.is_quant_enabled else None

    def bit_width(self) -> Tensor | None:
        """Bit width as in eval mode, with its gradient; ``None`` if off."""
        if not self.is_quant_enabled:
            return None
        resolved = self._evaluate()
        # A minifloat returns exponent and mantissa widths where others return one; the sign takes one bit.
        return resolved[3] if len(resolved) == 4 else float(bool(self._signed)) + resolved[3] + resolved[4]

    def extra_repr(self) -> str:
        """The declaration's name, and whether it is off."""
        return self.quant_injector.__name__ + ("" if self.is_quant_enabled else ", off")

    def __repr__(self) -> str:
        # One line, without the modules inside, so that a printed model can be read.
        return one_line(self)


def _keep_state(old: nn.Module, new: nn.Module) -> None:
    """Give ``new`` the parameters and the collected state of ``old``, and its device and dtype."""
    if any(t.is_meta for t in itertools.chain(old.parameters(), old.buffers())):
        new.to("meta")
    if isinstance(new, torch.jit.ScriptModule):
        new.load_state_dict(old.state_dict(), strict=False)
        return
    old_parameters, old_buffers, persistent = (
        dict(old.named_parameters()),
        dict(old.named_buffers()),
        old.state_dict().keys(),
    )
    for name, parameter in list(new.named_parameters()):
        kept = old_parameters.get(name)
        if kept is not None and kept.shape == parameter.shape:
            owner, _, leaf = name.rpartition(".")
            new.get_submodule(owner)._parameters[leaf] = kept
    for name, buffer in list(new.named_buffers()):
        kept_buffer = old_buffers.get(name)
        if kept_buffer is None:
            continue
        owner, _, leaf = name.rpartition(".")
        # Constants of the declaration may depend on the layers, so they are taken anew.
        same = name in persistent and kept_buffer.shape == buffer.shape
        new.get_submodule(owner)._buffers[leaf] = (
            kept_buffer if same else buffer.to(kept_buffer.device, kept_buffer.dtype)
        )
    new.train(old.training)
