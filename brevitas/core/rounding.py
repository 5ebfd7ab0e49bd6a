"""Rounding modules beyond the four standard ones: of accelerators, stochastic, and learned.

    >>> import torch
    >>> DPURoundSte()(torch.tensor([-1.5, 1.5]))
    tensor([-1.,  2.])
    >>> x = torch.full((1000,), 0.25)
    >>> rounding = StochasticRoundSte(seed=0)
    >>> bool((rounding(x).mean() - 0.25).abs() < 0.05), float(rounding.eval()(x).max())
    (True, 0.0)

All pass the gradient of their output to ``x`` unchanged.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import brevitas.jit
from brevitas.core._checks import check_bool, check_int, check_module, check_number
from brevitas.core.utils import StatefulModule, at_least_float32, learned_parameter
from brevitas.errors import QuantConfigError
from brevitas.function.ops_ste import floor_ste, round_ste
from brevitas.function.rounding import dpu_round_ste, sigmoid, stochastic_round_ste

__all__ = [
    "DPURoundSte",
    "LearnedRoundHardSigmoid",
    "LearnedRoundIdentity",
    "LearnedRoundSigmoid",
    "LearnedRoundSte",
    "StochasticRoundSte",
]


class DPURoundSte(brevitas.jit.ScriptModule):
    """Half to even for ``x >= 0``, ties of negative ``x`` up; straight through."""

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Rounded ``x``."""
        return dpu_round_ste(x)


