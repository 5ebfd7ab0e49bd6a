"""The report: what its numbers say, that it is one file, and that it is whole HTML."""

import base64
import re
import struct
import xml.etree.ElementTree as ElementTree
import zlib
from html.parser import HTMLParser

import pytest
import torch

import quant_zoo
from quant_zoo.report import (
    ActivationResult,
    ExportResult,
    LayerResult,
    Misread,
    NetworkResult,
    Results,
    VerifiedLayer,
    accuracy_chart,
    activation_results,
    float_size_bits,
    layer_results,
    quantized_size_bits,
    report_page,
    standalone,
)
from quant_zoo.report.charts import digit_image, histogram, percent
from quant_zoo.training import calibrate

VOID = {"meta", "img", "br", "link", "line", "circle", "rect", "path", "input", "hr"}


@pytest.fixture
def results() -> Results:
    layer = LayerResult("conv1 <&>", 2, -1, 1, [2, 5, 3], [1, 1, 3, 2, 2, 1], [0.5, 0.25])
    network = NetworkResult("W2A2", "2 bits", 0.97, 1000, 0.9, [layer], [ActivationResult("relu1", 2, 0, 3, 1.5)])
    export = ExportResult(
        label="W2A2",
        format="QDQ",
        runtime="onnxruntime 1.0",
        file="a.onnx",
        file_bytes=2048,
        accuracy=0.97,
        model_accuracy=0.97,
        digits=200,
        layers=[VerifiedLayer("relu1", 1000, 997, 2, 1), VerifiedLayer("logits", 10, 10, 0, 0)],
        constants=VerifiedLayer("weights and biases", 10, 10, 0, 0),
    )
    misread = Misread([[0, 255], [128, 0]], 3, 8)
    return Results(
        float_network=NetworkResult("float", "", 0.98, 32000),
        networks=[network],
        exports=[export],
        misread=[misread],
        misread_by="W2A2",
        test_digits=200,
        train_digits=4000,
        source="here",
        facts={"Digits": "5 < 6"},
    )


