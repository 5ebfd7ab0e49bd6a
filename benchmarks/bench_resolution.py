"""Cost of declarations: resolving a weight preset, and constructing a network of 50 quantized layers.

    python benchmarks/bench_resolution.py [--rounds 40]

Wanted: less than 0.5 ms to resolve a weight preset (its ``tensor_quant``, for a layer), and less than 50 ms to build
50 layers beyond what the same ``torch.nn`` network costs. The variants take turns, one call each a round, so that
whatever else the machine does hits all of them alike. Reported: minimum, median and the middle half. One thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import brevitas.nn as qnn
from brevitas.inject.defaults import Int8WeightPerTensorFloat
from brevitas.quant import Int8WeightPerChannelFloat, ShiftedUint8WeightPerTensorFloat

CHANNELS = 4
LAYERS = 50


def resolver(preset: type, layer: nn.Module) -> Callable[[], object]:
    """Resolves as a proxy does: with the layer and its parameter supplied."""
    quantizer = preset.let(module=layer, tracked_parameter_list=[layer.weight])  # type: ignore[attr-defined]
    return lambda: quantizer.tensor_quant


def network(quantized: bool) -> nn.Module:
    """25 times a convolution and a ReLU: 50 layers, each with one quantizer or more."""
    conv, relu = (qnn.QuantConv2d, qnn.QuantReLU) if quantized else (nn.Conv2d, nn.ReLU)
    layers: list[nn.Module] = []
    for _ in range(LAYERS // 2):
        layers += [conv(CHANNELS, CHANNELS, 3), relu()]
    return nn.Sequential(*layers)


def weights_only() -> nn.Module:
    return nn.Sequential(*[qnn.QuantLinear(CHANNELS, CHANNELS) for _ in range(LAYERS)])


def float_linears() -> nn.Module:
    return nn.Sequential(*[nn.Linear(CHANNELS, CHANNELS) for _ in range(LAYERS)])


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def spread(times: list[float]) -> str:
    low, middle, high = statistics.quantiles(times, n=4)
    return f"min {min(times):7.3f}   median {middle:7.3f}   middle half {low:7.3f} .. {high:7.3f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    layer = qnn.QuantLinear(CHANNELS, CHANNELS)
    presets = (Int8WeightPerTensorFloat, Int8WeightPerChannelFloat, ShiftedUint8WeightPerTensorFloat)
    resolving = {f"resolve {preset.__name__}": resolver(preset, layer) for preset in presets}
    building = {
        "50 layers, torch.nn (25 Conv2d + ReLU)": lambda: network(False),
        "50 layers, quantized (25 QuantConv2d + QuantReLU)": lambda: network(True),
        "50 layers, torch.nn (Linear)": float_linears,
        "50 layers, quantized (QuantLinear)": weights_only,
    }
    variants: dict[str, Callable[[], object]] = resolving | building
    for call in variants.values():
        call()
        call()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name, call in variants.items():
            times[name].append(timed(call))
    for name, measured in times.items():
        print(f"{name:52} {spread(measured)}")
    names = list(building)
    for plain, quantized in (names[:2], names[2:]):
        beyond = [q - p for q, p in zip(times[quantized], times[plain], strict=True)]
        print(f"{'beyond ' + plain.split(', ')[1]:52} {spread(beyond)}")


if __name__ == "__main__":
    main()
