"""An explanation as a tree, a drawing and a page; and the layout under the drawing."""

import builtins
import copy
import inspect
import pickle
import random
import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from brevitas.errors import QuantConfigError
from brevitas.graph import explain
from brevitas.graph.explanation.layout import layered
from brevitas.inject import value
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import Int8Bias, Int8WeightPerTensorFloat, ShiftedUint8ActPerTensorFloat

SVG = "{http://www.w3.org/2000/svg}"


class W3(Int8WeightPerTensorFloat):
    bit_width = 3


@pytest.fixture(scope="module")
def why():
    return explain(QuantConv2d(1, 2, 3, weight_quant=W3, weight_scaling_per_output_channel=True).weight_quant)


def line_of_width() -> int:
    lines, start = inspect.getsourcelines(W3)
    return start + next(i for i, source in enumerate(lines) if "bit_width" in source)


def facts(why) -> dict:
    return {fact.name: fact for fact in why.parts[0].facts}


def test_is_its_text(why):
    assert why == why.text == str(why) and type(why.text) is str
    assert why.splitlines()[0].endswith("weight_quant=W3")
    for again in (copy.deepcopy(why), pickle.loads(pickle.dumps(why))):
        assert again == why and again.svg() == why.svg()


def test_who_set_each_value(why):
    by_name = facts(why)
    origins = {name: by_name[name].origin for name in by_name}
    assert origins["bit_width"] == "yours"
    assert origins["scaling_per_output_channel"] == "keyword"
    assert origins["module"] == origins["tracked_parameter_list"] == "layer"
    assert origins["quant_type"] == "preset"
    assert origins["tensor_quant"] == "solver"
    assert by_name["scaling_per_output_channel"].setter == "weight_scaling_per_output_channel of QuantConv2d"
    assert by_name["bit_width"].replaced == "8" and by_name["quant_type"].replaced is None
    assert by_name["tracked_parameter_list"].value == "[parameter of shape (2, 1, 3, 3)]"


def test_let_is_yours():
    layer = QuantLinear(2, 2, weight_quant=Int8WeightPerTensorFloat.let(bit_width=5))
    fact = facts(explain(layer.weight_quant))["bit_width"]
    assert (fact.origin, fact.setter) == ("yours", "let on Int8WeightPerTensorFloat")
    assert fact.location.file == __file__


def test_keyword_under_another_name_of_the_directive():
    layer = QuantLinear(2, 2, weight_scaling_per_channel=True)
    fact = facts(explain(layer.weight_quant))["scaling_per_output_channel"]
    assert fact.setter == "weight_scaling_per_channel of QuantLinear"


def test_constructor_defaults_are_told(why):
    assert ("quant_delay_steps", "0") in facts(why)["int_quant"].defaults
    row = next(row for row in why.splitlines() if row.strip().startswith("int_quant ="))
    assert "by default quant_delay_steps = 0" in row
    told = explain(QuantLinear(2, 2, weight_quant_delay_steps=4).weight_quant)
    assert "by default quant_delay_steps" not in told and "  quant_delay_steps = 4  [" in told


# The tree


def test_tree_has_each_value_below_what_consumed_it(why):
    rows = why.tree(color=False).splitlines()
    assert rows[0] == why.parts[0].title
    assert rows[1].startswith("└── tensor_quant = RescalingIntQuant")
    depth = {}
    above: list[tuple[int, str]] = []
    consumed = set()
    for row in rows[1:]:
        indent, name = re.match(r"([│ ]*[├└]── )(\w+) =", row).groups()
        while above and above[-1][0] >= len(indent):
            above.pop()
        if above:
            consumed.add((name, above[-1][1]))
        above.append((len(indent), name))
        depth.setdefault(name, len(indent))
    assert set(depth) == set(facts(why))
    # Each edge is drawn where its consumer first stands.
    assert consumed == {(name, reader) for name, fact in facts(why).items() for reader in fact.readers}
    assert f"bit_width = 3  (W3, test_explain_forms.py:{line_of_width()}, was 8)" in why.tree(color=False)


def test_tree_in_colours_says_the_same(why):
    colored = why.tree(color=True)
    assert "\x1b[" in colored and "\x1b[" not in why.tree(color=False)
    names = re.findall(r"[├└]── (\w+)", re.sub(r"\x1b\[[\d;]*m", "", colored))
    assert names == re.findall(r"[├└]── (\w+)", why.tree(color=False))