class _GlobalUniform(brevitas.jit.ScriptModule):
    """Uniform numbers of torch's own generator."""

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Numbers in [0, 1) of the shape and dtype of ``x``."""
        return torch.rand_like(x)


def _mixed(z: Tensor) -> Tensor:
    # The finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014) on int64,
    # whose products wrap. The masks make arithmetic shifts logical.
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


class _SeededUniform(StatefulModule):
    """Uniform numbers that are a function of a seed, of the number of the call, and of the position.

    No generator is involved, so the sequence is the same in every mode (eager, TorchScript, torch.compile) and on every
    device, and goes on identically in copies and after loading. State: ``calls`` (int64).
    """

    calls: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.register_buffer("calls", torch.tensor(0, dtype=torch.int64))

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Numbers in [0, 1) of the shape and dtype (float32 or float64) of ``x``."""
        start = _mixed(_mixed(torch.zeros_like(self.calls) + self.seed) + self.calls)
        position = torch.arange(x.numel(), dtype=torch.int64, device=x.device).view(x.shape)
        # No multiple of the position by a large constant: torch.compile takes it for an index, and writes past the end.
        bits = _mixed(position + start)
        self.calls.add_(1)
        if x.dtype == torch.float64:
            return ((bits >> 11) & 0x1FFFFFFFFFFFFF).to(torch.float64) * 2.0**-53
        return ((bits >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A checkpoint of a run without a seed continues from the number of calls made here.
        state_dict.setdefault(prefix + "calls", self.calls.detach().clone())
        super()._load_from_state_dict(state_dict, prefix, *args)


class StochasticRoundSte(brevitas.jit.ScriptModule):
    """Up with the probability of the fraction, else down: the expected value is ``x``. Straight through.

    Args:
        deterministic_inference: in eval, round half to even instead.
        seed: makes the sequence of draws reproducible, whatever else draws random numbers. Modules of equal seeds draw
            equal numbers. ``None``: torch's generator, and so ``torch.manual_seed``.
    """

    def __init__(self, deterministic_inference: bool = True, seed: int | None = None) -> None:
        super().__init__()
        owner = "StochasticRoundSte"
        self.deterministic_inference = check_bool(owner, "deterministic_inference", deterministic_inference)
        if seed is not None:
            check_int(owner, "seed", seed, 0, 2**63 - 1)
        self.uniform = _GlobalUniform() if seed is None else _SeededUniform(seed)

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Rounded ``x``."""
        if self.deterministic_inference and not self.training:
            return round_ste(x)
        wide = at_least_float32(x)
        return stochastic_round_ste(wide, self.uniform(wide.detach())).to(x.dtype)


class LearnedRoundHardSigmoid(brevitas.jit.ScriptModule):
    """``floor(x) + h(p)``; training ``h = clamp(sigmoid(p) (zeta - gamma) + gamma, 0, 1)``, eval ``h = (p > 0)``.

    Source: Nagel et al., "Up or down? Adaptive rounding for post-training quantization", 2020.

    Args:
        learned_round_zeta: > 1; how far the stretched sigmoid exceeds 1.
        learned_round_gamma: < 0; how far it falls below 0.
    """

    def __init__(self, learned_round_zeta: float = 1.1, learned_round_gamma: float = -0.1) -> None:
        super().__init__()
        owner = "LearnedRoundHardSigmoid"
        self.zeta = check_number(owner, "learned_round_zeta", learned_round_zeta, low=1.0, low_open=True)
        self.gamma = check_number(owner, "learned_round_gamma", learned_round_gamma, high=0.0, high_open=True)

    @brevitas.jit.script_method
    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        """Rounded ``x``; gradient to ``p`` in training, where ``0 < h < 1``."""
        if not self.training:
            return floor_ste(x) + (p > 0).to(x.dtype)
        h = torch.clamp(sigmoid(p) * (self.zeta - self.gamma) + self.gamma, 0.0, 1.0)
        return floor_ste(x) + h.to(x.dtype)

    def inverse(self, fraction: Tensor) -> Tensor:
        """The ``p`` for which ``h(p)`` is ``fraction``."""
        return torch.logit((fraction - self.gamma) / (self.zeta - self.gamma))


class LearnedRoundSigmoid(brevitas.jit.ScriptModule):
    """``floor(x) + h(p)``; training ``h = sigmoid(p / temperature)``, eval ``h = (p > 0)``.

    Args:
        temperature: > 0; the smaller, the closer is training to eval.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = check_number("LearnedRoundSigmoid", "temperature", temperature, low=0.0, low_open=True)

    @brevitas.jit.script_method
    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        """Rounded ``x``; gradient to ``p`` in training."""
        if not self.training:
            return floor_ste(x) + (p > 0).to(x.dtype)
        return floor_ste(x) + sigmoid(p * (1.0 / self.temperature)).to(x.dtype)

    def inverse(self, fraction: Tensor) -> Tensor:
        """The ``p`` for which ``h(p)`` is ``fraction``, as far as a sigmoid reaches: in [1e-4, 1 - 1e-4]."""
        return torch.logit(fraction, eps=1e-4) * self.temperature


class LearnedRoundIdentity(brevitas.jit.ScriptModule):
    """``round(x + clamp(p, -0.5, 0.5))``, straight through, in training and eval."""

    @brevitas.jit.script_method
    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        """Rounded ``x``; gradient to ``p`` where it is not clamped."""
        return round_ste(x + torch.clamp(p, -0.5, 0.5).to(x.dtype))

    def inverse(self, fraction: Tensor) -> Tensor:
        """0: round to nearest."""
        return torch.zeros_like(fraction)


class LearnedRoundSte(StatefulModule):
    """A rounding with a parameter for each element of the weight that it rounds.

    >>> rounding = LearnedRoundSte(LearnedRoundHardSigmoid(), torch.tensor([3.0, -3.0])).eval()
    >>> rounding(torch.tensor([0.2, 0.2]))
    tensor([1., 0.])

    State: ``value``, of the shape of the weight.

    Args:
        learned_round_impl: ``LearnedRoundHardSigmoid``, ``LearnedRoundSigmoid`` or ``LearnedRoundIdentity``, or a
            module that maps ``(x, p)`` to integers.
        learned_round_init: ``value`` at the start: a tensor of the weight's shape, or a number for all elements.
        tracked_parameter_list: the one parameter that is rounded; gives the shape where the start is a number.
    """

    def __init__(
        self,
        learned_round_impl: nn.Module,
        learned_round_init: Tensor | float,
        tracked_parameter_list: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__()
        owner = "LearnedRoundSte"
        self.learned_round_impl = check_module(owner, "learned_round_impl", learned_round_impl)
        tracked = () if tracked_parameter_list is None else tuple(tracked_parameter_list)
        if len(tracked) > 1:
            raise QuantConfigError(
                f"{owner}: {len(tracked)} layers share this quantizer, and learned rounding has a parameter for each "
                "element of one weight. Give each layer a quantizer of its own."
            )
        self.value = learned_parameter(_learned_round_start(owner, learned_round_init, tracked))

    @brevitas.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        """Rounded ``x``, of the shape of ``value``."""
        return self.learned_round_impl(x, at_least_float32(self.value))

    def init_from(self, x: Tensor) -> None:
        """Start from ``x`` (the scaled weight): training reproduces it, eval rounds it to nearest."""
        with torch.no_grad():
            fraction = at_least_float32(x) - torch.floor(at_least_float32(x))
            self.value.copy_(self.learned_round_impl.inverse(fraction).view(self.value.shape))  # type: ignore[operator]


def _learned_round_start(owner: str, init: Tensor | float, tracked: Sequence[Tensor]) -> Tensor:
    if isinstance(init, Tensor):
        if not bool(init.isfinite().all()):
            raise QuantConfigError(f"{owner}: learned_round_init has a value that is not finite.")
        if tracked and init.shape != tracked[0].shape:
            raise QuantConfigError(
                f"{owner}: learned_round_init has shape {tuple(init.shape)}. "
                f"Expected the shape of the weight, {tuple(tracked[0].shape)}."
            )
        return init.detach().to(torch.get_default_dtype())
    number = check_number(owner, "learned_round_init", init)
    if not tracked:
        raise QuantConfigError(
            f"{owner}: learned_round_init={number} is a number and no parameter is tracked. "
            "Expected a tensor of the weight's shape."
        )
    return torch.full(tracked[0].shape, number, device=tracked[0].device)
