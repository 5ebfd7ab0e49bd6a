"""Charts as SVG text.

Widths are percentages and heights are pixels, so a chart fills its column while its letters keep their size. Colours
are CSS classes: the page, or :func:`standalone`, gives them their light and dark values.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from importlib.resources import files
from xml.sax.saxutils import escape

from quant_zoo.report.results import LayerResult, Results

__all__ = ["accuracy_chart", "digit_image", "histogram", "percent", "scale_strip", "standalone"]

ROW = 58
LEFT, RIGHT = 1.5, 98.5
KEY_HEIGHT = 46


def percent(fraction: float, digits: int = 1) -> str:
    """``0.9837`` as ``98.4 %``."""
    return f"{100 * fraction:.{digits}f} %"


def accuracy_chart(results: Results) -> str:
    """One row a network: a ring where rounding left it, a disc where training brought it, a dash for the float one."""
    networks = [results.float_network, *results.networks]
    lowest = min(value for n in networks for value in (n.trained, n.rounded) if value is not None)
    ticks = _ticks(lowest)
    span = 1 - ticks[0]

    def x(value: float) -> str:
        return f"{LEFT + (RIGHT - LEFT) * (value - ticks[0]) / span:.2f}%"

    height = ROW * len(networks) + 34
    bottom = height - 26
    parts = [f'<line class="grid" x1="{x(t)}" x2="{x(t)}" y1="26" y2="{bottom}"/>' for t in ticks]
    for tick in ticks:
        anchor = "start" if tick == ticks[0] else "end" if tick == 1 else "middle"
        parts.append(_text("tick", x(tick), height - 8, percent(tick, 0), anchor))
    float_x = x(results.float_network.trained)
    parts.append(f'<line class="reference" x1="{float_x}" x2="{float_x}" y1="26" y2="{bottom}"/>')
    for index, network in enumerate(networks):
        top = index * ROW
        y = top + 40
        parts.append(_text("name", "0", top + 18, escape(network.label)))
        parts.append(f'<line class="track" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        trained = x(network.trained)
        if network.rounded is None:
            parts.append(_text("value", "100%", top + 18, percent(network.trained), "end"))
        else:
            rounded = x(network.rounded)
            before = f'<tspan class="was">{percent(network.rounded)}</tspan>'
            parts.append(_text("value", "100%", top + 18, f"{before} → {percent(network.trained)}", "end"))
            parts.append(f'<line class="gain" x1="{rounded}" x2="{trained}" y1="{y}" y2="{y}"/>')
            parts.append(f'<circle class="rounded" cx="{rounded}" cy="{y}" r="6"/>')
        kind = "float" if network.rounded is None else "trained"
        parts.append(f'<circle class="{kind}" cx="{trained}" cy="{y}" r="6"/>')
    spoken = "; ".join(
        f"{n.label} {percent(n.trained)}" + (f", {percent(n.rounded)} before training" if n.rounded is not None else "")
        for n in networks
    )
    return _svg("Test accuracy of each network", spoken, height, "".join(parts))


def histogram(layer: LayerResult) -> str:
    """Bars: weights on each integer. Area behind: the float weights in units of their scale, before rounding."""
    codes = layer.highest - layer.lowest + 1
    height, tallest = 100.0, max(layer.counts)
    # A few codes get slim bars, so that the area behind stays visible; 255 codes need all the room there is.
    width = 0.34 if codes <= 31 else 0.85
    bars = []
    for index, count in enumerate(layer.counts):
        if count:
            left, top = index + 0.5 - width / 2, height * (1 - 0.94 * count / tallest)
            bars.append(f"M{left:.2f} {height:g}V{top:.1f}h{width:g}V{height:g}z")
    shapes = []
    if codes <= 31:
        step, peak = codes / len(layer.latent_counts), max(layer.latent_counts)
        outline = "".join(
            f"L{index * step:.2f} {height * (1 - 0.94 * count / peak):.1f}h{step:.3f}"
            for index, count in enumerate(layer.latent_counts)
        )
        shapes.append(f'<path class="latent" d="M0 {height:g}{outline}L{codes} {height:g}z"/>')
    shapes.append(f'<path class="bar" d="{"".join(bars)}"/>')
    title = f"Weights of {layer.name} on the integers {layer.lowest} to {layer.highest}"
    spoken = f"{layer.weights} weights, {percent(layer.zeros, 0)} of them 0"
    return (
        f'<svg class="histogram" role="img" viewBox="0 0 {codes} {height:g}" preserveAspectRatio="none">'
        f"<title>{escape(title)}</title><desc>{escape(spoken)}</desc>{''.join(shapes)}</svg>"
    )


def scale_strip(scales: Sequence[float], lowest: float, highest: float) -> str:
    """Every scale of a layer as a mark on a logarithmic axis from ``lowest`` to ``highest``."""
    span = math.log(highest / lowest) or 1.0
    marks = "".join(
        f'<line class="mark" x1="{(x := 2 + 96 * math.log(scale / lowest) / span):.1f}%" x2="{x:.1f}%" y1="3" y2="15"/>'
        for scale in sorted(scales)
    )
    title = f"{len(scales)} scales from {min(scales):.2g} to {max(scales):.2g}"
    return (
        f'<svg class="strip" role="img" width="100%" height="18"><title>{title}</title>'
        f'<line class="track" x1="0" x2="100%" y1="9" y2="9"/>{marks}</svg>'
    )


def digit_image(pixels: Sequence[Sequence[int]]) -> str:
    """Grey values as the data URI of a PNG with white as paper and black as ink."""
    rows = b"".join(b"\0" + bytes(255 - value for value in row) for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", len(pixels[0]), len(pixels), 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()


def standalone(svg: str, width: int = 720) -> str:
    """The accuracy chart as an SVG file of its own, with its colours, its key and a margin."""
    style = files("quant_zoo.report").joinpath("chart.css").read_text(encoding="utf-8")
    height = int(svg.split('height="', 1)[1].split('"', 1)[0])
    key = "".join(
        f'<circle class="{kind}" cx="{x}" cy="22" r="6"/>' + _text("key", str(x + 13), 27, words)
        for kind, x, words in (("rounded", 26, "rounded, not trained"), ("trained", 206, "trained quantized"))
    )
    inner = svg.replace("<svg ", f'<svg x="20" y="{KEY_HEIGHT}" viewBox="0 0 {width - 40} {height}" ', 1)
    inner = inner.replace('width="100%"', f'width="{width - 40}"', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height + KEY_HEIGHT + 16}" '
        f'viewBox="0 0 {width} {height + KEY_HEIGHT + 16}"><style>{style}</style>'
        f'<rect class="paper" width="100%" height="100%" rx="8"/>{key}{inner}</svg>\n'
    )


def _svg(title: str, spoken: str, height: int, body: str) -> str:
    return (
        f'<svg class="chart" role="img" width="100%" height="{height}">'
        f"<title>{escape(title)}</title><desc>{escape(spoken)}</desc>{body}</svg>"
    )


def _text(kind: str, x: str, y: int, content: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{content}</text>'


def _ticks(lowest: float) -> list[float]:
    """Round tick values that end at 1 and start at or below ``lowest``."""
    for step in (0.01, 0.02, 0.05, 0.1, 0.2):
        count = max(math.ceil((1 - lowest) / step - 1e-9), 1)
        if count <= 5:
            return [1 - step * (count - i) for i in range(count + 1)]
    return [0.0, 0.25, 0.5, 0.75, 1.0]
