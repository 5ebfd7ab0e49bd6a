"""The report as one HTML file that needs nothing else: no script, no font, no image beside it."""

from __future__ import annotations

from importlib.resources import files

from quant_zoo.report.charts import accuracy_chart, digit_image, histogram, percent, scale_strip
from quant_zoo.report.results import Results, VerifiedLayer

__all__ = ["report_page"]


def report_page(results: Results, epochs: int) -> str:
    """The page, as HTML text.

    Args:
        results: what to show.
        epochs: epochs of quantization-aware training, for the text.
    """
    # Jinja is a requirement of torch, so it is always there; imported here, since nothing else needs it.
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    folder = files("quant_zoo.report")
    css = "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in ("chart.css", "page.css"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    template = environment.from_string(folder.joinpath("page.html.j2").read_text(encoding="utf-8"))
    scales = [s for n in results.networks for layer in n.layers for s in layer.scales]
    scales += [a.scale for n in results.networks for a in n.activations]
    return template.render(
        r=results,
        epochs=epochs,
        title="LeNet on real digits, from 32 bits to 2",
        lead=_lead(results),
        tiles=_tiles(results),
        one_digit=percent(1 / results.test_digits),
        css=Markup(css),
        accuracy_chart=Markup(accuracy_chart(results)),
        histogram=lambda layer: Markup(histogram(layer)),
        scale_strip=lambda *a: Markup(scale_strip(*a)),
        scale_range=(min(scales), max(scales)),
        digit_image=digit_image,
        percent=percent,
        minus=lambda number: f"{number}".replace("-", "−"),
        short=lambda number: f"{number:.2g}",
        compared=list(zip(*([e.constants, *e.layers, e.total] for e in results.exports), strict=True)),
        verdict=_verdict,
    )


def _lead(results: Results) -> str:
    narrow = results.networks[-1]
    return (
        f"One small network, {results.train_digits:,} training digits, {len(results.networks)} precisions. "
        f"At {narrow.label} it reads {percent(narrow.trained)} of {results.test_digits:,} unseen digits right; "
        f"in float it reads {percent(results.float_network.trained)}."
    )


def _tiles(results: Results) -> list[tuple[str, str, str]]:
    whole = results.float_network
    tiles = [("float", percent(whole.trained), f"{whole.size_bits / 8192:,.0f} KiB")]
    for network in results.networks:
        ratio = whole.size_bits / network.size_bits
        tiles.append((network.label, percent(network.trained), f"{ratio:.1f} times smaller"))
    if results.exports:
        compared = sum(e.total.compared for e in results.exports)
        beyond = sum(e.total.diverged for e in results.exports)
        ties = sum(e.total.ties for e in results.exports)
        note = f"of {compared / 1e6:.1f} million compared; {ties:,} ties"
        tiles.append(("integers beyond a tie", f"{beyond:,}", note))
    return tiles


def _verdict(row: VerifiedLayer) -> str:
    """All equal, or how many are not and why, with the percentage that is equal; never rounded up to 100."""
    from markupsafe import Markup

    if row.equal == row.compared:
        return Markup('<span class="ok">all equal</span>')
    equal = f"{min(100 * row.equal / row.compared, 99.9999):.4f} % equal"
    reasons = ((row.ties, "tie" if row.ties == 1 else "ties"), (row.diverged, "beyond a tie"))
    found = ", ".join(f"{count:,} {what}" for count, what in reasons if count)
    kind = "bad" if row.diverged else "ok"
    return Markup('<span class="{}">{}</span><br><small>{}</small>').format(kind, found, equal)
