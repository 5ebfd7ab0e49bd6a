"""Compare the presets with those of Brevitas 0.13.4, on the same tensors; writes ``docs/compared-with-brevitas.md``.

    python benchmarks/compare_brevitas.py                      # installs the peer into .venv-peer the first time
    python benchmarks/compare_brevitas.py --out /tmp/page.md

Both packages are called ``brevitas``, so each runs in an interpreter of its own and the numbers are exchanged as .npz
files. Nothing else uses the peer: it is no dependency, neither of the package nor of its tests.

Compared for each preset name that exists in both: scale, zero point, codes (values of minifloats) and the gradient of
the input. A weight is compared in its first training call; an activation while it collects statistics, when its scale
is learned, and in eval; a bias in a layer whose input is 0; truncation on integers of 16 bits.
"""

import argparse
import importlib
import pkgutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PEER_PYTHON = ROOT / ".venv-peer" / "bin" / "python"
PEER = ["torch==2.13.0", "brevitas==0.13.4"]
SCALE_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
OFF = ("NoneWeightQuant", "NoneActQuant", "NoneBiasQuant", "NoneTruncQuant", "NoneClampQuant")
COLUMNS = ("scale", "zero point", "codes", "gradient")


def ensure_peer() -> None:
    if not PEER_PYTHON.exists():
        print(f"installing {' '.join(PEER)} into {PEER_PYTHON.parent.parent} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(PEER_PYTHON.parent.parent)], check=True)
        subprocess.run([str(PEER_PYTHON), "-m", "pip", "install", "-q", *PEER], check=True)


# The part below runs in both interpreters, on what both packages offer.


def presets() -> dict:
    """All public quantizers of ``brevitas.quant``."""
    import brevitas.quant

    found = {}
    for module in pkgutil.iter_modules(brevitas.quant.__path__):
        if module.name in ("base", "solver", "float_base", "experimental"):
            continue
        contents = importlib.import_module(f"brevitas.quant.{module.name}")
        for name, member in vars(contents).items():
            quantizer = isinstance(member, type) and hasattr(member, "let") and not name.startswith("_")
            if quantizer and member.__module__ == contents.__name__:
                found[name] = member
    return {name: member for name, member in found.items() if not name.endswith(("Mixin", "Base"))}


def options_of(name: str) -> dict:
    options: dict = {}
    if name.startswith(("FpOCP", "FpFNUZ")):
        options |= {"bit_width": 8, "exponent_bit_width": 4, "mantissa_bit_width": 3}
    if "ActPerChannel" in name:
        options |= {"per_channel_broadcastable_shape": (1, 3, 1, 1), "scaling_stats_permute_dims": (1, 0, 2, 3)}
    if name.startswith("MX") and "Act" in name:
        options |= {"group_dim": 1}
    if "MinMaxInit" in name:
        options |= {"min_val": -1.2, "max_val": 0.9}
    elif "MaxInit" in name:
        options |= {"max_val": 1.1}
    return options


def tensors() -> dict:
    rng = np.random.default_rng(11)
    weight = rng.normal(0.05, 0.3, (6, 64)).astype(np.float32)
    weight[2, 5] *= 4.0
    inputs = [rng.normal(0.2, 1.0, (4, 3, 4, 16)).astype(np.float32) for _ in range(4)]
    bias = np.array([0.3, -0.7, 1.4, -1.3, 0.01, 0.9], np.float32)  # on a grid of 1/128, two of them outside
    factors = rng.normal(0.0, 1.0, 4 * 3 * 4 * 16).astype(np.float32)
    return {"weight": weight, "inputs": inputs, "bias": bias, "factors": factors}


def measured(result, given, factors) -> dict:
    """Numbers of one call: a QuantTensor, or the tuple of a minifloat quantizer."""
    import torch

    if isinstance(result, tuple) and not hasattr(result, "bit_width") and not hasattr(result, "exponent_bit_width"):
        value, scale, zero_point, integer = result[0], result[1], result[2], len(result) == 4
    else:
        value, scale, zero_point = result.value, result.scale, result.zero_point
        integer = not hasattr(result, "exponent_bit_width")
    loss = (value.reshape(given.shape) * torch.from_numpy(factors[: value.numel()]).reshape(given.shape)).sum()
    (gradient,) = torch.autograd.grad(loss, given, retain_graph=True, allow_unused=True)
    found = {"value": value, "scale": scale.expand_as(value) if scale.ndim == value.ndim or scale.ndim == 0 else scale}
    found["zero point"] = zero_point.expand_as(value) if zero_point.ndim == 0 else zero_point
    if integer:
        found["codes"] = torch.round(value / found["scale"] + found["zero point"])
    found["gradient"] = torch.zeros_like(given) if gradient is None else gradient
    found |= {"input": given, "factors": torch.from_numpy(factors[: given.numel()]).reshape(given.shape)}
    return {key: tensor.detach().float().numpy().copy() for key, tensor in found.items()}


def is_minifloat(name: str) -> bool:
    return name.startswith("Fp") or "MXFloat" in name


def run_weight(name, preset, data):
    import torch

    from brevitas.nn import QuantIdentity, QuantLinear

    out, into = data["weight"].shape
    preset = preset.let(**options_of(name))
    layer = QuantLinear(into, out, bias=False, weight_quant=preset)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(data["weight"]))
    # Once more, for the weight that is there now: some scales start from it at construction.
    layer.weight_quant = type(layer.weight_quant)(layer, preset)
    layer.train()
    if "AccumulatorAware" in name:
        quant_input = QuantIdentity(bit_width=8, return_quant_tensor=True)(torch.zeros(1, into))
        try:
            result = layer.weight_quant(layer.weight, quant_input)
        except Exception:
            result = layer.quant_weight(quant_input)
    elif is_minifloat(name):
        result = layer.weight_quant.tensor_quant(layer.weight)
    else:
        result = layer.weight_quant(layer.weight)
    yield "", measured(result, layer.weight, data["factors"])


