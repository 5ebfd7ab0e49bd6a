"""What every quantized layer does: hand out tensors, remember where they came from, explain what is missing."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from brevitas.errors import QuantConfigError, QuantMetadataError
from brevitas.quant_tensor import QuantTensor, dropped_by
from brevitas.utils.module_path import describe_module, find_module, qualified_name

__all__ = ["QuantLayerMixin"]


class QuantLayerMixin:
    """Base of all layers: the output rule, the caches of eval mode, and the errors about metadata.

    Attributes:
        return_quant_tensor: whether ``forward`` returns a ``QuantTensor``; ``None`` follows the input.
        cache_inference_quant_inp, cache_inference_quant_out: keep the last eval input and output, detached.
        cache_quant_io_metadata_only: cache the metadata with an empty value.
        export_debug_name: a name of the layer for tools that look at exported files; not in the state dict.
    """

    _last_output: Any = None

    def _init_layer(self, return_quant_tensor: bool | None, may_follow: bool = False) -> None:
        """``may_follow``: ``return_quant_tensor=None`` is legal; the output is then what the input leads to."""
        if not isinstance(return_quant_tensor, bool) and not (may_follow and return_quant_tensor is None):
            expected = "True, False or None" if may_follow else "True or False"
            raise QuantConfigError(
                f"{type(self).__name__}: return_quant_tensor = {return_quant_tensor!r} is not legal: expected "
                f"{expected}"
            )
        self.return_quant_tensor = return_quant_tensor
        self.cache_inference_quant_inp = False
        self.cache_inference_quant_out = False
        self.cache_quant_io_metadata_only = True
        self.export_debug_name: str | None = None
        self._cached_input: QuantTensor | None = None
        self._cached_output: QuantTensor | None = None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        old, new = f"{prefix}act_quant_proxy.", f"{prefix}act_quant."  # as the first releases called it
        for key in [key for key in state_dict if key.startswith(old)]:
            state_dict.setdefault(new + key.removeprefix(old), state_dict.pop(key))
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]
        self._restart_for_loaded_parameters(state_dict, prefix)

    def _restart_for_loaded_parameters(self, state_dict: dict[str, Any], prefix: str) -> None:
        """A parameter of a float checkpoint comes without the state of its quantizer, which then starts from it."""
        for name, proxy in self.named_children():  # type: ignore[attr-defined]
            restart = getattr(proxy, "restart", None)
            if restart is None or f"{prefix}{proxy.parameter_name}" not in state_dict:
                continue
            if not any(key.startswith(f"{prefix}{name}.") for key in state_dict):
                restart()

    def _to_cache(self, wanted: bool, x: Tensor | QuantTensor) -> QuantTensor | None:
        """What a cache keeps of ``x``: nothing but in eager eval, and nothing of a plain tensor."""
        if not wanted or self.training or torch.compiler.is_compiling() or not isinstance(x, QuantTensor):  # type: ignore[attr-defined]
            return None
        kept = x.detach()
        if not self.cache_quant_io_metadata_only:
            return kept
        # Unchecked, since a scale per channel does not broadcast to the one zero that stands for the value.
        empty = kept.value.new_zeros(())
        return QuantTensor.unchecked(
            empty, kept.scale, kept.zero_point, kept.bit_width, kept.signed, kept.training, kept.source
        )

    def _cache_input(self, x: Tensor | QuantTensor) -> None:
        kept = self._to_cache(self.cache_inference_quant_inp, x)
        if kept is not None:
            self._cached_input = kept

    def pack_output(self, y: Tensor | QuantTensor) -> Tensor | QuantTensor:
        """``y`` as the layer returns it: a ``QuantTensor`` or, with ``return_quant_tensor=False``, its value.

        With ``return_quant_tensor=None`` it is returned as it is.

        Raises:
            QuantMetadataError: a ``QuantTensor`` is to be returned and ``y`` has no metadata.
        """
        kept = self._to_cache(self.cache_inference_quant_out, y)
        if kept is not None:
            self._cached_output = kept
        if isinstance(y, QuantTensor) and self.return_quant_tensor is not False:
            return y
        if self.return_quant_tensor:
            raise self.metadata_error(
                "return_quant_tensor=True needs integers, and the quantizer of the output gives minifloats",
                None,
                "use an integer quantizer",
                "set return_quant_tensor=False here",
            )
        out = y.value if isinstance(y, QuantTensor) else y
        if not torch.compiler.is_compiling():
            # Kept outside the module's attributes, so that an error can name this layer as the producer of a tensor.
            self.__dict__["_last_output"] = weakref.ref(out)
        return out

    def metadata_error(self, missing: str, offending: Tensor | None, *fixes: str) -> QuantMetadataError:
        """The error for metadata that this layer needs and does not get: who, what, from whom, and how to mend it."""
        assert isinstance(self, nn.Module)
        message = f"{describe_module(self)}: {missing}"
        if offending is not None:
            source, fix = _producer(offending)
            message += f", and the input is {source}"
            fixes = ((fix, *fixes)) if fix else fixes
        return QuantMetadataError(f"{message}. Fix: {'; or '.join(fixes)}.")

    def _here(self) -> str:
        assert isinstance(self, nn.Module)
        name = qualified_name(self)
        return f"'{name}'" if name else "this layer"

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("_last_output", None)
        return state


def _producer(tensor: Tensor) -> tuple[str, str]:
    """Who made a plain tensor, in words, and the fix there."""
    found = find_module(lambda m: (ref := getattr(m, "_last_output", None)) is not None and ref() is tensor)
    if found is not None:
        name, module = found
        who = f"{type(module).__name__} '{name}'" if name else type(module).__name__
        return (
            f"a plain Tensor returned by {who} (return_quant_tensor=False)",
            f"set return_quant_tensor=True on '{name}'",
        )
    function = dropped_by(tensor)
    if function is not None:
        return (
            f"a plain Tensor made by {function}, which does not keep the grid of a QuantTensor",
            f"quantize its result, for example with a QuantIdentity(return_quant_tensor=True) after {function}",
        )
    return "a plain Tensor from outside quantized layers", ""
