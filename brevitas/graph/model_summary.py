"""A table of the layers of a model: precision, size, and how well its levels are used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from brevitas.errors import QuantConfigError, QuantMetadataError
from brevitas.graph.copies import call, is_quantizer, outer_modules, private_copy
from brevitas.graph.table import table
from brevitas.proxy.description import bits_of, granularity_of
from brevitas.proxy.quant_proxy import QuantProxyFromInjector
from brevitas.quant_tensor import QuantTensor

__all__ = ["Row", "Summary", "summary"]

# Above this width nobody asks which levels are unused.
_COUNTED_BITS = 16
_MAIN = ("act_quant", "output_quant")
# In a line that is too long the class gives way before the path.
_SHRINK = {1: 14, 0: 8}


@dataclass(frozen=True)
class Row:
    """One layer, or one activation quantizer more of a layer.

    ``None`` where there is no such thing, or where it is not known.

    Attributes:
        path: qualified name, empty for the model itself.
        layer: class of the layer; for a quantizer, the name of its declaration.
        weight_bits: bits of a weight; those of its dtype where it is in float.
        weight_scale: ``'tensor'``, ``'channel'`` or ``'group of 32'``; ``None`` in float.
        weight_signed: whether the codes of the weight are signed.
        act_bits, act_scale, act_signed: the same of the output, or of what the quantizer quantizes.
        parameters: number of weights and biases; those of quantizers are not counted.
        size: bytes that they take at their precision.
        float_size: bytes that they take as they are.
        saturated, unused: share of the weights at the lowest or highest level, unless that is zero; share of the levels
            that no weight has.
        act_saturated, act_unused: the same of the activations of the example.
    """

    path: str
    layer: str
    weight_bits: float | None = None
    weight_scale: str | None = None
    weight_signed: bool | None = None
    act_bits: float | None = None
    act_scale: str | None = None
    act_signed: bool | None = None
    parameters: int = 0
    size: float = 0.0
    float_size: float = 0.0
    saturated: float | None = None
    unused: float | None = None
    act_saturated: float | None = None
    act_unused: float | None = None


@dataclass(frozen=True)
class Summary:
    """What :func:`summary` returns: ``rows``, totals, and text."""

    model_class: str
    rows: tuple[Row, ...]
    with_example: bool

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum(row.parameters for row in self.rows)

    @property
    def size(self) -> float:
        """Bytes of all weights and biases at their precision."""
        return sum(row.size for row in self.rows)

    @property
    def float_size(self) -> float:
        """Bytes of all weights and biases as they are."""
        return sum(row.float_size for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the totals, and a dict for each row."""
        return {
            "model": self.model_class,
            "parameters": self.parameters,
            "size": self.size,
            "float_size": self.float_size,
            "rows": [asdict(row) for row in self.rows],
        }

    def __str__(self) -> str:
        head = ["layer", "class", "weight", "scale", "output", "params", "size", "sat.", "unused"]
        lines = [
            [
                row.path or "(model)",
                row.layer,
                _shown(row.weight_bits, row.weight_signed if row.weight_scale else "float"),
                row.weight_scale or "-",
                _shown(row.act_bits, row.act_signed),
                f"{row.parameters:,}" if row.parameters else "-",
                _bytes(row.size) if row.parameters else "-",
                _share(row.saturated),
                _share(row.unused),
            ]
            for row in self.rows
        ]
        if self.with_example:
            head += ["out sat.", "out unused"]
            for line, row in zip(lines, self.rows, strict=True):
                line += [_share(row.act_saturated), _share(row.act_unused)]
        smaller = f", {self.float_size / self.size:.1f} times smaller than in float" if self.size else ""
        total = f"{self.model_class}: {self.parameters:,} parameters, {_bytes(self.size)}{smaller}"
        return f"{table(head, lines, right_from=5, shrink=_SHRINK)}\n{total}"