def run_act(name, preset, data):
    import torch

    from brevitas.nn import QuantIdentity

    collects = not (name.startswith("MX") or "Init" in name or "Const" in name or name.endswith("Act"))
    extra = {"collect_stats_steps": 2} if collects else {}
    layer = QuantIdentity(preset.let(**options_of(name), **extra), return_quant_tensor=not is_minifloat(name))
    proxy = layer.act_quant.fused_activation_quant_proxy if is_minifloat(name) else layer
    calls = [("collecting", True), ("", True), ("learned", True), ("eval", False)] if collects else [("", True)]
    for index, (phase, training) in enumerate(calls):
        layer.train(training)
        x = data["inputs"][index]
        x = torch.from_numpy(x if "2d" in name else x.reshape(12, 64)).requires_grad_()
        result = proxy(x)
        if phase or not collects:
            yield phase, measured(result, x, data["factors"])


def run_bias(name, preset, data):
    import torch

    from brevitas.nn import QuantIdentity, QuantLinear

    range_preset = presets()["Int8ActPerTensorFloatMinMaxInit"].let(min_val=-1.0, max_val=1.0)
    layer = QuantLinear(4, 6, bias=True, bias_quant=preset, weight_quant=presets()["Int8WeightPerTensorFloat"])
    with torch.no_grad():
        layer.weight.fill_(127.0)
        layer.bias.copy_(torch.from_numpy(data["bias"]))
    value = layer(QuantIdentity(range_preset, return_quant_tensor=True)(torch.zeros(1, 4)))
    value = getattr(value, "value", value).reshape(-1)
    scale = torch.tensor(1.0 / 128)
    if "Internal" in name:
        scale = layer.bias_quant(layer.bias).scale.detach()
    yield "", measured((value, scale, torch.tensor(0.0), None), layer.bias, data["factors"])


def run_trunc(name, preset, data):
    import torch

    from brevitas.nn import QuantIdentity  # noqa: F401 - loads the package in its usual order
    from brevitas.proxy import TruncQuantProxyFromInjector

    try:
        from brevitas.quant_tensor import IntQuantTensor as QuantTensor
    except ImportError:
        from brevitas.quant_tensor import QuantTensor
    codes = torch.from_numpy(np.linspace(-32768, 32767, 301).round().astype(np.float32))
    x = (codes * 0.01).requires_grad_()
    like = torch.tensor
    given = QuantTensor(x, like(0.01), like(0.0), like(16.0), True, False)
    proxy = TruncQuantProxyFromInjector(torch.nn.Module(), preset)
    yield "", measured(proxy(given), x, data["factors"])


def run(names, path) -> None:
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data, found, results = tensors(), presets(), {}
    for name in names or []:
        torch.manual_seed(0)
        role = next(r for r in ("Weight", "Act", "Bias", "Trunc", "Round") if r in name)
        runner = {"Weight": run_weight, "Act": run_act, "Bias": run_bias, "Trunc": run_trunc, "Round": run_trunc}[role]
        try:
            for phase, numbers in runner(name, found[name], data):
                results |= {f"{name}|{phase}|{key}": array for key, array in numbers.items()}
        except Exception as error:  # what a package cannot do is part of the comparison
            results[f"{name}||error"] = np.array(f"{type(error).__name__}: {str(error).splitlines()[0][:160]}")
    results["names"] = np.array(sorted(found))
    np.savez(path, **results)


