"""The page of presets: every quantizer by role, read off what it resolves to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ref_common import NOTE, completed, records_of, role_of, table, told
from ref_exports import Verdict, layer_with, verdicts
from torch import nn

from brevitas.core.quant import BinaryQuant, ClampedBinaryQuant, TernaryQuant
from brevitas.quant.directives import DIRECTIVES, ROLE_NAMES
from brevitas.quant.registry import meanings, presets
from injector import Record

ROLES = tuple(ROLE_NAMES.values())
TITLES = {
    "weight": "Weights",
    "act": "Activations, inputs and outputs",
    "bias": "Biases",
    "trunc": "Truncation",
    "clamp": "Clamping",
}


@dataclass(frozen=True)
class Entry:
    """A preset, what it resolves to, and what must be declared with it."""

    name: str
    quantizer: type
    role: str
    records: Mapping[str, Record]
    needs: tuple[str, ...]

    def value(self, name: str) -> Any:
        """A resolved value; None where it was not read."""
        return self.records[name].value if name in self.records else None


def _natural(item: tuple[str, type]) -> list[tuple[bool, int, str]]:
    """Sort key that counts numbers as numbers: Int8 before Int16."""
    parts = re.split(r"(\d+)", item[0])
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def entries() -> list[Entry]:
    """Every preset, resolved."""
    found = []
    for name, quantizer in sorted(presets().items(), key=_natural):
        records, needs = completed(quantizer, records_of)
        found.append(Entry(name, quantizer, role_of(quantizer), records, tuple(needs)))
    return found


def kind_of(entry: Entry) -> str:
    """Kind of the codes: that of the module, which a preset may declare without the option."""
    module = entry.value("tensor_quant")
    if module is None:
        return "FP"
    if isinstance(module, BinaryQuant | ClampedBinaryQuant):
        return "BINARY"
    return "TERNARY" if isinstance(module, TernaryQuant) else str(entry.value("quant_type"))


def bits(entry: Entry) -> str:
    """Width of a code."""
    kind, width = kind_of(entry), entry.value("bit_width")
    if kind in ("BINARY", "TERNARY", "FP"):
        return {"BINARY": "1", "TERNARY": "2", "FP": "–"}[kind]
    exponent, mantissa = entry.value("exponent_bit_width"), entry.value("mantissa_bit_width")
    if exponent is not None and mantissa is not None:
        return str(1 + exponent + mantissa)
    return "the accumulator's" if width is None else str(width)


def codes(entry: Entry) -> str:
    """Range of the codes."""
    kind, width, signed = kind_of(entry), entry.value("bit_width"), entry.value("signed")
    exponent, mantissa = entry.value("exponent_bit_width"), entry.value("mantissa_bit_width")
    if entry.value("tensor_quant") is None:
        return "float"
    if exponent is not None and mantissa is not None:
        return f"minifloat e{exponent}m{mantissa}"
    if kind in ("BINARY", "TERNARY"):
        return {"BINARY": "{-1, 1}", "TERNARY": "{-1, 0, 1}"}[kind]
    if entry.role in ("trunc", "clamp"):
        return "sign of the input"
    if width is None:
        return "signed" if signed else "unsigned"
    narrow = bool(entry.value("narrow_range"))
    if signed:
        return f"[{-(2 ** (width - 1)) + narrow}, {2 ** (width - 1) - 1}]"
    return f"[0, {2**width - 1 - narrow}]"


def scale(entry: Entry) -> str:
    """Where the scale comes from."""
    if entry.value("tensor_quant") is None:
        return "–"
    if entry.value("requires_input_scale"):
        return "the accumulator's"
    kind = entry.value("scaling_impl_type")
    if kind is None:
        return _named(entry.value("scaling_impl")) or ("the input's" if entry.role in ("trunc", "clamp") else "none")
    parts = [str(kind)]
    if "STATS" in str(kind) and _statistic(entry):
        parts.append(f"of {_statistic(entry)}")
    restrict = entry.value("restrict_scaling_type")
    if restrict is not None:
        parts.append(f"in {restrict}")
    return " ".join(parts)


def _statistic(entry: Entry) -> str:
    """The statistic as an option names it, or its module where a preset declares another one."""
    option, module = str(entry.value("scaling_stats_op")), entry.value("scaling_stats_impl")
    if module is None or type(module) is meanings("scaling_stats_op", entry.role).get(option):
        return "" if option == "None" else option
    return _named(module)


def _named(module: Any) -> str:
    return f"`{type(module).__name__}`" if module is not None else ""


def granularity(entry: Entry) -> str:
    """How many scales there are."""
    per_type, per_channel = entry.value("scaling_per_output_type"), entry.value("scaling_per_output_channel")
    if per_type is not None:
        return str(per_type).lower()
    if per_channel is None:
        # A constant threshold: its own shape says.
        init = entry.value("scaling_init")
        return "tensor" if isinstance(init, int | float) else ""
    return "channel" if per_channel else "tensor"


def zero_point(entry: Entry) -> str:
    """Where the zero point comes from."""
    if entry.value("tensor_quant") is None:
        return "–"
    module = entry.value("zero_point_impl")
    return "0" if module is None or type(module).__name__ == "ZeroZeroPoint" else f"`{type(module).__name__}`"


def _bases(quantizer: type) -> str:
    return ", ".join(f"`{base.__name__}`" for base in quantizer.__bases__)


def _set_to(record: Record) -> str:
    if record.declaration.kind in ("value", "link"):
        return "..."  # Computed, from the layer or from other options.
    if isinstance(record.value, Enum):
        return record.value.name
    return type(record.value).__name__ if isinstance(record.value, nn.Module) else str(record.value)


def _settings(entry: Entry) -> str:
    """Directives that the preset and its fragments set and that were read, as code."""
    shown = []
    for name, record in entry.records.items():
        origin = record.declaration.owner.__module__
        if name in DIRECTIVES and record.declaration.origin == "body" and ".solver." not in origin:
            shown.append(f"`{name} = {_set_to(record)}`")
    return ", ".join(sorted(shown))


def takers(entry: Entry, said: Mapping[str, Verdict]) -> str:
    """Targets that take it; empty where no layer takes the role yet."""
    if entry.name not in said:
        return ""
    return ", ".join(said[entry.name].takes) or "no target"


def presets_page(found: Sequence[Entry], said: Mapping[str, Verdict]) -> str:
    """docs/reference/presets.md."""
    out = [
        NOTE,
        "# Presets\n\n",
        "Every quantizer of `brevitas.quant`, by role. Subclass one to change an attribute, or pass keywords to a "
        "layer; [custom parts](../custom-parts.md) shows how. Columns are read off the resolved quantizer, in a tiny "
        "layer; "
        "[options](options.md) explains the words in capitals.\n\n",
    ]
    for role in ROLES:
        mine = [entry for entry in found if entry.role == role]
        if not mine:
            continue
        out.append(f"## {TITLES[role]}\n\n")
        rows = [
            (
                f"[`{e.name}`](#{e.name.lower()})",
                bits(e),
                codes(e),
                scale(e),
                granularity(e),
                zero_point(e),
                takers(e, said),
            )
            for e in mine
        ]
        out.append(table(("Preset", "Bits", "Codes", "Threshold", "Per", "Zero point", "Exported by"), rows))
        out += [_preset(entry, said.get(entry.name)) for entry in mine]
    return "".join(out).rstrip() + "\n"


def _preset(entry: Entry, verdict: Verdict | None) -> str:
    doc = " ".join((entry.quantizer.__doc__ or "").split()).replace("``", "`")
    lines = [f"- Bases: {_bases(entry.quantizer)}"]
    if entry.needs:
        lines.append("- Must be declared: " + ", ".join(f"[`{n}`](options.md#{n})" for n in entry.needs))
    settings = _settings(entry)
    if settings:
        lines.append(f"- Sets {settings}")
    if verdict is not None and verdict.refuses:
        lines.append(f"- Export: {told(verdict)}")
    return f"### `{entry.name}`\n\n{doc}\n\n" + "\n".join(lines) + "\n\n"


def try_presets(found: Sequence[Entry]) -> dict[str, Verdict]:
    """What the targets say of each preset that a layer takes."""
    layers = {}
    for entry in found:
        layer, _ = completed(entry.quantizer, lambda q: layer_with(role_of(q), q))
        if layer is not None:
            layers[entry.name] = layer
    return verdicts(layers)