def summary(model: nn.Module, example: Any = None) -> Summary:
    """The layers of ``model`` with the precision, size and use of levels of each.

    >>> import torch
    >>> from torch import nn
    >>> import brevitas
    >>> from brevitas.nn import QuantLinear, QuantReLU
    >>> model = nn.Sequential(QuantLinear(64, 32, bias=False, weight_bit_width=4), QuantReLU(bit_width=4))
    >>> _ = model[0].weight.data.copy_(torch.linspace(-7, 7, 2048).view(32, 64))
    >>> print(brevitas.summary(model))
    layer  class        weight    scale   output      params     size  sat.  unused
    0      QuantLinear  4 signed  tensor  -            2,048  1.0 KiB  7.2%    0.0%
    1      QuantReLU    -         -       4 unsigned       -        -     -       -
    Sequential: 2,048 parameters, 1.0 KiB, 8.0 times smaller than in float

    ``sat.`` is the share of weights at the lowest or highest level, ``unused`` the share of levels that no weight has.
    Layers without parameters and quantizers are left out.

    Args:
        model: any module. It is not touched.
        example: one input, a tuple of positional inputs, or a dict of named ones. A copy of the model is run on it in
            eval mode, for the use of the levels of activations.

    Raises:
        QuantConfigError: ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise QuantConfigError(f"summary: expected a torch.nn.Module, got {model!r}")
    used = {} if example is None else _levels_of_activations(model, example)
    with torch.no_grad():
        rows = tuple(_rows(model, used))
    return Summary(type(model).__name__, rows, example is not None)


def _rows(model: nn.Module, used: dict[str, _Levels]) -> Iterator[Row]:
    quantizer_of = _quantizers_of_parameters(model)
    counted: set[Tensor] = set()
    for module, path in outer_modules(model).items():
        if is_quantizer(module):
            continue
        quantizers = [(n, q) for n, q in module.named_children() if is_quantizer(q) and _is_on(q)]
        acts = [(n, q) for n, q in quantizers if _role(n, q) not in ("weight", "bias")]
        own = [p for p in module.parameters(recurse=False) if p not in counted and not is_lazy(p)]
        counted.update(own)
        if not own and not quantizers:
            continue
        facts: dict[str, Any] = _weight_facts(own, quantizer_of)
        main = next((each for name in _MAIN for each in acts if each[0] == name), None)
        if main is not None:
            facts |= _act_facts(main[1], used.get(_join(path, main[0])))
        if facts:
            yield Row(path, type(module).__name__, **facts)
        for name, quantizer in acts:
            if main is None or quantizer is not main[1]:
                where = _join(path, name)
                yield Row(where, _declaration(quantizer), **_act_facts(quantizer, used.get(where)))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_on(quantizer: Any) -> bool:
    return bool(quantizer.is_quant_enabled)


def _role(name: str, quantizer: Any) -> str:
    return getattr(quantizer, "role", name.removesuffix("_quant"))


def _declaration(quantizer: Any) -> str:
    declared = getattr(quantizer, "quant_injector", None)
    return type(quantizer).__name__ if declared is None else declared.__name__


# --- Parameters ------------------------------------------------------------------------------------------------------


def _quantizers_of_parameters(model: nn.Module) -> dict[Tensor, Any]:
    """Which quantizer each weight and bias goes through."""
    found: dict[Tensor, Any] = {}
    for module in model.modules():
        for name, quantizer in module.named_children():
            if is_quantizer(quantizer) and _is_on(quantizer) and _role(name, quantizer) in ("weight", "bias"):
                tracked = getattr(quantizer, "_tracked_parameters", None)
                own = getattr(module, name.removesuffix("_quant"), None)
                for parameter in tracked() if tracked is not None else [own]:
                    if isinstance(parameter, Tensor):
                        found[parameter] = quantizer
    return found


def _weight_facts(parameters: list[nn.Parameter], quantizer_of: dict[Tensor, Any]) -> dict[str, Any]:
    """Number, size and precision of the parameters of one layer; those with more than one dim are its weights."""
    if not parameters:
        return {}
    facts: dict[str, Any] = {
        "parameters": sum(p.numel() for p in parameters),
        "size": sum(p.numel() * (_bits(p, quantizer_of) / 8) for p in parameters),
        "float_size": float(sum(p.numel() * p.element_size() for p in parameters)),
    }
    weights = [p for p in parameters if _role("", quantizer_of.get(p)) == "weight"]
    if not weights:
        floats = [p for p in parameters if p not in quantizer_of]
        return {**facts, "weight_bits": 8.0 * floats[0].element_size() if floats else None}
    quantizer = quantizer_of[weights[0]]
    levels = [_levels_of(quantizer, _evaluated(quantizer, p)) for p in weights]
    return {
        **facts,
        "weight_bits": _bits(weights[0], quantizer_of),
        "weight_scale": _granularity(quantizer),
        "weight_signed": quantizer.is_signed,
        **_joined(levels).shares(""),
    }


def _bits(parameter: Tensor, quantizer_of: dict[Tensor, Any]) -> float:
    quantizer = quantizer_of.get(parameter)
    width = None if quantizer is None else _width(quantizer)
    return 8.0 * parameter.element_size() if width is None else width


def _width(quantizer: Any) -> float | None:
    """Bits of a quantizer; ``None`` where they are those of the accumulator, or not known."""
    if isinstance(quantizer, QuantProxyFromInjector):
        text = bits_of(quantizer._resolved_module())[0]  # type: ignore[arg-type]
        return float(text) if text not in ("", "?") else None
    width = quantizer.bit_width() if callable(getattr(quantizer, "bit_width", None)) else None
    return None if width is None else float(width)


def _granularity(quantizer: Any) -> str | None:
    if not isinstance(quantizer, QuantProxyFromInjector):
        return None
    return granularity_of(quantizer._resolved_module()).removeprefix("per ") or None  # type: ignore[arg-type]


def _evaluated(quantizer: Any, parameter: Tensor) -> Any:
    evaluate = getattr(quantizer, "evaluate", None)
    try:
        return None if evaluate is None or parameter.is_meta else evaluate(parameter)
    except QuantMetadataError:
        return None  # it depends on the input, and there was none


def _act_facts(quantizer: Any, levels: _Levels | None) -> dict[str, Any]:
    facts = {
        "act_bits": _width(quantizer),
        "act_scale": _granularity(quantizer),
        "act_signed": quantizer.is_signed,
    }
    return facts if levels is None else {**facts, **levels.shares("act_")}


# --- Levels ----------------------------------------------------------------------------------------------------------


@dataclass
class _Levels:
    """How often the ends of a range occur, and which levels occur."""

    elements: int = 0
    at_ends: int = 0
    seen: set[float] | None = None
    levels: int = 0

    def add(self, codes: Tensor, zero: Tensor, ends: tuple[int, int], levels: int) -> None:
        self.elements += codes.numel()
        # Zeros are at the end of an unsigned range, and not because of the range.
        self.at_ends += int((((codes <= ends[0]) | (codes >= ends[1])) & (codes != zero)).sum())
        if levels <= 2**_COUNTED_BITS:
            self.seen = (self.seen or set()) | set(codes.unique().tolist())
            self.levels = levels

    def shares(self, prefix: str) -> dict[str, float | None]:
        """Share of elements at the ends, and of levels that do not occur."""
        if not self.elements:
            return {f"{prefix}saturated": None, f"{prefix}unused": None}
        unused = None if self.seen is None else 1.0 - len(self.seen) / self.levels
        return {f"{prefix}saturated": self.at_ends / self.elements, f"{prefix}unused": unused}


def _levels_of(quantizer: Any, x: Any, into: _Levels | None = None) -> _Levels:
    levels = into or _Levels()
    if not isinstance(x, QuantTensor) or x.value.is_meta or x.bit_width.numel() != 1:
        return levels
    bits, narrow = int(x.bit_width), int(bool(quantizer.is_narrow_range))
    if x.signed and bits == 1:
        ends, count = (-1, 1), 2
    elif x.signed:
        ends, count = (narrow - 2 ** (bits - 1), 2 ** (bits - 1) - 1), 2**bits - narrow
    else:
        ends, count = (0, 2**bits - 1 - narrow), 2**bits - narrow
    zero = x.zero_point.double()
    levels.add(torch.round(x.value.double() / x.scale.double() + zero), zero, ends, count)
    return levels


def _joined(levels: list[_Levels]) -> _Levels:
    seen = [each.seen for each in levels if each.seen is not None]
    return _Levels(
        sum(each.elements for each in levels),
        sum(each.at_ends for each in levels),
        set().union(*seen) if seen else None,
        max((each.levels for each in levels), default=0),
    )


def _levels_of_activations(model: nn.Module, example: Any) -> dict[str, _Levels]:
    copied = private_copy(model)
    used: dict[str, _Levels] = {}
    for module, name in outer_modules(copied).items():
        if is_quantizer(module) and _is_on(module) and _role(name.rpartition(".")[2], module) not in ("weight", "bias"):
            levels = used[name] = _Levels()
            module.register_forward_hook(lambda q, args, out, levels=levels: _levels_of(q, out, levels) and None)
    with torch.no_grad(), torch.random.fork_rng():
        call(copied, example)
    return used


# --- Text ------------------------------------------------------------------------------------------------------------


def _shown(bits: float | None, sign: bool | str | None) -> str:
    if bits is None:
        return "-"
    word = sign if isinstance(sign, str) else {True: "signed", False: "unsigned", None: ""}[sign]
    return f"{bits:g} {word}".rstrip()


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _bytes(size: float) -> str:
    if size < 1024:
        return f"{size:g} B"
    for unit in ("KiB", "MiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} GiB"