def test_tree_without_rich_is_plain(why, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        assert not name.startswith("rich"), "rich was imported"
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert why.tree(color=True) == why.tree(color=False)


def test_rich_prints_the_tree(why):
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    Console(file=out, width=250).print(why)
    assert "└── tensor_quant" in out.getvalue()


def test_tree_of_a_class_groups_declarations_by_who_made_them():
    rows = explain(W3).tree(color=False).splitlines()
    assert rows[:2] == ["W3", "├── W3"]
    assert rows[2] == f"│   └── bit_width = 3  (test_explain_forms.py:{line_of_width()}, was 8)"


# The drawing


def boxes_of(svg: ElementTree.Element) -> dict:
    """Name to (x, y, width, height) of each drawn box, in the coordinates of the part."""
    found = {}
    for group in svg.iter(f"{SVG}g"):
        if "node" in group.get("class", "").split():
            x, y = map(float, re.match(r"translate\((\S+) (\S+)\)", group.get("transform")).groups())
            rect = next(r for r in group.iter(f"{SVG}rect") if r.get("class") == "box")
            name = next(t for t in group.iter(f"{SVG}text") if t.get("class") == "name").text
            found[name] = (x, y, float(rect.get("width")), float(rect.get("height")))
    return found


@pytest.mark.parametrize(
    "proxy",
    [
        lambda: QuantConv2d(1, 2, 3, weight_quant=W3, weight_scaling_per_output_channel=True).weight_quant,
        lambda: QuantIdentity(act_quant=ShiftedUint8ActPerTensorFloat).act_quant,
        lambda: QuantLinear(2, 2, bias=True, bias_quant=Int8Bias).bias_quant,
        lambda: QuantLinear(2, 2).bias_quant,
    ],
    ids=["weight", "act", "bias", "off"],
)
def test_every_value_has_a_box_and_no_two_overlap(proxy):
    why = explain(proxy())
    root = ElementTree.fromstring(why.svg())
    boxes = boxes_of(root)
    assert set(boxes) == set(facts(why))
    placed = list(boxes.values())
    for index, (x, y, w, h) in enumerate(placed):
        for x2, y2, w2, h2 in placed[index + 1 :]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
    width, height = float(root.get("width")), float(root.get("height"))
    assert all(x >= 0 and y >= 0 and x + w + 28 <= width and y + h + 74 <= height for x, y, w, h in placed)
    # Consumers stand to the right of what they consume.
    for name, fact in facts(why).items():
        assert all(boxes[reader][0] > boxes[name][0] for reader in fact.readers)


def test_text_fits_its_box(why):
    root = ElementTree.fromstring(why.svg())
    for group in root.iter(f"{SVG}g"):
        if "node" in group.get("class", "").split():
            width = float(next(r for r in group.iter(f"{SVG}rect") if r.get("class") == "box").get("width"))
            for text in group.iter(f"{SVG}text"):
                size = 10.5 if text.get("class") == "by" else 12
                assert float(text.get("x")) + len("".join(text.itertext())) * size * 0.6 <= width


def test_drawing_tells_provenance_and_stands_alone(why):
    svg = why.svg()
    root = ElementTree.fromstring(svg)
    assert root.find(f"{SVG}title").text == "weight_quant = W3" and root.find(f"{SVG}desc").text
    labelled = root.get("aria-labelledby").split()
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) and set(labelled) <= set(ids)
    tooltips = [t.text for t in root.iter(f"{SVG}title")]
    width = next(t for t in tooltips if t.startswith("bit_width = 3"))
    assert f"{__file__}:{line_of_width()}" in width and "overrides 8 of PerTensorFloatScaling8bit" in width
    assert "read by bit_width_impl" in width
    assert any(span.get("class") == "was" and span.text == "8" for span in root.iter(f"{SVG}tspan"))
    assert "prefers-color-scheme: dark" in svg
    without_namespace = svg.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|@import|url\(|<script|<image|href=", without_namespace)


def test_drawing_is_deterministic(why):
    layer = QuantConv2d(1, 2, 3, weight_quant=W3)
    assert explain(layer.weight_quant).svg() == explain(layer.weight_quant).svg()
    assert why._repr_html_() == why.svg()


def test_markup_in_values_is_escaped():
    class Labelled(W3):
        label = "<b>&</title>"

        @value
        def bit_width(label):
            return len(label) - 8

    why = explain(QuantLinear(2, 2, weight_quant=Labelled).weight_quant)
    assert "'<b>&</title>'" in why
    texts = [text.text for text in ElementTree.fromstring(why.svg()).iter(f"{SVG}text")]
    assert "'<b>&</title>'" in texts
    assert "<b>" not in why.svg() + why.html()


def test_a_class_alone_cannot_be_drawn_and_has_a_page():
    with pytest.raises(QuantConfigError, match=r"explain\(W3\).svg\(\): .*layer.weight_quant"):
        explain(W3).svg()
    assert explain(W3)._repr_html_() is None
    assert "<svg" not in explain(W3).html() and "bit_width" in explain(W3).html()


def test_whole_model_in_every_form():
    model = nn.Sequential(QuantConv2d(1, 2, 3, weight_quant=W3), QuantReLU())
    why = explain(model)
    paths = ["0.input_quant", "0.output_quant", "0.weight_quant", "0.bias_quant", "1.input_quant", "1.act_quant"]
    found = [part.path for part in why.parts]
    assert set(found) <= set(paths) and {"0.weight_quant", "1.act_quant"} <= set(found)
    tree, html = why.tree(color=False), why.html()
    root = ElementTree.fromstring(why.svg())
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    page_ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(page_ids) == len(set(page_ids))
    for index, path in enumerate(found):
        assert f"{path}: " in tree
        assert f'<h2 id="part{index}">{path} = ' in html and f'href="#part{index}"' in html
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(|<script|<img", html)


# The layout


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 14))
    rng = random.Random(draw(st.integers(0, 2**31)))
    sizes = {f"n{i}": (rng.uniform(20, 90), rng.uniform(14, 60)) for i in range(count)}
    edges = [(f"n{i}", f"n{j}") for i in range(count) for j in range(i + 1, count) if rng.random() < 0.25]
    return sizes, edges