# From here on: the comparison, in our interpreter.


def distance(ours, peer) -> float:
    """Largest difference relative to the largest of the peer's numbers."""
    shape = np.broadcast_shapes(ours.shape, peer.shape)
    ours, peer = np.broadcast_to(ours, shape), np.broadcast_to(peer, shape)
    both_nan = np.isnan(ours) & np.isnan(peer)
    worst = np.abs(np.where(both_nan, 0.0, ours - peer)).max(initial=0.0)
    return float(worst / max(np.abs(peer[np.isfinite(peer)]).max(initial=0.0), 1e-30))


def matched(ours, peer):
    """The peer's array in our shape, where it has the same elements (groups have a dim of their own there)."""
    return peer.reshape(ours.shape) if ours.size == peer.size else peer


def compared(key, ours, peer) -> dict:
    """What differs, in words, by column; empty where everything agrees."""
    found = {}
    get = {side: (lambda column, data=data: data.get(f"{key}|{column}")) for side, data in (("o", ours), ("p", peer))}
    value = get["o"]("value")
    for column in COLUMNS:
        a, b = get["o"](column), get["p"](column)
        if column == "codes" and a is None:
            a, b = value, get["p"]("value")
        if a is None or b is None:
            continue
        try:
            b = matched(a, b)
            d = distance(a, b)
        except ValueError:
            found[column] = f"shapes {a.shape} and {b.shape}"
            continue
        if column == "scale" and not d <= SCALE_TOLERANCE:
            ratio = np.median(np.broadcast_to(a, value.shape) / np.broadcast_to(b, value.shape))
            found[column] = f"{ratio:.6g} times the peer's" if np.isfinite(ratio) else "not finite"
        elif column == "zero point" and not d <= 1e-6:
            found[column] = f"{a.reshape(-1)[0]:g}, peer {b.reshape(-1)[0]:g}"
        elif column == "codes" and not (np.array_equal(a, b) or d <= SCALE_TOLERANCE):
            found[column] = f"{np.mean(~np.isclose(a, b, rtol=1e-5)):.1%} of the elements"
        elif column == "gradient" and not d <= GRADIENT_TOLERANCE:
            share = np.mean(~np.isclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max()))
            found[column] = f"{share:.1%} of the elements" if share < 1 else "all elements"
    return found


def unit_is_differentiated(key, ours, peer) -> bool:
    """Whether the peer's gradient of a minifloat is g y / x where ours is g: that of ``round(x / ulp) ulp``."""
    x, y, g = (peer[f"{key}|{column}"] for column in ("input", "value", "factors"))
    x, y, g = (a.reshape(-1) for a in (x, y, g))
    found = peer[f"{key}|gradient"].reshape(-1)
    usual = np.abs(x) > np.quantile(np.abs(x), 0.2)  # neither subnormal nor the maximum, which the scale depends on
    usual &= np.abs(x) < np.quantile(np.abs(x), 0.95)
    near = np.isclose(found[usual], (g * y / x)[usual], rtol=1e-2)
    return bool(near.mean() > 0.95)


def norms_start_apart(key, ours, peer) -> bool:
    """Whether gradients differ by the ratio of the L1 norms of a weight with and without its mean."""
    w = ours[f"{key}|input"].astype(np.float64)
    ratio = np.abs(w).sum(1) / np.abs(w - w.mean(1, keepdims=True)).sum(1)
    a, b = np.abs(ours[f"{key}|gradient"]).sum(1), np.abs(peer[f"{key}|gradient"]).sum(1)
    return bool(np.allclose(b / a, ratio, rtol=1e-3))


MX_RANGE = (
    "a group's codes reach almost to twice the power of two here, so that its largest value does not saturate; "
    "the peer's reach the power of two"
)


