"""Buffers without state, and loading that is tolerant of the forms older checkpoints have.

>>> import torch
>>> constant = StatelessBuffer(torch.tensor(8.0))
>>> constant(), list(constant.state_dict())
(tensor(8.), [])
"""

from collections.abc import Callable, MutableMapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import brevitas.jit
from brevitas import config
from brevitas.function._library import register_plain
from brevitas.function.ops_ste import scalar_clamp_ste

__all__ = [
    "OffMeta",
    "SingleArgStatelessBuffer",
    "StatefulModule",
    "StatelessBuffer",
    "at_least_float32",
    "cast_back",
    "drop_stray_keys",
    "is_recomputing",
    "is_repetition",
    "largest_threshold",
    "largest_value",
    "learned_parameter",
    "snapshot",
]

_STRAY_KEYS = ("training", "zero_hw_sentinel")


class OffMeta(brevitas.jit.ScriptModule):
    """A module whose own tensors are known again when it comes back from the meta device.

    >>> constant = StatelessBuffer(torch.tensor(8.0)).to("meta")
    >>> constant.to_empty(device="cpu")()
    tensor(8.)

    On the meta device tensors have no values. Those of a quantizer are few and follow from its declaration, so they are
    kept on the CPU, and neither constants nor flags need a checkpoint.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = self._own_tensors()
        versions = {name: tensor._version for name, tensor in before.items()}
        # A parameter may keep its identity and change its data.
        values = {name: tensor.detach() for name, tensor in before.items()}
        result = super()._apply(fn, recurse)
        kept: dict[str, tuple[Tensor, int]] = self.__dict__.get("_kept", {})
        for name, tensor in self._own_tensors().items():
            if tensor.is_meta and not values[name].is_meta:
                kept[name] = (values[name].cpu().clone(), -1)
                self.__dict__["_kept"] = kept
            elif name in kept and not tensor.is_meta:
                # A module that has several parents passes here once for each, and `to_empty` empties it each time.
                value, version = kept[name]
                if values[name].is_meta or versions[name] == version:
                    kept[name] = (value, _filled(tensor, value)._version)
                else:
                    del kept[name]  # written to since: loaded, trained
        return result

    def _own_tensors(self) -> dict[str, Tensor]:
        return dict(self.named_parameters(recurse=False)) | dict(self.named_buffers(recurse=False))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if not local_metadata.get("assign_to_params_buffers", False):
            return
        # load_state_dict(assign=True) takes the tensors of the state dict as they are; what has none joins them.
        device = next((t.device for t in state_dict.values() if isinstance(t, Tensor)), torch.device("cpu"))
        for name, tensor in self._own_tensors().items():
            value, _ = self.__dict__.get("_kept", {}).pop(name, (None, 0))
            if tensor.is_meta and value is not None:
                real = _filled(torch.empty_like(tensor, device=device), value)
                if name in self._buffers:
                    self._buffers[name] = real
                else:
                    self._parameters[name] = nn.Parameter(real, tensor.requires_grad)


def _filled(tensor: Tensor, value: Tensor) -> Tensor:
    if type(tensor.data) is Tensor:  # a shard is filled by who loads the whole
        with torch.no_grad():
            tensor.copy_(value)
    return tensor


class StatelessBuffer(OffMeta):
    """Returns a constant tensor, which moves with the module and is never in the state dict."""

    value: Tensor

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", tensor.detach().clone(), persistent=False)

    @brevitas.jit.script_method
    def forward(self) -> Tensor:
        """The tensor."""
        # A new object: an autograd function that returned the buffer itself would turn it into its own output.
        return self.value.detach()


class SingleArgStatelessBuffer(brevitas.jit.ScriptModule):
    """As :class:`StatelessBuffer`, for callers that pass one argument, which is ignored."""

    def __init__(self, tensor: Tensor | float) -> None:
        super().__init__()
        self.const = StatelessBuffer(torch.as_tensor(tensor))

    @brevitas.jit.script_method
    def forward(self, placeholder: Tensor) -> Tensor:
        """The tensor."""
        return self.const()


#: A copy that compilers keep. A plain ``clone`` of a buffer may be made again in the backward pass, and the buffer may
#: have been written to since.
snapshot = register_plain("snapshot(Tensor x) -> Tensor", torch.clone, torch.empty_like)


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32 if it is a 16-bit float: the precision of scale arithmetic."""
    if x.dtype == torch.float16 or x.dtype == torch.bfloat16:
        return x.to(torch.float32)
    return x