@given(graphs())
def test_layout_keeps_boxes_apart_and_wires_joined(graph):
    sizes, edges = graph
    plan = layered(sizes, edges)
    assert plan == layered(sizes, edges)
    boxes = plan.boxes
    assert set(boxes) == set(sizes)
    for name, box in boxes.items():
        assert box.width >= sizes[name][0] and box.height == sizes[name][1]
        assert box.x >= 0 and box.x + box.width <= plan.width + 1e-6
        assert box.y >= -1e-6 and box.y + box.height <= plan.height + 1e-6
        for other, its in boxes.items():
            apart = box.x + box.width <= its.x or its.x + its.width <= box.x
            assert name == other or apart or box.y + box.height <= its.y + 1e-6 or its.y + its.height <= box.y + 1e-6
    for source, target in edges:
        assert boxes[source].x + boxes[source].width < boxes[target].x
        # Wires of the source lead without a break from its right side to the left side of the target.
        box = boxes[source]
        reached = {(box.x + box.width, box.y + box.height / 2)}
        arrived = False
        for wire in sorted((w for w in plan.wires if w.source == source), key=lambda w: (w.start[0], w.end[0])):
            if any(abs(wire.start[0] - x) < 1e-6 and abs(wire.start[1] - y) < 1e-6 for x, y in reached):
                reached.add(wire.end)
                arrived |= wire.arrives and target in wire.targets
        assert arrived
    for wire in plan.wires:
        if wire.arrives:
            box = boxes[wire.targets[0]]
            assert wire.end[0] == box.x and box.y <= wire.end[1] <= box.y + box.height


def test_layout_draws_a_ladder_without_crossings():
    names = [f"{side}{i}" for i in range(5) for side in "ab"]
    plan = layered(dict.fromkeys(names, (20.0, 10.0)), [(f"a{i}", f"b{4 - i}") for i in range(5)])
    tops = [(plan.boxes[f"a{i}"].y, plan.boxes[f"b{4 - i}"].y) for i in range(5)]
    assert sorted(tops) == sorted(tops, key=lambda pair: pair[1])


@pytest.mark.parametrize(
    ("edges", "fragment"),
    [([("a", "b"), ("b", "a")], "circle: a -> b -> a"), ([("a", "z")], "'z' names a node without")],
)
def test_layout_refuses(edges, fragment):
    with pytest.raises(ValueError, match=re.escape(fragment) if "circle" in fragment else fragment):
        layered({"a": (1.0, 1.0), "b": (1.0, 1.0)}, edges)