def reason_of(name, phase, differences, ours, peer) -> str:
    """Why; each numeric reason is checked on the numbers."""
    key = f"{name}|{phase}"
    if name == "IntBias" and "error" in differences:
        return "without a declared width the accumulator's is used here; the peer requires one"
    if "error" in differences:
        return "**not explained**"
    if is_minifloat(name) and set(differences) == {"gradient"} and unit_is_differentiated(key, ours, peer):
        return "the unit in the last place is constant for autograd here; the peer's is g·y/x"
    if name.startswith(("MXInt", "ShiftedMXUInt")):
        return MX_RANGE
    if "FixedPoint" in name and "scale" in differences:
        scale = peer[f"{key}|scale"].reshape(-1)[0]
        if np.log2(scale) % 1:
            return "a power-of-two scale in every phase here; the peer's is none in this phase"
    if name in ("Int8Bias", "Int16Bias") and set(differences) == {"gradient"}:
        return "outside the range of codes the gradient passes here, in the peer it is 0"
    off_by = np.abs(ours.get(f"{key}|codes", np.zeros(1)) - peer.get(f"{key}|codes", np.zeros(1)))
    if "AccumulatorAware" in name and set(differences) == {"codes"} and off_by.max() == 1 and off_by.mean() < 0.01:
        return (
            "a channel's largest weight lies on the grid, where rounding toward zero follows the last bit of the norm"
        )
    if "ZeroCenter" in name and norms_start_apart(key, ours, peer):
        return (
            "the norm starts as that of the centred weight here, so that the weight is kept, and as that of the weight "
            "itself in the peer; codes and gradients differ by the ratio of the two"
        )
    return "**not explained**"


def merged(rows) -> list:
    """One row for all that differ in the gradient alone, for one reason."""
    groups: dict = {}
    for name, phase, text, reason in rows:
        key = reason if text.startswith("gradient: ") else (name, phase)
        groups.setdefault(key, []).append((name, phase, text, reason))
    found = []
    for group in groups.values():
        names = ", ".join(f"`{name}`" for name in dict.fromkeys(row[0] for row in group))
        phases = ", ".join(phase for phase in dict.fromkeys(row[1] for row in group) if phase)
        text = group[0][2] if len(group) == 1 else f"gradient alone, {len(group)} cases"
        found.append((names, phases, text, group[0][3]))
    return found


def page(ours, peer) -> str:
    common = sorted((set(ours["names"]) & set(peer["names"])) - set(OFF))
    only_ours = sorted(set(ours["names"]) - set(peer["names"]))
    only_peer = sorted(set(peer["names"]) - set(ours["names"]))
    rows, agree, cases = [], 0, 0
    for name in common:
        phases = sorted({k.split("|")[1] for k in ours if k.startswith(f"{name}|")})
        errors = [
            (who, data[f"{name}||error"]) for who, data in (("here", ours), ("peer", peer)) if f"{name}||error" in data
        ]
        if errors:
            cases += 1
            text = "; ".join(f"{who}: {str(error)}" for who, error in errors).replace("|", "\\|")
            rows.append((name, "", text, reason_of(name, "", {"error": text}, ours, peer)))
            continue
        for phase in phases:
            cases += 1
            differences = compared(f"{name}|{phase}", ours, peer)
            if not differences:
                agree += 1
                continue
            text = "; ".join(f"{column}: {words}" for column, words in differences.items())
            rows.append((name, phase, text, reason_of(name, phase, differences, ours, peer)))
    lines = [
        "# Compared with Brevitas 0.13.4",
        "",
        "Written by `benchmarks/compare_brevitas.py`, which runs both packages on the same float32 tensors on a",
        "CPU and compares scale (relative 1e-5), zero point, codes (of minifloats: values) and the gradient of the",
        "input (relative 1e-4).",
        "",
        f"- Presets of the same name: {len(common)}, in {cases} cases (an activation has three: collecting statistics,"
        " with its learned scale, in eval).",
        f"- Everything agrees in {agree} cases; {len(rows)} differ, each in the table below.",
        f"- Only here: {', '.join(f'`{n}`' for n in only_ours) or 'none'}.",
        f"- Only in the peer: {', '.join(f'`{n}`' for n in only_peer) or 'none'}.",
        "",
        "| Preset | Phase | What differs | Reason |",
        "|---|---|---|---|",
        *(f"| {names} | {phases} | {text} | {reason} |" for names, phases, text, reason in merged(rows)),
        "",
    ]
    return "\n".join(lines)


def load(path) -> dict:
    with np.load(path) as data:
        return {key: data[key] for key in data.files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "compared-with-brevitas.md")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--names", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run([name for name in arguments.names.split(",") if name], arguments.run)
        return
    ensure_peer()
    with tempfile.TemporaryDirectory() as folder:
        sides = {"ours": sys.executable, "peer": str(PEER_PYTHON)}
        names: list = []
        for last in (False, True):
            for side, python in sides.items():
                path = f"{folder}/{side}.npz"
                command = [python, str(Path(__file__).resolve()), "--run", path, "--names", ",".join(names)]
                subprocess.run(command, check=True, cwd=folder)
            ours, peer = load(f"{folder}/ours.npz"), load(f"{folder}/peer.npz")
            if not last:
                names = sorted((set(ours["names"]) & set(peer["names"])) - set(OFF))
    arguments.out.write_text(page(ours, peer))
    print(arguments.out)


if __name__ == "__main__":
    main()