def largest_value(dtype: torch.dtype, power_of_two: bool) -> float:
    """Largest finite value of ``dtype``, or its largest power of two."""
    if dtype == torch.float16:
        return 32768.0 if power_of_two else 65504.0
    if dtype == torch.float64:
        return 2.0**1023 if power_of_two else 1.7976931348623157e308
    if dtype == torch.bfloat16:
        return 2.0**127 if power_of_two else 3.3895313892515355e38
    return 2.0**127 if power_of_two else 3.4028234663852886e38


def largest_threshold(dtype: torch.dtype, power_of_two: bool) -> float:
    """Largest threshold whose scale, rounded to ``dtype``, times the largest code is still finite in ``dtype``."""
    limit = largest_value(dtype, power_of_two)
    if power_of_two:
        return limit
    if dtype == torch.float16:
        return limit * (1.0 - 2.0**-9)
    if dtype == torch.float64:
        return limit * (1.0 - 2.0**-51)
    if dtype == torch.bfloat16:
        return limit * (1.0 - 2.0**-6)
    return limit * (1.0 - 2.0**-22)


def cast_back(threshold: Tensor, dtype: torch.dtype, power_of_two: bool) -> Tensor:
    """``threshold`` in ``dtype``; in float16 neither 0 nor infinite, and straight-through where that binds."""
    if dtype == torch.float16:
        limit = largest_value(dtype, power_of_two)
        threshold = scalar_clamp_ste(threshold, 2.0**-14, limit)
    return threshold.to(dtype)


def is_recomputing() -> bool:
    """Whether this forward repeats an earlier one inside a backward pass, as gradient checkpointing does.

    Such a call has to give what the first one gave, and must not count as another batch.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _is_repetition(x: Tensor) -> bool:
    return is_recomputing()


register_plain("is_repetition(Tensor x) -> bool", _is_repetition)


def is_repetition(x: Tensor) -> bool:
    """:func:`is_recomputing`, in TorchScript as well, which would take a function without tensors for a constant."""
    if torch.jit.is_scripting():
        return torch.ops.brevitas.is_repetition(x)
    return is_recomputing()


def learned_parameter(value: Tensor) -> nn.Parameter:
    """A parameter of shape (1,) for a scalar, which FSDP2 requires; modules view it to the shape they need."""
    value = value.detach().clone()
    return nn.Parameter(value.reshape(1) if value.ndim == 0 else value)


def drop_stray_keys(state_dict: MutableMapping[str, Any], prefix: str) -> None:
    """Remove entries under ``prefix`` that old releases wrote and nothing reads."""
    for key in [k for k in state_dict if k.startswith(prefix)]:
        if key.rpartition(".")[2] in _STRAY_KEYS:
            del state_dict[key]


class StatefulModule(OffMeta):
    """Base of modules with parameters or buffers of their own, and of tensor quantizers.

    Loading accepts older names (``legacy_keys``: old -> new), a scalar where shape (1,) is stored and the reverse,
    ignores stray keys, and forgives missing keys where ``brevitas.config.IGNORE_MISSING_KEYS`` is set.
    """

    legacy_keys: ClassVar[dict[str, str]] = {}

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        drop_stray_keys(state_dict, prefix)
        for old, new in self.legacy_keys.items():
            if prefix + old in state_dict:
                moved = state_dict.pop(prefix + old)
                state_dict.setdefault(prefix + new, moved)
        own = dict(self.named_parameters(recurse=False)) | dict(self.named_buffers(recurse=False))
        for name, tensor in own.items():
            loaded = state_dict.get(prefix + name)
            if isinstance(loaded, Tensor) and loaded.numel() == tensor.numel() == 1 and loaded.shape != tensor.shape:
                state_dict[prefix + name] = loaded.reshape(tensor.shape)
        forgiven: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, forgiven, unexpected_keys, error_msgs)
        if not config.IGNORE_MISSING_KEYS:
            missing_keys.extend(forgiven)