class Balanced(HTMLParser):
    """Collects text and attributes, and checks that every element is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(page: str) -> Balanced:
    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    return parser


def test_page_is_whole_and_needs_no_other_file(results):
    page = report_page(results, epochs=6)
    parser = parsed(page)
    assert page.startswith("<!doctype html>")
    addresses = [v for _, name, v in parser.attributes if name in ("src", "href", "srcset", "xlink:href")]
    assert addresses and all(a.startswith(("data:", "#")) for a in addresses)
    assert "<script" not in page and "@import" not in page and "url(" not in page


def test_page_shows_what_was_measured(results):
    text = re.sub(r"\s+", " ", " ".join(parsed(report_page(results, epochs=6)).text))
    for shown in ("97.0 %", "98.0 %", "90.0 %", "1,000", "32,000", "3.1 %", "6 epochs", "onnxruntime 1.0", "read as"):
        assert shown in text, shown
    # 1,007 of 1,010 equal, 2 ties, 1 beyond: summed over both layers, without the constants.
    assert "1,010" in text and "99.7030 % equal" in text and "2 ties, 1 beyond a tie" in text


def test_names_are_escaped(results):
    assert "conv1 &lt;&amp;&gt;" in report_page(results, epochs=6)
    assert "5 &lt; 6" in report_page(results, epochs=6)


def test_tables_and_pictures_are_named_for_those_who_do_not_see_them(results):
    page = report_page(results, epochs=6)
    parser = parsed(page)
    assert page.count('role="img"') == page.count("<title>") - 1
    assert all(v for tag, name, v in parser.attributes if tag == "img" and name == "alt")
    assert page.count('tabindex="0"') == page.count("<table") == page.count('role="region"')
    assert '<html lang="en">' in page and "prefers-color-scheme: dark" in page and 'name="viewport"' in page


def test_chart_puts_each_network_where_its_accuracy_is(results):
    chart = ElementTree.fromstring(accuracy_chart(results))
    position = {c.get("class"): float(c.get("cx").rstrip("%")) for c in chart.iter("circle")}
    # Axis from 90 % at 1.5 to 100 % at 98.5.
    assert position["rounded"] == pytest.approx(1.5, abs=0.01)
    assert position["trained"] == pytest.approx(1.5 + 0.7 * 97, abs=0.01)
    assert position["float"] == pytest.approx(1.5 + 0.8 * 97, abs=0.01)


@pytest.mark.parametrize("lowest", [0.0, 0.1, 0.5, 0.85, 0.9, 0.95, 0.991, 1.0])
def test_axis_reaches_from_the_lowest_accuracy_to_one(results, lowest):
    network = NetworkResult("W1", "", lowest, 10, lowest)
    chart = accuracy_chart(Results(network, [network], [], [], "", 1, 1, ""))
    positions = [float(c.get("cx").rstrip("%")) for c in ElementTree.fromstring(chart).iter("circle")]
    assert all(1.4 <= p <= 98.6 for p in positions)


def test_standalone_chart_is_an_svg_file(results):
    root = ElementTree.fromstring(standalone(accuracy_chart(results)))
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("width") == "720"
    assert "prefers-color-scheme: dark" in root[0].text


def test_bar_heights_are_proportional_to_counts():
    layer = LayerResult("a", 2, -1, 1, [2, 4, 1], [1] * 6, [1.0])
    bars = ElementTree.fromstring(histogram(layer)).findall("path")[-1].get("d")
    tops = [float(top) for top in re.findall(r"V([\d.]+)h", bars)]
    assert [100 - t for t in tops] == pytest.approx([47, 94, 23.5], abs=0.1)


def test_digit_is_a_png_with_dark_ink():
    png = base64.b64decode(digit_image([[0, 255, 10]]).split(",", 1)[1])
    width, height = struct.unpack(">II", png[16:24])
    data = png[png.index(b"IDAT") + 4 : -16]
    assert (width, height) == (3, 1) and zlib.decompress(data) == bytes([0, 255, 0, 245])


def test_percent():
    assert percent(0.98349) == "98.3 %" and percent(1.0, 0) == "100 %"


def test_all_equal_is_the_only_hundred(results):
    exact = VerifiedLayer("relu1", 10**9, 10**9 - 1, 1, 0)
    export = results.exports[0]
    changed = ExportResult(**{**export.__dict__, "layers": [exact]})
    page = report_page(Results(**{**results.__dict__, "exports": [changed]}), epochs=1)
    assert "99.9999 % equal" in page and "1 tie<" in page


# What is read off a model.


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = quant_zoo.load("lenet", weight_bit_width=4, act_bit_width=4)
    images = torch.rand(62 * 4, 1, 28, 28)
    calibrate(model, images, quant_zoo.recipe("lenet").schedule["calibration"].__class__(batch_size=4))
    model(images[:2])
    return model


def test_layers_hold_the_models_own_codes(model):
    layers = {layer.name: layer for layer in layer_results(model)}
    assert list(layers) == ["conv1", "conv2", "fc1", "fc2"]
    for name, layer in layers.items():
        codes = getattr(model, name).int_weight()
        assert (layer.bit_width, layer.lowest, layer.highest) == (4, -7, 7)
        assert [int((codes == c).sum()) for c in range(-7, 8)] == list(layer.counts)
        assert layer.weights == codes.numel() == sum(layer.latent_counts)
        assert layer.zeros == float((codes == 0).double().mean())
        assert len(layer.scales) == codes.shape[0]


def test_activations_have_width_range_and_scale(model):
    found = {a.name: a for a in activation_results(model)}
    assert list(found) == ["quant_input", "relu1", "relu2", "relu3"]
    assert (found["quant_input"].bit_width, found["quant_input"].highest) == (8, 255)
    assert (found["relu1"].bit_width, found["relu1"].lowest, found["relu1"].highest) == (4, 0, 15)
    assert found["relu2"].scale == float(model.relu2.quant_act_scale())


def test_sizes_are_sums_of_widths(model):
    weights = 16 * 25 + 32 * 16 * 25 + 64 * 512 + 10 * 64
    channels = 16 + 32 + 64 + 10
    assert float_size_bits(quant_zoo.load_float("lenet")) == 32 * (weights + channels)
    # 4-bit weights, 32-bit biases, one 32-bit scale for each channel and each of four activation quantizers.
    assert quantized_size_bits(model) == 4 * weights + 32 * channels + 32 * (channels + 4)
